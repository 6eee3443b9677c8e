"""An image taken a few rows at a time, whose working memory stays in a core's cache.

Strip      some rows of an image, normalised and activated, with a border, ready for a 3 x 3 convolution
moments    mean and variance of each channel, known already of images that were made strip by strip
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VALUES_IN_A_SUM = 2**20
"""Of an image whose mean and variance are measured; sums of so many are exact enough in float32."""


@dataclass(frozen=True)
class Affine:
    """What each channel is multiplied by, and what is added then: (B, C) each."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of_norm(cls, norm: nn.GroupNorm, parts: Sequence[Tensor]) -> Affine:
        """Return what a group normalisation does to each channel of an image in parts, (B, C_i, H, W) each."""
        of_channels = torch.cat([moments(part) for part in parts], dim=2)
        means, variances = of_channels.view(*of_channels.shape[:2], norm.num_groups, -1)
        mean = means.mean(2, keepdim=True)  # (B, groups, 1), of (B, groups, C / groups)
        variance = (variances + (means - mean).square()).mean(2, keepdim=True)
        scale = (variance + norm.eps).rsqrt() * norm.weight.view(norm.num_groups, -1)
        return cls(scale.flatten(1), norm.bias - (mean * scale).flatten(1))

    def then(self, after: Affine) -> Affine:
        """Return both as one, this first."""
        return Affine(self.scale * after.scale, self.shift * after.scale + after.shift)


class Strip:
    """Rows of an image with one more above and below, and a column at each side: silu(scale * x + shift), or x.

    Args:
        parts: x in parts, (B, C_i, H, W) each, whose channels follow one another.
        affine: scale and shift of all channels; without it x stays as it is.
        height: rows of the image in a strip; the last may reach beyond the image.
        width: columns, at least the image's.

    Attributes:
        bordered: (B, height + 2, width + 2, C), filled by `enter`; zero outside of the image.
    """

    def __init__(self, parts: Sequence[Tensor], affine: Affine | None, *, height: int, width: int) -> None:
        images = [to_bhwc(part) for part in parts]
        batch, self.image_height, image_width = images[0].shape[:3]
        self.height, own = height, [image.shape[3] for image in images]
        self.bordered = images[0].new_zeros(batch, height + 2, width + 2, sum(own))
        # Views are made here, once: to make them anew for each strip takes time.
        self.inner = self.bordered[:, :, 1 : image_width + 1]
        self.images = list(zip(images, torch.split(self.inner, own, dim=3), strict=True))
        self.affine = None
        if affine is not None:
            of_parts = (torch.split(each[:, None, None], own, dim=3) for each in (affine.scale, affine.shift))
            self.affine = list(zip(*of_parts, strict=True))

    def enter(self, first: int) -> None:
        """Take in what the results from row `first` on are made of: a row more above and below, zeros around."""
        top, bottom = max(0, first - 1), min(self.image_height, first + self.height + 1)
        begin = top - (first - 1)
        end = begin + bottom - top
        for index, (image, place) in enumerate(self.images):
            if self.affine is None:
                place[:, begin:end].copy_(image[:, top:bottom])
            else:
                scale, shift = self.affine[index]
                torch.addcmul(shift, image[:, top:bottom], scale, out=place[:, begin:end])
        if self.affine is not None:
            F.silu(self.inner[:, begin:end], inplace=True)
        # No image there, but what the strip before has left. Above the first strip there are zeros still.
        if end < self.bordered.shape[1]:
            self.bordered[:, end:].zero_()


def moments(x: Tensor) -> Tensor:
    """Return mean and variance of each channel of (B, C, H, W): (2, B, C)."""
    if has_known_moments(x):
        known: Tensor = x._moments  # type: ignore[attr-defined]
        return known
    found = MomentsOfStrips()
    # A sum over all of a large image in one go loses digits.
    rows = max(1, VALUES_IN_A_SUM // (x.shape[1] * x.shape[3]))
    for strip in torch.split(to_bhwc(x), rows, dim=1):
        found.add(strip)
    return found.of_all()


def has_known_moments(x: Tensor) -> bool:
    """Tell whether `moments` costs nothing."""
    return hasattr(x, "_moments")


class MomentsOfStrips:
    """Collects the moments of an image whose strips are in a core's cache, which spares a pass over it later."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._found: list[Tensor] = []

    def add(self, strip: Tensor) -> None:
        """Take in some rows of the image, (B, rows, W, C)."""
        self._rows.append(strip.shape[1])
        self._found.append(_measured(strip))

    def keep_with(self, x: Tensor) -> None:
        """Let `moments` know those of the image, (B, C, H, W); nobody may write into it from then on."""
        x._moments = self.of_all()  # type: ignore[attr-defined]

    def of_all(self) -> Tensor:
        """Return mean and variance of each channel of all strips, (2, B, C)."""
        if len(self._found) == 1:
            return self._found[0]
        means, variances = torch.stack(self._found, dim=1)  # (strips, B, C) each
        share = means.new_tensor(self._rows)[:, None, None] / sum(self._rows)
        mean = (share * means).sum(0)
        return torch.stack([mean, (share * (variances + (means - mean).square())).sum(0)])


def _measured(strip: Tensor) -> Tensor:
    # What batch normalisation begins with is of one image what is wanted, and quick. One image's rows lie together.
    images = (image.contiguous().permute(2, 0, 1)[None] for image in strip)
    of_images = [torch.batch_norm_update_stats(image, None, None, 0.0) for image in images]
    return torch.stack([torch.stack(each) for each in zip(*of_images, strict=True)])


def is_plain_3x3(convolution: object) -> TypeGuard[nn.Conv2d]:
    """Tell whether a module is a convolution of 3 x 3 with a bias that pads by zeros, and nothing more."""
    return (
        isinstance(convolution, nn.Conv2d)
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.padding == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.bias is not None
    )


def to_bhwc(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)
