"""Clouds of a few pixels that a model left: whether it is worth while to look at a scene enlarged.

A network knows clouds by their size in pixels (`declouder.enlarging`). Where there are many small ones it removes
some and leaves others, side by side. Bright roofs and sand look like small clouds too, but of these hardly any go.

    spot   grey, and brighter than what is left of it by an opening of `SPOT_PX`   (a white top-hat)
    gone   spots of the cloudy image of which less than half is left
    left   spots of the restored image

counted in squares of `SQUARE_PX` in which some are gone. numpy and scipy only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import grey_opening

FloatArray = NDArray[np.float32]

HALF = 2
"""Spots are looked for at this much less than the images' size: it takes a quarter of the time."""
SPOT_PX = 12
"""What holds a square of this side is no spot, in pixels of the image."""
SPOT_FROM, GREY_TO = 0.12, 0.12
"""In [0, 1]: by how much a spot is brighter than around in its darkest band, and by how much others differ."""
SQUARE_PX = 64
"""Side of a square, in pixels of the image."""
GONE_FROM = 0.02
"""Share of a square that must be spots that are gone."""
LEFT_FROM = 0.04
"""Share of those squares that must be spots that are left."""
SQUARES_FROM = 0.05
"""Share of all squares that must be such ones."""


class SmallClouds:
    """Counts over the windows of a scene.

    Attributes:
        squares: how many there were.
        broken: of these, those in which spots are gone.
        gone: spots that are gone in them, in squares.
        left: spots that are left in them, in squares.
    """

    def __init__(self) -> None:
        self.squares = self.broken = 0
        self.gone = self.left = 0.0

    def add(self, cloudy: FloatArray, restored: FloatArray) -> None:
        """Count what is in a window.

        Args:
            cloudy: (C, H, W) in [-1, 1]; what does not fill a square, at the lower and right edge, is left out.
            restored: what the model made of it, the same shape.
        """
        if min(cloudy.shape[1:]) < SQUARE_PX:
            return
        before, after = _half(cloudy), _half(restored)
        height_before, spots_before = _spots(before)
        height_after, spots_after = _spots(after)
        went = (height_after < height_before / 2) & (before.min(0) - after.min(0) > height_before / 2)
        gone, left = _shares(spots_before & went), _shares(spots_after)
        broken = gone >= GONE_FROM
        self.squares += gone.size
        self.broken += int(broken.sum())
        self.gone += float(gone[broken].sum())
        self.left += float(left[broken].sum())

    @property
    def are_left(self) -> bool:
        """Whether many are left, where others are gone."""
        many = self.broken >= SQUARES_FROM * self.squares and self.left >= LEFT_FROM * self.broken
        return self.broken > 0 and many and self.left <= self.gone


def _half(image: FloatArray) -> FloatArray:
    """Return means of `HALF` x `HALF` px in [0, 1]; an odd row and column at the end are left out."""
    bands, height, width = image.shape
    rows, columns = height // HALF, width // HALF
    squares = image[:, : rows * HALF, : columns * HALF].reshape(bands, rows, HALF, columns, HALF)
    return np.asarray((squares.mean(axis=(2, 4)) + 1) / 2, np.float32)


def _spots(image: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return by how much pixels of (C, h, w) are brighter than around, and where spots are: both (h, w)."""
    darkest = image.min(axis=0)
    height = darkest - grey_opening(darkest, size=(SPOT_PX // HALF,) * 2)
    return height, (height > SPOT_FROM) & (image.max(axis=0) - darkest < GREY_TO)


def _shares(found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the share of each whole square that was found."""
    side = SQUARE_PX // HALF
    rows, columns = (size // side for size in found.shape)
    squares = found[: rows * side, : columns * side].reshape(rows, side, columns, side)
    return np.asarray(squares.mean(axis=(1, 3)))
