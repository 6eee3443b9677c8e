"""Remains of small clouds, taken from what the network makes of the image at twice the size.

The network knows clouds by their size in pixels (`declouder.enlarging`): of clouds a few pixels wide it removes
some and leaves others, side by side. Twice as large they are clouds like others. But there it sees less of the
ground around, and takes some other ground for cloud too. So the image at twice the size is computed only around
such remains, and only they are taken from it:

    twice = shrink(restore(enlarge(cloudy)))
    taken = lerp(restored, twice, gone * left * darker)

    spot     grey, and brighter than what is left of it by an opening of `SPOT_PX` by reconstruction (a white
             top-hat): what hangs together with something wider, as the arms of a large cloud do, is none
    gone     around, by means over `AROUND_PX`, are spots that the network has removed: where there are none, bright
             roofs, boats and surf stay
    left     a spot of the restored image that is one of the cloudy image too
    darker   so much darker it is at twice the size, in all bands

Nothing here is learnt; a spot is surely one where it is one to `declouder.small_clouds` (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from declouder.enlarging import enlarged, shrunk
from declouder.networks.squares import box_mean, ramp, smoothly_enlarged

HALF = 2
"""Spots are looked for at this much less than the image's size."""
SPOT_PX = 26
"""What holds a square of this side is no spot, in pixels of the image."""
REBUILT_STEPS, REBUILT_BY = 10, 5
"""What hangs together with the opening is followed for so many steps of half a square of this side: for 40 pixels
of the image."""
AROUND_PX = (66, 66, 34)
"""Sides of the squares over which the mean is taken, one after the other, that says what lies around: so a removed
spot counts as a hill without edges. With one square its edges were to be seen."""
GROWN_PX = 10
"""What is taken around a spot: its rim is no spot."""
SPOT = (0.12, 0.24)
"""By how much a spot is brighter than around in its darkest band, in [-1, 1]: 15 to 31 of 255."""
GREY = (0.24, 0.36)
"""By how much its bands differ at most: 31 to 46 of 255."""
GONE = (0.002, 0.012)
"""Share of what lies around that must be spots that went."""
DARKER = (0.1, 0.2)
SURELY = 0.5
"""A part of an image is looked at closer where gone * left comes to this somewhere: it takes much time."""
TILE_PX, MARGIN_PX = 512, 64
"""Twice as large, a window of 1024 px would take four times the memory: so it goes piece by piece."""


def looked_closer(restore: Callable[[Tensor], Tensor], cloudy: Tensor, restored: Tensor) -> Tensor:
    """Return what was restored, with remains of small clouds as they are restored at twice the size.

    Args:
        restore: the network: maps (B, C, H, W) to the same shape, both in [-1, 1]. It is called only with parts of
            images that have such remains, a part at a time.
        cloudy: (B, C, H, W) in [-1, 1].
        restored: what the network makes of it at its own size, of that shape and range.

    Returns:
        (B, C, H, W) in [-1, 1]; images without such remains are those of `restored`.
    """
    height, width = cloudy.shape[-2:]
    if min(height, width) < max(AROUND_PX):
        return restored
    remains = _remains(cloudy, restored)
    result = restored
    for index in range(len(cloudy)):
        for inner, outer in _tiles(height, width):
            there = remains[index : index + 1, :, inner[0], inner[1]]
            if float(there.detach().amax()) < SURELY:
                continue
            result = restored.clone() if result is restored else result
            twice = _at_twice_the_size(restore, cloudy[index : index + 1, :, outer[0], outer[1]])
            rows, columns = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
            twice = twice[..., rows, columns].to(restored.dtype)
            before = restored[index : index + 1, :, inner[0], inner[1]]
            share = there * _with_rims(ramp((before - twice).amin(dim=1, keepdim=True), DARKER))
            result[index : index + 1, :, inner[0], inner[1]] = torch.lerp(before, twice, share.to(restored.dtype))
    return result


def _at_twice_the_size(restore: Callable[[Tensor], Tensor], cloudy: Tensor) -> Tensor:
    """Return what the network makes of an image enlarged, at its own size again; all (1, C, H, W) in [-1, 1]."""
    twice = 2 * enlarged((cloudy.float() + 1) / 2, 2) - 1  # in half precision CPUs cannot interpolate everything
    return shrunk(restore(twice.to(cloudy.dtype)), 2)


def _with_rims(x: Tensor) -> Tensor:
    """Return a map that reaches a pixel further and fades out: rims are hardly darker, and would stay as lines."""
    x = F.max_pool2d(x, 3, stride=1, padding=1)
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _tiles(height: int, width: int) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Yield rows and columns of each part of an image, and the same with the ground around it."""
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            bottom, right = min(top + TILE_PX, height), min(left + TILE_PX, width)
            outer = (
                slice(max(0, top - MARGIN_PX), min(bottom + MARGIN_PX, height)),
                slice(max(0, left - MARGIN_PX), min(right + MARGIN_PX, width)),
            )
            yield (slice(top, bottom), slice(left, right)), outer


def _remains(cloudy: Tensor, restored: Tensor) -> Tensor:
    """Return gone * left at each pixel, (B, 1, H, W) float32 in [0, 1]."""
    height, width = cloudy.shape[-2:]
    before, after = (F.avg_pool2d(x.float(), HALF, ceil_mode=True) for x in (cloudy, restored))
    height_before, is_grey = _top_hat(before), _is_grey(before)
    height_after = _top_hat(after)
    change = before.amin(dim=1, keepdim=True) - after.amin(dim=1, keepdim=True)
    went = (height_before > SPOT[1]) & (is_grey == 1)
    went &= (height_after < height_before / 2) & (change > height_before / 2)
    gone = ramp(_around(went.float()), GONE)
    left = ramp(height_after, SPOT) * _is_grey(after) * ramp(height_before, SPOT)
    left = _largest(left, GROWN_PX // HALF)
    return smoothly_enlarged(gone * left, HALF)[..., :height, :width]


def _around(x: Tensor) -> Tensor:
    """Return the mean of what lies around each pixel, the less of it the further it is."""
    for side in AROUND_PX:
        x = box_mean(x, side // HALF)
    return x


def _top_hat(x: Tensor) -> Tensor:
    """Return by how much the darkest band is brighter than its opening by reconstruction: (B, 1, h, w)."""
    darkest = x.amin(dim=1, keepdim=True)
    side = SPOT_PX // HALF
    opened = _largest(-_largest(-darkest, side), side)
    for _ in range(REBUILT_STEPS):
        opened = torch.minimum(_largest(opened, REBUILT_BY), darkest)
    return darkest - opened


def _largest(x: Tensor, side: int) -> Tensor:
    """Return the largest value of the square of an odd side around each pixel.

    Of 2 pixels, of 4, and so on: on a CPU that is quicker than pooling.
    """
    for dim in (-2, -1):
        pad = (0, 0, side // 2, side // 2) if dim == -2 else (side // 2, side // 2)
        x, reach = F.pad(x, pad, value=-torch.inf), 1
        while reach < side:
            step = min(reach, side - reach)
            length = x.shape[dim] - step
            x, reach = torch.maximum(x.narrow(dim, 0, length), x.narrow(dim, step, length)), reach + step
    return x


def _is_grey(x: Tensor) -> Tensor:
    """Return 1 where bands hardly differ, 0 where they do: (B, 1, h, w)."""
    return 1 - ramp(x.amax(dim=1, keepdim=True) - x.amin(dim=1, keepdim=True), GREY)
