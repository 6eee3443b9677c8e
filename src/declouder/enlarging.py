"""Images made larger for the networks, and smaller again: for clouds of fewer pixels than those learnt from.

Networks know clouds by their size in pixels. Where a cloud is a few pixels wide, they take it for bright ground;
two or three times as large it is a cloud like others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST = 1e-6
"""Keeps a quotient finite where a square is flat."""


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Return images in [0, 1] `factor` times as high and wide: (B, C, factor H, factor W) for (B, C, H, W).

    Smooth, by cubic interpolation, and so changed that the pixels that one becomes have it as their mean and stay
    in [0, 1]: `shrunk` gives back what was left as it is, white and black too.
    """
    if factor == 1:
        return images
    smooth = F.interpolate(images, scale_factor=factor, mode="bicubic", align_corners=False)
    detail = smooth - _repeated(shrunk(smooth, factor), factor)
    most, least = F.max_pool2d(detail, factor), F.max_pool2d(-detail, factor)
    room = torch.minimum((1 - images) / most.clamp_min(_LEAST), images / least.clamp_min(_LEAST))
    return _repeated(images, factor) + _repeated(room.clamp(0, 1), factor) * detail


def shrunk(images: Tensor, factor: int) -> Tensor:
    """Return means of squares of `factor` px: (B, C, H, W) for (B, C, factor H, factor W)."""
    return images if factor == 1 else F.avg_pool2d(images, factor)


def _repeated(images: Tensor, factor: int) -> Tensor:
    return F.interpolate(images, scale_factor=factor, mode="nearest")
