"""MSDA-CR, a reference network: one pass from the cloudy image to an estimate of the clear one.

Yu, Zhang & Pun, "Cloud Removal in Optical Remote Sensing Imagery Using Multiscale Distortion-Aware
Networks", IEEE Geoscience and Remote Sensing Letters 19, 2022. The published network has two ideas:

    a grid (after GridDehazeNet, Liu et al., ICCV 2019)   rows are scales, columns are steps; the left half
                                                          of the columns passes features down to coarser
                                                          rows, the right half passes them up again
    distortion-aware blocks (each cell of the grid)       cloud is modelled as light that is reflected,
                                                          let through or spread over the whole image

Only what takes part in the published forward pass is here: 2.90 M parameters for 3 bands.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from declouder.networks.padding import padded_to_multiple

BOTTLENECK_DILATIONS = (1, 2, 4, 8, 16, 1)


class MSDA(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Multiscale distortion-aware cloud removal; the defaults are the published network.

    Args:
        bands: spectral bands of an image.
        height: rows of the grid, at least 2; each has half the size and twice the channels of the one above.
        width: columns of the grid, at least 2.
        dense_layers: convolutions of a dense chain inside a block.
        growth: channels that each of those convolutions adds.
        channels: channels of the first row, at least 4.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        bands: int = 3,
        height: int = 3,
        width: int = 6,
        dense_layers: int = 4,
        growth: int = 16,
        channels: int = 16,
    ) -> None:
        super().__init__()
        self.coarsest_stride = 2 ** (height - 1)
        self.columns_down = width // 2
        row_channels = [channels * 2**row for row in range(height)]
        coarsest_channels = row_channels[-1]

        def block(row: int) -> DistortionAwareBlock:
            return DistortionAwareBlock(row_channels[row], dense_layers, growth)

        self.stem = _conv3(bands, channels)
        self.entry = block(0)
        self.along = nn.ModuleList(nn.ModuleList(block(row) for _ in range(width - 1)) for row in range(height))
        self.down = nn.ModuleList(
            nn.ModuleList(HalfSize(row_channels[row]) for _ in range(self.columns_down))
            for row in range(height - 1)
        )
        self.up = nn.ModuleList(
            nn.ModuleList(DoubleSize(row_channels[row + 1]) for _ in range(width - self.columns_down))
            for row in range(height - 1)
        )
        self.exit = block(0)
        self.bottleneck = nn.ModuleList(
            _conv3(coarsest_channels, coarsest_channels, dilation) for dilation in BOTTLENECK_DILATIONS
        )
        self.climb = nn.ModuleList(DoubleSize(row_channels[row + 1]) for row in range(height - 1))
        self.refine = nn.ModuleList(block(row) for row in range(height - 1))
        self.head = _conv3(channels, bands)
        # One learned factor a channel for each of the two inputs of a cell. The first column has no cell with
        # two inputs, so its factors serve the climb out of the bottleneck (see `_climb_factors`).
        self.factors = nn.Parameter(torch.ones(height, width, 2, coarsest_channels))

    def forward(self, cloudy: Tensor) -> Tensor:
        """Return the reference image: (B, bands, H, W) in [-1, 1].

        Args:
            cloudy: (B, bands, H, W) float32 in [-1, 1], of any height and width.
        """
        # Any size divides well enough, as going up aims at the size that went down; but the normalisation
        # needs more than one pixel in the coarsest row.
        is_tiny = max(cloudy.shape[-2:]) <= self.coarsest_stride
        multiple = 2 * self.coarsest_stride if is_tiny else 1
        return padded_to_multiple(self._restore, (cloudy + 1) / 2, multiple) * 2 - 1

    def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
        """Return the outputs that the reference loss compares with the clear image: here the only one."""
        return [self(cloudy)]

    def _restore(self, cloudy01: Tensor) -> Tensor:
        """Map (B, bands, H, W) in [0, 1] to the same shape and range."""
        column = self._enter(cloudy01)
        for step in range(1, self.columns_down):
            column = self._column_down(column, step)
        for step in range(self.columns_down, self.factors.shape[1]):
            column = self._column_up(column, step)
        return torch.sigmoid(self.head(self._climb(column)))

    def _enter(self, cloudy01: Tensor) -> list[Tensor]:
        """Return the first column: features (B, channels * 2^row, H / 2^row, W / 2^row), finest row first."""
        column = [self.entry(self.stem(cloudy01))]
        for row in range(len(self.down)):
            column.append(_cell(self.down, row, 0)(column[-1]))
        return column

    def _column_down(self, before: list[Tensor], step: int) -> list[Tensor]:
        column = [_cell(self.along, 0, step - 1)(before[0])]
        for row in range(1, len(before)):
            from_left = _cell(self.along, row, step - 1)(before[row])
            from_above = _cell(self.down, row - 1, step)(column[-1])
            column.append(self._merge(row, step, from_left, from_above))
        return column

    def _column_up(self, before: list[Tensor], step: int) -> list[Tensor]:
        column = [_cell(self.along, -1, step - 1)(before[-1])]
        for row in reversed(range(len(before) - 1)):
            from_left = _cell(self.along, row, step - 1)(before[row])
            from_below = _cell(self.up, row, step - self.columns_down)(column[0], before[row])
            column.insert(0, self._merge(row, step, from_left, from_below))
        return column

    def _merge(self, row: int, step: int, from_left: Tensor, from_other_row: Tensor) -> Tensor:
        left, other = self.factors[row, step, :, : from_left.shape[1], None, None]  # (C, 1, 1) each
        merged: Tensor = left * from_left + other * from_other_row
        return merged

    def _climb(self, column: list[Tensor]) -> Tensor:
        """Widen the view of the coarsest row by dilated convolutions, and bring it back up to full size.

        Args:
            column: the last column of the grid, finest row first.

        Returns:
            (B, channels, H, W).
        """
        x = column[-1]
        for convolution in self.bottleneck:
            x = F.relu(convolution(x))
        targets = [self.exit(column[0]), *column[1:-1]]
        for row in reversed(range(len(targets))):
            grid, climbing = self._climb_factors(row, targets[row].shape[1])
            x = grid * targets[row] + climbing * self.climb[row](x, targets[row])
            x = self.refine[row](x)
        return x

    def _climb_factors(self, row: int, channels: int) -> tuple[Tensor, Tensor]:
        first, second = self.factors[row, 0, 0, : 2 * channels, None, None].chunk(2)  # (C, 1, 1) each
        return first, second


class DistortionAwareBlock(nn.Module):
    """One cell of the grid: features -> features of the same shape.

    From features whose contrast is normalised away (`content`) it makes three versions, as cloud would show
    them: by light reflected at each place, by light let through at each place, and by light spread over the
    whole image. Two maps, `a` and `b`, choose among the three.
    """

    def __init__(self, channels: int, dense_layers: int, growth: int) -> None:
        super().__init__()
        self.plain = DenseResidual(channels, dense_layers, growth)
        self.content = DenseResidual(channels, dense_layers, growth)
        self.reflected = LocalLight(channels)
        self.transmitted = LocalLight(channels)
        self.spread = nn.Linear(channels // 2, 2 * channels)
        self.choose_reflected = _conv3(channels, 1)
        self.choose_spread = _conv3(channels, 1)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.attention = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, of the shape of x: (B, C, H, W)."""
        plain = self.plain(x)
        content = F.instance_norm(self.content(F.instance_norm(x)))

        reflected, style = self.reflected(content, plain)
        transmitted, _ = self.transmitted(content, plain)
        shift, scale = self.spread(style.mean((2, 3)))[..., None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        spread = scale * content + shift

        a = torch.sigmoid(self.choose_reflected(content))
        b = torch.sigmoid(self.choose_spread(content))
        lit = a * reflected + (1 - a) * (b * spread + (1 - b) * transmitted)
        result: Tensor = x + self.attention(self.join(torch.cat([plain, lit], dim=1)))
        return result


class LocalLight(nn.Module):
    """Scales and shifts each place of the content by what the plain features tell about the light there."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.style = _conv3(channels, channels // 2)
        self.scale = _conv3(channels // 2, channels)
        self.shift = _conv3(channels // 2, channels)

    def forward(self, content: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content in that light, (B, C, H, W), and the style behind it, (B, C // 2, H, W)."""
        style = F.relu(self.style(plain))
        return content * (1 + self.scale(style)) + self.shift(style), style


class DenseResidual(nn.Module):
    """x plus what a chain of convolutions finds, each of which sees the outputs of all before it."""

    def __init__(self, channels: int, layers: int, growth: int) -> None:
        super().__init__()
        self.chain = nn.ModuleList(_conv3(channels + layer * growth, growth) for layer in range(layers))
        self.join = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x: (B, C, H, W)."""
        seen = x
        for convolution in self.chain:
            seen = torch.cat([seen, F.relu(convolution(seen))], dim=1)
        result: Tensor = x + self.join(seen)
        return result


class ChannelAttention(nn.Module):
    """Weighs each channel by a factor in (0, 1) that depends on the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted features, of the shape of x: (B, C, H, W)."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(means))))


class HalfSize(nn.Module):
    """(B, C, H, W) -> (B, 2C, H / 2, W / 2), odd sizes rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.widen = _conv3(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the size and twice the channels."""
        return F.relu(self.widen(F.relu(self.shrink(x))))


class DoubleSize(nn.Module):
    """(B, C, H, W) -> (B, C / 2, H', W'), where H' and W' are those of the features it is to meet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.grow = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1)
        self.narrow = _conv3(channels, channels // 2)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Return features of the height and width of `target` and half the channels."""
        grown = F.relu(self.grow(x, output_size=list(target.shape[-2:])))
        return F.relu(self.narrow(grown))


def _cell(grid: nn.ModuleList, row: int, column: int) -> nn.Module:
    return cast(nn.ModuleList, grid[row])[column]


def _conv3(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
