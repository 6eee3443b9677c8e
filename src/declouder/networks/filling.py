"""Ground from around where nothing is seen: what a reference network adds under thick cloud.

    fill  = the restored image of the seen ground around, the nearest first
    last  = sum over k of  r_k image_k     the restored image, the fill, the fill with the restored texture, and the
                                           restored image with the cloudy one's texture

Under thick cloud a network that gives colours paints those that it learnt from: over another sea, or in the
stretch of another sensor, a grey patch. One that says where ground is *seen*, and lets its colours flow in from
there, paints the ground of that scene, whatever its colours are. The flow is a normalised convolution (Knutsson
and Westin, CVPR 1993) over squares of several sides, from wide to narrow as in pull-push (Gortler et al., SIGGRAPH
1996):

    fill_k = (mean_k(seen restored) + lean_k fill_(k+1)) / (mean_k(seen) + lean_k)

and around the widest the mean of all, seen or not, with a very small lean. Means over squares do not depend on
where a window of a scene begins, and reach no farther than `REACH_PX`, so that windows agree where they overlap.

Clear ground can keep its own texture, for between thick clouds a network that removes haze as well flattens it. It
is clear where the network's own image, which is fitted to nothing, differs from the cloudy one by little, and by as
much as around: the light that it learnt to give clear ground is another day's, far and wide.

    clear = exp(-(change / MOST_SHIFTED)^2 - (deviation / tolerance)^2)
        change: mean of |own - cloudy| over bands
        deviation: the same of |own - cloudy - shift|; shift: mean of own - cloudy around, where the change is small
    own texture = cloudy + mean(clear (restored - cloudy)) / mean(clear)

and ln clear adds to the last image's score, so that what is left to learn is how much of it each place takes. Where
there is little texture around, as on calm sea, what differs from the mean is specks of cloud, so ln textured
adds as well:

    textured = (detail^2 / (detail^2 + TEXTURED^2))^2     detail: mean of clear |cloudy - its mean| in a wide square

`keep_unfilled` keeps the fill away from what the network's first choice left as it is, but only where there is
texture and the network's own image hardly changes it; elsewhere it may be specks of cloud on calm sea, or thick
cloud, which the fill is to cover. With `fill_thick` the fill is sure to be taken where that image changes more than
an even haze would make it: under thick cloud over ground unlike all that was learnt the restored image is grey,
with the network's own grid in it.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declouder.networks.guided import GRAIN_PX, REDUCTION, Choice, magnitude, slightly_changed
from declouder.networks.squares import box_mean, smoothly_enlarged

RESTORED, FILL, TEXTURE_KEPT = slice(0, 1), slice(1, 2), slice(3, 4)
"""Places of three of the four images of the last choice: the second and third are the fill, without and with the
restored texture."""
SIDES = (3, 7, 15, 31, 63)
"""Of the squares, in pixels of a `REDUCTION`-th of the image's size; each mean is taken twice, so it fades out."""
REACH_PX = 2 * (SIDES[-1] // 2) * REDUCTION
"""How far colours flow, in pixels of the image."""
LEAST_SEEN = 0.001
"""What the mean of all around counts for, so that an image that is all cloud has a fill as well."""
LEAN = 0.03
"""At first: how much ground around must be seen before the wider squares are left out."""
DETAIL_SIDE = 9
"""Of the squares whose mean the texture is what differs from."""
FINE = 2
"""At this much less than the image's size is said what is clear: gaps between clouds are narrow."""
CLEAR_SIDE = 9
"""Of the squares whose mean the texture of clear ground differs from, in pixels of a `FINE`-th of the size."""
TOLERANCE = 0.02
"""At first: by how much more or less than what is around clear ground may change, in [0, 1]."""
MOST_SHIFTED, SHIFT_SIDE = 0.08, 19
"""In [0, 1], how much clear ground may change with all around, as under another sun, and the side of the squares
over which that is taken, as `CLEAR_SIDE`."""
TEXTURED, TEXTURE_SIDE, TEXTURE_DETAIL_SIDE = 0.016, 31, 5
"""Mean detail, in [0, 1], of clear ground that has texture to keep; the sides of the squares over which it is
taken, and whose mean it differs from: on calm sea there is nothing to keep but specks of cloud."""
LEAST_TEXTURED = 1e-6
"""Keeps a logarithm finite."""
FAINTEST = 0.001
"""Least part of a square that is clear, so that one without any has a mean as well."""
HIDDEN, SURELY_HIDDEN = 0.3, 0.4
"""In [0, 1], changes: up to the first an even haze may be the cause, from the second on it is thick cloud."""
HIDDEN_SIDE = 3
"""Of the squares over which that is taken."""
SCORES = (3.0, 0.0, 0.0, -1.0)
"""Of the images, at first: mostly what was restored before."""


class Filling(nn.Module):
    """For each pixel a mixture of the restored image, of seen ground around, and of the cloudy image's texture.

    Args:
        features: channels of the network's features.
        bands: spectral bands of an image.
        stem: the features are at this much less than the image's size.
        width: channels of the layers that decide.
        blocks: those layers, of `width` channels.
        keep_unfilled: added to the restored image's score, times how much of a pixel was left as it is, where there
            is texture that the network's own image hardly changes.
        fill_thick: added to the fill's score where the network's own image changes more than an even haze would.
    """

    def __init__(
        self,
        features: int,
        bands: int,
        stem: int,
        width: int,
        blocks: nn.Sequential,
        *,
        keep_unfilled: float = 0.0,
        fill_thick: float = 0.0,
    ) -> None:
        super().__init__()
        self.keep_unfilled = keep_unfilled
        self.fill_thick = fill_thick
        if REDUCTION % stem:
            raise ValueError(f"a stem of {stem} is no part of {REDUCTION}, at which the filling works")
        self.step = REDUCTION // stem
        self.intro = nn.Conv2d(features + 2 * bands, width, 3, padding=1)
        self.blocks = blocks
        self.seen = nn.Conv2d(width, 1, 3, padding=1)
        self.decide = nn.Conv2d(features, len(SCORES) * stem**2, 3, padding=1)
        self.decide_wide = nn.Conv2d(width, len(SCORES), 1)
        self.shuffle = nn.PixelShuffle(stem)
        self.log_tolerance = nn.Parameter(torch.tensor(math.log(TOLERANCE)))
        self.log_lean = nn.Parameter(torch.full((len(SIDES) - 1,), math.log(LEAN)))
        nn.init.kaiming_normal_(self.intro.weight, nonlinearity="linear")
        for head in (self.seen, self.decide, self.decide_wide):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(cast(Tensor, head.bias))
        with torch.no_grad():
            scores = torch.tensor(SCORES).repeat_interleave(stem**2)
            cast(Tensor, self.decide.bias).copy_(scores)

    def forward(
        self,
        features: Tensor,
        cloudy: Tensor,
        restored: Tensor,
        own: Tensor,
        as_it_is: Tensor | None = None,
    ) -> Choice:
        """Return the choice that is the network's last.

        Args:
            features: (B, features, H / stem, W / stem).
            cloudy: (B, bands, H, W) in [-1, 1]; H and W are multiples of `REDUCTION`.
            restored: (B, bands, H, W), about [-1, 1]: what the network has made of it so far.
            own: (B, bands, H, W), its own image, before any fit.
            as_it_is: (B, 1, H, W) in [0, 1], how much of a pixel was left as it is, for `keep_unfilled`.
        """
        small_cloudy, small_restored, small_own = (_reduced(image) for image in (cloudy, restored, own))
        coarse = F.avg_pool2d(features, self.step)
        images = torch.cat([small_cloudy, small_restored], dim=1).to(coarse.dtype)
        h = self.blocks(self.intro(torch.cat([coarse, images], dim=1)))
        # Of squares, as those of the first choices: single pixels would choose in dots, on the network's grid.
        scores = box_mean(self.shuffle(self.decide(features)).float(), GRAIN_PX)
        scores = scores + _enlarged(self.decide_wide(h).float())
        seen = self.seen(h).float().sigmoid()
        # Never in half precision: where little is seen, means of it are divided by each other.
        with torch.autocast(cloudy.device.type, enabled=False):
            fill = _enlarged(self.flow(small_restored, seen))
            texture = restored.float() - _enlarged(_smooth(small_restored, DETAIL_SIDE))
            own_texture, log_clear, log_textured = self._texture_of_clear_ground(cloudy, restored, own)
            scores[:, TEXTURE_KEPT] += _enlarged(log_clear, FINE) + _enlarged(log_textured)
            if self.keep_unfilled and as_it_is is not None:
                surely = slightly_changed(small_cloudy, small_own) * log_textured.exp()
                scores[:, RESTORED] += self.keep_unfilled * as_it_is.float() * _enlarged(surely)
            if self.fill_thick:
                hidden = (magnitude(small_own - small_cloudy) - HIDDEN) / (SURELY_HIDDEN - HIDDEN)
                scores[:, FILL] += self.fill_thick * _enlarged(box_mean(hidden.clamp(0, 1), HIDDEN_SIDE))
            return Choice([restored, fill, fill + texture, own_texture], scores.softmax(dim=1))

    @torch.no_grad()
    def keep_texture(self, score: float, tolerance: float) -> None:
        """Let clear ground keep more of its texture than was learnt: errors are least where it is smooth.

        Args:
            score: added to the last image's.
            tolerance: factor for the tolerance.
        """
        cast(Tensor, self.decide.bias).view(len(SCORES), -1)[-1].add_(score)
        self.log_tolerance.add_(math.log(tolerance))

    @torch.no_grad()
    def sharpen(self, factor: float) -> None:
        """Multiply the scores behind the shares: above 1, seen ground has less of a fill that it does not need."""
        for head in (self.decide, self.decide_wide):
            head.weight.mul_(factor)
            cast(Tensor, head.bias).mul_(factor)

    def log_clear(self, cloudy: Tensor, own: Tensor) -> Tensor:
        """Return ln of how clear ground is: (B, 1, h, w), 0 where the network's own image changes nothing.

        Where the change is slight and that of all around, it is near 0 as well.

        Args:
            cloudy: (B, bands, h, w) in [-1, 1], at a `FINE`-th of the size.
            own: (B, bands, h, w).
        """
        difference = own - cloudy
        change = magnitude(difference)
        shift = _mean_where(difference, torch.exp(-(change / MOST_SHIFTED).square()) + FAINTEST, SHIFT_SIDE)
        deviation = magnitude(difference - shift)
        return -(change / MOST_SHIFTED).square() - (deviation / self.log_tolerance.float().exp()).square()

    def _texture_of_clear_ground(
        self, cloudy: Tensor, restored: Tensor, own: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cloudy image in the light of the restored one, ln of how clear and ln of how textured it is.

        The first is (B, bands, H, W) as all three that are given, in [-1, 1]; the others are (B, 1, h, w), at a
        `FINE`-th and a `REDUCTION`-th of that size, and at most 0.
        """
        fine_cloudy, fine_restored, fine_own = (_reduced(image, FINE) for image in (cloudy, restored, own))
        log_clear = self.log_clear(fine_cloudy, fine_own)
        clear = log_clear.exp() + FAINTEST
        light = _mean_where(fine_restored - fine_cloudy, clear, CLEAR_SIDE)
        log_textured = _log_textured(_reduced(cloudy), _reduced(clear, REDUCTION // FINE))
        return cloudy.float() + _enlarged(light, FINE), log_clear, log_textured

    def flow(self, image: Tensor, seen: Tensor) -> Tensor:
        """Return the colours of what is seen of an image, flowed in from around.

        Args:
            image: (B, bands, h, w), at a `REDUCTION`-th of the size.
            seen: (B, 1, h, w) in [0, 1].
        """
        colours_and_seen = torch.cat([seen * image, seen], dim=1)
        widest = _smooth(colours_and_seen, SIDES[-1])
        anything = _smooth(image, SIDES[-1])
        filled = (widest[:, :-1] + LEAST_SEEN * anything) / (widest[:, -1:] + LEAST_SEEN)
        for side, lean in zip(reversed(SIDES[:-1]), self.log_lean.exp().flip(0), strict=True):
            mean = _smooth(colours_and_seen, side)
            filled = (mean[:, :-1] + lean * filled) / (mean[:, -1:] + lean)
        return filled


def _log_textured(image: Tensor, clear: Tensor) -> Tensor:
    """Return ln of how much texture clear ground around has: (B, 1, h, w), 0 where there is plenty."""
    detail = magnitude(image - _mean_where(image, clear, TEXTURE_DETAIL_SIDE))
    energy = _mean_where(detail, clear, TEXTURE_SIDE).square()
    return 2 * torch.log(energy / (energy + TEXTURED**2) + LEAST_TEXTURED)


def _mean_where(image: Tensor, weight: Tensor, side: int) -> Tensor:
    """Return the mean of an image, (B, bands, h, w), over the square around, by a positive weight, (B, 1, h, w)."""
    means = _smooth(torch.cat([weight * image, weight], dim=1), side)
    return means[:, :-1] / means[:, -1:]


def _smooth(x: Tensor, side: int) -> Tensor:
    return box_mean(box_mean(x, side), side)


def _reduced(x: Tensor, by: int = REDUCTION) -> Tensor:
    return F.avg_pool2d(x.float(), by)


def _enlarged(x: Tensor, by: int = REDUCTION) -> Tensor:
    return smoothly_enlarged(x, by)
