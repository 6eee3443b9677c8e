"""Each quick layer computes what the layer does whose place it takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from declouder.networks import quick_layers
from declouder.networks.compact import ResidualBlock
from declouder.networks.msda import DistortionAwareBlock
from declouder.networks.prepared import Prepared, _replaced
from declouder.networks.quick_layers import QuickBlock, QuickHead, QuickResidual, QuickUp, QuickUpsample
from declouder.networks.quick_msda import QuickDistortionAware
from declouder.networks.strips import MomentsOfStrips, has_known_moments
from declouder.networks.unet import Denoiser


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def image(channels: int, height: int = 30, width: int = 37) -> torch.Tensor:
    x = 3 * torch.randn(2, channels, height, width) + torch.randn(1, channels, 1, 1)
    return x.to(memory_format=torch.channels_last)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert found.shape == expected.shape and expected.std() > 0.1
    return torch.allclose(found, expected, atol=2e-5 * float(expected.abs().max()))


def residual(channels: int, made: int, time: str) -> Any:
    block = ResnetBlock2D(
        in_channels=channels, out_channels=made, temb_channels=16, groups=8, time_embedding_norm=time
    )
    for norm in (block.norm1, block.norm2):
        norm.weight.add_(0.3 * torch.randn(norm.weight.shape))
        norm.bias.add_(0.3 * torch.randn(norm.bias.shape))
    return block


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("time", ["default", "scale_shift"])
@pytest.mark.parametrize(("channels", "made"), [(96, 96), (128, 96), (96, 40), (40, 96), (24, 24), (128, 64)])
def test_a_residual_block(time: str, channels: int, made: int) -> None:
    block = residual(channels, made, time)
    x, temb = image(channels), torch.randn(2, 16)
    expected = block(x.clone(), temb)
    quick = _replaced(block, float32=True)
    assert isinstance(quick, QuickResidual)
    assert same(quick(x.clone(), temb), expected)
    assert same(quick(x[:, :16], temb, x[:, 16:]), expected)


def test_a_residual_block_leaves_what_it_is_given() -> None:
    block = _replaced(residual(96, 96, "default"), float32=True)
    x, temb = image(96), torch.randn(2, 16)
    before = x.clone()
    block(x, temb)
    assert torch.equal(x, before)


def test_of_other_residual_blocks_none_is_taken() -> None:
    arguments: dict[str, Any] = {"in_channels": 96, "temb_channels": 16}
    others = [
        ResnetBlock2D(**arguments, dropout=0.1),
        ResnetBlock2D(**arguments, up=True),
        ResnetBlock2D(**arguments, down=True),
        ResnetBlock2D(**arguments, output_scale_factor=2.0),
        ResnetBlock2D(**arguments, non_linearity="gelu"),
    ]
    assert not any(map(QuickResidual.suits, others))
    assert QuickResidual.suits(ResnetBlock2D(**arguments))


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (16, 33)])
def test_an_upsampling(size: tuple[int, int]) -> None:
    layer, x = Upsample2D(24, use_conv=True, out_channels=20), image(24, *size)
    expected = layer(x)
    quick = _replaced(layer, float32=True)
    assert isinstance(quick, QuickUpsample)
    assert same(quick(x), expected)
    layer.conv.weight.mul_(1.5)
    assert same(quick(x), layer(x))


def test_of_other_upsamplings_none_is_taken() -> None:
    others = [
        Upsample2D(8),
        Upsample2D(8, use_conv_transpose=True),
        Upsample2D(8, use_conv=True, norm_type="rms_norm", eps=1e-5, elementwise_affine=True),
    ]
    assert not any(map(QuickUpsample.suits, others))


@pytest.mark.parametrize("free_u", [True, False])
def test_a_block_on_the_way_up(free_u: bool) -> None:
    block = UpBlock2D(32, 64, 96, 16, num_layers=2, resnet_groups=8, resnet_time_scale_shift="scale_shift")
    block.resolution_idx = 0
    if free_u:
        block.s1, block.s2, block.b1, block.b2 = 0.9, 0.2, 1.2, 1.4
    x, carried, temb = image(64), (image(32), image(96)), torch.randn(2, 16)
    expected = block(x.clone(), carried, temb)  # FreeU writes into what it is given
    quick = _replaced(block, float32=True)
    assert isinstance(quick, QuickUp) is not free_u
    assert same(quick(x, carried, temb), expected)


def test_a_block_of_the_compact_network() -> None:
    block, x = ResidualBlock(96), image(96)
    before, expected = x.clone(), block(x)
    quick = _replaced(block, float32=True)
    assert isinstance(quick, QuickBlock)
    assert same(quick(x), expected)
    assert not has_known_moments(quick(x))  # what it computes in place was another image before
    assert torch.equal(x, before)


def unet(**settings: Any) -> Any:
    common = {"in_channels": 3, "out_channels": 3, "block_out_channels": (64, 128), "norm_num_groups": 16}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(**{**common, **blocks, "layers_per_block": 1, "add_attention": False, **settings})


@pytest.mark.parametrize("size", [(2, 64, 130, 70), (1, 64, 129, 71)])
@pytest.mark.parametrize("known", [True, False])
def test_the_last_layers(monkeypatch: pytest.MonkeyPatch, size: tuple[int, ...], known: bool) -> None:
    monkeypatch.setattr(quick_layers, "VALUES_AT_ONCE", 2**16)
    whole = unet()
    x = (3 * torch.randn(size) + 1).to(memory_format=torch.channels_last)
    expected = whole.conv_out(whole.conv_act(whole.conv_norm_out(x)))
    assert QuickHead.suits(whole)
    if known:
        found = MomentsOfStrips()
        for rows in (slice(0, 50), slice(50, None)):
            found.add(x.permute(0, 2, 3, 1)[:, rows])
        found.keep_with(x)
    assert same(QuickHead(whole)(x), expected)


def test_of_other_last_layers_none_is_taken() -> None:
    assert QuickHead.suits(unet())
    others = [unet(out_channels=5), nn.Conv2d(8, 3, 3)]
    for name, layer in (
        ("conv_act", nn.GELU()),
        ("conv_norm_out", nn.GroupNorm(16, 64, affine=False)),
        ("conv_out", nn.Conv2d(64, 3, 3)),
        ("conv_out", nn.Conv2d(64, 3, 3, padding=1, bias=False)),
        ("conv_out", nn.Conv2d(64, 3, 3, padding=1, padding_mode="reflect")),
    ):
        others.append(unet())
        setattr(others[-1], name, layer)
    assert not any(map(QuickHead.suits, others))


@pytest.mark.usefixtures("processor")
def test_a_whole_network_of_quick_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, x, time = unet(block_out_channels=(96, 128)), image(3, 64, 80), torch.tensor([7])
    expected = whole(x, time).sample
    quick = _replaced(copy.deepcopy(whole), float32=True)
    squares: list[int] = []
    shuffle = F.pixel_shuffle
    monkeypatch.setattr(F, "pixel_shuffle", lambda made, side: squares.append(side) or shuffle(made, side))
    assert same(quick(x, time).sample, expected)
    assert set(squares) == {2}


def test_of_a_last_convolution_weights_that_change_are_seen() -> None:
    denoiser = Denoiser(widths=(96, 128), attention_levels=(), middle_attention=False)
    weight = denoiser.unet.conv_out.weight
    weight.normal_()
    quick, x, time = Prepared(denoiser), image(6, 64, 80), torch.tensor([7])
    assert same(quick(x, time), denoiser(x, time))
    assert quick.is_of(denoiser)
    weight.data.mul_(1.5)  # which counts as no new version
    assert not quick.is_of(denoiser)
    assert same(Prepared(denoiser)(x, time), denoiser(x, time))


@pytest.mark.parametrize(
    ("channels", "layers", "growth"), [(16, 4, 16), (8, 1, 4), (12, 3, 8), (8, 0, 4), (128, 2, 8), (64, 2, 64)]
)
def test_a_block_of_msda(channels: int, layers: int, growth: int) -> None:
    block, x = DistortionAwareBlock(channels, layers, growth), image(channels)
    before, expected = x.clone(), block(x)
    quick = _replaced(block, float32=True)
    assert isinstance(quick, QuickDistortionAware)
    assert same(quick(x), expected)
    assert same(quick.content(x), block.content(x)) and same(quick.plain(x.contiguous()), block.plain(x))
    assert torch.equal(x, before)


def test_any_other_module_stays() -> None:
    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.SiLU(), nn.GroupNorm(2, 8))
    assert list(map(type, _replaced(layers, float32=True))) == [nn.Conv2d, nn.SiLU, nn.GroupNorm]
