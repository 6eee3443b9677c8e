"""The quick form of a network computes what the network does, follows its weights and leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import nn

from declouder.networks import MSDA, CompactNet, Denoiser, MemoryNet, WeightNet
from declouder.networks.prepared import Prepared, can_prepare
from declouder.networks.quick_layers import QuickAttention, QuickBlock, QuickResidual, QuickUp, QuickUpsample
from declouder.networks.tiles import TiledConvolution

UNET = {"widths": (96, 128), "attention_levels": (1,), "layers": 1}
NETWORKS: dict[str, tuple[Any, int]] = {
    "denoiser": (lambda: Denoiser(heads=4, **UNET), 6),
    "weight net": (lambda: WeightNet(heads=1, **UNET), 9),
    "half-size denoiser": (lambda: Denoiser(heads=4, stem=2, **UNET), 6),
    "compact": (lambda: CompactNet(widths=(32, 96), blocks=(1, 2), block="residual", stem=2), 3),
    "guided compact": (
        lambda: CompactNet(widths=(32, 96), blocks=(1, 1), stem=2, guided=(3, 9), extremes=True, context=3),
        3,
    ),
    "compact of NAF blocks": (lambda: CompactNet(widths=(24, 48), blocks=(1, 1)), 3),
    "msda": (lambda: MSDA(), 3),
}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def awake(network: nn.Module) -> nn.Module:
    """Give every weight a value: zero-initialised layers would hide what lies before them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(channels: int, size: tuple[int, int], batch: int) -> tuple[torch.Tensor, ...]:
    x = 2 * torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1)) - 1
    return (x,) if channels == 3 else (x, torch.arange(batch) * 400)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "batch"), [((64, 64), 1), ((50, 83), 2), ((16, 16), 1)])
def test_it_computes_what_the_network_does(name: str, size: tuple[int, int], batch: int) -> None:
    torch.manual_seed(0)
    make, channels = NETWORKS[name]
    network, given = awake(make()), inputs(channels, size, batch)
    expected = network(*given)
    assert expected.std() > 0.01
    assert torch.allclose(Prepared(network)(*given), expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("denoiser", {QuickResidual, QuickUp, QuickUpsample, QuickAttention, TiledConvolution}),
        ("weight net", {QuickResidual, QuickUp, QuickUpsample, QuickAttention, TiledConvolution}),
        ("compact", {QuickBlock, TiledConvolution}),
    ],
)
def test_quick_layers_take_the_place_of_those_that_they_know(name: str, layers: set[type]) -> None:
    network = NETWORKS[name][0]()
    own = {type(part) for part in Prepared(network)._quick.modules()}
    assert layers <= own
    in_bfloat16 = {type(part) for part in Prepared(network, in_bfloat16=True)._quick.modules()}
    assert not in_bfloat16 & {QuickUp, QuickUpsample, TiledConvolution}


def test_the_network_itself_stays_as_it_was() -> None:
    network, given = awake(Denoiser(heads=4, **UNET)), inputs(6, (64, 64), 1)
    before, names = network(*given), [name for name, _ in network.named_modules()]
    Prepared(network)(*given)
    assert [name for name, _ in network.named_modules()] == names
    assert torch.equal(network(*given), before)


def test_changed_weights_are_seen() -> None:
    network, given = awake(Denoiser(heads=4, **UNET)), inputs(6, (64, 64), 1)
    quick = Prepared(network)
    first = quick(*given)
    for parameter in network.parameters():
        parameter.mul_(1.05)
    assert not torch.allclose(quick(*given), first, atol=1e-3)
    assert torch.allclose(quick(*given), network(*given), atol=1e-4)
    network.load_state_dict(awake(Denoiser(heads=4, **UNET)).state_dict())
    assert torch.allclose(quick(*given), network(*given), atol=1e-4)


@pytest.mark.parametrize("change", ["past versions", "a setting"])
def test_a_network_that_was_changed_in_any_way_is_prepared_anew(change: str) -> None:
    network, given = awake(Denoiser(heads=4, **UNET)), inputs(6, (64, 64), 1)
    quick = Prepared(network)
    quick(*given)
    assert quick.is_of(network)
    if change == "past versions":
        for parameter in network.parameters():
            parameter.data.mul_(1.05)  # PyTorch counts no new version
    else:
        block = next(part for part in network.modules() if hasattr(part, "output_scale_factor"))
        block.output_scale_factor = 2.0
    assert not quick.is_of(network)
    assert torch.allclose(Prepared(network)(*given), network(*given), atol=1e-4)


def test_in_bfloat16_it_is_near_what_the_network_does_and_leaves_its_weights() -> None:
    network, given = awake(Denoiser(heads=4, **UNET)), inputs(6, (64, 64), 2)
    expected, quick = network(*given), Prepared(network, in_bfloat16=True)
    found = quick(*given)
    rounding = float((found - expected).abs().max() / expected.abs().max())
    assert 1e-4 < rounding < 0.05
    assert found.dtype == torch.float32 and found.is_contiguous()
    assert torch.equal(network(*given), expected)
    assert quick.is_of(network)
    next(network.parameters()).data.mul_(1.05)
    assert not quick.is_of(network)


def test_in_bfloat16_it_is_for_float32_and_not_for_a_network_that_comes_to_the_device_later() -> None:
    network, x = Denoiser(**UNET), torch.zeros(1, 6, 8, 8)
    assert can_prepare(network, x, in_bfloat16=True)
    assert not can_prepare(network, x.bfloat16(), in_bfloat16=True)
    network._hf_hook = object()
    assert not can_prepare(network, x, in_bfloat16=True)


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_a_network_to_which_somebody_has_added_is_not_copied(in_bfloat16: bool) -> None:
    def suits(network: nn.Module) -> bool:
        return can_prepare(network, torch.zeros(1, 6, 8, 8), in_bfloat16=in_bfloat16)

    network = Denoiser(**UNET)
    part = next(network.unet.children())
    for handle in (part.register_forward_hook(print), network.register_forward_pre_hook(print)):
        assert not suits(network)
        handle.remove()
    part.forward = part.forward
    assert not suits(network)
    del part.forward
    assert suits(network)
    network.compile()
    assert not suits(network)
    assert not suits(Denoiser(**UNET).bfloat16())


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_a_small_change_of_one_weight_among_many_is_seen(in_bfloat16: bool) -> None:
    network = awake(Denoiser(heads=4, **UNET))
    quick = Prepared(network, in_bfloat16=in_bfloat16)
    changed = next(part for part in network.modules() if isinstance(part, nn.Conv2d) and part.in_channels >= 96)
    changed.weight.data[0, 0, 0, 0] += 1e-4 * changed.weight.abs().max()
    assert not quick.is_of(network)


def test_a_change_of_an_upsampling_of_few_channels_is_seen() -> None:
    network = awake(Denoiser(heads=4, widths=(32, 32), attention_levels=(), layers=1))
    quick, given = Prepared(network), inputs(6, (32, 32), 1)
    quick(*given)
    (upsampling,) = (part for part in network.modules() if isinstance(part, Upsample2D))
    upsampling.conv.weight.data.mul_(1.01)
    assert not quick.is_of(network)
    assert torch.allclose(Prepared(network)(*given), network(*given), atol=1e-4)


def test_it_is_for_float32_on_the_cpu_without_gradients() -> None:
    network, x = Denoiser(**UNET), torch.zeros(1, 6, 8, 8)
    assert can_prepare(network, x)
    assert not can_prepare(network, x.double())
    assert not can_prepare(network, x.to("meta"))
    assert not can_prepare(MemoryNet(), x)
    assert not can_prepare(lambda x: x, x)
    with torch.enable_grad():
        assert not can_prepare(network, x)
    with torch.autocast("cpu"):
        assert not can_prepare(network, x)
