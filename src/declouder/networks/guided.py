"""Gain and offset that are smooth where haze is: guided filters inside the reference network.

    first  = sum over k of  p_k image_k     the network's own image, the cloudy one as it is, and fits to the former
    second = sum over k of  q_k image_k     the first, and fits to the first
    third  = sum over k of  r_k image_k     the second, the network's own image, the cloudy one as it is

Haze is the same over many pixels, so what a network says of each of them alone is noisy where a fit over a square
is not, and the fit A cloudy + B keeps the texture of the cloudy image to the last pixel. A and B of a square are
the weighted linear regression of an image on the cloudy one (He et al., "Guided Image Filtering", IEEE TPAMI
2013; inside a network: Wu et al., "Fast End-to-End Trainable Guided Filter", CVPR 2018), in three kinds:

    each band     A, B of its own
    all bands     one A, one B: haze is grey, and leaves the differences between bands in proportion
    from white    1 - restored = A (white - cloudy), one A: haze fades all ground to one white, which is learnt
                  (the law of declouder.data.transplant.EvenHaze, turned round)

and, among the first, one more that asks the image itself, as a dark channel does (He et al., IEEE TPAMI 2011):

    from dark     the same with A = (1 - dark) / (white - darkest cloudy pixel around); the network tells how dark
                  that pixel's ground is, which is easier to know than A: nearly black, where there is shade

The network gives the weights, so that cloud does not spoil the fit beside it, and for each pixel shares p, q and r.
What of a pixel the first choice leaves as it is, `keep_clear` can keep out of the second, whose fits lose the
texture of clear ground where thick cloud lies in their squares. And where there is thick cloud, there is hardly an
even haze besides: with `keep_near_cloud` ground around thick cloud is more surely left as it is,

    score of the cloudy image += keep_near_cloud min(1, thick / ENOUGH_THICK) exp(-(change / SLIGHT)^2)

with the change that the network's own image makes, and the share of a wide square that it changes by more than any
even haze would (`THICK`).

The neighbours of a pixel have a say in its p and q, for haze is wide; r is each pixel's own, so that clear ground
keeps its texture to the edge of a small cloud. The shares are learnt by declouder.losses.choice_loss too, or many
poor fits would lean on each other where one holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declouder.networks.squares import box_mean, smoothly_enlarged

REDUCTION = 4
"""The fits are made at this much less than the image's size, on means of squares of this many pixels."""
LEAST_WEIGHT = 0.01
"""Of a pixel in a fit, so that there is always something to fit."""
KINDS = 3
"""Of fits, for each side."""
USUAL_WHITE = 0.504
"""In [-1, 1], what white ground is under haze: at first that of RICE1."""
USUAL_DARK, DARKEST_RANGE = 0.03, 0.5
"""In [0, 1], the darkest ground around: at first, and at most."""
DARK_SIDE = 63
"""Of the square in which it is looked for, as the other sides."""
LEAST_HAZE = 0.1
"""In [-1, 1], how much darker than white the darkest pixel must be to say anything."""
AS_IS = 1
"""Place of the cloudy image among the images of the first choice."""
THIRD_SCORES = (2.0, -1.0, -1.5)
"""Of the images of the third choice, at first: mostly what was chosen before."""
THICK = 0.35
"""In [0, 1], the mean change over bands from which on what hides the ground is no haze."""
ENOUGH_THICK, THICK_SIDE = 0.05, 31
"""Share of thick cloud around that counts in full, and the side of the square, whose mean is taken twice."""
SLIGHT, SLIGHT_SIDE = 0.07, 3
"""In [0, 1], how much clear ground may change, and the side of the square over which that is taken."""
GRAIN_PX = 9
"""Side of the square that has one score: single pixels, on the network's own grid of 4, would choose in dots."""
SHARED_SIDE = 15
"""Of the square whose pixels have a say in each other's shares, as the other sides."""


@dataclass(frozen=True)
class Choice:
    """Images of one place, and how much of each a pixel takes.

    Attributes:
        images: K of (B, bands, H, W).
        shares: (B, K, H, W), positive; their sum over K is 1.
    """

    images: Sequence[Tensor]
    shares: Tensor

    def mixture(self) -> Tensor:
        """Return sum over k of shares_k images_k, (B, bands, H, W)."""
        mixture = self.shares[:, :1] * self.images[0]
        for k, image in enumerate(self.images[1:], start=1):
            mixture = torch.addcmul(mixture, self.shares[:, k : k + 1], image)
        return mixture

    def cropped(self, height: int, width: int) -> Choice:
        """Return the top left part of it, of that many pixels."""
        images = [image[..., :height, :width] for image in self.images]
        return Choice(images, self.shares[..., :height, :width])


class GuidedChoice(nn.Module):
    """For each pixel a mixture of the network's own image and of smooth maps fitted to it.

    Args:
        width: channels of the features that decide.
        stem: the features are at this much less than the image's size.
        sides: of the squares, in pixels of a `REDUCTION`-th of the image's size; odd.
        third: whether there is a third choice.
        keep_clear: added to the second choice's score of the first mixture, times the share of the cloudy image as
            it is in that mixture.
        keep_near_cloud: added to the first choice's score of the cloudy image as it is where thick cloud is near.
    """

    def __init__(
        self,
        width: int,
        stem: int,
        sides: Sequence[int],
        *,
        third: bool = False,
        keep_clear: float = 0.0,
        keep_near_cloud: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep_clear = keep_clear
        self.keep_near_cloud = keep_near_cloud
        for side in sides:
            if side < 1 or side % 2 == 0:
                raise ValueError(f"a square of side {side} has no middle; give an odd number")
        self.sides = tuple(sides)
        self.shuffle = nn.PixelShuffle(stem)
        # Begins with little of what only an even haze obeys, or only a clear sky.
        first = [0.0, -1.5] + [0.0, -0.5, -1.0] * len(self.sides) + [-1.0]
        second = [0.5, -0.5, -0.5, -1.0]
        self.counts = [1, 1, len(first), len(second)]
        self.decide = nn.Conv2d(width, sum(self.counts) * stem**2, 3, padding=1)
        self.white = nn.Parameter(torch.tensor(USUAL_WHITE))
        fits = KINDS * (len(self.sides) + 1)
        self.log_regularization = nn.Parameter(torch.full((fits,), math.log(1e-3)))
        nn.init.zeros_(self.decide.weight)
        dark = math.log(USUAL_DARK / (DARKEST_RANGE - USUAL_DARK))
        bias = torch.tensor([0.0, dark, *first, *second])
        with torch.no_grad():
            cast(Tensor, self.decide.bias).copy_(bias.repeat_interleave(stem**2))
        self.decide_third = nn.Conv2d(width, len(THIRD_SCORES) * stem**2, 3, padding=1) if third else None
        if self.decide_third is not None:
            nn.init.zeros_(self.decide_third.weight)
            with torch.no_grad():
                scores = torch.tensor(THIRD_SCORES).repeat_interleave(stem**2)
                cast(Tensor, self.decide_third.bias).copy_(scores)

    def forward(self, features: Tensor, cloudy: Tensor, direct: Tensor, gain: Tensor) -> tuple[Choice, ...]:
        """Return the first and the second choice, and the third if there is one.

        Args:
            features: (B, width, H / stem, W / stem).
            cloudy: (B, bands, H, W) in [-1, 1]; H and W are multiples of `REDUCTION`.
            direct: (B, bands, H, W), the network's own image.
            gain: (B, bands, H, W), its gain: where a square has no texture to tell a gain, this one is taken.
        """
        decided = self.shuffle(self.decide(features)).float()
        own_scores = None if self.decide_third is None else self.shuffle(self.decide_third(features)).float()
        # Never in half precision: the variances of flat ground would vanish or turn negative.
        with torch.autocast(cloudy.device.type, enabled=False):
            weight, dark, first_shares, second_shares = torch.split(decided, self.counts, dim=1)
            weight = _reduced(weight.sigmoid() + LEAST_WEIGHT)
            dark = 2 * DARKEST_RANGE * dark.sigmoid() - 1
            cloudy, direct, small_gain = cloudy.float(), direct.float(), _reduced(gain.float())
            small_cloudy, white = _reduced(cloudy), self.white.float()
            regularization = torch.split(self.log_regularization.exp(), KINDS)

            def fits(target: Tensor, side: int, strengths: Tensor) -> list[Tensor]:
                moments = _Moments(weight, (small_cloudy, _reduced(target), small_gain), white, side)
                kinds = (moments.of_each_band, moments.of_all_bands, moments.from_white)
                return [_applied(fit(s), side, cloudy) for fit, s in zip(kinds, strengths, strict=True)]

            images = [direct, cloudy]
            for side, strengths in zip(self.sides, regularization[:-1], strict=True):
                images += fits(direct, side, strengths)
            images.append(_applied(_from_dark(small_cloudy, white, _reduced(dark)), max(self.sides), cloudy))
            first_scores = _shared(first_shares)
            if self.keep_near_cloud:
                first_scores[:, AS_IS] += self.keep_near_cloud * _clear_near_cloud(cloudy, direct)
            first = Choice(images, first_scores.softmax(dim=1))
            mixture = first.mixture()
            images = [mixture, *fits(mixture, max(self.sides), regularization[-1])]
            second_scores = _shared(second_shares)
            if self.keep_clear:
                # A square with thick cloud in it has a fit of hardly any gain: clear ground beside would be flat.
                second_scores[:, 0] += self.keep_clear * first.shares[:, AS_IS]
            second = Choice(images, second_scores.softmax(dim=1))
            if own_scores is None:
                return first, second
            return first, second, Choice([second.mixture(), direct, cloudy], own_scores.softmax(dim=1))

    @torch.no_grad()
    def sharpen(self, first: float, second: float, as_is: float = 0.0) -> None:
        """Multiply the scores behind the shares of each choice: above 1, the best image takes more of a pixel.

        On images that it learnt from, a network's own image is about as good as the fits, so it learns to be less
        sure of these than it should be elsewhere.

        Args:
            first: factor for the first choice.
            second: factor for the second.
            as_is: added to the score of the cloudy image as it is: above 0, less is done where there is doubt.
        """
        *others, images, fits = self.counts
        pixels = self.shuffle.upscale_factor**2
        factors = [1.0] * sum(others) + [first] * images + [second] * fits
        scale = torch.tensor(factors, device=self.decide.weight.device).repeat_interleave(pixels)
        self.decide.weight.mul_(scale[:, None, None, None])
        bias = cast(Tensor, self.decide.bias)
        bias.mul_(scale)
        bias.view(-1, pixels)[sum(others) + AS_IS] += as_is


def slightly_changed(cloudy: Tensor, own: Tensor) -> Tensor:
    """Return how surely the network's own image leaves a place as it is: (B, 1, h, w) in [0, 1].

    Args:
        cloudy: (B, bands, h, w) in [-1, 1], at a `REDUCTION`-th of the size.
        own: (B, bands, h, w).
    """
    return _slight(magnitude(own - cloudy))


def magnitude(difference: Tensor) -> Tensor:
    """Return how large a difference of two images is, the mean over bands: (B, 1, H, W) in [0, 1].

    Args:
        difference: (B, bands, H, W), of images in [-1, 1].
    """
    return difference.abs().mean(dim=1, keepdim=True) / 2  # [-1, 1] has twice the range of [0, 1]


def _slight(change: Tensor) -> Tensor:
    return torch.exp(-(box_mean(change, SLIGHT_SIDE) / SLIGHT).square())


def _clear_near_cloud(cloudy: Tensor, own: Tensor) -> Tensor:
    """Return how surely a pixel is clear ground with thick cloud around: (B, H, W) in [0, 1].

    Args:
        cloudy: (B, bands, H, W) in [-1, 1].
        own: (B, bands, H, W), the network's own image.
    """
    change = _reduced(magnitude(own - cloudy))
    thick = box_mean(box_mean((change > THICK).to(change.dtype), THICK_SIDE), THICK_SIDE)
    clear = (thick / ENOUGH_THICK).clamp(max=1) * _slight(change)
    return smoothly_enlarged(clear, REDUCTION)[:, 0]


class _Moments:
    """Weighted means over the square around every pixel, and the regressions that follow from them.

    Args:
        weight: (B, 1, h, w).
        images: guide, target and the gain that a regression leans to, (B, bands, h, w) each.
        white: a scalar.
        side: of the square.
    """

    def __init__(self, weight: Tensor, images: Sequence[Tensor], white: Tensor, side: int) -> None:
        guide, target, gain = images
        values = torch.cat([guide, target, guide * guide, guide * target, gain], dim=1)
        means = box_mean(weight * values, side) / box_mean(weight, side)
        self._white, self._means = white, means.chunk(5, dim=1)

    def of_each_band(self, regularization: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, (B, bands, h, w), of target ~ a guide + b."""
        return _regression(self._means, regularization)

    def of_all_bands(self, regularization: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, (B, 1, h, w), that are the same for all bands."""
        return _regression(self._of_all_bands(), regularization)

    def from_white(self, regularization: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, (B, 1, h, w), of target - 1 ~ a (guide - white), the same for all bands."""
        guide, target, square, product, gain = self._of_all_bands()
        white = self._white
        below = (square - 2 * white * guide + white * white).clamp_min(0)
        a = (product - guide - white * target + white + regularization * gain) / (below + regularization)
        return a, 1 - a * white

    def _of_all_bands(self) -> list[Tensor]:
        return [x.mean(dim=1, keepdim=True) for x in self._means]


def _regression(means: Sequence[Tensor], regularization: Tensor) -> tuple[Tensor, Tensor]:
    guide, target, square, product, gain = means
    variance = (square - guide * guide).clamp_min(0)
    a = (product - guide * target + regularization * gain) / (variance + regularization)
    return a, target - a * guide


def _from_dark(guide: Tensor, white: Tensor, dark: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b, (B, 1, h, w), of target - 1 ~ a (guide - white) that make the darkest pixel around `dark`."""
    darkest = guide.amin(dim=1, keepdim=True)
    for side in ((DARK_SIDE, 1), (1, DARK_SIDE)):
        darkest = -F.max_pool2d(-darkest, side, stride=1, padding=(side[0] // 2, side[1] // 2))
    a = (1 - dark) / (white - darkest).clamp_min(LEAST_HAZE)
    return a, 1 - a * white


def _applied(map_of_squares: tuple[Tensor, Tensor], side: int, cloudy: Tensor) -> Tensor:
    """Return a cloudy + b with a and b of squares as smooth maps of the image's size."""
    a, b = (_at_pixels(x, side) for x in map_of_squares)
    return torch.addcmul(b, a, cloudy)


def _shared(scores: Tensor) -> Tensor:
    """Return what a pixel and those around it say together: the fit that holds is the same for many."""
    return box_mean(scores, GRAIN_PX) + _at_pixels(_reduced(scores), SHARED_SIDE)


def _reduced(x: Tensor) -> Tensor:
    """Return (B, C, H / REDUCTION, W / REDUCTION), means of squares."""
    return F.avg_pool2d(x, REDUCTION)


def _at_pixels(x: Tensor, side: int) -> Tensor:
    """Return a map of the squares as a smooth one of the image's size."""
    return smoothly_enlarged(box_mean(x, side), REDUCTION)
