"""Antialiased bicubic resizing, as the paper's preprocessing does it (MATLAB's `imresize`).

Keys' kernel with a = -0.5, widened by the scale when an image shrinks, the image mirrored at its borders.
`resize_bicubic` neither rounds nor clips, so that over- and undershoot survive; `resize_stored` gives what a
file of the image's own type can hold.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KERNEL_RADIUS = 2
"""Of the bicubic kernel, in pixels of the smaller image."""


def resize_bicubic(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Return (C, height, width) float32 for `image`: (C, H, W) float32 of any range."""
    if image.shape[-2:] == (height, width):
        return image
    rows, columns = image.shape[-2:]
    # Pillow cuts the kernel at the image's border; in a mirrored margin it finds all that it asks for.
    top, left = _margin(rows, height), _margin(columns, width)
    wide = np.pad(image, ((0, 0), (top, top), (left, left)), mode="symmetric")
    box = (left, top, left + columns, top + rows)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in wide]  # mode "F": floats stay floats
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling.BICUBIC, box)) for band in bands])


def resize_stored(image: NDArray[Any], side_px: int) -> NDArray[Any]:
    """Return (side, side, C) for `image`: (H, W, C) of any dtype, which stays; integers are rounded and clipped."""
    if image.shape[:2] == (side_px, side_px):
        return np.ascontiguousarray(image)
    planes = np.asarray(image.transpose(2, 0, 1), np.float32)
    resized = resize_bicubic(planes, side_px, side_px).transpose(1, 2, 0)
    if image.dtype.kind == "f":
        return np.ascontiguousarray(resized, image.dtype)
    limits = np.iinfo(image.dtype)
    # In float64: float32 would round the largest numbers of 32 bits up, beyond what they hold.
    return np.ascontiguousarray(np.clip(np.rint(resized.astype(np.float64)), limits.min, limits.max), image.dtype)


def resize_nearest(mask: NDArray[Any], side_px: int) -> NDArray[Any]:
    """Return (side, side, C) for `mask`: (H, W, C); each pixel is the one at its middle, so no level is made up."""
    rows, columns = ((np.arange(side_px) + 0.5) * size / side_px for size in mask.shape[:2])
    return np.ascontiguousarray(mask[rows.astype(int)[:, None], columns.astype(int)])


def _margin(size: int, wanted: int) -> int:
    return math.ceil(KERNEL_RADIUS * max(1.0, size / wanted)) + 1
