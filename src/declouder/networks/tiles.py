"""A 3 x 3 convolution by a quarter of the multiplications, with what stands around it in a residual block.

    TiledConvolution(convolution)(x)                          the convolution
    TiledConvolution(convolution).within_block(parts, ...)    conv(silu(scale * x + shift)) + added + past

Winograd's F(4 x 4, 3 x 3) (`declouder.winograd`), for CPUs. The image goes through it in strips of a few rows of
tiles, whose working memory stays in a core's cache. There the normalised and activated input is made, the residual
added, and measured what the next normalisation asks for, so that none of it takes a pass over the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from declouder.devices import has_avx512
from declouder.networks.derived import Derived
from declouder.networks.strips import Affine, MomentsOfStrips, Strip, is_plain_3x3, to_bhwc
from declouder.networks.tile_transforms import RESULTS, SIDE, VALUES, kernels_of, transforms_here
from declouder.winograd import POINTS

CONSTANT = POINTS.index(1) * SIDE + POINTS.index(1)
"""The value that goes into all pixels of a tile alike."""
FEWEST_CHANNELS, FEWEST_WITHOUT_AVX512 = 64, 96
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
        self._kernels = Derived(kernels_of)

    @staticmethod
    def suits(convolution: nn.Conv2d) -> bool:
        """Tell whether a convolution is one of those that are quicker this way, for large images."""
        channels = convolution.in_channels, convolution.out_channels
        fewest = FEWEST_CHANNELS if has_avx512() else FEWEST_WITHOUT_AVX512
        return is_plain_3x3(convolution) and min(channels) >= fewest

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
        kernels: (36, C, C'), of `kernels_of`.
        bias: (C',) or (B, C')

    Attributes:
        height: rows of results in a strip; the last strip may reach beyond the image, over zeros.
        out: (B, at least H, at least W, C'), filled by `convolve`.
    """

    def __init__(self, parts: Sequence[Tensor], affine: Affine | None, kernels: Tensor, bias: Tensor) -> None:
        batch, _, height, width = parts[0].shape
        all_rows, columns = -(-height // RESULTS), -(-width // RESULTS)
        strips = -(-all_rows // max(1, TILES_AT_ONCE * torch.get_num_threads() // (batch * columns)))
        rows = -(-all_rows // strips)  # of tiles
        self.height = rows * RESULTS
        made = kernels.shape[2]
        self.kernels, self.bias = kernels, bias.view(-1, 1, made)
        self.out = parts[0].new_empty(batch, strips * self.height, columns * RESULTS, made)
        self.strip = Strip(parts, affine, height=self.height, width=columns * RESULTS)
        self.transforms = transforms_here()(self.strip.bordered, made)
        self.products = parts[0].new_empty(VALUES, batch * rows * columns, made)
        self.constant = self.products[CONSTANT].view(batch, -1, made)

    def convolve(self, first: int) -> None:
        """Write the results from row `first` on into `out`."""
        self.strip.enter(first)
        torch.bmm(self.transforms.values(), self.kernels, out=self.products)
        # What all pixels of a tile have in common is a single one of its values, at the points 1 and 1.
        self.constant.add_(self.bias)
        self.transforms.write_results(self.products, self.out[:, first : first + self.height])
