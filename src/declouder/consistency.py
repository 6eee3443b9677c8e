"""Data consistency: under an even haze the fine detail of what was restored is that of the cloudy image.

An even, grey haze has a law (docs/method.md, "An even haze has a law"): with one white W and a transmission T that
is smooth,

    cloudy = W - T (1 - clear)      so      clear = 1 - (W - cloudy) / T

Networks find the haze, and smooth the finest detail as they take it away. So W and T are told from the restored
image, and its finest detail comes from the cloudy image by the law:

    restored += share * even * textured * fine(1 - (W - cloudy) / T - restored)

    fine      what differs from a mean over FINE_PX: colours stay the networks'
    even      1 where the restored image follows the law all around, 0 where it does not, as under clouds, or where
              there is no haze
    textured  S / (S + N), Wiener's filter: S is the variance of the restored image's detail, N that of the cloudy
              image's noise, which taking the haze away makes stronger, NOISE^2 / T^2. Flat sea stays smooth.

Diffusion models for restoration make each x0 consistent with what was observed (Wang et al., "Zero-shot image
restoration using denoising diffusion null-space model", ICLR 2023); what is observed here is known as far as the
law goes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from declouder.networks.squares import box_mean, ramp, smoothly_enlarged

CELL_PX = 8
"""What is smooth is told by means of squares of so many pixels."""
NEAR_CELLS = 5
"""Side of the square, in cells, that says what T is."""
FAR_CELLS = 31
"""Side of the square, in cells, that says what W is, and whether the law holds: all of an image of 256 px."""
FINE_PX = 31
LEAST_PX = 64
"""Images with a smaller side stay as they are: they show too little of a haze."""
OFF_LAW = (0.006, 0.012)
"""Deviation from the law, in images from 0 to 1, from where on it holds less, and no more."""
CLEAR = (0.8, 0.9)
"""Transmission from where on there is less haze, and none to speak of."""
LEAST_TRANSMISSION = 0.1
"""Below it detail would be made ten times as strong: of cloud, not of ground."""
DETAIL_PX = 5
"""Detail, for S, is what differs from a mean over so many pixels."""
NOISE = 0.005
"""Standard deviation, in images from 0 to 1, of a codec's noise in RICE1's train pairs (benchmarks/haze_law.py)."""
_FAINT = 1e-8


def held_to_haze(cloudy: Tensor, restored: Tensor, share: float) -> Tensor:
    """Return restored images whose finest detail is brought to the law of an even haze, where they follow it.

    Args:
        cloudy: (B, C, H, W) in [-1, 1].
        restored: of that shape and range.
        share: in [0, 1], of the difference from the law that goes into the result.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    if share == 0 or min(cloudy.shape[-2:]) < LEAST_PX:
        return restored
    seen, dark = (cloudy.float() + 1) / 2, (1 - restored.float()) / 2
    white, transmission = _haze(seen, dark)
    at_place = _at_pixels(transmission, seen)
    white_at_place = _at_pixels(white, seen)
    off_law = _grey((seen - white_at_place + at_place * dark).square())
    deviation = box_mean(_cells(off_law), FAR_CELLS).clamp_min(0).sqrt()
    even = 1 - ramp(deviation, OFF_LAW)
    even = even * (1 - ramp(box_mean(transmission, FAR_CELLS), CLEAR)) * (transmission > LEAST_TRANSMISSION)
    signal = box_mean(_cells(_grey(_finer(dark, DETAIL_PX).square())), NEAR_CELLS)
    textured = signal / (signal + (NOISE / transmission.clamp_min(LEAST_TRANSMISSION)).square())
    missing = dark - (white_at_place - seen) / at_place.clamp_min(LEAST_TRANSMISSION)
    detail = _at_pixels(even * textured, seen) * _finer(missing, FINE_PX)
    held = restored + (2 * share * detail).to(restored.dtype)
    return held.clamp(-1, 1)


def _haze(seen: Tensor, dark: Tensor) -> tuple[Tensor, Tensor]:
    """Return W and T in cells, (B, 1, h, w): each place's fit of the cloudy image by what the restored one lacks.

    Where the ground says most of the slope it says most of the white; T is the best one with that white.
    """
    means = (box_mean(_cells(_grey(x)), NEAR_CELLS) for x in (seen, dark, dark * dark, dark * seen))
    mean_seen, mean_dark, square, product = means
    variance = (square - mean_dark.square()).clamp_min(_FAINT)
    slope = (product - mean_dark * mean_seen) / variance
    white = box_mean((mean_seen - slope * mean_dark) * variance, FAR_CELLS) / box_mean(variance, FAR_CELLS)
    return white, (white * mean_dark - product) / (square + _FAINT)


def _finer(x: Tensor, side: int) -> Tensor:
    return x - box_mean(x, side)


def _grey(x: Tensor) -> Tensor:
    return x.mean(dim=1, keepdim=True)


def _cells(x: Tensor) -> Tensor:
    """Return the means of cells; those at the edge are of what lies within the image."""
    return F.avg_pool2d(x, CELL_PX, ceil_mode=True)


def _at_pixels(cells: Tensor, like: Tensor) -> Tensor:
    """Return cells at each pixel of an image, smooth between them."""
    height, width = like.shape[-2:]
    return smoothly_enlarged(cells, CELL_PX)[..., :height, :width]
