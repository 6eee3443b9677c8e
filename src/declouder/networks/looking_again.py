"""Thick cloud that a network leaves and takes away at half the size: there the smaller image's result is taken.

A network hardly sees what a cloud is that fills its view, or that an image's edge cuts off: on images of other
sensors than it learnt from, such cloud stays bright. At half the size the view is twice as wide, so more of the
ground around is in it. Nothing but such remains is taken from there:

    restored += bright * left * near * (half - restored)

    bright   the result is bright, in all bands, and so is the cloudy image
    left     at half the size the result is darker, in all bands
    near     within REACH_CELLS, the network has taken thick cloud away: white sand or snow without cloud stays, and
             white roofs under haze, which hides no detail

All three are of means of cells of 8 px and their neighbours, and rise from 0 to 1 within the bounds below. Those of
detail are of RICE1's train pairs, the others were chosen by looking at images of other sensors: nothing here is
learnt (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from declouder.networks.squares import ramp, smoothly_enlarged

CELL_PX = 8
LEAST_PX = 128
"""Images with a smaller side are looked at once."""
REACH_CELLS = 8
BRIGHT = (-0.2, 0.0)
"""Of a result in [-1, 1]: 102 to 128 of 255."""
CLOUD = (0.0, 0.2)
"""Of the cloudy image there: 128 to 153 of 255. Pale ground is darker, and would go as if it were remains."""
DARKER = (0.1, 0.2)
"""By how much the result at half the size is darker: 13 to 26 of 255."""
TAKEN_AWAY = (0.5, 0.7)
"""By how much the result is darker than the cloudy image where cloud was: 64 to 89 of 255."""
DETAIL = (1.0, 1.5)
"""How many times as much detail has the result, from where on it was haze: there it grows to more than twice."""
FAINT = 1e-4
"""Variance of an image in [-1, 1], 1.3 of 255 squared, that is no detail."""


def looked_again(restore: Callable[[Tensor], Tensor], cloudy: Tensor, restored: Tensor) -> Tensor:
    """Return what was restored, with remains of thick cloud as they are restored at half the size.

    Args:
        restore: the network, at half the size: maps (B, C, H, W) to the same shape, both in [-1, 1]. It is called
            only with images that have bright places near cloud that was taken away.
        cloudy: (B, C, H, W) in [-1, 1].
        restored: what the network makes of it at its own size, of that shape and range.

    Returns:
        (B, C, H, W) in [-1, 1]; images without such remains are those of `restored`.
    """
    height, width = cloudy.shape[-2:]
    if min(height, width) < LEAST_PX:
        return restored
    bright_near = _bright_near(cloudy, restored)
    some = bright_near.flatten(1).amax(dim=1) > 0
    if not bool(some.any()):
        return restored
    half = restore(F.avg_pool2d(cloudy[some], 2, ceil_mode=True)).to(restored.dtype)
    half = smoothly_enlarged(half, 2)[..., :height, :width]
    left = ramp((_cells(restored[some]) - _cells(half)).amin(dim=1, keepdim=True), DARKER)
    share = smoothly_enlarged(bright_near[some] * left, CELL_PX)
    result = restored.clone()
    result[some] = torch.lerp(restored[some], half, share[..., :height, :width].to(half.dtype))
    return result


def _bright_near(cloudy: Tensor, restored: Tensor) -> Tensor:
    """Return bright * near of the cells of two images, (B, 1, h, w) in [0, 1]."""
    before, after = _cells(cloudy), _cells(restored)
    bright = ramp(after.amin(dim=1, keepdim=True), BRIGHT) * ramp(before.amin(dim=1, keepdim=True), CLOUD)
    darker = ramp((before - after).amin(dim=1, keepdim=True), TAKEN_AWAY)
    detail = ((_variance(restored) + FAINT) / (_variance(cloudy) + FAINT)).sqrt()
    taken_away = darker * (1 - ramp(detail, DETAIL))
    return bright * F.max_pool2d(taken_away, 2 * REACH_CELLS + 1, stride=1, padding=REACH_CELLS)


def _variance(x: Tensor) -> Tensor:
    """Return the variance of the bands' mean within cells and their neighbours: (B, 1, h, w)."""
    grey = x.float().mean(dim=1, keepdim=True)
    return (_cells(grey.square()) - _cells(grey).square()).clamp_min(0)


def _cells(x: Tensor) -> Tensor:
    """Return the float32 means of cells and their neighbours, as far as they lie within the image: (B, C, h, w)."""
    cells = F.avg_pool2d(x.float(), CELL_PX, ceil_mode=True)
    return F.avg_pool2d(cells, 3, stride=1, padding=1, count_include_pad=False)
