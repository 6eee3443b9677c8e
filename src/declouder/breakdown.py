"""Where an image is good and where not: scores by thickness of cloud and around its edge, and the trust in them.

    parts = regions(cloudy, clear, data_range)       masks: outside, inside, thin, thick, edge
    region_scores(parts, error, ssim_map, border)    psnr, ssim and mae of each
    spread_scores(spread, error)                     does the spread over samples foretell the error?

Arrays are (H, W) or (H, W, C); error and spread are shares of the data's range. numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter
from scipy.stats import rankdata

from declouder.arguments import largest_of
from declouder.errors import DataError

Mask = NDArray[np.bool_]

THIN_FROM = 0.03
"""`cloud_distance` from which there is cloud."""
THICK_FROM = 0.15
"""The same from which it is thick cloud: on RICE2's training part this separates haze from white cloud."""
MASK_THICK_FROM = 0.75
"""Share of a mask's range from which it says thick cloud, for masks of more levels than cloud and no cloud."""
EDGE_PX = 8
"""Half width of the ring around the border of cloud."""
FLAT_BELOW = 0.02
"""Standard deviation of the clear image's band mean, as a share of the range, below which it is flat."""
REGIONS = ("outside", "inside", "thin", "thick", "edge")
SMALLEST_REGION = 0.01
"""Share of the image that a region must have to be scored."""
CHANGED_FROM = 0.02
"""Mean |restored - cloudy| over bands, as a share of the range, from which a clear pixel counts as changed."""
SPREAD_EDGES = (0.0, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, math.inf)
"""Bounds of the classes of spread in which the error found is counted, shares of the range."""

DEFINITIONS: Mapping[str, str] = {
    "outside": f"cloudy - clear, blurred by 4 px, is under {THIN_FROM:g} of the range: mean of its size over bands",
    "inside": f"the same from {THIN_FROM:g}",
    "thin": f"from {THIN_FROM:g} to {THICK_FROM:g}",
    "thick": f"from {THICK_FROM:g}",
    "edge": f"within {EDGE_PX} px of the border between outside and inside",
    "masks": "where masks are given, inside is where the mask is above 0; masks of two levels leave thin and"
    f" thick to the rule above, where one of a set has more levels, thick is from {MASK_THICK_FROM:g} of its data"
    " type's range",
    "smallest": f"a region of less than {SMALLEST_REGION:.0%} of an image is not scored",
    "flat": f"standard deviation of the clear image's band mean under {FLAT_BELOW:g} of the range",
    "changed": f"share of pixels outside whose mean |restored - cloudy| is {CHANGED_FROM:g} of the range or more",
}
"""What the names mean, for the files that carry scores."""


def cloud_distance(cloudy: NDArray[Any], clear: NDArray[Any], data_range: float) -> NDArray[np.float32]:
    """Return (H, W), how far a pair (H, W, C) differs: cloud from `THIN_FROM`, thick from `THICK_FROM`.

    The mean over bands of |cloudy - clear|, blurred before its sign is dropped, as a share of the range.
    """
    difference = (cloudy.astype(np.float32) - clear) / np.float32(data_range)
    # The blur takes noise and small shifts of the ground for what they are: no cloud.
    return np.asarray(np.abs(gaussian_filter(difference, (4, 4, 0))).mean(2))


def regions(
    cloudy: NDArray[Any],
    clear: NDArray[Any],
    data_range: float,
    mask: NDArray[Any] | None = None,
    *,
    graded: bool | None = None,
) -> dict[str, Mask]:
    """Return where cloud is, and how thick: (H, W) masks by `REGIONS`' names.

    outside, thin and thick divide the image; inside is thin and thick; edge lies across the border.

    Args:
        cloudy, clear: (H, W, C) of a pair; without a mask their difference says where cloud is.
        data_range: span of their numbers.
        mask: (H, W) or (H, W, 1), above 0 where cloud.
        graded: whether the mask's levels say how thick the cloud is, see `is_graded`; None judges by this mask
            alone. Otherwise the difference of the pair says so.

    Raises:
        DataError: if the mask is of another size.
    """
    distance = cloud_distance(cloudy, clear, data_range)
    thick = distance >= THICK_FROM
    if mask is None:
        cloud = distance >= THIN_FROM
    else:
        levels = mask if mask.ndim == 2 else mask[..., 0]
        if levels.shape != clear.shape[:2]:
            raise DataError(
                f"the mask is {levels.shape[1]} x {levels.shape[0]} px, its image {clear.shape[1]} x"
                f" {clear.shape[0]}; give masks of the images' size"
            )
        cloud = levels > 0
        if is_graded(levels) if graded is None else graded:
            thick = levels >= MASK_THICK_FROM * largest_of(levels.dtype)
        thick &= cloud
    # Two runs of a line are one run of a square, and much faster.
    row, column = np.ones((1, 2 * EDGE_PX + 1), bool), np.ones((2 * EDGE_PX + 1, 1), bool)
    near, far = (binary_dilation(binary_dilation(x, row), column) for x in (cloud, ~cloud))
    return {"outside": ~cloud, "inside": cloud, "thin": cloud & ~thick, "thick": thick, "edge": near & far}


def is_graded(mask: NDArray[Any]) -> bool:
    """Return whether a mask has several levels above 0. One mask of a set that has them speaks for all."""
    return len(np.unique(mask[mask > 0])) > 1


def region_scores(
    parts: Mapping[str, Mask], error: NDArray[np.float64], ssim_map: NDArray[np.float64], border: int
) -> dict[str, dict[str, float | None] | None]:
    """Return psnr, ssim, mae and share of each region, or None for one that is too small.

    Args:
        parts: from `regions`.
        error: (H, W, C) absolute error as a share of the range.
        ssim_map: similarity at each pixel, `border` px narrower on each side.
        border: see `ssim_map`.
    """
    found: dict[str, dict[str, float | None] | None] = {}
    for name, part in parts.items():
        share = float(part.mean())
        if share < SMALLEST_REGION:
            found[name] = None
            continue
        there = error[part]
        mse = float(np.mean(there**2))
        similar = ssim_map[part[border:-border, border:-border]]
        found[name] = {
            "share": share,
            "psnr": None if mse == 0 else -10 * math.log10(mse),
            "ssim": float(similar.mean()) if similar.size else None,
            "mae": float(there.mean()),
        }
    return found


def change_scores(outside: Mask, change: NDArray[np.float64]) -> dict[str, float] | None:
    """Tell how far clear areas were changed: mean and share of pixels; None where hardly any are clear.

    Args:
        outside: from `regions`.
        change: (H, W, C) |restored - cloudy| as a share of the range.
    """
    if outside.mean() < SMALLEST_REGION:
        return None
    there = change[outside].mean(1)
    return {"mean": float(there.mean()), "share": float((there >= CHANGED_FROM).mean())}


def spread_scores(spread: NDArray[np.float64], error: NDArray[np.float64]) -> dict[str, Any]:
    """Tell how well the spread over samples foretells the error, pixel by pixel.

    Args:
        spread: (H, W) standard deviation over samples, root mean square over bands.
        error: (H, W) error of the scored image, root mean square over bands.

    Returns:
        mean: of the spread. correlation: Spearman's rank correlation; None where one of them is constant.
        moments: n and the sums of s, e, s^2, e^2, s e, so that images can be pooled.
        classes: for each class between `SPREAD_EDGES`: pixels, sum of s^2, sum of e^2.
    """
    s, e = spread.ravel(), error.ravel()
    member = np.digitize(s, SPREAD_EDGES[1:-1])
    count = len(SPREAD_EDGES) - 1
    classes = [np.bincount(member, weight, count) for weight in (None, s * s, e * e)]
    return {
        "mean": float(s.mean()),
        "correlation": _pearson(*_moments(rankdata(s), rankdata(e))),
        "moments": list(_moments(s, e)),
        "classes": [[int(n), float(ss), float(ee)] for n, ss, ee in zip(*classes, strict=True)],
    }


def pooled_spread(scores: Sequence[Mapping[str, Any]], samples: int, averaged: bool) -> dict[str, Any]:
    """Pool `spread_scores` of many images.

    Returns:
        correlation: Pearson's, over all pixels of all images. rank_correlation: Spearman's, mean over images.
        mean: of the spread.
        reliability: class by class: the spread it begins from, pixels, spread and error (root mean squares).
        calibrated: error / spread where the samples tell the truth: the scored image is off from a truth that
            is one more draw by sqrt(2) spreads, the mean of N samples by sqrt(1 + 1 / N).
    """
    moments = np.array([score["moments"] for score in scores]).sum(0)
    classes = np.array([score["classes"] for score in scores]).sum(0)
    ranks = [score["correlation"] for score in scores if score["correlation"] is not None]
    return {
        "correlation": _pearson(*moments),
        "rank_correlation": float(np.mean(ranks)) if ranks else None,
        "mean": float(np.mean([score["mean"] for score in scores])),
        "calibrated": math.sqrt(1 + 1 / samples) if averaged else math.sqrt(2),
        "reliability": [
            {
                "from": low,
                "pixels": int(n),
                "spread": math.sqrt(squares / n),
                "error": math.sqrt(errors / n),
            }
            for low, (n, squares, errors) in zip(SPREAD_EDGES, classes, strict=False)
            if n
        ],
    }


def _moments(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, ...]:
    """Return count, sums, sums of squares and sum of products: what `_pearson` takes."""
    return float(a.size), float(a.sum()), float(b.sum()), float(a @ a), float(b @ b), float(a @ b)


def _pearson(n: float, a: float, b: float, aa: float, bb: float, ab: float) -> float | None:
    var_a, var_b = aa - a * a / n, bb - b * b / n
    # Sums of many squares leave rounding where nothing varies.
    if var_a <= 1e-12 * max(aa, 1e-300) or var_b <= 1e-12 * max(bb, 1e-300):
        return None
    return float((ab - a * b / n) / math.sqrt(var_a * var_b))
