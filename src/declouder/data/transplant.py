"""Real cloud on other ground: the cloud layer of one pair, laid over the clear image of another.

    cloudy ~ T clear + a            T: transmission, a: light that the cloud adds, both smooth

T is a local regression of cloudy on clear (as in the guided filter: He et al., "Guided Image Filtering",
IEEE TPAMI 2013), held near what a white cloud of the same brightness would let through where the ground has
no texture to regress on. Fewer pairs than weights learn whole images by heart; layers times grounds are many.

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

WINDOW_PX = 15
"""Side of the square in which the regression is taken."""
CLOUD_PX = 5
"""Side of the square over which transmission and light are smooth: small clouds keep their edges."""
CERTAIN_VARIANCE = 1e-3
"""Variance of the ground, in units of the range squared, that outweighs the guess."""
HAZE_WINDOW_PX = 31
"""Side of the square over which an even haze has one transmission."""
HAZE_RESIDUAL = 0.01
"""Standard deviation of what an even haze leaves unexplained in [0, 1]; RICE1's pairs are below 0.008."""
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
        """Return `ground`, (C, H, W) in [0, 1], under this haze; its noise stays.

        `strength` divides the transmission: above 1 the haze is thicker.
        """
        under = self.cloudy + self.transmission * (ground - self.clear)
        return np.asarray(np.clip(self.white + (under - self.white) / np.float32(strength), 0, 1), np.float32)


def move_cloud(cloudy: FloatArray, clear: FloatArray, ground: FloatArray) -> FloatArray:
    """Return `ground` under the cloud of a pair.

    Args:
        cloudy: (C, H, W) in [0, 1].
        clear: (C, H, W) in [0, 1], the same place without cloud.
        ground: (C, H, W) in [0, 1], another place.
    """
    transmission, added = cloud_layer(cloudy, clear)
    return np.asarray(np.clip(transmission * ground + added, 0, 1), np.float32)


def cloud_layer(cloudy: FloatArray, clear: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the transmission, (1, H, W) in [0, 1], and the added light, (C, H, W), of a pair's cloud.

    transmission * clear + added is cloudy again, save for what the ground changed between the two images.
    """
    mean_cloudy, mean_clear = _local_mean(cloudy, WINDOW_PX), _local_mean(clear, WINDOW_PX)
    variance = np.maximum(_local_mean(clear * clear, WINDOW_PX) - mean_clear * mean_clear, 0).mean(0)
    covariance = (_local_mean(clear * cloudy, WINDOW_PX) - mean_clear * mean_cloudy).mean(0)
    guess = _guess(cloudy, clear, cloudy - mean_cloudy, clear - mean_clear)
    slope = (covariance + CERTAIN_VARIANCE * guess) / (variance + CERTAIN_VARIANCE)
    transmission = _local_mean(np.clip(slope, 0, 1)[None], CLOUD_PX)
    added = cloudy - transmission * clear
    smooth = _local_mean(added, CLOUD_PX)
    # The cloud's own texture counts as far as it hides the ground; the rest is the ground's change or noise.
    return transmission, np.asarray(smooth + (1 - transmission) * (added - smooth), np.float32)


def _guess(
    cloudy: FloatArray, clear: FloatArray, detail_cloudy: FloatArray, detail_clear: FloatArray
) -> FloatArray:
    """Return the transmission, (H, W), where there is no texture to tell it.

    Even haze: the share of texture that is left in the whole image, as far as the two textures are alike. Else
    what a white cloud of this brightness lets through, or what a shadow leaves.
    """
    power = float(np.square(detail_clear).mean()) + 1e-8
    common = float((detail_clear * detail_cloudy).mean())
    alike = np.clip(common / np.sqrt(power * (float(np.square(detail_cloudy).mean()) + 1e-8)), 0, 1) ** 2
    bright, dark = (_local_mean(x.mean(0, keepdims=True), CLOUD_PX)[0] for x in (cloudy, clear))
    white = max(float(bright.max()), 0.9)
    through = (white - bright) / np.maximum(white - dark, 0.05)
    left = bright / np.maximum(dark, 0.02)
    return np.asarray(alike * common / power + (1 - alike) * np.where(bright >= dark, through, left), np.float32)


def _local_mean(x: FloatArray, side_px: int) -> FloatArray:
    return np.asarray(uniform_filter(x, (0, side_px, side_px), mode="nearest"), np.float32)
