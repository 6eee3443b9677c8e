"""How a training sample is varied; no torch, everything random comes from the generator.

Arrays are (C, H, W) float32 in [0, 1]. Cloudy and clear change alike, save for the cloud's
strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from declouder.data.resize import resize_bicubic
from declouder.rgb import RGB

FloatArray = NDArray[np.float32]

BARELY_CLOUD = 0.05
"""Change of a pixel in [0, 1] that is no cloud to speak of."""
CALM_LEVEL, CALM_COLOR = (0.02, 0.2), 0.2
"""Of calm water: its mean in the darkest band, and how much brighter others may be."""
CALM_CONTRAST = (0.02, 0.4)
"""Of calm water, as a share of the ground's that it is made of."""
TINTED, SENSOR_TINT = 0.4, 0.45
"""How often another sensor's bands are not balanced, and ln of the gains that they then have at most."""
RELIT_LEVEL, RELIT_TOP = (0.1, 0.8), 0.92
"""Of ground in another light: its mean, and where its brightest part stays below."""
RELIT_TINT = (-0.5, 1.0)
"""How much redder and less blue it is, in units of `RELIT_HUE`."""
WARMTH = {"nir": 1.0, "red": 1.0, "green": 0.0, "blue": -1.0}
"""How warm ground shows in a band."""
RELIT_HUE = 0.12
"""ln red - ln green, as ln green - ln blue, at a tint of 1."""
ARID_LEVEL, ARID_CONTRAST, ARID_TINT = (-0.1, 0.45), (0.6, 1.6), 0.03
"""Of dry ground, against what it is like: ln of its mean, its contrast, and ln of each band's gain at most."""


def crop_patch(
    images: list[NDArray[Any]], patch_px: int | None, generator: np.random.Generator
) -> list[NDArray[Any]]:
    """Cut the same random square of `patch_px` out of all images; None, or a shorter side, stays whole."""
    height, width = images[0].shape[-2:]
    if patch_px is None:
        return images
    rows, columns = min(patch_px, height), min(patch_px, width)
    top = int(generator.integers(height - rows + 1))
    left = int(generator.integers(width - columns + 1))
    return [image[..., top : top + rows, left : left + columns] for image in images]


def flip(
    images: list[NDArray[Any]], how: Literal["none", "horizontal", "dihedral"], generator: np.random.Generator
) -> list[NDArray[Any]]:
    """Flip all images alike: not at all, left to right, or by any of the square's eight symmetries."""
    if how == "none":
        return images
    if generator.random() < 0.5:
        images = [image[..., ::-1] for image in images]
    if how == "dihedral":
        turns = int(generator.integers(4))
        images = [np.rot90(image, turns, axes=(-2, -1)) for image in images]
    return images


def zoom(
    images: list[FloatArray], factors: tuple[float, float], generator: np.random.Generator
) -> list[FloatArray]:
    """Enlarge all images, (C, H, W) in [0, 1], alike by a factor of that range, as if of another resolution.

    A random part is enlarged to the whole image's size; what shrinks is mirrored at its edges to that size.
    """
    low, high = factors
    if low == high == 1:
        return images
    factor = float(np.exp(generator.uniform(np.log(low), np.log(high))))
    height, width = images[0].shape[-2:]
    if factor >= 1:
        rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
        top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
        parts = [image[..., top : top + rows, left : left + columns] for image in images]
        return [np.clip(resize_bicubic(part, height, width), 0, 1) for part in parts]
    rows, columns = max(1, round(height * factor)), max(1, round(width * factor))
    top, left = int(generator.integers(height - rows + 1)), int(generator.integers(width - columns + 1))
    margins = ((0, 0), (top, height - rows - top), (left, width - columns - left))
    return [
        np.pad(np.clip(resize_bicubic(image, rows, columns), 0, 1), margins, mode="symmetric") for image in images
    ]


def vary_cloud_strength(
    cloudy: FloatArray, clear: FloatArray, strength: tuple[float, float], generator: np.random.Generator
) -> FloatArray:
    """Return clear + a (cloudy - clear) with `a` drawn from `strength`, clipped to [0, 1].

    Below 1 the cloud thins as if its transmission rose to 1 - a (1 - T); above 1 it thickens.
    """
    low, high = strength
    if low == high == 1:
        return cloudy
    a = np.float32(generator.uniform(low, high))
    return np.clip(clear + a * (cloudy - clear), 0, 1)


def vary_sensor(cloudy: FloatArray, clear: FloatArray, generator: np.random.Generator) -> list[FloatArray]:
    """Give a pair the look of another sensor, or of another product of it.

    Broken clouds thicken up to twice, so that they saturate, as they do elsewhere; an even haze stays as it is, for
    twice as much of it hides all ground. Then both images alike get another sharpness, other colors, and another
    black and white level; some are not balanced, so that cloud is not white. The black level stays low: lifted, it
    would be a haze that is not to be removed.

    Args:
        cloudy: (C, H, W) in [0, 1].
        clear: (C, H, W) in [0, 1].
        generator: the only source of randomness.
    """
    is_broken = float(np.quantile(np.abs(cloudy - clear).max(axis=0), 0.2)) < BARELY_CLOUD
    cloudy = vary_cloud_strength(cloudy, clear, (0.8, 2.0) if is_broken else (0.9, 1.05), generator)
    images = [cloudy, clear]
    sigma_px = generator.uniform(-1.0, 1.5)
    if sigma_px > 0:
        images = [gaussian_filter(image, (0, sigma_px, sigma_px), mode="nearest") for image in images]
    images = vary_color(images, 1.0, generator)
    if generator.random() < TINTED:
        tint = np.exp(generator.uniform(-SENSOR_TINT, SENSOR_TINT, images[0].shape[0])).astype(np.float32)
        images = [tint[:, None, None] * image for image in images]
    black, gain = generator.uniform(-0.1, 0.08), np.exp(generator.uniform(-0.2, 0.5))
    # The ground must not saturate.
    gain = min(gain, max(0.8 / max(float(np.quantile(images[1], 0.9)), 1e-3), 0.8))
    return [np.clip(np.float32(black) + np.float32(gain) * image, 0, 1) for image in images]


def make_calm(ground: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Return ground, (C, H, W) in [0, 1], with little contrast about a color as dark as water has.

    Flat and grey, ground looks as if there were haze over it; what is dark in some band cannot be.
    """
    color = np.asarray(generator.uniform(0, CALM_COLOR, ground.shape[0]), np.float32)
    level = generator.uniform(*CALM_LEVEL) + color - color.min()
    contrast = np.float32(generator.uniform(*CALM_CONTRAST))
    flat = contrast * (ground - ground.mean(axis=(1, 2), keepdims=True))
    return np.asarray(np.clip(level[:, None, None] + flat, 0, 1), np.float32)


def relight(
    ground: FloatArray,
    generator: np.random.Generator,
    *,
    band_names: Sequence[str] = RGB,
    lifts: float = 0.0,
) -> FloatArray:
    """Return ground, (C, H, W) in [0, 1], as bright as other ground is, from forest to sand, and of its tint.

    Where pairs are few, what is bright is mostly ground under haze. Black stays black, which haze never leaves;
    with the probability `lifts` the contrast falls as well, as that of sand, which is warm where haze is grey. Such
    ground is what haze makes of a desert, and with no cloud to see nobody could tell. The tint goes by the names of
    the C bands; those that `WARMTH` does not know keep theirs.
    """
    grey = ground.mean(axis=0, keepdims=True)
    ground = grey + np.float32(generator.uniform(0.3, 1.1)) * (ground - grey)
    tint = generator.uniform(*RELIT_TINT)
    if generator.random() < lifts:
        mean = ground.mean(axis=(1, 2), keepdims=True)
        ground = mean + np.float32(generator.uniform(0.3, 1.0)) * (ground - mean)
        tint = abs(tint)
    level = generator.uniform(*RELIT_LEVEL)
    gain = min(level / max(float(ground.mean()), 0.02), RELIT_TOP / max(float(np.quantile(ground, 0.98)), 0.02))
    hue = np.exp(RELIT_HUE * tint * np.array([WARMTH.get(name.lower(), 0.0) for name in band_names]))
    scale = np.asarray(gain * hue, np.float32)[:, None, None]
    return np.asarray(np.clip(scale * ground, 0, 1), np.float32)


def make_arid(ground: FloatArray, like: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Return ground, (C, H, W) in [0, 1], with about the colors and the little contrast of `like`, dry ground."""
    grey = ground.mean(axis=0, keepdims=True)
    ground = grey + np.float32(generator.uniform(0.2, 1.0)) * (ground - grey)
    spread = max(float(ground.std(axis=(1, 2)).mean()), 0.01)
    contrast = float(like.std(axis=(1, 2)).mean()) * generator.uniform(*ARID_CONTRAST) / spread
    level = like.mean(axis=(1, 2), keepdims=True) * np.float32(np.exp(generator.uniform(*ARID_LEVEL)))
    tint = np.exp(generator.uniform(-ARID_TINT, ARID_TINT, (len(ground), 1, 1))).astype(np.float32)
    changed = level * tint + np.float32(contrast) * (ground - ground.mean(axis=(1, 2), keepdims=True))
    return np.asarray(np.clip(changed, 0, 1), np.float32)


def vary_color(images: list[FloatArray], amount: float, generator: np.random.Generator) -> list[FloatArray]:
    """Give all images the same other light: a gain and gamma common to the bands, small ones for each band.

    Args:
        images: (C, H, W) in [0, 1].
        amount: 0 changes nothing; 1 draws gains within about a factor 1.6 and shuffles bands one time in five.
        generator: the only source of randomness.
    """
    if amount == 0:
        return images
    bands = images[0].shape[0]
    gain = np.exp(amount * (generator.uniform(-0.35, 0.15) + generator.uniform(-0.1, 0.1, bands)))
    gamma = np.exp(amount * generator.uniform(-0.25, 0.25))
    order = generator.permutation(bands) if generator.random() < 0.2 * amount else np.arange(bands)
    scale = gain.astype(np.float32)[:, None, None]
    return [np.clip(scale * image[order] ** np.float32(gamma), 0, 1) for image in images]
