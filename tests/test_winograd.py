"""Convolution by fewer multiplications gives what the plain one gives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from declouder.winograd import WinogradConvolution


@pytest.mark.parametrize(("taps", "results"), [(3, 2), (3, 3), (3, 4), (5, 2), (5, 4)])
@pytest.mark.parametrize("size", [(15, 15), (7, 12), (1, 3)])
def test_it_equals_the_plain_convolution_for_every_tile_and_size(
    taps: int, results: int, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size, generator=generator)
    weight, bias = torch.randn(5, 6, taps, taps, generator=generator), torch.randn(5, generator=generator)
    plain = functional.conv2d(x.double(), weight.double(), bias.double(), padding=taps // 2)
    quick = WinogradConvolution.of_weight(weight, bias, results)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert quick.shape == plain.shape
    assert float((quick - plain).abs().max() / plain.abs().max()) < 2e-5
