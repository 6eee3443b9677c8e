"""A 3 x 3 convolution by a quarter of the multiplications, with what stands around it in a residual block.

    TiledConvolution(convolution)(x)                          the convolution
    TiledConvolution(convolution).within_block(parts, ...)    conv(silu(scale * x + shift)) + past

Winograd's F(4 x 4, 3 x 3) (`declouder.winograd`), for CPUs. The image goes through it in strips of a few rows of
tiles, whose working memory stays in a core's cache. There the normalised and activated input is made, and the
residual added, so that neither takes a pass of its own over the whole image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declouder.networks.derived import Derived
from declouder.winograd import POINTS, WinogradConvolution, tiles_within

RESULTS = 4
"""Side of the square that one tile gives; its input is wider by 2."""
VALUES, PIXELS = (RESULTS + 2) ** 2, RESULTS**2
"""Of a tile: values that are multiplied, and pixels that they give."""
CONSTANT = POINTS.index(1) * (RESULTS + 2) + POINTS.index(1)
"""The value that goes into all pixels of a tile alike."""
FEWEST_CHANNELS, FEWEST_PAIRS = 64, 8192
"""In and out, and of the pairs of both; below, tiles take longer to transform than they save."""
FEWEST_TILES = 64
"""Of a whole batch; below, the same."""
TILES_AT_ONCE = 128
"""For a thread; so many tiles stay in a core's cache between the parts of the convolution."""


@dataclass(frozen=True)
class Affine:
    """What each channel is multiplied by, and what is added then: (B, C) each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Past:
    """What a residual block adds to what it has found: its input, as it is or by a 1 x 1 convolution.

    Attributes:
        parts: (B, C_i, H, W) each; together the channels of the input.
        projection: 1 x 1 of these channels, or None.
    """

    parts: Sequence[Tensor]
    projection: nn.Conv2d | None

    def add_to(self, out: Tensor, first: int = 0) -> None:
        """Add its rows from `first` on to (B, rows, W, C')."""
        begin = 0
        for part in self.parts:
            rows = _channels_last(part)[:, first : first + out.shape[1]]
            own = slice(begin, begin + rows.shape[3])
            if self.projection is None:
                out[..., own].add_(rows)
            else:
                _add_product(out, rows, self.projection.weight[:, own, 0, 0].T)
            begin = own.stop
        if self.projection is not None and self.projection.bias is not None:
            out.add_(self.projection.bias)


def _add_product(out: Tensor, x: Tensor, matrix: Tensor) -> None:
    """Add (..., C) times (C, C') to (..., C')."""
    if out.is_contiguous() and x.is_contiguous():
        out.view(-1, out.shape[-1]).addmm_(x.view(-1, x.shape[-1]), matrix)
    else:
        out.add_(x @ matrix)


def joined_parts(parts: Sequence[Tensor]) -> Tensor:
    """Return the channels of all parts as one image."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


class TiledConvolution(nn.Module):
    """A 3 x 3 convolution that pads by zeros; its kernels are transformed when it first meets a large image."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self._kernels = Derived(_transformed)

    @staticmethod
    def suits(convolution: nn.Conv2d) -> bool:
        """Tell whether a convolution is one of those that are quicker this way, for large images."""
        channels = convolution.in_channels, convolution.out_channels
        return (
            convolution.kernel_size == (3, 3)
            and convolution.stride == (1, 1)
            and convolution.padding == (1, 1)
            and convolution.dilation == (1, 1)
            and convolution.groups == 1
            and convolution.padding_mode == "zeros"
            and convolution.bias is not None
            and min(channels) >= FEWEST_CHANNELS
            and channels[0] * channels[1] >= FEWEST_PAIRS
        )

    def is_quicker_for(self, x: Tensor) -> bool:
        """Tell whether images of this size, (B, any, H, W), have tiles enough."""
        batch, _, height, width = x.shape
        return batch * -(-height // RESULTS) * -(-width // RESULTS) >= FEWEST_TILES

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        if self.is_quicker_for(x):
            return self.within_block([x])
        out: Tensor = self.convolution(x)
        return out

    def within_block(
        self, parts: Sequence[Tensor], affine: Affine | None = None, past: Past | None = None
    ) -> Tensor:
        """Return conv(silu(scale * x + shift)) + past, (B, C', H, W); without `affine` conv(x) + past.

        Args:
            parts: x in parts, (B, C_i, H, W) each, whose channels follow one another.
            affine: scale and shift of all channels.
            past: what is added.
        """
        bias = self.convolution.bias
        assert bias is not None
        images = [_channels_last(part) for part in parts]
        height, width = images[0].shape[1:3]
        strips = _Strips(images, affine, self._kernels(self.convolution.weight), bias)
        for first in range(0, height, strips.height):
            strips.enter(first)
            strips.convolve(first)
            if past is not None:
                past.add_to(strips.out[:, first : min(height, first + strips.height), :width], first)
        return strips.out[:, :height, :width].permute(0, 3, 1, 2)


class _Strips:
    """Working memory for one strip after the other, and the whole result.

    Args:
        images: x in parts, (B, H, W, C_i) each.
        affine: what comes before the convolution, with SiLU, or None.
        kernels: (36, C, C'), of `_transformed`.
        bias: (C',)

    Attributes:
        height: rows of results in a strip; the last strip may reach beyond the image, over zeros.
        out: (B, at least H, at least W, C'), filled by `convolve`.
    """

    def __init__(self, images: Sequence[Tensor], affine: Affine | None, kernels: Tensor, bias: Tensor) -> None:
        batch, self.image_height, width = images[0].shape[:3]
        rows, columns = -(-self.image_height // RESULTS), -(-width // RESULTS)
        strips = -(-rows // max(1, TILES_AT_ONCE * torch.get_num_threads() // (batch * columns)))
        self.rows = -(-rows // strips)  # of tiles
        self.height = self.rows * RESULTS
        tiles, channels, made = batch * self.rows * columns, kernels.shape[1], len(bias)
        new = images[0].new_empty
        self.kernels, self.bias = kernels, bias
        self.out = new(batch, strips * self.height, columns * RESULTS, made)
        # Seen in other shapes here, once: to make the views anew for each strip takes time.
        self.bordered = new(batch, self.height + 2, columns * RESULTS + 2, channels).zero_()
        self.tiles = tiles_within(self.bordered, results=RESULTS, taps=3)
        self.taken, values = new(2, VALUES, tiles * channels)
        self.of_tiles = self.taken.view(self.tiles.shape)
        self.values, self.values_of_tiles = values, values.view(VALUES, tiles, channels)
        self.products_of_tiles = new(VALUES, tiles, made)
        self.products = self.products_of_tiles.view(VALUES, -1)
        self.constant = self.products_of_tiles[CONSTANT]
        self.results = new(PIXELS, tiles * made)
        in_tiles = self.results.view(RESULTS, RESULTS, batch, self.rows, columns, made)
        self.in_rows = in_tiles.permute(2, 3, 0, 4, 1, 5)  # (B, rows, 4, columns, 4, C')
        self.inner = self.bordered[:, :, 1 : width + 1]
        own = [image.shape[3] for image in images]
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
        # No image there, or what the strip before has left.
        if begin > 0:
            self.bordered[:, :begin].zero_()
        if end < self.bordered.shape[1]:
            self.bordered[:, end:].zero_()

    def convolve(self, first: int) -> None:
        """Write the results from row `first` on into `out`."""
        into, back, _ = _transforms()
        self.of_tiles.copy_(self.tiles)
        torch.mm(into, self.taken, out=self.values)
        torch.bmm(self.values_of_tiles, self.kernels, out=self.products_of_tiles)
        # What all pixels of a tile have in common is a single one of its values, at the points 1 and 1.
        self.constant.add_(self.bias)
        torch.mm(back, self.products, out=self.results)
        self.out[:, first : first + self.height].view(self.in_rows.shape).copy_(self.in_rows)


def _transformed(weight: Tensor) -> Tensor:
    """Return the kernels, (36, C, C'), of a (C', C, 3, 3) weight."""
    values = _transforms()[2] @ weight.detach().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
    return values.view(len(values), weight.shape[1], weight.shape[0])


@functools.cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return what takes a tile to its values, values to results, and taps to kernels, each for both axes at once.

    As one (36, 36), (16, 36) and (36, 9) matrix: one pass over memory, where an axis at a time takes two.
    """
    one_tap_each = torch.eye(9, device="cpu").view(1, 9, 3, 3)
    unit = WinogradConvolution.of_weight(one_tap_each, torch.zeros(1, device="cpu"), RESULTS)
    return torch.kron(unit.into, unit.into), torch.kron(unit.back, unit.back), unit.kernels[..., 0].contiguous()


def _channels_last(x: Tensor) -> Tensor:
    """Return (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)
