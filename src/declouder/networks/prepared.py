"""The same networks, made quick for inference: on a CPU equal output but for rounding, or in bfloat16.

    channels last      convolutions, normalisations and attention share one memory layout; none is copied
    Winograd           a 3 x 3 convolution of many channels by a quarter of the multiplications
    in place           a residual block writes into the memory that it has just read

What each of them gains is measured in docs/speed.md. The networks themselves stay as they are: their copies
here share the weights, or have them in bfloat16. Where these, or other settings of a network, have changed,
`Prepared.is_of` tells. A network with hooks, offloaded or compiled, is none to be copied: it computes as it is.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from declouder.networks.compact import CompactNet
from declouder.networks.msda import MSDA
from declouder.networks.unet import Denoiser, WeightNet
from declouder.winograd import WinogradConvolution, tiles_of

RESULTS = 4
"""Side of the square that one tile gives; its input is wider by 2."""
FEWEST_CHANNELS = 96
"""Below, the tiles take longer to transform than the multiplications they save."""
FEWEST_TILES = 64
"""Of a whole batch; below, the same."""
MOST_VALUES = 20_000_000
"""Of input and output together, 80 MB; above, the memory that it reads and writes takes what it saves."""
TILES_AT_ONCE = 96
"""For a thread; so many tiles stay in a core's cache between the three parts of the convolution."""

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
        in_bfloat16: compute in bfloat16, from a copy of the weights, without Winograd's convolution.
    """

    def __init__(self, network: nn.Module, *, in_bfloat16: bool = False) -> None:
        self.in_bfloat16 = in_bfloat16
        self._network, self._parameters = network, list(network.parameters())
        if in_bfloat16:
            self._quick = _replaced(copy.deepcopy(network).bfloat16(), winograd=False)
            self._quick.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            # Known to deepcopy as copied already: the parameters are shared.
            shared: dict[int, Any] = {id(parameter): parameter for parameter in self._parameters}
            self._quick = _replaced(copy.deepcopy(network, shared), winograd=True)
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
    """Return the weights that Winograd's convolution keeps in another form."""
    return [part.weight for part in network.modules() if isinstance(part, nn.Conv2d) and _suits_winograd(part)]


def _replaced(module: nn.Module, *, winograd: bool) -> nn.Module:
    """Return the quick form of a module, or the module with its parts replaced."""
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, winograd=winograd))
    if isinstance(module, ResnetBlock2D) and _is_plain(module):
        return _Residual(module)
    if isinstance(module, Attention) and module.residual_connection and module.group_norm is not None:
        return _SelfAttention(module)
    if winograd and isinstance(module, nn.Conv2d) and _suits_winograd(module):
        return _Winograd(module)
    return module


def _is_plain(block: Any) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and block.time_embedding_norm in ("default", "scale_shift")
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.dropout.p == 0
    )


def _suits_winograd(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.padding == (1, 1)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and convolution.bias is not None
        and min(convolution.in_channels, convolution.out_channels) >= FEWEST_CHANNELS
    )


class _Residual(nn.Module):
    """diffusers' ResnetBlock2D without resampling: norm, SiLU, convolution, twice, and the time between them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        """Map (B, C, H, W), with (B, E) of the time, to (B, C', H, W)."""
        block = self.block
        h = block.conv1(F.silu(block.norm1(x), inplace=True))
        time = block.time_emb_proj(F.silu(temb))[:, :, None, None]
        if block.time_embedding_norm == "default":
            h = block.norm2(h.add_(time))
        else:
            scale, shift = time.chunk(2, dim=1)
            h = block.norm2(h).mul_(1 + scale).add_(shift)
        h = block.conv2(F.silu(h, inplace=True))
        out: Tensor = h.add_(x if block.conv_shortcut is None else block.conv_shortcut(x))
        return out


class _SelfAttention(nn.Module):
    """diffusers' Attention over the pixels of an image, with its normalisation and residual."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape; the time is not used."""
        attention = self.attention
        batch, channels, height, width = x.shape
        normed = attention.group_norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = (
            project(normed).unflatten(2, (attention.heads, -1)).transpose(1, 2)  # (B, heads, H*W, C / heads)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        seen = F.scaled_dot_product_attention(q, k, v, scale=attention.scale).transpose(1, 2).flatten(2)
        out: Tensor = attention.to_out[0](seen).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return out.add_(x)


class _Winograd(nn.Module):
    """A 3 x 3 convolution that pads by zeros; its kernels are transformed when it first meets a large image."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self._kernels: Tensor | None = None
        self._made_of: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        batch, _, height, width = x.shape
        rows, columns = -(-height // RESULTS), -(-width // RESULTS)
        values = batch * height * width * (self.convolution.in_channels + self.convolution.out_channels)
        if batch * rows * columns < FEWEST_TILES or values > MOST_VALUES:
            out: Tensor = self.convolution(x)
            return out
        at_once = max(1, TILES_AT_ONCE * torch.get_num_threads() // (batch * columns))
        assert self.convolution.bias is not None
        result = _by_tiles(x.permute(0, 2, 3, 1), self._current_kernels(), self.convolution.bias, at_once)
        return result.permute(0, 3, 1, 2)

    def _current_kernels(self) -> Tensor:
        """Return the transformed weight, (36, C, C'), made anew where the weight has changed."""
        weight = self.convolution.weight
        made_of = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._kernels is None or made_of != self._made_of:
            values = _transforms()[2] @ weight.detach().permute(2, 3, 1, 0).flatten(0, 1).flatten(1)
            self._kernels = values.view(len(values), weight.shape[1], weight.shape[0])
            self._made_of = made_of
        return self._kernels


@functools.cache
def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Return what takes a tile to its values, values to results, and taps to kernels, each for both axes at once.

    As one (36, 36), (16, 36) and (36, 9) matrix: one pass over memory, where an axis at a time takes two.
    """
    one_tap_each = torch.eye(9, device="cpu").view(1, 9, 3, 3)
    unit = WinogradConvolution.of_weight(one_tap_each, torch.zeros(1, device="cpu"), RESULTS)
    return torch.kron(unit.into, unit.into), torch.kron(unit.back, unit.back), unit.kernels[..., 0].contiguous()


def _by_tiles(x: Tensor, kernels: Tensor, bias: Tensor, rows_at_once: int) -> Tensor:
    """Convolve (B, H, W, C) with the kernels of `_Winograd`, some rows of tiles at a time: (B, H, W, C')."""
    into, back, _ = _transforms()
    batch, height, width, channels = x.shape
    tiles = tiles_of(x, results=RESULTS, taps=3)
    side, rows, columns = tiles.shape[0], *tiles.shape[3:5]
    out = x.new_empty(batch, rows * RESULTS, columns * RESULTS, len(bias))
    for first in range(0, rows, rows_at_once):
        count = min(rows_at_once, rows - first)
        some = tiles[:, :, :, first : first + count].reshape(side**2, -1)
        values = (into @ some).view(side**2, -1, channels)
        results = back @ torch.bmm(values, kernels).view(side**2, -1)
        torch.add(
            results.view(RESULTS, RESULTS, batch, count, columns, -1).permute(2, 3, 0, 4, 1, 5),
            bias,
            out=out[:, first * RESULTS : (first + count) * RESULTS].view(
                batch, count, RESULTS, columns, RESULTS, -1
            ),
        )
    return out[:, :height, :width]
