"""A convolution by tiles is the convolution, whatever the size, and so is what stands around it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from declouder.networks import tile_transforms, tiles
from declouder.networks.strips import Affine, has_known_moments, moments
from declouder.networks.tiles import FEWEST_CHANNELS, FEWEST_WITHOUT_AVX512, Past, TiledConvolution

pytestmark = pytest.mark.usefixtures("processor")

SIZES = [(32, 32), (33, 47), (64, 9), (5, 300)]


def convolution_of(channels: int, made: int) -> nn.Conv2d:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, made, 3, padding=1)
    assert TiledConvolution.suits(convolution)
    return convolution


def plain(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    assert convolution.bias is not None
    return F.conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at_once", [1, 20, 1000])
@torch.no_grad()
def test_a_convolution_by_tiles_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], at_once: int
) -> None:
    monkeypatch.setattr(tiles, "TILES_AT_ONCE", at_once)
    convolution = convolution_of(96, 160)
    x = torch.randn(2, 96, *size).to(memory_format=torch.channels_last)
    expected = plain(convolution, x)
    found = TiledConvolution(convolution).within_block([x])
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 2e-4


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("own", [(96,), (64, 32), (32, 40, 24)])
@pytest.mark.parametrize("projected", [True, False])
@torch.no_grad()
def test_within_a_block_the_input_is_scaled_and_activated_and_the_past_added(
    size: tuple[int, int], own: tuple[int, ...], projected: bool
) -> None:
    channels, made = 96, 112 if projected else 96
    convolution = convolution_of(channels, made)
    projection = nn.Conv2d(channels, made, 1) if projected else None
    x = torch.randn(2, channels, *size)
    scale, shift = torch.randn(2, 2, channels)
    seen = F.silu(x.double() * scale.double()[..., None, None] + shift.double()[..., None, None])
    past = x.double() if projection is None else projection(x).double()
    parts = [part.to(memory_format=torch.channels_last) for part in torch.split(x, own, dim=1)]
    found = TiledConvolution(convolution).within_block(parts, Affine(scale, shift), past=Past(parts, projection))
    expected = plain(convolution, seen) + past
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 5e-4


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_of_a_result_the_moments_are_known(batch: int) -> None:
    convolution = convolution_of(96, 128)
    x = torch.randn(batch, 96, 70, 41)
    added = torch.randn(batch, 128)
    as_it_is = Affine(torch.ones(batch, 96), torch.zeros(batch, 96))
    found = TiledConvolution(convolution).within_block([x], as_it_is, added)
    assert float((found - plain(convolution, F.silu(x)) - added[..., None, None]).abs().max()) < 2e-4
    assert has_known_moments(found) and not has_known_moments(x)
    assert not has_known_moments(TiledConvolution(convolution)(x))
    expected = torch.stack([found.mean((2, 3)), found.var((2, 3), correction=0)])
    assert torch.allclose(moments(found), expected, rtol=1e-5, atol=1e-6)
    assert torch.allclose(moments(found.clone()), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_moments_of_a_large_image_are_exact() -> None:
    torch.manual_seed(0)
    x = (10 + torch.randn(1, 8, 1024, 1024)).to(memory_format=torch.channels_last)
    mean, variance = moments(x).double()
    assert float((mean - x.double().mean((2, 3))).abs().max()) < 1e-4
    assert float((variance / x.double().var((2, 3), correction=0) - 1).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("channels", "made", "side", "quicker"),
    [(96, 96, 32, False), (128, 128, 32, True), (96, 96, 48, True), (64, 64, 64, False), (64, 64, 128, True)],
)
@torch.no_grad()
def test_few_tiles_are_left_to_the_plain_convolution(channels: int, made: int, side: int, quicker: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, made, 3, padding=1)
    x = torch.randn(1, channels, side, side)
    assert TiledConvolution(convolution).is_quicker_for(x) is quicker
    found = TiledConvolution(convolution)(x)
    assert torch.equal(found, convolution(x)) is not quicker
    assert float((found - convolution(x)).abs().max()) < 2e-4


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3, padding=2),
        nn.Conv2d(128, 128, 3, padding=1, dilation=2),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 128, 3, padding=1, bias=False),
    ],
)
def test_other_convolutions_do_not_suit(other: nn.Conv2d) -> None:
    assert not TiledConvolution.suits(other)


def test_those_of_few_channels_do_not_suit_and_how_few_depends_on_the_processor(processor: str) -> None:
    fewest = {"AVX512": FEWEST_CHANNELS, "AVX2": FEWEST_WITHOUT_AVX512}[processor]
    for channels, suits in ((fewest - 1, False), (fewest, True)):
        assert TiledConvolution.suits(nn.Conv2d(channels, 512, 3, padding=1)) is suits
        assert TiledConvolution.suits(nn.Conv2d(512, channels, 3, padding=1)) is suits


def test_with_avx512_transforms_are_products_and_otherwise_sums(processor: str) -> None:
    ways = {"AVX512": tile_transforms.ByProducts, "AVX2": tile_transforms.BySums}
    assert tile_transforms.transforms_here() is ways[processor]


@torch.no_grad()
def test_values_by_sums_are_those_by_products() -> None:
    torch.manual_seed(0)
    bordered = torch.randn(2, 3 * 4 + 2, 5 * 4 + 2, 7)
    products = torch.randn(36, 2 * 3 * 5, 6)
    by_products, by_sums = (way(bordered, 6) for way in (tile_transforms.ByProducts, tile_transforms.BySums))
    assert torch.allclose(by_sums.values(), by_products.values(), atol=2e-5)
    made = [torch.empty(2, 12, 20, 6) for _ in range(2)]
    for way, out in zip((by_products, by_sums), made, strict=True):
        way.write_results(products, out)
    assert float(made[0].std()) > 1
    assert torch.allclose(*made, atol=2e-5)


def test_transforms_are_made_on_the_cpu_whatever_the_default_device() -> None:
    tile_transforms._matrices.cache_clear()
    with torch.device("meta"):
        assert {matrix.device.type for matrix in tile_transforms._matrices()} == {"cpu"}
