"""The same networks, made quick for inference: on a CPU equal output but for rounding, or in bfloat16.

    channels last      convolutions, normalisations and attention share one memory layout; none is copied
    quick layers       that save work and passes over memory (`networks.quick_layers`, `networks.tiles`)

What they gain is measured in docs/speed.md. The networks themselves stay as they are: their copies
here share the weights, or have them in bfloat16. Where these, or other settings of a network, have changed,
`Prepared.is_of` tells. A network with hooks, offloaded or compiled, is none to be copied: it computes as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from declouder.networks.compact import CompactNet
from declouder.networks.msda import MSDA, DistortionAwareBlock
from declouder.networks.quick_layers import (
    QuickAttention,
    QuickBlock,
    QuickHead,
    QuickResidual,
    QuickUp,
    QuickUpsample,
)
from declouder.networks.quick_msda import QuickDistortionAware
from declouder.networks.tiles import TiledConvolution
from declouder.networks.unet import Denoiser, WeightNet

PREPARED = (CompactNet, Denoiser, MSDA, WeightNet)
"""Not MemoryNet: its last stage can amplify rounding errors, so it keeps the layout in which it was compared with
the authors'."""


def is_preparable(network: Any) -> bool:
    """Tell whether `Prepared` can stand for a network: one of `PREPARED` in float32 to which nobody has added.

    A copy would lack, or call elsewhere, what others have added: hooks (those of offloading too), another
    `forward`, what `torch.compile` has made.
    """
    return (
        isinstance(network, PREPARED)
        and network.dtype == torch.float32
        and not any(map(_is_altered, network.modules()))
    )


def can_prepare(network: Any, x: Tensor, *, in_bfloat16: bool = False) -> bool:
    """Tell whether `Prepared` suits a network and an input: in float32, outside of autocast, nothing to learn.

    Computing in float32 it is for CPUs, in bfloat16 for any device.
    """
    return (
        (in_bfloat16 or x.device.type == "cpu")
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
        and not torch.is_grad_enabled()
        and is_preparable(network)
    )


def _is_altered(part: nn.Module) -> bool:
    added = vars(part)
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or added.get("_compiled_call_impl") is not None
        or not added.keys().isdisjoint(("forward", "_hf_hook", "_diffusers_hook"))
    )


class Prepared:
    """Computes what a network does, quicker; for inputs that `can_prepare` accepts.

    Args:
        network: any of `PREPARED`, or what is made of their layers; it is not changed, and its parameters stay
            its own. Called, this takes and gives what the network does; the first argument is (B, C, H, W).
        in_bfloat16: compute in bfloat16, from a copy of the weights, none of them in another form.
    """

    def __init__(self, network: nn.Module, *, in_bfloat16: bool = False) -> None:
        self.in_bfloat16 = in_bfloat16
        self._network, self._parameters = network, list(network.parameters())
        if in_bfloat16:
            self._quick = _replaced(copy.deepcopy(network).bfloat16(), float32=False)
            self._quick.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            # Known to deepcopy as copied already: the parameters are shared.
            shared: dict[int, Any] = {id(parameter): parameter for parameter in self._parameters}
            self._quick = _replaced(copy.deepcopy(network, shared), float32=True)
        self._settings, self._sums = _settings(network), self._sums_of_copied()

    def is_of(self, network: nn.Module) -> bool:
        """Return whether this is of that network as it is now: the same one, with the same weights and settings.

        Of weights that are transformed it compares sums: not every way to change a tensor counts as a new version.
        """
        now = list(network.parameters())
        return (
            network is self._network
            and len(now) == len(self._parameters)
            and all(ours is theirs for ours, theirs in zip(now, self._parameters, strict=True))
            and _settings(network) == self._settings
            and self._sums_of_copied() == self._sums
        )

    def __call__(self, x: Tensor, *others: Any) -> Tensor:
        """Return the network's output, in plain memory order."""
        own = torch.bfloat16 if self.in_bfloat16 else x.dtype
        result: Tensor = self._quick(x.to(own, memory_format=torch.channels_last), *others)
        return result.to(x.dtype, memory_format=torch.contiguous_format)

    def _sums_of_copied(self) -> tuple[torch.device, list[float]] | None:
        """Return where the weights lie that are kept in another form, and of each its sum and its norm."""
        copied = self._parameters if self.in_bfloat16 else _transformed(self._network)
        if not copied:
            return None
        # Of each alone: in a sum over all a small change would be lost in rounding.
        sums = [value for weight in copied for value in (weight.sum(), torch.linalg.vector_norm(weight))]
        return copied[0].device, torch.stack(sums).tolist()


def _settings(network: nn.Module) -> list[dict[str, Any]]:
    """Return the plain numbers and words that the parts of a network hold."""
    return [
        {name: value for name, value in vars(part).items() if isinstance(value, (bool, int, float, str))}
        for part in network.modules()
    ]


def _transformed(network: nn.Module) -> list[Tensor]:
    """Return the weights that quick layers keep in another form."""
    tiled = [part for part in network.modules() if isinstance(part, nn.Conv2d) and TiledConvolution.suits(part)]
    of_four = [
        part.conv for part in network.modules() if isinstance(part, Upsample2D) and QuickUpsample.suits(part)
    ]
    of_squares = [part.conv_out for part in network.modules() if QuickHead.suits(part)]
    return [convolution.weight for convolution in dict.fromkeys([*tiled, *of_four, *of_squares])]


def _replaced(module: nn.Module, *, float32: bool) -> nn.Module:
    """Return the quick form of a module, or the module with its parts replaced.

    Args:
        module: of a copy that is ours.
        float32: replace those parts too that keep weights in another form, or that nobody has tried in bfloat16.
    """
    if float32 and QuickUpsample.suits(module):
        return QuickUpsample(module)
    if float32 and isinstance(module, DistortionAwareBlock):  # with its convolutions as they are
        return QuickDistortionAware(module)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, float32=float32))
    for quick in (QuickResidual, QuickBlock, QuickAttention):
        if quick.suits(module):
            return quick(module)
    if float32 and QuickUp.suits(module):
        return QuickUp(module)
    if float32 and QuickHead.suits(module):
        module.conv_norm_out = QuickHead(module)
        module.conv_act = module.conv_out = nn.Identity()  # which the U-Net calls after it
    elif isinstance(module, UNet2DModel) and isinstance(module.conv_act, nn.SiLU):
        module.conv_act = nn.SiLU(inplace=True)
    if float32 and isinstance(module, nn.Conv2d) and TiledConvolution.suits(module):
        return TiledConvolution(module)
    return module
