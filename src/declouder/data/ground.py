"""Clear ground of a pair whose images are of two days: the texture of the cloudy one in the light of the other.

Between clouds both images show the ground, but fields grow, rivers move and the sun stands elsewhere. What of that
differs from what is around nobody can foretell; to learn from it teaches a network to flatten clear ground.

    clear_ground = textured, the least of exp(-(change / MOST_CHANGE)^2 - (deviation / MOST_DEVIATION)^2) near by
        change: mean over bands of |clear - cloudy|, blurred before its sign is dropped
        deviation: the same of what differs from light;  light: mean of clear - cloudy over clear ground around
        textured: detail^2 / (detail^2 + TEXTURED^2), of the clear image: specks on calm sea are cloud
    clear <- clear + clear_ground (gain (cloudy - mean cloudy) - (clear - mean clear))
        gain: the clear image's contrast by the cloudy one's, which thin haze fades
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, minimum_filter

FloatArray = NDArray[np.float32]

MOST_CHANGE, MOST_DEVIATION = 0.08, 0.045
"""In [0, 1]: what another day's light may change, and by how much more or less than around."""
BLUR_PX, LIGHT_PX = 3.0, 12.0
"""Standard deviations: of the blur, under which grain is no cloud, and of the means that are light."""
EDGE_PX = 11
"""Side of the square in which all must be clear: the edges of clouds are thin."""
TEXTURED = 0.008
"""In [0, 1], mean detail of ground that has texture to speak of."""
GAIN = (0.8, 1.5)
"""What the contrast of the cloudy image's texture may change by."""
FAINTEST = 1e-3
"""Keeps a quotient finite where no ground is clear."""


def with_own_texture(cloudy: FloatArray, clear: FloatArray) -> FloatArray:
    """Return the clear image, (C, H, W) in [0, 1], with the cloudy one's texture where that shows the ground."""
    difference = clear - cloudy
    weight = np.exp(-np.square(_size(_blurred(difference, BLUR_PX)) / MOST_CHANGE))
    light = _mean_where(difference, weight)
    weight = weight * np.exp(-np.square(_size(_blurred(difference - light, BLUR_PX)) / MOST_DEVIATION))
    detail = np.square(_blurred(_size(clear - _blurred(clear, BLUR_PX)), LIGHT_PX))
    weight = minimum_filter(weight, (1, EDGE_PX, EDGE_PX)) * detail / (detail + TEXTURED**2)
    weight = _blurred(weight, BLUR_PX)
    texture, wanted = (image - _mean_where(image, weight) for image in (cloudy, clear))
    contrasts = (_mean_where(np.square(x).mean(axis=0, keepdims=True), weight) for x in (wanted, texture))
    gain = np.clip(np.sqrt(_quotient(*contrasts)), *GAIN)
    return np.asarray(np.clip(clear + weight * (gain * texture - wanted), 0, 1), np.float32)


def _quotient(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.asarray((x + FAINTEST**2) / (y + FAINTEST**2))


def _mean_where(x: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the mean of (C, H, W) around each pixel, by a weight, (1, H, W)."""
    weight = weight + np.float32(FAINTEST)
    return _blurred(weight * x, LIGHT_PX) / _blurred(weight, LIGHT_PX)


def _size(x: FloatArray) -> FloatArray:
    return np.asarray(np.abs(x).mean(axis=0, keepdims=True))


def _blurred(x: FloatArray, sigma_px: float) -> FloatArray:
    return np.asarray(gaussian_filter(x, (0, sigma_px, sigma_px), mode="nearest"))
