"""MSDA's blocks for inference: the same weights, the same output but for rounding, in less time.

Convolutions that read the same features are computed as one, as those to a few channels take as long as one to
sixteen, and each passes over all that it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declouder.networks.msda import DenseResidual, DistortionAwareBlock, LocalLight
from declouder.networks.strips import to_bhwc


class QuickDense(nn.Module):
    """MSDA's DenseResidual: each output, once made, goes into all that it takes part in, and nothing is joined."""

    def __init__(self, block: DenseResidual) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        chain, join = [cast(nn.Conv2d, layer) for layer in self.block.chain], self.block.join
        if not chain:
            return cast(Tensor, self.block(x))
        growth, channels = chain[0].out_channels, x.shape[1]
        onto = join.weight[:, :, 0, 0].T  # (channels of all that is seen, C)
        pixels = to_bhwc(x).reshape(-1, channels)
        out = torch.addmm(cast(Tensor, join.bias), pixels, onto[:channels])
        # What the layers still to come find in all that has been made before.
        found = F.conv2d(x, _columns(chain, slice(0, channels)), _biases(chain), padding=1)
        for index in range(len(chain)):
            made = F.relu(found[:, :growth])
            own = slice(channels + index * growth, channels + (index + 1) * growth)
            out.addmm_(to_bhwc(made).reshape(-1, growth), onto[own])
            if later := chain[index + 1 :]:
                found = F.conv2d(made, _columns(later, own), padding=1).add_(found[:, growth:])
        return out.view(to_bhwc(x).shape).permute(0, 3, 1, 2).add_(x)


class QuickDistortionAware(nn.Module):
    """MSDA's DistortionAwareBlock."""

    def __init__(self, block: DistortionAwareBlock) -> None:
        super().__init__()
        self.block = block
        self.plain, self.content = QuickDense(block.plain), QuickDense(block.content)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        block = self.block
        plain = self.plain(x)
        content = F.instance_norm(self.content(F.instance_norm(x)))
        styles = F.relu(_as_one([block.reflected.style, block.transmitted.style], plain), inplace=True)
        style, other_style = (each.contiguous(memory_format=torch.channels_last) for each in styles.chunk(2, dim=1))
        shift, scale = block.spread(style.mean((2, 3)))[..., None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        a, b = torch.sigmoid(_as_one([block.choose_reflected, block.choose_spread], content)).chunk(2, dim=1)
        lit = _lit(block.transmitted, content, other_style)
        lit.lerp_(torch.addcmul(shift, content, scale), b).lerp_(_lit(block.reflected, content, style), a)
        joined: Tensor = block.attention(block.join(torch.cat([plain, lit], dim=1)))
        return joined.add_(x)


def _lit(light: LocalLight, content: Tensor, style: Tensor) -> Tensor:
    """Return what LocalLight makes of a content, (B, C, H, W), and of its style, (B, C // 2, H, W)."""
    lit: Tensor = light.shift(style)
    return lit.addcmul_(content, light.scale(style)).add_(content)


def _as_one(convolutions: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """Return what several 3 x 3 convolutions that pad by zeros make of x, their channels joined."""
    return F.conv2d(x, _columns(convolutions, slice(None)), _biases(convolutions), padding=1)


def _columns(convolutions: Sequence[nn.Conv2d], channels: slice) -> Tensor:
    """Return the weights of several convolutions for some of the channels that they read, as of one convolution."""
    return torch.cat([convolution.weight[:, channels] for convolution in convolutions])


def _biases(convolutions: Sequence[nn.Conv2d]) -> Tensor:
    return torch.cat([cast(Tensor, convolution.bias) for convolution in convolutions])
