"""A 3 x 3 convolution by a quarter of the multiplications, with what stands around it in a residual block.

    TiledConvolution(convolution)(x)                          the convolution
    TiledConvolution(convolution).within_block(parts, ...)    conv(silu(scale * x + shift)) + added + past

Winograd's F(4 x 4, 3 x 3) (`declouder.winograd`), for CPUs. The image goes through it in strips of a few rows of
tiles, whose working memory stays in a core's cache. There the normalised and activated input is made, the residual
added, and measured what the next normalisation asks for, so that none of it takes a pass over the whole image.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from declouder.networks.derived import Derived
from declouder.networks.strips import Affine, MomentsOfStrips, Strip, is_plain_3x3, to_bhwc
from declouder.winograd import POINTS, WinogradConvolution, tiles_within

RESULTS = 4
"""Side of the square that one tile gives; its input is wider by 2."""
VALUES, PIXELS = (RESULTS + 2) ** 2, RESULTS**2
"""Of a tile: values that are multiplied, and pixels that they give."""
CONSTANT = POINTS.index(1) * (RESULTS + 2) + POINTS.index(1)
"""The value that goes into all pixels of a tile alike."""
FEWEST_CHANNELS = 64
"""In and out; below, tiles take longer to transform than they save."""
FEWEST_PRODUCTS = 2**20
"""Of tiles and pairs of channels, in and out; below, the same."""
FEW_PAIRS, FEWEST_TILES_OF_THEM = 8192, 1024
"""Of fewer pairs than these, so many tiles are wanted."""
TILES_AT_ONCE = 128
"""For a thread; so many tiles stay in a core's cache between the parts of the convolution."""


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
            rows = to_bhwc(part)[:, first : first + out.shape[1]]
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
        return is_plain_3x3(convolution) and min(channels) >= FEWEST_CHANNELS

    def is_quicker_for(self, x: Tensor) -> bool:
        """Tell whether images of this size, (B, any, H, W), have tiles enough."""
        batch, _, height, width = x.shape
        tiles = batch * -(-height // RESULTS) * -(-width // RESULTS)
        pairs = self.convolution.in_channels * self.convolution.out_channels
        return tiles * pairs >= FEWEST_PRODUCTS and (pairs >= FEW_PAIRS or tiles >= FEWEST_TILES_OF_THEM)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        if self.is_quicker_for(x):
            return self.within_block([x])
        out: Tensor = self.convolution(x)
        return out

    def within_block(
        self,
        parts: Sequence[Tensor],
        affine: Affine | None = None,
        added: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Return conv(silu(scale * x + shift)) + added + past, (B, C', H, W); without `affine` of x as it is.

        With `affine` the result's moments are measured, for the normalisation that comes next.

        Args:
            parts: x in parts, (B, C_i, H, W) each, whose channels follow one another.
            affine: scale and shift of all channels.
            added: to each channel of the result, (B, C').
            past: what is added.
        """
        bias = self.convolution.bias
        assert bias is not None
        height, width = parts[0].shape[2:]
        strips = _Strips(
            parts, affine, self._kernels(self.convolution.weight), bias if added is None else bias + added
        )
        found = None if affine is None else MomentsOfStrips()
        for first in range(0, height, strips.height):
            strips.convolve(first)
            made = strips.out[:, first : min(height, first + strips.height), :width]
            if past is not None:
                past.add_to(made, first)
            if found is not None:
                found.add(made)
        out = strips.out[:, :height, :width].permute(0, 3, 1, 2)
        if found is not None:
            found.keep_with(out)
        return out


class _Strips:
    """Working memory for one strip after the other, and the whole result.

    Args:
        parts: x in parts, (B, C_i, H, W) each.
        affine: what comes before the convolution, with SiLU, or None.
        kernels: (36, C, C'), of `_transformed`.
        bias: (C',) or (B, C')

    Attributes:
        height: rows of results in a strip; the last strip may reach beyond the image, over zeros.
        out: (B, at least H, at least W, C'), filled by `convolve`.
    """

    def __init__(self, parts: Sequence[Tensor], affine: Affine | None, kernels: Tensor, bias: Tensor) -> None:
        batch, _, height, width = parts[0].shape
        rows, columns = -(-height // RESULTS), -(-width // RESULTS)
        strips = -(-rows // max(1, TILES_AT_ONCE * torch.get_num_threads() // (batch * columns)))
        self.rows = -(-rows // strips)  # of tiles
        self.height = self.rows * RESULTS
        _, channels, made = kernels.shape
        tiles, new = batch * self.rows * columns, parts[0].new_empty
        self.kernels, self.bias = kernels, bias.view(-1, 1, made)
        self.out = new(batch, strips * self.height, columns * RESULTS, made)
        self.strip = Strip(parts, affine, height=self.height, width=columns * RESULTS)
        # Seen in other shapes here, once: to make the views anew for each strip takes time.
        self.tiles = tiles_within(self.strip.bordered, results=RESULTS, taps=3)
        self.taken, values = new(2, VALUES, tiles * channels)
        self.of_tiles = self.taken.view(self.tiles.shape)
        self.values, self.values_of_tiles = values, values.view(VALUES, tiles, channels)
        self.products_of_tiles = new(VALUES, tiles, made)
        self.products = self.products_of_tiles.view(VALUES, -1)
        self.constant = self.products_of_tiles[CONSTANT].view(batch, -1, made)
        self.results = new(PIXELS, tiles * made)
        in_tiles = self.results.view(RESULTS, RESULTS, batch, self.rows, columns, made)
        self.in_rows = in_tiles.permute(2, 3, 0, 4, 1, 5)  # (B, rows, 4, columns, 4, C')

    def convolve(self, first: int) -> None:
        """Write the results from row `first` on into `out`."""
        into, back, _ = _transforms()
        self.strip.enter(first)
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
