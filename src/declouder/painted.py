"""Where a reference network painted: it took texture away and put nothing that it saw in its place.

Haze fades the ground, so what is restored from under it has more texture than the cloudy image. Under thick cloud
there is nothing to restore: the cloud's own texture goes, and smooth ground comes. There the diffusion has texture
to give, and elsewhere hardly any, so that its steps can be spared.
"""

from __future__ import annotations

from torch import Tensor

from declouder.networks.squares import box_mean

TEXTURE_PX = 7
"""Side of the square in which texture is the standard deviation of the bands' mean."""
TEXTURE_LEFT = 0.7
"""Of the cloudy image's; where less is left, it was painted."""


def painted_share(cloudy: Tensor, reference: Tensor) -> Tensor:
    """Return the share of each image's pixels that were painted, (B,), in [0, 1].

    Args:
        cloudy: (B, C, H, W), in any range.
        reference: the reference network's images of them, in the same range.
    """
    return (_texture(reference) < TEXTURE_LEFT * _texture(cloudy)).float().mean(dim=(1, 2, 3))


def _texture(images: Tensor) -> Tensor:
    grey = images.float().mean(dim=1, keepdim=True)
    grey = grey - grey.mean(dim=(2, 3), keepdim=True)  # a difference of squares of small numbers loses less
    return (box_mean(grey.square(), TEXTURE_PX) - box_mean(grey, TEXTURE_PX).square()).clamp_min(0).sqrt()
