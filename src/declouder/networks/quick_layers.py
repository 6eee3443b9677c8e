"""Layers of the networks for inference: the same weights, the same output but for rounding, in less time.

of diffusers' U-Net:

    QuickResidual     in place; in float32 on large images strip by strip (`networks.tiles`)
    QuickUp           joins no images where its residual blocks take them in parts
    QuickUpsample     a convolution at twice the size as four of 2 x 2 at the size before
    QuickAttention    in the convolutions' memory layout
    QuickHead         normalisation, SiLU and the last convolution strip by strip

of the compact reference network:

    QuickBlock        in place
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import AttnUpBlock2D, UpBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from declouder.networks.attention import attended
from declouder.networks.compact import ResidualBlock
from declouder.networks.derived import Derived
from declouder.networks.strips import Affine, Strip, has_known_moments, is_plain_3x3, to_bhwc
from declouder.networks.tiles import Past, TiledConvolution, joined_parts

MOST_OF_FEW_CHANNELS = 4
"""Squares of 2 x 2 pixels of them have sixteen; up to sixteen a convolution takes as long as to one."""
VALUES_AT_ONCE = 2**18
"""Of an image before its last convolution, for a thread; so many stay in a core's cache."""


class QuickResidual(nn.Module):
    """diffusers' ResnetBlock2D without resampling: norm, SiLU, convolution, twice, and the time between them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def suits(block: nn.Module) -> bool:
        """Tell whether a module is such a block."""
        return (
            isinstance(block, ResnetBlock2D)
            and block.upsample is None
            and block.downsample is None
            and block.output_scale_factor == 1
            and (block.conv_shortcut is None or block.conv_shortcut.kernel_size == (1, 1))
            and block.time_embedding_norm in ("default", "scale_shift")
            and isinstance(block.nonlinearity, nn.SiLU)
            and block.dropout.p == 0
        )

    def forward(self, x: Tensor, temb: Tensor, carried: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W), with (B, E) of the time, to (B, C', H, W).

        Args:
            x: the image, or its first channels.
            temb: the time.
            carried: further channels of the image.
        """
        block = self.block
        parts = [x] if carried is None else [x, carried]
        if not isinstance(block.conv1, TiledConvolution):
            parts = [joined_parts(parts)]
        time = block.time_emb_proj(F.silu(temb))
        past = Past(parts, block.conv_shortcut)
        if block.time_embedding_norm == "default":
            h = _convolved(block.conv1, block.norm1, parts, added=time)
            return _convolved(block.conv2, block.norm2, [h], past=past)
        scale, shift = time.chunk(2, dim=1)
        h = _convolved(block.conv1, block.norm1, parts)
        return _convolved(block.conv2, block.norm2, [h], after=Affine(1 + scale, shift), past=past)


def _convolved(
    convolution: nn.Module,
    norm: nn.GroupNorm,
    parts: list[Tensor],
    *,
    after: Affine | None = None,
    added: Tensor | None = None,
    past: Past | None = None,
) -> Tensor:
    """Return conv(silu(after(norm(x)))) + added + past, (B, C', H, W), of x in parts."""
    if isinstance(convolution, TiledConvolution) and convolution.is_quicker_for(parts[0]):
        affine = Affine.of_norm(norm, parts)
        return convolution.within_block(parts, affine if after is None else affine.then(after), added, past)
    h: Tensor = norm(joined_parts(parts))
    if after is not None:
        h = h.mul_(after.scale[:, :, None, None]).add_(after.shift[:, :, None, None])
    h = convolution(F.silu(h, inplace=True))
    if added is not None:
        h.add_(added[:, :, None, None])
    if past is not None:
        past.add_to(to_bhwc(h))
    return h


class QuickBlock(nn.Module):
    """The compact network's ResidualBlock."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    @staticmethod
    def suits(block: nn.Module) -> bool:
        """Tell whether a module is such a block."""
        return isinstance(block, ResidualBlock)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        block = self.block
        h = block.conv2(F.silu(block.conv1(block.norm(x)), inplace=True))
        return torch.addcmul(x, block.beta.to(h.dtype), h, out=h)


class QuickUp(nn.Module):
    """diffusers' UpBlock2D or AttnUpBlock2D of quick residual blocks."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets, self.upsamplers = block.resnets, block.upsamplers
        self.attentions = getattr(block, "attentions", None)

    @staticmethod
    def suits(block: nn.Module) -> bool:
        """Tell whether a module is such a block, of which all parts are quick already."""
        return (
            (isinstance(block, UpBlock2D) and not getattr(block, "s1", None))  # FreeU alters what is joined
            or (isinstance(block, AttnUpBlock2D) and block.upsample_type != "resnet")
        ) and all(isinstance(part, QuickResidual) for part in block.resnets)

    def forward(self, x: Tensor, carried: tuple[Tensor, ...], temb: Tensor) -> Tensor:
        """Map (B, C, H, W), with the images carried over from the way down, the last first, to (B, C', H', W')."""
        for index, residual in enumerate(self.resnets):
            x = residual(x, temb, carried[-1 - index])
            if self.attentions is not None:
                x = self.attentions[index](x)
        for upsampler in self.upsamplers or ():
            x = upsampler(x)
        return x


class QuickUpsample(nn.Module):
    """diffusers' Upsample2D: each pixel becomes 2 x 2 equal ones, then a 3 x 3 convolution.

    Each of the four sees only 2 x 2 different pixels, at taps that have been summed: 16 multiplications for four
    results, where the convolution takes 36.
    """

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.convolution = upsample.conv
        self._kernels = Derived(_kernels_of_four)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Tell whether a module is such a layer."""
        if not isinstance(module, Upsample2D):
            return False
        return module.norm is None and module.interpolate and is_plain_3x3(getattr(module, "conv", None))

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:
        """Map (B, C, H, W) to (B, C', 2 H, 2 W); no other size."""
        assert output_size is None
        kernels = self._kernels(self.convolution.weight)
        batch, _, height, width = x.shape
        bordered = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).permute(0, 3, 1, 2)
        out = x.new_empty(batch, height, 2, width, 2, self.convolution.out_channels)
        for down in (0, 1):
            for right in (0, 1):
                seen = bordered[:, :, down : down + height + 1, right : right + width + 1]
                made = F.conv2d(seen, kernels[down, right], self.convolution.bias)
                out[:, :, down, :, right] = made.permute(0, 2, 3, 1)
        return out.view(batch, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def _kernels_of_four(weight: Tensor) -> Tensor:
    """Return the 2 x 2 kernels of the four pixels, (2, 2, C', C, 2, 2), of a (C', C, 3, 3) weight."""
    # Which of the three taps lie over each of the two pixels that are seen: first half, second half.
    over = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    summed = torch.einsum("pyr,qxs,oirs->pqoyxi", over, over, weight)
    return summed.contiguous().permute(0, 1, 2, 5, 3, 4)


class QuickAttention(nn.Module):
    """diffusers' Attention over the pixels of an image, with its normalisation and residual."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Tell whether a module is such a layer."""
        return isinstance(module, Attention) and module.residual_connection and module.group_norm is not None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W) to the same shape; the time is not used."""
        attention = self.attention
        batch, channels, height, width = x.shape
        normed = attention.group_norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        q, k, v = (
            project(normed).unflatten(2, (attention.heads, -1)).transpose(1, 2)  # (B, heads, H*W, C / heads)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        seen = attended(q, k, v, attention.scale).transpose(1, 2).flatten(2)
        out: Tensor = attention.to_out[0](seen).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return out.add_(x)


class QuickHead(nn.Module):
    """The last layers of diffusers' U-Net: group normalisation, SiLU, a 3 x 3 convolution to a few channels.

    Such a convolution takes as long as one to sixteen. So a square of 2 x 2 pixels is computed as one pixel of four
    times the channels, by 4 x 4 taps: 16 multiplications in place of 4 x 9.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.norm, self.convolution = unet.conv_norm_out, unet.conv_out
        self._kernels = Derived(_kernels_of_squares)

    @staticmethod
    def suits(module: nn.Module) -> bool:
        """Tell whether a module is a U-Net with such layers."""
        if not isinstance(module, UNet2DModel) or not isinstance(module.conv_act, nn.SiLU):
            return False
        norm, convolution = module.conv_norm_out, module.conv_out
        return (
            isinstance(norm, nn.GroupNorm)
            and norm.affine
            and is_plain_3x3(convolution)
            and convolution.out_channels <= MOST_OF_FEW_CHANNELS
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        if not has_known_moments(x):
            return cast(Tensor, self.convolution(F.silu(self.norm(x), inplace=True)))
        batch, channels, height, width = x.shape
        columns = width + width % 2
        rows = 2 * max(1, VALUES_AT_ONCE * torch.get_num_threads() // (2 * batch * channels * columns))
        strip = Strip([x], Affine.of_norm(self.norm, [x]), height=rows, width=columns)
        kernels, bias = self._kernels(self.convolution.weight), self.convolution.bias.repeat_interleave(4)
        out = x.new_empty(batch, self.convolution.out_channels, height, width)
        for first in range(0, height, rows):
            strip.enter(first)
            squares = F.conv2d(strip.bordered.permute(0, 3, 1, 2), kernels, bias, stride=2)
            place = out[:, :, first : first + rows]
            place.copy_(F.pixel_shuffle(squares, 2)[:, :, : place.shape[2], :width])
        return out


def _kernels_of_squares(weight: Tensor) -> Tensor:
    """Return the 4 x 4 kernels of squares of 2 x 2 pixels, (4 C', C, 4, 4), of a (C', C, 3, 3) weight."""
    kernels = weight.new_zeros(weight.shape[0], 2, 2, weight.shape[1], 4, 4)
    for down in (0, 1):
        for right in (0, 1):
            kernels[:, down, right, :, down : down + 3, right : right + 3] = weight
    return kernels.flatten(0, 2).contiguous(memory_format=torch.channels_last)
