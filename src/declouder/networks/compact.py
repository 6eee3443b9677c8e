"""CompactNet: a reference network of one to a few million parameters, made for CPUs and for scenes.

A U-shaped network of NAF blocks (Chen et al., "Simple Baselines for Image Restoration", ECCV 2022) with two
changes that the task asks for:

    restored = gain * cloudy + offset

Haze is a local affine map of the ground (light lost, light added), so the network gives its inverse and
keeps texture that it never saw; under thick cloud the gain falls and the offset paints. And nothing
is averaged over the whole image (no global pooling, no instance statistics): what a pixel becomes depends on its
surroundings alone, so that windows of a scene agree where they overlap. Even haze is the same far and wide, so
`context` can make those surroundings wide, and `guided` gives the maps that are smooth where haze is:
declouder.networks.guided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from declouder.networks.filling import Filling
from declouder.networks.guided import AS_IS, REDUCTION, Choice, GuidedChoice
from declouder.networks.looking_again import looked_again
from declouder.networks.looking_closer import looked_closer
from declouder.networks.padding import pad_to_multiple, padded_to_multiple
from declouder.networks.relighting import relit
from declouder.networks.squares import box_mean

Block = Literal["naf", "residual"]

FILLING_BLOCKS = 2


class CompactNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Cloudy image to clear image, by the inverse of a local affine haze model.

    Args:
        bands: spectral bands of an image.
        widths: channels of each level; every level after the first halves height and width.
        blocks: blocks of each level on the way down; the way up has one a level.
        block: "naf", or "residual" (two 3 x 3 convolutions).
        stem: side of the pixel squares that the first level takes as channels; 2 works at half size
            throughout and is several times faster.
        context: side of the neighbourhood, in pixels of the coarsest level, whose mean and deviation the
            coarsest level hears of; odd, or 0 for none.
        guided: sides, in pixels of a quarter of the size, of the squares in which gain and offset are also had
            smooth, for each pixel to choose from; odd numbers. Without any, gain and offset are taken as they are.
        extremes: whether the coarsest level hears of the darkest and brightest pixels around, in each of its pixels
            and as far as `context` reaches.
        third_choice: whether a pixel chooses once more, by itself: declouder.networks.guided.
        keep_clear: how strongly ground that the first choice leaves as it is keeps out of the second, or 0 for not
            at all: declouder.networks.guided.
        keep_near_cloud: how strongly ground near thick cloud is left as it is by the first choice, or 0 for no more
            than elsewhere: declouder.networks.guided.
        filling: channels of the layers that let seen ground flow in under thick cloud, or 0 for none:
            declouder.networks.filling.
        keep_unfilled: how strongly ground that the first choice leaves as it is keeps free of what flows in, or 0
            for not at all.
        fill_thick: how surely ground flows in where cloud is thicker than any even haze, or 0 for no more than what
            was learnt: declouder.networks.filling.
        look_again: how often remains of thick cloud are looked at once more, each time at half the size before, or
            0 for never: declouder.networks.looking_again.
        look_closer: 1 if remains of small clouds are looked at once more, at twice the size, or 0:
            declouder.networks.looking_closer.
        relight_shadows: 1 if cloud shadows get the light of the ground around, where the clouds tell them, or 0:
            declouder.networks.relighting.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        bands: int = 3,
        widths: Sequence[int] = (24, 48, 72, 96, 128),
        blocks: Sequence[int] = (1, 1, 2, 2, 4),
        block: Block = "naf",
        stem: int = 1,
        context: int = 0,
        guided: Sequence[int] = (),
        extremes: bool = False,
        third_choice: bool = False,
        keep_clear: float = 0.0,
        keep_near_cloud: float = 0.0,
        filling: int = 0,
        keep_unfilled: float = 0.0,
        fill_thick: float = 0.0,
        look_again: int = 0,
        look_closer: int = 0,
        relight_shadows: int = 0,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"{len(widths)} widths for {len(blocks)} numbers of blocks; give one of each a level")
        of_choices = {"third_choice": third_choice, "keep_clear": keep_clear, "keep_near_cloud": keep_near_cloud}
        of_filling = {"keep_unfilled": keep_unfilled, "fill_thick": fill_thick}
        for needed, given, options in (("guided", guided, of_choices), ("filling", filling, of_filling)):
            idle = [name for name, value in options.items() if value and not given]
            if idle:
                raise ValueError(f"{idle[0]} does nothing without {needed}; give {needed}, or leave {idle[0]} out")
        makers = {"naf": NAFBlock, "residual": ResidualBlock}
        if block not in makers:
            raise ValueError(f"block is {block!r}; give one of {', '.join(makers)}")
        make = makers[block]
        coarsest = stem * 2 ** (len(widths) - 1)
        self.look_again, self.look_closer, self.relight_shadows = look_again, look_closer, relight_shadows
        self.multiple = math.lcm(coarsest, REDUCTION) if guided or filling else coarsest
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(stem), nn.PixelShuffle(stem)
        self.intro = nn.Conv2d(bands * stem**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(make(width) for _ in range(count))) for width, count in zip(widths, blocks, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(coarse, 4 * fine, 1, bias=False), nn.PixelShuffle(2))
            for fine, coarse in pairwise(widths)
        )
        self.darkest_brightest = Extremes(bands, widths[-1], coarsest, context) if extremes else None
        self.wide = WideContext(widths[-1], context) if context else None
        self.decoder = nn.ModuleList(make(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 2 * bands * stem**2, 3, padding=1)
        self._start_as_identity()
        self.choice = None
        if guided:
            self.choice = GuidedChoice(
                widths[0],
                stem,
                guided,
                third=third_choice,
                keep_clear=keep_clear,
                keep_near_cloud=keep_near_cloud,
            )
        self.fill = None
        if filling:
            layers = nn.Sequential(*(make(filling) for _ in range(FILLING_BLOCKS)))
            self.fill = Filling(
                widths[0],
                bands,
                stem,
                filling,
                layers,
                keep_unfilled=keep_unfilled,
                fill_thick=fill_thick,
            )

    def _start_as_identity(self) -> None:
        """Give the first weights: gain 1 and offset 0; a guided network takes a little from white and dark too.

        The parts that choose between images begin with weights of their own, and are made after this.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                # PyTorch's default shrinks what passes: after nine levels the widest view would be silent.
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        for told in (self.wide, self.darkest_brightest):
            if told is not None:
                nn.init.zeros_(told.project.weight)
                nn.init.zeros_(cast(Tensor, told.project.bias))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, cloudy: Tensor) -> Tensor:
        """Return the clear image: (B, bands, H, W) in [-1, 1] for `cloudy` of that shape and range."""
        restored = self._looked_at(cloudy, self.look_again)
        if self.look_closer > 0:
            restored = looked_closer(partial(self._looked_at, again=0), cloudy, restored)
        return relit(cloudy, restored) if self.relight_shadows > 0 else restored

    def _looked_at(self, cloudy: Tensor, again: int) -> Tensor:
        """Return the clear image after so many further looks, each at half the size before."""
        restored = self.supervised_outputs(cloudy)[0].clamp(-1, 1)
        if again < 1:
            return restored
        return looked_again(partial(self._looked_at, again=again - 1), cloudy, restored)

    def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
        """Return the images that the reference loss compares with the clear one, before clamping."""
        return [padded_to_multiple(self._restore, cloudy, self.multiple)]

    def supervised_choices(self, cloudy: Tensor) -> tuple[Choice, ...]:
        """Return what `supervised_outputs` is mixed of, the last choice's mixture; none without `guided`."""
        if self.choice is None:
            return ()
        height, width = cloudy.shape[-2:]
        choices = self._choices(*self._own_image(pad_to_multiple(cloudy, self.multiple)))
        return tuple(choice.cropped(height, width) for choice in choices)

    def _choices(self, features: Tensor, cloudy: Tensor, direct: Tensor, gain: Tensor) -> tuple[Choice, ...]:
        """Return all choices, each after the one that it is made of; none without `guided` and `filling`."""
        choices: tuple[Choice, ...] = ()
        if self.choice is not None:
            choices = self.choice(features, cloudy, direct, gain)
        if self.fill is not None:
            restored = choices[-1].mixture() if choices else direct
            as_it_is = choices[0].shares[:, AS_IS : AS_IS + 1] if choices else None
            choices = (*choices, self.fill(features, cloudy, restored, direct, as_it_is))
        return choices

    def _restore(self, cloudy: Tensor) -> Tensor:
        features, cloudy, direct, gain = self._own_image(cloudy)
        choices = self._choices(features, cloudy, direct, gain)
        return choices[-1].mixture() if choices else direct

    def _own_image(self, cloudy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the features, the cloudy image again, the image before any fit, and its gain."""
        h = self._features(cloudy)
        gain, offset = self.shuffle(self.head(h)).chunk(2, dim=1)
        gain = 1 + gain
        return h, cloudy, gain * cloudy + offset, gain

    def _features(self, cloudy: Tensor) -> Tensor:
        h = self.intro(self.unshuffle(cloudy))
        skips = []
        for level, encode in enumerate(self.encoder):
            if self.darkest_brightest is not None and level == len(self.down):
                h = self.darkest_brightest(h, cloudy)
            h = encode(h)
            if level < len(self.down):
                skips.append(h)
                h = self.down[level](h)
        if self.wide is not None:
            h = self.wide(h)
        for level in reversed(range(len(self.down))):
            h = self.decoder[level](self.up[level](h) + skips[level])
        return cast(Tensor, h)


class NAFBlock(nn.Module):
    """Depthwise convolution, gate and feed-forward, each on a normalised residual branch (Chen et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = PixelNorm(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.project = nn.Conv2d(width, width, 1)
        self.norm2 = PixelNorm(width)
        self.feed_in = nn.Conv2d(width, 2 * width, 1)
        self.feed_out = nn.Conv2d(width, width, 1)
        # Zero-initialised scales let a deep stack start as the identity.
        self.beta = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        x = x + self.beta * self.project(_gate(self.depthwise(self.expand(self.norm1(x)))))
        out: Tensor = x + self.gamma * self.feed_out(_gate(self.feed_in(self.norm2(x))))
        return out


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions on a normalised residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = PixelNorm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.beta = nn.Parameter(torch.full((1, width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        h = self.conv2(F.silu(self.conv1(self.norm(x))))
        out: Tensor = x + self.beta.to(h.dtype) * h
        return out


class WideContext(nn.Module):
    """Adds to every pixel what the mean and the deviation of a wide neighbourhood say, within the image.

    Args:
        width: channels.
        side: of the neighbourhood, odd.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        if side < 1 or side % 2 == 0:
            raise ValueError(f"a neighbourhood of side {side} has no middle; give an odd number")
        self.norm = PixelNorm(width)
        self.mix = nn.Conv2d(2 * width, width, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        normed = self.norm(x).float()
        mean, square = box_mean(normed, self.side), box_mean(normed.square(), self.side)
        # Rounding can take a variance of nothing below zero.
        deviation = (square - mean.square()).clamp_min(1e-6).sqrt()
        told = F.silu(self.mix(torch.cat([mean, deviation], dim=1).to(x.dtype)))
        out: Tensor = x + self.project(told)
        return out


class Extremes(nn.Module):
    """Adds to every pixel what the darkest and the brightest of the image around it say.

    Somewhere around there is shade or water, which haze alone lifts above black (the dark channel: He et al., IEEE
    TPAMI 2011); `WideContext`, which passes on means, hardly tells a single pixel.

    Args:
        bands: of the image.
        width: channels.
        reduction: how many pixels of the image, along a side, are one of the features'; a multiple of 4.
        side: of the neighbourhood, in pixels of the features; odd, or 0 for each pixel alone.
    """

    def __init__(self, bands: int, width: int, reduction: int, side: int) -> None:
        super().__init__()
        if reduction % REDUCTION:
            raise ValueError(f"features at 1 / {reduction} of the size are too fine; extremes need more levels")
        reaches = 2 if side else 1
        self.mix = nn.Conv2d(4 * bands * reaches, width, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.reduction, self.side = reduction, side

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape; `image` is (B, bands, h * reduction, w * reduction)."""
        # Of single pixels, and of means of a few, which noise does not move.
        fine, mean = image, F.avg_pool2d(image, REDUCTION)
        cells = [
            F.max_pool2d(sign * values, self.reduction // step)
            for values, step in ((fine, 1), (mean, REDUCTION))
            for sign in (-1, 1)
        ]
        if self.side:
            cells += [F.max_pool2d(cell, self.side, stride=1, padding=self.side // 2) for cell in cells]
        out: Tensor = x + self.project(F.silu(self.mix(torch.cat(cells, dim=1))))
        return out


class PixelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        channels_last = x.permute(0, 2, 3, 1)  # (B, H, W, width)
        # In the precision of its input, as the convolutions around it; the sums inside are float32 anyway.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            normed = F.layer_norm(channels_last, (x.shape[1],), weight, bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


def _gate(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return left * right
