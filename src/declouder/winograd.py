"""Convolution by fewer multiplications: Winograd's minimal filtering, for small kernels and stride 1.

    y = A' [ (G g G') * (B' d B) ] A      d: a tile of n x n pixels, g: r x r taps, y: m x m results,
                                            n = m + r - 1

One dimension is the product of two polynomials, found from its values at n points (Toom-Cook), one of them
infinity; the three matrices follow from the points. For 3 x 3 taps and m = 4 this takes 36 multiplications for
16 results where the sum takes 144 (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308). Results differ from
the plain sum by rounding alone.

It is here because torch has nothing of the kind for CPUs. `networks.tiles` takes convolutions of U-Nets by it. And
LPIPS is most of what an image's scores cost: the four layers of AlexNet that it serves (`lpips`) take 31 ms in
place of 57 (four images of 256 px, one core of an AMD EPYC; `benchmarks/metrics.py` times them both ways).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


@dataclass(frozen=True)
class WinogradConvolution:
    """A convolution of stride 1 that keeps the size, for square odd kernels; built once by `of_weight`.

    Attributes:
        taps: r, the kernel's side.
        tile_results: m, the side of the square of results that one tile gives.
        kernels: (n * n, C_in, C_out), the transformed weight.
        bias: (C_out,)
        into: B', (n, n), a line of a tile to its values at the points.
        back: A', (m, n), values to results.
    """

    taps: int
    tile_results: int
    kernels: Tensor
    bias: Tensor
    into: Tensor
    back: Tensor

    @classmethod
    def of_weight(cls, weight: Tensor, bias: Tensor, tile_results: int = 4) -> WinogradConvolution:
        """Transform a (C_out, C_in, r, r) weight."""
        taps = weight.shape[-1]
        a, b, g = _matrices(tile_results, taps)
        kernel = weight.detach().double().numpy().transpose(2, 3, 1, 0)
        kernels = np.einsum("ar,bs,rsio->abio", g, g, kernel).reshape(-1, *kernel.shape[2:])
        return cls(
            taps,
            tile_results,
            torch.from_numpy(kernels).float().contiguous(),
            bias.detach().float(),
            torch.from_numpy(b).float(),
            torch.from_numpy(a).float(),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve: (N, H, W, C_in) to (N, H, W, C_out), zeros around the image."""
        n, height, width, channels = x.shape
        m, border = self.tile_results, self.taps // 2
        # Past the right and lower edge as far as the last whole tile reaches.
        padded = functional.pad(x, (0, 0, border, -width % m + border, border, -height % m + border))
        tiles = tiles_within(padded, results=m, taps=self.taps)
        side, rows, columns = tiles.shape[0], *tiles.shape[3:5]
        values = _on_both_axes(self.into, tiles.reshape(side, side, -1)).view(side * side, -1, channels)
        products = torch.bmm(values, self.kernels)  # (side * side, N * rows * columns, C_out)
        out = _on_both_axes(self.back, products.view(side, side, -1)).view(m, m, n, rows, columns, -1)
        out = out.permute(2, 3, 0, 4, 1, 5).reshape(n, rows * m, columns * m, -1)
        return out[:, :height, :width] + self.bias


def tiles_within(padded: Tensor, *, results: int, taps: int) -> Tensor:
    """Return the overlapping tiles of an image that has its border already: a view, (n, n, N, rows, columns, C).

    Args:
        padded: (N, rows * m + r - 1, columns * m + r - 1, C), contiguous.
        results: m, the side of the square of results that one tile gives.
        taps: r, the kernel's side.
    """
    count, height, width, channels = padded.shape
    side = results + taps - 1
    rows, columns = (height - taps + 1) // results, (width - taps + 1) // results
    step_image, step_row, step_column, _ = padded.stride()
    return padded.as_strided(
        (side, side, count, rows, columns, channels),
        (step_row, step_column, step_image, step_row * results, step_column * results, 1),
    )


def _on_both_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """Apply a (k, n) matrix to both of the first axes of (n, n, any): (k, k, any)."""
    return torch.matmul(matrix, (matrix @ x.flatten(1)).view(len(matrix), *x.shape[1:]))


def _matrices(results: int, taps: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return A' (m, n), B' (n, n) and G (n, r) for m results of r taps.

    Convolution's transposed form: the values of g and of the results' weights at the points give the sum's
    coefficients by interpolation, so B' holds the coefficients of the points' Lagrange polynomials.
    """
    points: Sequence[float] = POINTS[: results + taps - 2]
    others = [[q for q in points if q != p] for p in points]
    a = np.array([[p**i for p in points] + [float(i == results - 1)] for i in range(results)])
    g = np.array([[p**j for j in range(taps)] for p in points] + [[0.0] * (taps - 1) + [1.0]])
    b = np.zeros((len(points) + 1, len(points) + 1))
    for row, rest in enumerate(others):
        b[row, :-1] = np.poly(rest)[::-1]
        scale = np.prod([points[row] - q for q in rest])
        g[row] /= scale
    b[-1] = np.poly(points)[::-1]
    return a, b, g
