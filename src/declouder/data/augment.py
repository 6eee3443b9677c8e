"""How a training sample is varied; numpy only, everything random comes from the generator.

Arrays are (C, H, W) float32 in [0, 1]. Cloudy and clear change alike, save for `vary_cloud_strength`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def crop_patch(
    images: list[NDArray[Any]], patch_px: int | None, generator: np.random.Generator
) -> list[NDArray[Any]]:
    """Cut the same random square of `patch_px` out of all images; None, or a smaller image, keeps it whole."""
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
