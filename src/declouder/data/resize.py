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

from declouder.scaling import stored_as

KERNEL_RADIUS = 2
"""Of the bicubic kernel, in pixels of the smaller image."""


def resize_bicubic(
    image: NDArray[np.float32], height: int, width: int, *, rows: float | None = None
) -> NDArray[np.float32]:
    """Return (C, height, width) float32 for `image`: (C, H, W) float32 of any range.

    Args:
        image: see above.
        height, width: of the result.
        rows: how many rows of the image the result shows, from the top; None is all. A few more are there too,
            mirrored.
    """
    if image.shape[-2:] == (height, width):
        return image
    rows = float(image.shape[-2]) if rows is None else rows
    columns = image.shape[-1]
    # Pillow cuts the kernel at the image's border; in a mirrored margin it finds all that it asks for.
    top, left = _margin(rows, height), _margin(columns, width)
    below = top + max(0, math.ceil(rows) - image.shape[-2])
    wide = np.pad(image, ((0, 0), (top, below), (left, left)), mode="symmetric")
    box = (left, top, left + columns, top + rows)
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in wide]  # mode "F": floats stay floats
    return np.stack([np.asarray(band.resize((width, height), Image.Resampling.BICUBIC, box)) for band in bands])


def resize_stored(image: NDArray[Any], width_px: int) -> NDArray[Any]:
    """Return `image`, (H, W, C) of any dtype, which stays, that wide and as much higher or lower.

    Integers are rounded and clipped.
    """
    size = _scaled(image, width_px)
    if image.shape[:2] == size:
        return np.ascontiguousarray(image)
    planes = np.asarray(image.transpose(2, 0, 1), np.float32)
    resized = resize_bicubic(planes, *size, rows=_rows_shown(image, size)).transpose(1, 2, 0)
    return np.ascontiguousarray(stored_as(resized.astype(np.float64), image.dtype))


def resize_nearest(mask: NDArray[Any], width_px: int) -> NDArray[Any]:
    """Return `mask`, (H, W, C), of the size that `resize_stored` gives; no level is made up."""
    wanted = _scaled(mask, width_px)
    shown = (_rows_shown(mask, wanted), mask.shape[1])
    rows, columns = ((np.arange(n) + 0.5) * size / n for n, size in zip(wanted, shown, strict=True))
    rows = rows.clip(max=mask.shape[0] - 1)
    return np.ascontiguousarray(mask[rows.astype(int)[:, None], columns.astype(int)])


def _scaled(image: NDArray[Any], width_px: int) -> tuple[int, int]:
    """Return height and width, the height rounded up, as MATLAB does."""
    height, width = image.shape[:2]
    return math.ceil(height * width_px / width), width_px


def _rows_shown(image: NDArray[Any], size: tuple[int, int]) -> float:
    """Return how many rows of an image one of the size of `_scaled` shows: the scale is that of the width."""
    height, width = size
    return float(height * image.shape[1] / width)


def _margin(size: float, wanted: int) -> int:
    return math.ceil(KERNEL_RADIUS * max(1.0, size / wanted)) + 1
