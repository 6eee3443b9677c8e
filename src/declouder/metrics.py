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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from declouder.errors import DataError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from declouder.winograd import WinogradConvolution

Image = NDArray[Any]
BACKBONE_VARIABLE = "DECLOUDER_LPIPS_BACKBONE"
BACKBONE_FILE = "alexnet-owt-7be5be79.pth"
BACKBONE_URL = f"https://download.pytorch.org/models/{BACKBONE_FILE}"
LPIPS_SMALLEST_PX = 31
"""AlexNet's second pooling leaves nothing of smaller images."""

# Wang's window is cut at 3.5 sigma: 11 x 11.
GAUSSIAN = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
GAUSSIAN /= GAUSSIAN.sum()
UNIFORM = np.full(7, 1 / 7)
SSIM_BORDER_PX = len(GAUSSIAN) // 2
"""How much narrower than the image a map of similarity is, on each side: there the window would leave it."""

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
    ssim_map: NDArray[np.float64]
    """Where ssim comes from: (H - 10, W - 10), mean over bands; `SSIM_BORDER_PX` is missing on each side."""


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
    maps = _ssim_maps(_planes(restored), _planes(clear), span)
    similarities = [float(plane.mean()) for plane in maps]
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
    return Scores(overall, bands, maps.mean(0))


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
    return [float(plane.mean()) for plane in _ssim_maps(_planes(restored), _planes(clear), span)]


def mae(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the mean absolute error as a share of the data range."""
    span = _checked_range(restored, clear, data_range)
    return float(np.mean(np.abs(restored.astype(np.float64) - clear))) / span


def sam(restored: Image, clear: Image) -> float | None:
    """Return the mean spectral angle in degrees; None for a single band or where no pixel has a spectrum."""
    _checked_range(restored, clear, None)
    if clear.shape[2] == 1:
        return None
    a, b = _planes(restored), _planes(clear)
    length_a, length_b = (np.sqrt(np.square(x).sum(0)) for x in (a, b))
    valid = (length_a > 0) & (length_b > 0)
    if not valid.any():
        return None
    # Pixels without a spectrum are divided by 1 here and left out below.
    a /= np.where(valid, length_a, 1)
    b /= np.where(valid, length_b, 1)
    # 2 asin(|a - b| / 2) is the angle too, and unlike acos(a . b) it is exact for near spectra.
    a -= b
    chord = np.sqrt(np.square(a).sum(0))[valid]
    return float(np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)).mean()))


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
        first: (weight, bias) of the first convolution, 11 x 11 with stride 4.
        others: the four convolutions of stride 1.
        linear: v_l, five tensors (C_l,).
        backbone_sha256: of the backbone's file.
    """

    first: tuple[Tensor, Tensor]
    others: Sequence[WinogradConvolution]
    linear: Sequence[Tensor]
    backbone_sha256: str

    @classmethod
    def from_files(cls, backbone: Path) -> Lpips:
        """Load AlexNet from `backbone` and the published linear weights, which ship with torchmetrics.

        Raises:
            OptionError: if the file is missing or is no AlexNet.
        """
        import torch

        from declouder.winograd import WinogradConvolution

        if not backbone.is_file():
            raise OptionError(
                f"LPIPS backbone {backbone} does not exist; give torchvision's AlexNet ({BACKBONE_FILE})"
            )
        try:
            # The file is read as tensors only; nothing in it is executed.
            found = torch.load(backbone, map_location="cpu", weights_only=True)
            weights = [
                (found[f"features.{layer}.weight"].float(), found[f"features.{layer}.bias"].float())
                for layer in (0, 3, 6, 8, 10)
            ]
            first = weights[0][0].contiguous(memory_format=torch.channels_last), weights[0][1]
            # 5 x 5 taps first, then 3 x 3; these tiles are the fastest for maps of 31 and 15 px.
            others = [
                WinogradConvolution.of_weight(weight, bias, results)
                for (weight, bias), results in zip(weights[1:], (4, 3, 3, 3), strict=True)
            ]
        except Exception as error:
            raise OptionError(
                f"{backbone} is not torchvision's AlexNet ({type(error).__name__}: {error}); wanted {BACKBONE_FILE}"
            ) from None
        spec = importlib.util.find_spec("torchmetrics")
        assert spec is not None, "torchmetrics is a dependency"
        assert spec.origin is not None
        published = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
        heads = torch.load(published, map_location="cpu", weights_only=True)
        linear = [heads[f"lin{layer}.model.1.weight"].float().flatten() for layer in range(5)]
        return cls(first, others, linear, hashlib.sha256(backbone.read_bytes()).hexdigest())

    def distances(self, a: Image, b: Image) -> list[float]:
        """Return the distance of each pair of (N, H, W, 3) images; the networks expect [-1, 1]."""
        import torch
        from torch.nn import functional

        images = np.concatenate([a, b]).astype(np.float32)
        images -= np.array([-0.030, -0.088, -0.188], np.float32)
        images /= np.array([0.458, 0.448, 0.450], np.float32)
        with torch.inference_mode():
            # Bands stay innermost throughout, which convolves, pools and normalises fastest on CPUs.
            x = functional.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), *self.first, stride=4, padding=2)
            total = torch.zeros(len(a))
            for layer, linear in enumerate(self.linear):
                if layer > 0:
                    x = self.others[layer - 1](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                functional.relu_(x)
                total += _layer_distance(x.permute(0, 2, 3, 1).flatten(1, 2), linear)
                if layer < 2:
                    x = functional.max_pool2d(x, 3, 2)
        return [float(distance) for distance in total]


def _layer_distance(features: Tensor, linear: Tensor) -> Tensor:
    """Return (N,) distances of (2 N, H W, C) features: the first N images to the others."""
    import torch

    scale = 1 / (torch.linalg.vector_norm(features, dim=2, keepdim=True) + 1e-10)
    half = len(features) // 2
    difference = features[:half] * scale[:half] - features[half:] * scale[half:]
    weighted: Tensor = difference.square_() @ linear
    return weighted.mean(1)


def _paper_ssim_of_levels(ours: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> float:
    """SSIM of the images that `paper_levels` makes."""
    if theirs.shape[2] == 3:
        a, b = ((image @ PAPER_LUMA)[None] for image in (ours, theirs))
    else:
        # The luma of a grey triple: not quite the band itself, as the weights sum to 1.000001.
        a, b = (_planes(image) * PAPER_LUMA.sum() for image in (ours, theirs))
    # 49 pixels a window: sample covariance is 49 / 48 of the population's.
    return float(_ssim_maps(a, b, 255, UNIFORM, 49 / 48).mean())


def _ssim_maps(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    span: float,
    window: NDArray[np.float64] = GAUSSIAN,
    covariance_factor: float = 1.0,
) -> NDArray[np.float64]:
    """Similarity of (C, H, W) planes at each pixel whose window lies inside: (C, H - n + 1, W - n + 1)."""
    _check_window(a[0], len(window))
    # Only the sum of the two variances is needed, which saves one of five blurs.
    mean_a, mean_b, squares_ab, product = _blurred(np.stack([a, b, a * a + b * b, a * b]), window)
    both = mean_a * mean_b
    squares = mean_a * mean_a + mean_b * mean_b
    variances = covariance_factor * (squares_ab - squares)
    covariance = covariance_factor * (product - both)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    return np.asarray(((2 * both + c1) * (2 * covariance + c2)) / ((squares + c1) * (variances + c2)))


def _blurred(x: NDArray[np.float64], window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weight with `window` along both of the last axes, where it fits.

    As products of banded matrices with blocks of 16 rows, for which BLAS is twice as fast as a running sum.
    """
    block = 16
    more = len(window) - 1
    band = np.zeros((block, block + more))
    for row in range(block):
        band[row, row : row + more + 1] = window
    for _ in range(2):
        rows = x.shape[-2] - more
        out = np.empty((*x.shape[:-2], rows, x.shape[-1]))
        for first in range(0, rows, block):
            count = min(block, rows - first)
            piece = x[..., first : first + count + more, :]
            np.matmul(band[:count, : count + more], piece, out=out[..., first : first + count, :])
        x = out.swapaxes(-1, -2)
    return x


def _planes(image: Image) -> NDArray[np.float64]:
    """Return (C, H, W) float64 of an (H, W, C) image."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float64)


def _to_unit(image: Image, data_range: float) -> NDArray[np.float32]:
    """Map [0, data_range] to [-1, 1] in float32; for 255 this is x / 127.5 - 1."""
    return np.asarray(image.astype(np.float32) / np.float32(data_range / 2) - np.float32(1))


def _triples(image: Image, band_names: Sequence[str] | None) -> list[Image]:
    """Return (H, W, 3) images of an (H, W, C) one: its red, green and blue, or each band three times."""
    names = [name.lower() for name in band_names] if band_names is not None else []
    if {"red", "green", "blue"} <= set(names):
        return [image[..., [names.index("red"), names.index("green"), names.index("blue")]]]
    if image.shape[2] == 3 and not names:
        return [image]
    return [np.repeat(image[..., c : c + 1], 3, 2) for c in range(image.shape[2])]


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
