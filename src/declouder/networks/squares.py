"""Means over the square around every pixel, quick on CPUs, where pooling adds up each square by itself.

And what rules that are made of such means have in common.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MATRIX_PX = 64
"""Side of images up to which products with matrices are the quickest on a CPU."""
MATRIX_REACH = 64
"""Up to how many times the square's side an image is for matrices in training: back through sums is slower."""


def box_mean(x: Tensor, side: int) -> Tensor:
    """Return the mean over the square around every pixel, as far as it lies within the image.

    First of columns, then of rows: a square of side 9 takes 16 additions and not 80, and on a CPU 8, by sums of 2,
    4 and 8 pixels. `benchmarks/squares.py` times the ways.

    Args:
        x: (B, C, H, W), of any range.
        side: of the square, in pixels; odd.

    Returns:
        (B, C, H, W), in the precision of x; the sums are float32 on a CPU.
    """
    if x.device.type != "cpu":
        x = F.avg_pool2d(x, (side, 1), stride=1, padding=(side // 2, 0), count_include_pad=False)
        return F.avg_pool2d(x, (1, side), stride=1, padding=(0, side // 2), count_include_pad=False)
    height, width = x.shape[-2:]
    with torch.autocast("cpu", enabled=False):
        if max(height, width) <= (MATRIX_REACH * side if x.requires_grad else MATRIX_PX):
            means = _band_of_means(height, side) @ x.float() @ _band_of_means(width, side).T
        else:
            means = _means_along(_means_along(x.float(), side, -2), side, -1)
    return means.to(x.dtype)


def ramp(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return 0 below the bounds, 1 above, and straight between."""
    low, high = bounds
    return ((x - low) / (high - low)).clamp(0, 1)


def smoothly_enlarged(x: Tensor, by: int) -> Tensor:
    """Return a map of squares, (B, C, h, w), at their pixels, (B, C, by h, by w), bilinear between centres."""
    return F.interpolate(x, scale_factor=by, mode="bilinear", align_corners=False)


def _band_of_means(length: int, side: int) -> Tensor:
    """Return the (length, length) matrix that takes a vector to its means over `side` around each place."""
    places = torch.arange(length, device="cpu")  # whatever the default device
    near = ((places[:, None] - places).abs() <= side // 2).float()
    return near / near.sum(dim=1, keepdim=True)


def _means_along(x: Tensor, side: int, dim: int) -> Tensor:
    """Return the means over `side` pixels around each along a dimension, -2 or -1, of (B, C, H, W).

    The sum over `side` is made of those over powers of two, each of which is the sum of two halves. Unlike running
    sums over the whole line, a mean is of its own pixels alone: the same to the bit wherever a window begins.
    """
    length, reach = x.shape[dim], side // 2
    runs = F.pad(x, (reach, reach) if dim == -1 else (0, 0, reach, reach))
    run, begin, total = 1, 1, runs.narrow(dim, 0, length)  # side is odd, so a run of one is among them
    while 2 * run <= side:
        count = runs.shape[dim] - run
        runs = runs.narrow(dim, 0, count) + runs.narrow(dim, run, count)
        run *= 2
        if side & run:
            total = total + runs.narrow(dim, begin, length)
            begin += run
    places = torch.arange(length, device="cpu")
    within = (places + reach).clamp(max=length - 1) - (places - reach).clamp(min=0) + 1
    return total / (within if dim == -1 else within[:, None]).to(x.dtype)
