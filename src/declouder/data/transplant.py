"""Real cloud on other ground: the cloud layer of one pair, laid over the clear image of another.

    cloudy ~ T clear + a            T: transmission, a: light that the cloud adds, both smooth

Both follow from how far a pixel has gone from its ground to white, or to black: `cloud_layer`. Fewer pairs than
weights learn whole images by heart; layers times grounds are many.

An even haze obeys more: it is grey and it fades all ground to one white, the same all over the image,

    cloudy = white - T (1 - clear)

so T alone is to be found out by who removes it. `EvenHaze` is what of a pair obeys this, and gives other ground and
other strength under which it still does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

FloatArray = NDArray[np.float32]

CLOUD_PX = 3
"""Side of the square over which a cloud is taken: small clouds keep their edges."""
LEAST_WHITE = 0.9
"""Thick cloud is at least this bright, in [0, 1]."""
SHADOW_PRIOR = 0.01
"""How much a pixel in shadow needs to show for it, in units of the range squared."""
HAZE_WINDOW_PX = 31
"""Side of the square over which an even haze has one transmission."""
HAZE_RESIDUAL = 0.01
"""Standard deviation of what an even haze leaves unexplained in [0, 1]; RICE1's pairs are below 0.008."""
LEAST_DIMMING, DARKER_ALL_OVER = 0.04, 0.005
"""In [0, 1], how much darker than its ground a dimmed image is in the mean, and nearly everywhere."""
DIM_WINDOW_PX, DIM_PRIOR = 63, 1e-4
"""Side of the square over which the transmission of a dimming cloud is taken, and how much it leans to 1, as a
variance of the ground in [0, 1]."""
DIM_TRANSMISSION = (0.4, 1.1)
"""What it is kept in; above 1 where the light of two days differs."""
HARD_FROM, HARD_GAIN, HARD_WHITE = (0.1, 0.3), (1.0, 3.0), (0.8, 1.15)
"""Of hard cloud: shares of hidden ground that no longer count, how much those above grow, and its brightness, which
saturates above 1."""
LEAST_SHADOW = 0.15
"""Share of the light that a hard cloud's shadow takes at least: what darkens less may be a change of the ground."""
MOST_TRANSMISSION = 0.85
"""Mean transmission above which a pair has no haze to speak of."""


@dataclass(frozen=True)
class EvenHaze:
    """A grey haze with one white: cloudy = white - transmission (1 - clear) + what is left.

    Attributes:
        white: what white ground becomes, in [0, 1].
        transmission: (1, H, W), smooth.
        cloudy: (C, H, W) in [0, 1], the pair that it is of.
        clear: (C, H, W) in [0, 1].
    """

    white: float
    transmission: FloatArray
    cloudy: FloatArray
    clear: FloatArray

    @classmethod
    def of_pair(cls, cloudy: FloatArray, clear: FloatArray) -> EvenHaze | None:
        """Return the haze of a pair, (C, H, W) in [0, 1] each, or None if its cloud is of another kind."""
        dark = 1 - clear
        mean_cloudy, mean_dark = (_local_mean(x.mean(0, keepdims=True), HAZE_WINDOW_PX) for x in (cloudy, dark))
        square = _local_mean((dark * dark).mean(0, keepdims=True), HAZE_WINDOW_PX)
        product = _local_mean((dark * cloudy).mean(0, keepdims=True), HAZE_WINDOW_PX)
        variance = np.maximum(square - mean_dark**2, 1e-8)
        slope = (product - mean_dark * mean_cloudy) / variance
        # Where the ground says most of the slope it says most of the white too.
        white = float(np.average(mean_cloudy - slope * mean_dark, weights=variance))
        transmission = np.asarray((white * mean_dark - product) / (square + 1e-8), np.float32)
        left = cloudy - (white - transmission * dark)
        if float(left.std()) > HAZE_RESIDUAL or not 0 < float(transmission.mean()) < MOST_TRANSMISSION:
            return None
        return cls(white, transmission, cloudy, clear)

    def over(self, ground: FloatArray, *, strength: float = 1.0) -> FloatArray:
        """Return `ground`, (C, H, W) in [0, 1], under this haze; what the law leaves unexplained stays.

        `strength` divides the transmission: above 1 the haze is thicker.
        """
        under = self.cloudy + self.transmission * (ground - self.clear)
        return self._thickened(under, strength)

    def clean_over(self, ground: FloatArray, *, strength: float = 1.0) -> FloatArray:
        """Return `ground`, (C, H, W) in [0, 1], under this haze and nothing else, in steps of 8-bit images.

        What a pair's law leaves unexplained is mostly what a lossy codec did to its images; over other ground it
        would be noise that no lossless image has, and taking a haze away makes noise about twice as strong.
        `strength` as in `over`.
        """
        clean = self._thickened(self.white - self.transmission * (1 - ground), strength)
        return np.asarray(np.rint(clean * 255) / 255, np.float32)

    def _thickened(self, under: FloatArray, strength: float) -> FloatArray:
        return np.asarray(np.clip(self.white + (under - self.white) / np.float32(strength), 0, 1), np.float32)


@dataclass(frozen=True)
class Dimming:
    """A thin cloud that darkens the ground more than it whitens it: cloudy ~ transmission clear + added.

    Cirrus over bright, dry ground does so. `added` may be negative.

    Attributes:
        transmission: (1, H, W), smooth.
        added: (C, H, W), smooth.
    """

    transmission: FloatArray
    added: FloatArray

    @classmethod
    def of_pair(cls, cloudy: FloatArray, clear: FloatArray) -> Dimming | None:
        """Return the dimming of a pair, (C, H, W) in [0, 1] each, or None if its cloud is of another kind."""
        mean_cloudy, mean_clear = _local_mean(cloudy, HAZE_WINDOW_PX), _local_mean(clear, HAZE_WINDOW_PX)
        darker = (mean_clear - mean_cloudy).mean(0)
        is_darker = float(np.quantile(darker, 0.1)) > DARKER_ALL_OVER and float(darker.mean()) > LEAST_DIMMING
        if not is_darker or EvenHaze.of_pair(cloudy, clear) is not None:
            return None
        product = _local_mean(((cloudy - mean_cloudy) * (clear - mean_clear)).mean(0, keepdims=True), DIM_WINDOW_PX)
        square = _local_mean(np.square(clear - mean_clear).mean(0, keepdims=True), DIM_WINDOW_PX)
        transmission = np.clip((product + DIM_PRIOR) / (square + DIM_PRIOR), *DIM_TRANSMISSION)
        return cls(transmission, np.asarray(mean_cloudy - transmission * mean_clear, np.float32))

    def over(self, ground: FloatArray) -> FloatArray:
        """Return `ground`, (C, H, W) in [0, 1], so dimmed."""
        return np.asarray(np.clip(self.transmission * ground + self.added, 0, 1), np.float32)


def move_cloud(cloudy: FloatArray, clear: FloatArray, ground: FloatArray) -> FloatArray:
    """Return `ground` under the cloud of a pair.

    Args:
        cloudy: (C, H, W) in [0, 1].
        clear: (C, H, W) in [0, 1], the same place without cloud.
        ground: (C, H, W) in [0, 1], another place.
    """
    transmission, added = cloud_layer(cloudy, clear)
    return np.asarray(np.clip(transmission * ground + added, 0, 1), np.float32)


def move_hard_cloud(
    cloudy: FloatArray, clear: FloatArray, ground: FloatArray, generator: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Return `ground` under a pair's cloud made white and hard, (C, H, W), and what the cloud hides, (1, H, W).

    Where images are stretched to show their ground, cloud saturates and has hard edges; faint parts of the layer,
    among which are changes of the old ground between the two images, go.

    Args:
        cloudy: as of `move_cloud`.
        clear: as of `move_cloud`.
        ground: as of `move_cloud`.
        generator: the only source of randomness: how hard and how white the cloud becomes.

    Returns:
        Both in [0, 1].
    """
    through, hidden, _ = _parts_of(cloudy, clear)
    least, gain = generator.uniform(*HARD_FROM), generator.uniform(*HARD_GAIN)
    lit = np.where(hidden < 1, through / np.maximum(1 - hidden, 1e-3), 1)
    shade = np.clip((1 - lit - LEAST_SHADOW) / (1 - LEAST_SHADOW), 0, 1)
    hidden = np.clip(np.float32(gain / (1 - least)) * (hidden - np.float32(least)), 0, 1)
    under = (1 - hidden) * (1 - shade) * ground + np.float32(generator.uniform(*HARD_WHITE)) * hidden
    return np.asarray(np.clip(under, 0, 1), np.float32), np.asarray(hidden[None], np.float32)


def cloud_layer(cloudy: FloatArray, clear: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the transmission, (1, H, W) in [0, 1], and the added light, (C, H, W), of a pair's cloud.

    Under a cloud that hides the share q of the ground, and lets the share p through,

        cloudy ~ p clear + q white          p + q <= 1, and less than 1 in shadow

    which the bands of a pixel overdetermine: p and q are least squares that lean to p + q = 1. What is left over is
    the cloud's own color as far as it hides the ground; the rest, change of the ground between the two images, is
    no part of a cloud and does not move with it.
    """
    through, hidden, white = _parts_of(cloudy, clear)
    transmission = np.asarray(through[None], np.float32)
    own_color = cloudy - transmission * clear - np.float32(white) * hidden
    return transmission, np.asarray(hidden * (white + own_color), np.float32)


def _parts_of(cloudy: FloatArray, clear: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Return what a pair's cloud lets through and what it hides, (H, W) in [0, 1], and its white."""
    mean_cloudy, mean_clear = _local_mean(cloudy, CLOUD_PX), _local_mean(clear, CLOUD_PX)
    white = max(float(np.quantile(mean_cloudy.mean(0), 0.999)), LEAST_WHITE)
    bands = len(cloudy)
    # Normal equations of | cloudy - p clear - q white |^2 + SHADOW_PRIOR (1 - p - q)^2.
    pp = np.square(mean_clear).sum(0) + SHADOW_PRIOR
    pq = white * mean_clear.sum(0) + SHADOW_PRIOR
    qq = bands * white**2 + SHADOW_PRIOR
    p_side = (mean_clear * mean_cloudy).sum(0) + SHADOW_PRIOR
    q_side = white * mean_cloudy.sum(0) + SHADOW_PRIOR
    hidden = np.clip((pp * q_side - pq * p_side) / np.maximum(pp * qq - pq * pq, 1e-9), 0, 1)
    through = np.clip((p_side - pq * hidden) / pp, 0, 1 - hidden)
    return np.asarray(through, np.float32), np.asarray(hidden, np.float32), white


def _local_mean(x: FloatArray, side_px: int) -> FloatArray:
    return np.asarray(uniform_filter(x, (0, side_px, side_px), mode="nearest"), np.float32)
