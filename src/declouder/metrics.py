"""How near a restored image is to the clear one: the standard scores and, beside them, the paper's own.

Images are (H, W, C) arrays, both of one shape, in their own numbers and without NaN; `data_range` is the span of
those numbers. None takes the data type's: 255 for uint8, 65535 for uint16, 1 for floats; both images must then be
of one type. `score` gives all scores at once; each can be had alone by the function of its name.

Every function raises `DataError` for images that cannot be compared (shapes or types that differ, no pixel, NaN,
too small for a window) and `OptionError` for a `data_range` that is no number above 0.

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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.arguments import largest_of
from declouder.errors import DataError, OptionError
from declouder.lpips import BACKBONE_VARIABLE as BACKBONE_VARIABLE
from declouder.lpips import Lpips as Lpips
from declouder.lpips import load_lpips as load_lpips
from declouder.rgb import rgb_places

Image = NDArray[Any]
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
    bands: list[dict[str, float | None]]
    """psnr, ssim, mae and lpips of each band; lpips is None where it was not asked for or cannot be had."""
    ssim_map: NDArray[np.float64]
    """Where ssim comes from: (H - 10, W - 10), mean over bands; `SSIM_BORDER_PX` is missing on each side."""


def score(
    restored: Image,
    clear: Image,
    *,
    lpips: Lpips | None,
    band_lpips: bool = False,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
) -> Scores:
    """Return every score of one image.

    Args:
        restored, clear: (H, W, C), of one shape, 11 px or more to each side.
        lpips: network from `load_lpips`; with None, and for images under 31 px, every LPIPS is None.
        band_lpips: take LPIPS of each band too, as a grey triple: half of the time again for each band.
        band_names: C names, such as "red"; they say where red, green and blue are. None: three bands are red, green
            and blue, others are compared band by band.
        data_range: the span of the numbers; None takes the dtype's.

    Raises:
        DataError: if the images cannot be compared, or are too small for SSIM's window.
        OptionError: if the range is no number above 0, or there is not one name a band.
    """
    span = _checked_range(restored, clear, data_range)
    _check_names(clear, band_names)
    ours, theirs = paper_levels(restored, span), paper_levels(clear, span)
    planes = _planes(restored), _planes(clear)
    maps = _ssim_maps(*planes, span)
    similarities = [float(plane.mean()) for plane in maps]
    overall: dict[str, float | None] = {
        "psnr": psnr(restored, clear, data_range=span),
        "ssim": float(np.mean(similarities)),
        "lpips": None,
        "mae": mae(restored, clear, data_range=span),
        "sam": _sam_of_planes(*planes),
        "paper_psnr": psnr(ours, theirs),
        "paper_ssim": _paper_ssim_of_levels(ours, theirs),
        "paper_lpips": None,
    }
    perceptual: Sequence[float | None] = [None] * clear.shape[2]
    if lpips is not None and min(clear.shape[:2]) >= LPIPS_SMALLEST_PX:
        signed = [_to_signed(image, span) for image in (restored, clear)]
        kinds = [[_triples(image, band_names) for image in signed], [_triples(x, None) for x in (ours, theirs)]]
        if band_lpips:
            kinds.append([_grey_triples(image) for image in signed])
        # One pass through the network for all kinds.
        a, b = (np.stack([triple for kind in kinds for triple in kind[side]]) for side in (0, 1))
        ends = np.cumsum([len(kind[0]) for kind in kinds])
        plain, paper, *by_band = np.split(lpips.distances(a, b), ends[:-1])
        overall["lpips"], overall["paper_lpips"] = float(plain.mean()), float(paper.mean())
        perceptual = by_band[0].tolist() if by_band else perceptual
    bands: list[dict[str, float | None]] = []
    for c, similarity in enumerate(similarities):
        one, other = restored[..., c : c + 1], clear[..., c : c + 1]
        bands.append(
            {
                "psnr": psnr(one, other, data_range=span),
                "ssim": similarity,
                "mae": mae(one, other, data_range=span),
                "lpips": perceptual[c],
            }
        )
    return Scores(overall, bands, maps.mean(0))


def psnr(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the PSNR in dB, of one mean squared error over all bands; infinite for equal images.

    Args:
        restored, clear: (H, W, C), of one shape.
        data_range: the span of the numbers; None takes the dtype's.
    """
    span = _checked_range(restored, clear, data_range)
    difference = restored.astype(np.float64) - clear
    mse = float(np.mean(np.square(difference)))
    return math.inf if mse == 0 else 10 * math.log10(span**2 / mse)


def ssim(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the structural similarity, mean over bands: 1 for equal images, at least -1.

    Args:
        restored, clear: (H, W, C), of one shape, 11 px or more to each side.
        data_range: the span of the numbers; None takes the dtype's.
    """
    return float(np.mean(ssim_per_band(restored, clear, data_range=data_range)))


def ssim_per_band(restored: Image, clear: Image, *, data_range: float | None = None) -> list[float]:
    """Return the structural similarity of each of the C bands, as `ssim`."""
    span = _checked_range(restored, clear, data_range)
    return [float(plane.mean()) for plane in _ssim_maps(_planes(restored), _planes(clear), span)]


def mae(restored: Image, clear: Image, *, data_range: float | None = None) -> float:
    """Return the mean absolute error of (H, W, C) images as a share of the data range: 0 for equal images."""
    span = _checked_range(restored, clear, data_range)
    return float(np.mean(np.abs(restored.astype(np.float64) - clear))) / span


def sam(restored: Image, clear: Image) -> float | None:
    """Return the mean angle between the spectra of a pixel, in degrees: 0 where they differ in brightness alone.

    Pixels that are all zero in one of the images are left out. None for a single band, or if no pixel is left.
    """
    _checked_range(restored, clear, None)
    return _sam_of_planes(_planes(restored), _planes(clear))


def lpips(
    restored: Image,
    clear: Image,
    network: Lpips,
    *,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
) -> float:
    """Return LPIPS, 0 for equal images: of red, green and blue if there are such, else the mean over bands.

    Args:
        restored, clear: (H, W, C), of one shape, 31 px or more to each side.
        network: from `load_lpips`.
        band_names: as for `score`.
        data_range: the span of the numbers; None takes the dtype's.
    """
    span = _checked_range(restored, clear, data_range)
    _check_names(clear, band_names)
    _check_window(clear, LPIPS_SMALLEST_PX)
    ours, theirs = (np.stack(_triples(_to_signed(image, span), band_names)) for image in (restored, clear))
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
    x = _to_signed(image, data_range)
    return np.asarray(((x + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8))


def _sam_of_planes(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    """`sam` of (C, H, W) planes."""
    if len(a) == 1:
        return None
    length_a, length_b = (np.sqrt(np.square(x).sum(0)) for x in (a, b))
    valid = (length_a > 0) & (length_b > 0)
    if not valid.any():
        return None
    # Pixels without a spectrum are divided by 1 here and left out below.
    difference = a / np.where(valid, length_a, 1) - b / np.where(valid, length_b, 1)
    # 2 asin(|a - b| / 2) is the angle too, and unlike acos(a . b) it is exact for near spectra.
    chord = np.sqrt(np.square(difference).sum(0))[valid]
    return float(np.degrees(2 * np.arcsin(np.minimum(chord / 2, 1)).mean()))


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
    # A band at a time stays in the processor's cache, which halves the time.
    return np.stack([_ssim_map(x, y, span, window, covariance_factor) for x, y in zip(a, b, strict=True)])


def _ssim_map(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    span: float,
    window: NDArray[np.float64],
    covariance_factor: float,
) -> NDArray[np.float64]:
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


def _to_signed(image: Image, data_range: float) -> NDArray[np.float32]:
    """Map [0, data_range] to [-1, 1] in float32; for 255 this is x / 127.5 - 1."""
    return np.asarray(image.astype(np.float32) / np.float32(data_range / 2) - np.float32(1))


def _triples(image: Image, band_names: Sequence[str] | None) -> list[Image]:
    """Return (H, W, 3) images of an (H, W, C) one: its red, green and blue, or each band three times."""
    if rgb := rgb_places(band_names or ()):
        return [image[..., rgb]]
    if image.shape[2] == 3 and not band_names:
        return [image]
    return _grey_triples(image)


def _grey_triples(image: Image) -> list[Image]:
    """Return each band of an (H, W, C) image three times: (H, W, 3) each."""
    return [np.repeat(image[..., c : c + 1], 3, 2) for c in range(image.shape[2])]


def _checked_range(restored: Image, clear: Image, data_range: float | None) -> float:
    """Check that two images can be compared; return the span of their numbers."""
    if restored.ndim != 3 or restored.shape != clear.shape:
        raise DataError(
            f"restored is {restored.shape} and clear {clear.shape}; wanted one shape (height, width, bands)"
        )
    if clear.size == 0:
        raise DataError(f"the images are {clear.shape}, which holds no pixel; give at least one")
    for name, image in (("restored", restored), ("clear", clear)):
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise DataError(f"the {name} image holds NaN or infinite values; fill or leave out such pixels")
    if data_range is not None:
        if not 0 < data_range < math.inf:
            raise OptionError(f"data range {data_range:g} is no number above 0; for 8-bit images it is 255")
        return data_range
    if restored.dtype != clear.dtype:
        raise DataError(f"restored is {restored.dtype} and clear {clear.dtype}; give both in one type")
    return largest_of(clear.dtype)


def _check_names(image: Image, band_names: Sequence[str] | None) -> None:
    if band_names is not None and len(band_names) != image.shape[2]:
        raise OptionError(f"{len(band_names)} band names for {image.shape[2]} bands; give one a band")


def _check_window(image: Image, smallest: int) -> None:
    if min(image.shape[:2]) < smallest:
        raise DataError(
            f"an image of {image.shape[1]} x {image.shape[0]} px is too small to score;"
            f" wanted {smallest} px or more"
        )
