"""MemoryNet, a reference network: in fact an MPRNet, with three outputs of which the last is the result.

Zamir et al., "Multi-Stage Progressive Image Restoration", CVPR 2021 (MPRNet). The code that was published
with Diffusion Enhancement (Sui et al., IEEE TGRS 2024) has this network, in MPRNet's deraining size, under
the name MemoryNet; it holds no memory module. The image is restored in three stages:

    stage 1   on its four quarters      encoder, decoder   -> image 1
    stage 2   on its upper and lower half   encoder, decoder   -> image 2
    stage 3   on the whole, at full size                   -> image 3, the result

Each stage gets the features of the one before, and an attention drawn from the image that it made.
3.64 M parameters for 3 bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from declouder.networks.padding import padded_to_multiple

BLOCKS_PER_LEVEL = 2
# Half an image goes through two halvings.
SIZE_MULTIPLE = 8


class MemoryNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Three-stage restoration; the defaults are the published network.

    Args:
        bands: spectral bands of an image.
        features: channels at full size in stages 1 and 2.
        scale_unet_features: channels that each halving of the size adds in stages 1 and 2.
        scale_orsnet_features: channels that stage 3, at original resolution, has above `features`.
        cab_blocks: channel attention blocks in each of the three groups of stage 3.
        reduction: by how much a channel attention narrows its channels.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        bands: int = 3,
        features: int = 40,
        scale_unet_features: int = 20,
        scale_orsnet_features: int = 16,
        cab_blocks: int = 8,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        widths = [features + level * scale_unet_features for level in range(3)]
        full_width = features + scale_orsnet_features

        # The slope of every PReLU: one parameter, handed to each block, so that it is saved once.
        self.slope = nn.Parameter(torch.tensor([0.25]))
        self.stems = nn.ModuleList(Stem(bands, features, reduction) for _ in range(3))
        self.encoder1 = Encoder(widths, reduction, follows_a_stage=False)
        self.decoder1 = Decoder(widths, reduction)
        self.supervision1 = SupervisedAttention(bands, features)
        self.join2 = _conv3(2 * features, features)
        self.encoder2 = Encoder(widths, reduction, follows_a_stage=True)
        self.decoder2 = Decoder(widths, reduction)
        self.supervision2 = SupervisedAttention(bands, features)
        self.join3 = _conv3(2 * features, full_width)
        self.full_size = FullSizeStage(widths, full_width, cab_blocks, reduction)
        self.head = _conv3(full_width, bands)

    def forward(self, cloudy: Tensor) -> Tensor:
        """Return the reference image: (B, bands, H, W) in [-1, 1].

        Args:
            cloudy: (B, bands, H, W) float32 in [-1, 1], of any height and width.
        """
        return self.supervised_outputs(cloudy)[0].clamp(-1, 1)

    def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
        """Return the outputs that the reference loss compares with the clear image.

        Args:
            cloudy: (B, bands, H, W) float32 in [-1, 1], of any height and width.

        Returns:
            The images of stage 3, 2 and 1, each (B, bands, H, W), not clamped, clear images in [-1, 1].
        """
        stacked = padded_to_multiple(self._stages, (cloudy + 1) / 2, SIZE_MULTIPLE)
        return list((2 * stacked - 1).chunk(3, dim=1))

    def _stages(self, cloudy01: Tensor) -> Tensor:
        """Map (B, bands, H, W) in [0, 1] to the images of stage 3, 2 and 1, joined: (B, 3*bands, H, W)."""
        halves_encoded, halves_image1 = [], []
        # Parts are passed one by one, as published, not stacked as a batch: deep in stage 3 the network can
        # blow up a difference in rounding, and this way the results are those of the authors to the last bit.
        for half in cloudy01.chunk(2, dim=2):
            stage1 = self._stage1(half)
            attended, image1 = self.supervision1(stage1.decoded[0], half)
            x = self.join2(torch.cat([self.stems[1](half, self.slope), attended], dim=1))
            halves_encoded.append(self.encoder2(x, self.slope, stage1))
            halves_image1.append(image1)

        encoded = _join(halves_encoded, dim=2)
        stage2 = Features(encoded, self.decoder2(encoded, self.slope))
        attended, image2 = self.supervision2(stage2.decoded[0], cloudy01)
        x = self.join3(torch.cat([self.stems[2](cloudy01, self.slope), attended], dim=1))
        image3 = cloudy01 + self.head(self.full_size(x, self.slope, stage2))
        return torch.cat([image3, image2, torch.cat(halves_image1, dim=2)], dim=1)

    def _stage1(self, half: Tensor) -> Features:
        """Encode the two quarters of a half, (B, bands, H/2, W), and decode them together."""
        quarters = half.chunk(2, dim=3)
        encoded = _join([self.encoder1(self.stems[0](part, self.slope), self.slope) for part in quarters], dim=3)
        return Features(encoded, self.decoder1(encoded, self.slope))


@dataclass(frozen=True)
class Features:
    """What one stage hands to the next: its features on three levels, from full to quarter size."""

    encoded: list[Tensor]
    decoded: list[Tensor]


def _join(parts: Sequence[list[Tensor]], dim: int) -> list[Tensor]:
    """Put the features of neighbouring parts of an image together, level by level."""
    return [torch.cat(level, dim=dim) for level in zip(*parts, strict=True)]


class ChannelAttentionBlock(nn.Module):
    """Two convolutions whose channels are weighed by their means, added to the input."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.first = _conv3(channels, channels)
        self.second = _conv3(channels, channels)
        self.squeeze = _conv1(channels, channels // reduction)
        self.excite = _conv1(channels // reduction, channels)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """Return features of the shape of x, (B, C, H, W); slope: (1,), of the PReLU."""
        change = self.second(F.prelu(self.first(x), slope))
        means = change.mean((2, 3), keepdim=True)
        weights = torch.sigmoid(self.excite(F.relu(self.squeeze(means))))
        result: Tensor = x + weights * change
        return result


class Blocks(nn.ModuleList):
    """Channel attention blocks, one after the other."""

    def __init__(self, channels: int, reduction: int, number: int = BLOCKS_PER_LEVEL) -> None:
        super().__init__(ChannelAttentionBlock(channels, reduction) for _ in range(number))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """Return features of the shape of x, (B, C, H, W); slope: (1,), of the PReLU."""
        for block in self:
            x = block(x, slope)
        return x


class Stem(nn.Module):
    """Image (B, bands, H, W) -> shallow features (B, features, H, W)."""

    def __init__(self, bands: int, features: int, reduction: int) -> None:
        super().__init__()
        self.convolution = _conv3(bands, features)
        self.block = ChannelAttentionBlock(features, reduction)

    def forward(self, image: Tensor, slope: Tensor) -> Tensor:
        """Return the features of an image; slope: (1,), of the PReLU."""
        features: Tensor = self.block(self.convolution(image), slope)
        return features


class Encoder(nn.Module):
    """Features at full size -> features on three levels, each half the size of the one before.

    An encoder that follows a stage adds, on every level, what that stage encoded and decoded there.
    """

    def __init__(self, widths: Sequence[int], reduction: int, *, follows_a_stage: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Blocks(width, reduction) for width in widths)
        self.down = nn.ModuleList(Resize(wide, wider, 0.5) for wide, wider in pairwise(widths))
        earlier_widths = widths if follows_a_stage else []
        self.from_encoded = nn.ModuleList(_conv1(width, width) for width in earlier_widths)
        self.from_decoded = nn.ModuleList(_conv1(width, width) for width in earlier_widths)

    def forward(self, x: Tensor, slope: Tensor, earlier: Features | None = None) -> list[Tensor]:
        """Return (B, widths[level], H / 2^level, W / 2^level) for each level."""
        encoded: list[Tensor] = []
        for level, blocks in enumerate(self.levels):
            if level > 0:
                x = self.down[level - 1](x)
            x = blocks(x, slope)
            if earlier is not None:
                x = x + self.from_encoded[level](earlier.encoded[level])
                x = x + self.from_decoded[level](earlier.decoded[level])
            encoded.append(x)
        return encoded


class Decoder(nn.Module):
    """What an encoder gave -> features of the same shapes, each of which has seen the coarser levels."""

    def __init__(self, widths: Sequence[int], reduction: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Blocks(width, reduction) for width in widths)
        self.up = nn.ModuleList(Resize(wider, wide, 2) for wide, wider in pairwise(widths))
        self.skips = nn.ModuleList(ChannelAttentionBlock(width, reduction) for width in widths[:-1])

    def forward(self, encoded: list[Tensor], slope: Tensor) -> list[Tensor]:
        """Return the decoded features, of the shapes of `encoded`, finest level first."""
        decoded: list[Tensor] = [self.levels[-1](encoded[-1], slope)]
        for level in reversed(range(len(self.skips))):
            x = self.up[level](decoded[0]) + self.skips[level](encoded[level], slope)
            decoded.insert(0, self.levels[level](x, slope))
        return decoded


class SupervisedAttention(nn.Module):
    """Makes an image of a stage's features, and from that image an attention on those features."""

    def __init__(self, bands: int, features: int) -> None:
        super().__init__()
        self.features = _conv1(features, features)
        self.to_image = _conv1(features, bands)
        self.from_image = _conv1(bands, features)

    def forward(self, x: Tensor, cloudy01: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attended features, (B, features, H, W), and the image, (B, bands, H, W), not clamped."""
        image = cloudy01 + self.to_image(x)
        return x + self.features(x) * torch.sigmoid(self.from_image(image)), image


class FullSizeStage(nn.Module):
    """Stage 3: groups of blocks that never shrink the image, one for each level of the stage before."""

    def __init__(self, widths: Sequence[int], full_width: int, cab_blocks: int, reduction: int) -> None:
        super().__init__()
        levels = range(len(widths))
        self.groups = nn.ModuleList(Blocks(full_width, reduction, cab_blocks) for _ in levels)
        self.ends = nn.ModuleList(_conv3(full_width, full_width) for _ in levels)
        self.from_encoded = nn.ModuleList(_to_full_size(widths[: level + 1], full_width) for level in levels)
        self.from_decoded = nn.ModuleList(_to_full_size(widths[: level + 1], full_width) for level in levels)

    def forward(self, x: Tensor, slope: Tensor, earlier: Features) -> Tensor:
        """Return features of the shape of x: (B, full_width, H, W)."""
        for level, (blocks, end) in enumerate(zip(self.groups, self.ends, strict=True)):
            x = x + end(blocks(x, slope))
            x = x + self.from_encoded[level](earlier.encoded[level])
            x = x + self.from_decoded[level](earlier.decoded[level])
        return x


class Resize(nn.Module):
    """Bilinear change of size by `factor`, then a change of channels."""

    def __init__(self, in_channels: int, out_channels: int, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.convolution = _conv1(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, H * factor, W * factor)."""
        resized = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)
        result: Tensor = self.convolution(resized)
        return result


def _to_full_size(widths: Sequence[int], full_width: int) -> nn.Sequential:
    """Return what brings the last level of `widths` up to full size and `full_width` channels."""
    climb = [Resize(wider, wide, 2) for wide, wider in pairwise(widths)]
    return nn.Sequential(*reversed(climb), _conv1(widths[0], full_width))


def _conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _conv1(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)
