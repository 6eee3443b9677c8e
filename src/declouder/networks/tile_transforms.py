"""What takes tiles of an image to the values that are multiplied, and products to results, for `networks.tiles`.

Winograd's F(4 x 4, 3 x 3): both are linear, and the same for either axis of a tile. Two ways, which differ by
rounding alone:

ByProducts   both axes at once, by a product with one matrix: for processors with AVX-512
BySums       an axis at a time, by sums and differences, a third of the work: for others. With AVX2, the only one
             of them that was measured, products with so slender a matrix reach a third of the usual rate
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from declouder.devices import has_avx512
from declouder.winograd import WinogradConvolution, tiles_within

RESULTS, TAPS = 4, 3
"""Sides of the square that one tile gives, and of the kernel."""
SIDE = RESULTS + TAPS - 1
"""Of a tile."""
VALUES, PIXELS = SIDE**2, RESULTS**2
"""Of a tile: values that are multiplied, and pixels that they give."""


class ByProducts:
    """Working memory for a strip of tiles.

    Args:
        bordered: the strip, (B, rows * 4 + 2, columns * 4 + 2, C), contiguous.
        made: C', channels of the results.
    """

    def __init__(self, bordered: Tensor, made: int) -> None:
        batch, rows, columns, channels = _tiles_of(bordered)
        tiles, new = batch * rows * columns, bordered.new_empty
        # Seen in other shapes here, once: to make the views anew for each strip takes time.
        self._tiles = tiles_within(bordered, results=RESULTS, taps=TAPS)
        self._taken, self._flat_values = new(2, VALUES, tiles * channels)
        self._of_tiles = self._taken.view(self._tiles.shape)
        self._values: Tensor = self._flat_values.view(VALUES, tiles, channels)
        self._results = new(PIXELS, tiles * made)
        in_tiles = self._results.view(RESULTS, RESULTS, batch, rows, columns, made)
        self._in_rows = in_tiles.permute(2, 3, 0, 4, 1, 5)  # (B, rows, 4, columns, 4, C')

    def values(self) -> Tensor:
        """Return the values of all tiles of the strip, (36, B * rows * columns, C)."""
        self._of_tiles.copy_(self._tiles)
        torch.mm(_matrices()[0], self._taken, out=self._flat_values)
        return self._values

    def write_results(self, products: Tensor, out: Tensor) -> None:
        """Write what products (36, B * rows * columns, C') give into (B, rows * 4, columns * 4, C')."""
        torch.mm(_matrices()[1], products.view(VALUES, -1), out=self._results)
        out.view(self._in_rows.shape).copy_(self._in_rows)


class BySums:
    """Working memory for a strip of tiles, as `ByProducts`."""

    def __init__(self, bordered: Tensor, made: int) -> None:
        batch, rows, columns, channels = _tiles_of(bordered)
        tiles, new = (batch, rows, columns), bordered.new_empty
        self._lines = bordered.unfold(1, SIDE, RESULTS).movedim(4, 0)  # (6, B, rows, W, C)
        self._rows_done = new(self._lines.shape)
        self._lines_of_those = self._rows_done.unfold(3, SIDE, RESULTS).movedim(5, 0)  # (6, 6, B, rows, columns, C)
        self._values = new(SIDE, SIDE, *tiles, channels)
        self._results_done = new(RESULTS, SIDE, *tiles, made)
        pairs = [
            (2, *self._lines.shape[1:]),
            (2, SIDE, *tiles, channels),
            (2, SIDE, *tiles, made),
            (2, RESULTS, *tiles, made),
        ]
        shared = new(max(map(math.prod, pairs)))
        self._pairs = [shared[: math.prod(pair)].view(pair) for pair in pairs]

    def values(self) -> Tensor:
        """Return the values of all tiles of the strip, (36, B * rows * columns, C)."""
        _to_values(self._lines, self._rows_done, self._pairs[0])
        _to_values(self._lines_of_those, self._values.transpose(0, 1), self._pairs[1])
        return self._values.flatten(2, 4).flatten(0, 1)

    def write_results(self, products: Tensor, out: Tensor) -> None:
        """Write what products (36, B * rows * columns, C') give into (B, rows * 4, columns * 4, C')."""
        _, _, batch, rows, columns, made = self._results_done.shape
        _to_results(products.view(SIDE, *self._pairs[2].shape[1:]), self._results_done, self._pairs[2])
        by_columns = out.view(batch, rows, RESULTS, columns, RESULTS, made).permute(4, 2, 0, 1, 3, 5)
        _to_results(self._results_done.transpose(0, 1), by_columns, self._pairs[3])


def transforms_here() -> type[ByProducts] | type[BySums]:
    """Return the quicker way on this machine's processor."""
    return ByProducts if has_avx512() else BySums


def kernels_of(weight: Tensor) -> Tensor:
    """Return the kernels, (36, C, C'), of a (C', C, 3, 3) weight."""
    values = _matrices()[2] @ weight.detach().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
    return values.view(len(values), weight.shape[1], weight.shape[0])


def _tiles_of(bordered: Tensor) -> tuple[int, int, int, int]:
    """Return images, rows and columns of tiles, and channels."""
    batch, height, width, channels = bordered.shape
    return batch, (height - TAPS + 1) // RESULTS, (width - TAPS + 1) // RESULTS, channels


def _to_values(lines: Tensor, out: Tensor, pair: Tensor) -> None:
    """Write the values, (6, any), at the points 0, 1, -1, 2, -2 and infinity of lines (6, any); `pair` is (2, any).

    That is `WinogradConvolution.into` times the lines. Values at p and -p are even + p * odd and even - p * odd:
    at 1 of d4 - 4 d2 and d3 - 4 d1, at 2 of d4 - d2 and d3 - d1.
    """
    first, _, second, third, _, last = lines
    at_0, at_1, at_minus_1, at_2, at_minus_2, at_infinity = out
    odd, even = pair
    torch.sub(lines[3:5], lines[1:3], alpha=4, out=pair)
    torch.add(even, odd, out=at_1)
    torch.sub(even, odd, out=at_minus_1)
    torch.sub(lines[3:5], lines[1:3], out=pair)
    torch.add(even, odd, alpha=2, out=at_2)
    torch.sub(even, odd, alpha=2, out=at_minus_2)
    torch.sub(first, second, out=at_0)
    torch.add(even, at_0, alpha=4, out=at_0)
    torch.sub(last, third, out=at_infinity)
    torch.sub(at_infinity, odd, alpha=4, out=at_infinity)


def _to_results(values: Tensor, out: Tensor, pair: Tensor) -> None:
    """Write the results, (4, any), of values (6, any); `pair` is (2, any).

    That is `WinogradConvolution.back` times the values: result i is the sum over points p of p**i times the value
    there, for p and -p of their sum where i is even, of their difference where it is odd.
    """
    of_1_and_2, of_minus_1_and_2 = values[1:4:2], values[2:5:2]
    near, far = pair
    torch.add(of_1_and_2, of_minus_1_and_2, out=pair)
    torch.add(near, far, alpha=4, out=out[2])
    torch.add(near.add_(values[0]), far, out=out[0])
    torch.sub(of_1_and_2, of_minus_1_and_2, out=pair)
    torch.add(near, far, alpha=2, out=out[1])
    torch.add(near.add_(values[5]), far, alpha=8, out=out[3])


@functools.cache
def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return what takes a tile to its values, values to results, and taps to kernels, each for both axes at once.

    As one (36, 36), (16, 36) and (36, 9) matrix: one pass over memory, where an axis at a time takes two.
    """
    one_tap_each = torch.eye(TAPS**2, device="cpu").view(1, TAPS**2, TAPS, TAPS)
    unit = WinogradConvolution.of_weight(one_tap_each, torch.zeros(1, device="cpu"), RESULTS)
    return torch.kron(unit.into, unit.into), torch.kron(unit.back, unit.back), unit.kernels[..., 0].contiguous()
