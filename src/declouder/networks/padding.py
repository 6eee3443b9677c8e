"""Any height and width: pad to the multiple that a network needs, and crop its output back."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def padded_to_multiple(network: Callable[[Tensor], Tensor], x: Tensor, multiple: int) -> Tensor:
    """Return `network(x)` for any size of `x`.

    Args:
        network: maps (B, C, H', W') to (B, C', H', W') when H' and W' are multiples of `multiple`.
        x: (B, C, H, W), any range.
        multiple: what the network's sizes must be divisible by.

    Returns:
        (B, C', H, W). A size that fits is passed on untouched, so padding never changes such a result.
    """
    height, width = x.shape[-2:]
    return network(pad_to_multiple(x, multiple))[..., :height, :width]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Return `x`, (B, C, H, W), grown to the right and below to multiples of `multiple`."""
    height, width = x.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    if right == 0 and bottom == 0:
        return x
    # Mirrored ground keeps the image's statistics; an image smaller than the border cannot be mirrored.
    mode = "reflect" if right < width and bottom < height else "replicate"
    return F.pad(x, (0, right, 0, bottom), mode=mode)
