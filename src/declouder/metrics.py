"""How near a restored image is to the clear one: the standard scores and, beside them, the paper's own.

Images are (H, W, C) arrays, both of one shape, in their own numbers; `data_range` is the span of those
numbers (255 for uint8, 65535 for uint16, 1 for floats unless given).

    psnr    10 log10(range^2 / mse), one mse over all bands, dB                       higher is better
    ssim    Wang et al. 2004: 11 x 11 Gaussian window, sigma 1.5, population covariance, mean over bands
    lpips   Zhang et al. 2018: AlexNet, version 0.1, inputs in [-1, 1]                lower is better
    mae     mean |restored - clear| as a share of the range
    sam     angle between the spectra of a pixel, mean over pixels, degrees

The `paper_` scores follow the evaluator of the paper's authors to the bit, slips included, because published
tables were made so: both images go through x / 127.5 - 1 and (x + 1) * 127.5 in float32 and are cut, not
rounded, to uint8; SSIM is taken on luma (BT.601 weights that sum to 1.000001) with a 7 x 7 uniform window and
sample covariance; LPIPS is fed with 0..255 where its networks expect [-1, 1]. SSIM and LPIPS of images of
other than three bands are taken band by band, each as a grey triple, and averaged. Never compare a `paper_`
score with a standard one.

PSNR and both SSIMs equal scikit-image's within 1e-6; torch is loaded for LPIPS alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

from declouder.errors import DataError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

Image = NDArray[Any]
BACKBONE_VARIABLE = "DECLOUDER_LPIPS_BACKBONE"
BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE_FILE}"
LPIPS_SMALLEST_PX = 31
"""AlexNet's second pooling leaves nothing of smaller images."""

PAPER_LUMA = np.array([0.298912, 0.586611, 0.114478])
DEFINITIONS = {
    "psnr": "dB; one mean squared error over all bands",
    "ssim": "11x11 Gaussian window, sigma 1.5, population covariance, K1 0.01, K2 0.03; mean over bands",
    "lpips": "AlexNet v0.1, inputs in [-1, 1]; red, green, blue where the bands have them, else the mean over"
    " bands, each as a grey triple",
    "mae": "mean absolute error as a share of the data range",
    "sam": "mean spectral angle in degrees; pixels that are all zero in one of the images are left out",
    "paper_psnr": "the paper's evaluator: both images cut to uint8 after a float32 round trip",
    "paper_ssim": "the paper's evaluator: luma, 7x7 uniform window, sample covariance",
    "paper_lpips": "the paper's evaluator: AlexNet v0.1 fed with 0..255",
}
"""What each score means, for the files that carry scores."""


@dataclass(frozen=True)
class Scores:
    """All scores of one image."""

    overall: dict[str, float | None]
    """Every score of `DEFINITIONS`; None where it cannot be had."""
    bands: list[dict[str, float]]
    """psnr, ssim and mae of each band."""


def score(
    restored: Image,
    clear: Image,
    *,
    lpips: Lpips | None,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
) -> Scores:
    """Return every score of one image.

    Args:
        restored, clear: (H, W, C), in their own numbers.
        lpips: from `load_lpips`; without it, and for images under 31 px, both LPIPS are None.
        band_names: C names; they say where red, green and blue are.
        data_range: the span of the numbers; None takes the dtype's.

    Raises:
        DataError: if the shapes differ or are too small for the windows.
    """
    span = _checked_range(restored, clear, data_range)
    ours, theirs = paper_levels(restored, span), paper_levels(clear, span)
    similarities = ssim_per_band(restored, clear, data_range=span)
    overall: dict[str, float | None] = {
        "psnr": psnr(restored, clear, data_range=span),
        "ssim": float(np.mean(similarities)),
        "lpips": None,
        "mae": mae(restored, clear, data_range=span),
        "sam": sam(restored, clear),
        "paper_psnr": psnr(ours, theirs),
        "paper_ssim": _paper_ssim_of_levels(ours, theirs),
        "paper_lpips": None,
    }
    if lpips is not None and min(clear.shape[:2]) >= LPIPS_SMALLEST_PX:
        # One pass through the network for both protocols.
        plain = [_triples(_to_unit(image, span), band_names) for image in (restored, clear)]
        paper = [_triples(levels, None) for levels in (ours, theirs)]
        distances = lpips.distances(np.stack(plain[0] + paper[0]), np.stack(plain[1] + paper[1]))
        overall["lpips"] = float(np.mean(distances[: len(plain[0])]))
        overall["paper_lpips"] = float(np.mean(distances[len(plain[0]) :]))
    bands = []
    for c, similarity in enumerate(similarities):
        one, other = restored[..., c : c + 1], clear[..., c : c + 1]
        bands.append(
            {
                "psnr": psnr(one, other, data_range=span),
                "ssim": similarity,
                "mae": mae(one, other, data_range=span),
            }
        )
    return Scores(overall, bands)


def psnr(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal images."""
    span = _checked_range(restored, clear, data_range)
    difference = restored.astype(np.float64) - clear
    mse = float(np.mean(np.square(difference)))
    return math.inf if mse == 0 else 10 * math.log10(span**2 / mse)


def ssim(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the structural similarity, in [-1, 1], mean over bands."""
    return float(np.mean(ssim_per_band(restored, clear, data_range=data_range)))


def ssim_per_band(restored: Image, clear: Image, *, data_range: float | None = None) -> list[float]:
    """Return the structural similarity of each band, in [-1, 1]."""
    span = _checked_range(restored, clear, data_range)
    _check_window(clear, 11)

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(x, 1.5, truncate=3.5), np.float64)  # radius int(3.5 * 1.5 + 0.5) = 5

    return [_ssim_of_plane(restored[..., c], clear[..., c], span, blur, 5, 1.0) for c in range(clear.shape[2])]


def mae(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the mean absolute error as a share of the data range."""
    span = _checked_range(restored, clear, data_range)
    return float(np.mean(np.abs(restored.astype(np.float64) - clear))) / span


def sam(restored: Image, clear: Image) -> float | None:
    """Return the mean spectral angle in degrees; None for a single band or where no pixel has a spectrum."""
    _checked_range(restored, clear, None)
    if clear.shape[2] == 1:
        return None
    a, b = (image.reshape(-1, image.shape[2]).astype(np.float64) for image in (restored, clear))
    length_a, length_b = (np.sqrt(np.einsum("pc,pc->p", x, x)) for x in (a, b))
    valid = (length_a > 0) & (length_b > 0)
    if not valid.any():
        return None
    a = a[valid] / length_a[valid, None]
    b = b[valid] / length_b[valid, None]
    # 2 asin(|a - b| / 2) is the angle too, and unlike acos(a . b) it is exact for near spectra.
    chord = np.sqrt(np.einsum("pc,pc->p", a - b, a - b))
    return float(np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1))).mean())


def lpips(
    restored: Image,
    clear: Image,
    network: Lpips,
    *,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
) -> float:
    """Return the perceptual distance, 0 for equal images: on RGB if there, else the mean over bands."""
    span = _checked_range(restored, clear, data_range)
    _check_window(clear, LPIPS_SMALLEST_PX)
    ours, theirs = (np.stack(_triples(_to_unit(image, span), band_names)) for image in (restored, clear))
    return float(np.mean(network.distances(ours, theirs)))


def paper_psnr(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return PSNR in dB as the paper's evaluator does."""
    span = _checked_range(restored, clear, data_range)
    return psnr(paper_levels(restored, span), paper_levels(clear, span))


def paper_ssim(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return SSIM as the paper's evaluator does: on luma, or the mean over bands if they are not three."""
    span = _checked_range(restored, clear, data_range)
    return _paper_ssim_of_levels(paper_levels(restored, span), paper_levels(clear, span))


def paper_lpips(restored: Image, clear: Image, network: Lpips, *, data_range: float | None = None) -> float:
    """Return LPIPS as the paper's evaluator does: fed with 0..255, band by band if they are not three."""
    span = _checked_range(restored, clear, data_range)
    _check_window(clear, LPIPS_SMALLEST_PX)
    ours, theirs = (np.stack(_triples(paper_levels(image, span), None)) for image in (restored, clear))
    return float(np.mean(network.distances(ours, theirs)))


def paper_levels(image: Image, data_range: float) -> NDArray[np.uint8]:
    """Return the uint8 image that the paper's evaluator scores: to [-1, 1] and back in float32, then cut.

    For 8-bit images 63 of the 256 levels come out one lower.
    """
    x = _to_unit(image, data_range)
    return np.asarray(((x + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8))


def load_lpips(backbone: Path | None = None, *, download: bool = False) -> tuple[Lpips | None, str]:
    """Return LPIPS and where its backbone came from, or None and the reason why there is none.

    The backbone is torchvision's AlexNet (all of it or its `features`), looked for at `backbone`, else where
    the environment variable DECLOUDER_LPIPS_BACKBONE points, else in torch hub's cache. Nothing is downloaded
    unless `download` is set; the download's hash is checked.

    Raises:
        OptionError: if the path or variable is given and no AlexNet lies there.
    """
    import torch

    named = os.environ.get(BACKBONE_VARIABLE)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE
    if backbone is not None:
        return Lpips.from_files(backbone), str(backbone)
    if named:
        return Lpips.from_files(Path(named)), f"{named} ({BACKBONE_VARIABLE})"
    if download and not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(BACKBONE_URL, str(cached), BACKBONE_FILE[-12:-4], progress=False)
        except (OSError, RuntimeError) as error:
            return (
                None,
                f"the LPIPS backbone could not be downloaded ({error}); give it with --lpips-backbone",
            )
    if cached.is_file():
        return Lpips.from_files(cached), str(cached)
    return None, (
        f"no LPIPS backbone: give torchvision's AlexNet weights ({BACKBONE_FILE}) with --lpips-backbone"
        f" or {BACKBONE_VARIABLE}"
    )


@dataclass(frozen=True)
class Lpips:
    """The perceptual distance of Zhang et al. 2018: sum over five layers of weighted squared differences.

    d = sum_l mean_hw sum_c v_lc (f_lc(a) - f_lc(b))^2, f_l being AlexNet's features after each ReLU,
    brought to length 1 over the channels c.

    Attributes:
        convolutions: (weight, bias) of the five convolutions.
        linear: v_l, five tensors (C_l,).
        backbone_sha256: of the backbone's file.
    """

    convolutions: Sequence[tuple[Tensor, Tensor]]
    linear: Sequence[Tensor]
    backbone_sha256: str

    @classmethod
    def from_files(cls, backbone: Path) -> Lpips:
        """Load AlexNet from `backbone` and the published linear weights, which ship with torchmetrics.

        Raises:
            OptionError: if the file is missing or is no AlexNet.
        """
        import torch

        if not backbone.is_file():
            raise OptionError(
                f"LPIPS backbone {backbone} does not exist; give torchvision's AlexNet ({BACKBONE_FILE})"
            )
        try:
            # The file is read as tensors only; nothing in it is executed.
            found = torch.load(backbone, map_location="cpu", weights_only=True)
            convolutions = [
                (
                    # The layout that convolves and pools fastest on CPUs.
                    found[f"features.{layer}.weight"].float().contiguous(memory_format=torch.channels_last),
                    found[f"features.{layer}.bias"].float(),
                )
                for layer in (0, 3, 6, 8, 10)
            ]
        except Exception as error:
            raise OptionError(
                f"{backbone} is not torchvision's AlexNet ({type(error).__name__}: {error}); wanted {BACKBONE_FILE}"
            ) from None
        spec = importlib.util.find_spec("torchmetrics")
        assert spec is not None, "torchmetrics is a dependency"
        assert spec.origin is not None
        weights = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
        heads = torch.load(weights, map_location="cpu", weights_only=True)
        linear = [heads[f"lin{layer}.model.1.weight"].float().flatten() for layer in range(5)]
        return cls(convolutions, linear, hashlib.sha256(backbone.read_bytes()).hexdigest())

    def distances(self, a: Image, b: Image) -> list[float]:
        """Return the distance of each pair of (N, 3, H, W) images; the networks expect [-1, 1]."""
        import torch
        from torch.nn import functional

        with torch.inference_mode():
            x = torch.from_numpy(np.concatenate([a, b]).astype(np.float32))
            shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
            scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
            x = ((x - shift) / scale).contiguous(memory_format=torch.channels_last)
            total = torch.zeros(len(a))
            for layer, (weight, bias) in enumerate(self.convolutions):
                if layer in (1, 2):
                    x = functional.max_pool2d(x, 3, 2)
                stride, padding = (4, 2) if layer == 0 else (1, 2 if layer == 1 else 1)
                x = functional.relu_(functional.conv2d(x, weight, bias, stride=stride, padding=padding))
                f = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                squared = (f[: len(a)] - f[len(a) :]).square()  # (N, C, h, w)
                total += torch.einsum("nchw,c->n", squared, self.linear[layer]) / squared[0, 0].numel()
        return [float(distance) for distance in total]


def _paper_ssim_of_levels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """SSIM of the images that `paper_levels` makes."""
    _check_window(theirs, 7)
    if theirs.shape[2] == 3:
        planes = [(ours @ PAPER_LUMA, theirs @ PAPER_LUMA)]
    else:
        # The luma of a grey triple: not quite the band itself, as the weights sum to 1.000001.
        grey = PAPER_LUMA.sum()
        planes = [(ours[..., c] * grey, theirs[..., c] * grey) for c in range(theirs.shape[2])]

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(uniform_filter(x, 7), np.float64)

    # 49 pixels a window: sample covariance is 49 / 48 of the population's.
    return float(np.mean([_ssim_of_plane(a, b, 255, blur, 3, 49 / 48) for a, b in planes]))


def _ssim_of_plane(
    a: Image,
    b: Image,
    span: float,
    blur: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    border: int,
    covariance_factor: float,
) -> float:
    """Mean SSIM of two (H, W) planes away from the border, where the window would leave the image."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = blur(x), blur(y)
    both = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    # Only the sum of the two variances is needed, which saves one of five blurs.
    variances = covariance_factor * (blur(x * x + y * y) - squares)
    covariance = covariance_factor * (blur(x * y) - both)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    similarity = ((2 * both + c1) * (2 * covariance + c2)) / ((squares + c1) * (variances + c2))
    return float(similarity[border:-border, border:-border].mean())


def _to_unit(image: Image, data_range: float) -> NDArray[np.float32]:
    """Map [0, data_range] to [-1, 1] in float32; for 255 this is x / 127.5 - 1."""
    return np.asarray(image.astype(np.float32) / np.float32(data_range / 2) - np.float32(1))


def _triples(image: Image, band_names: Sequence[str] | None) -> list[Image]:
    """Return (3, H, W) images of an (H, W, C) one: its red, green and blue, or each band three times."""
    planes = image.transpose(2, 0, 1)
    names = [name.lower() for name in band_names] if band_names is not None else []
    if {"red", "green", "blue"} <= set(names):
        return [planes[[names.index("red"), names.index("green"), names.index("blue")]]]
    if len(planes) == 3 and not names:
        return [planes]
    return [np.stack([plane] * 3) for plane in planes]


def _checked_range(restored: Image, clear: Image, data_range: float | None) -> float:
    """Check that two images can be compared; return the span of their numbers."""
    if restored.ndim != 3 or restored.shape != clear.shape:
        raise DataError(
            f"restored is {restored.shape} and clear {clear.shape}; wanted one shape (height, width, bands)"
        )
    if data_range is not None:
        if not data_range > 0:
            raise OptionError(f"data range {data_range:g} is not above 0; for 8-bit images it is 255")
        return data_range
    if restored.dtype != clear.dtype:
        raise DataError(f"restored is {restored.dtype} and clear {clear.dtype}; give both in one type")
    return float(np.iinfo(clear.dtype).max) if np.issubdtype(clear.dtype, np.integer) else 1.0


def _check_window(image: Image, smallest: int) -> None:
    if min(image.shape[:2]) < smallest:
        raise DataError(
            f"an image of {image.shape[0]} x {image.shape[1]} px is too small to score;"
            f" wanted {smallest} px or more"
        )
