"""Where the windows of a scene lie, and how their results blend into one image. numpy only, no files.

Along each axis, window k has the weight

    w_k(x) = ramp_k(x) / sum_j ramp_j(x),   ramp_k = sin^2 over the overlap with a neighbour, 1 elsewhere,

and a pixel's weight is w_row(y) * w_col(x). So the weights of all windows sum to one at every pixel, the
scene's own edge has no ramp, and only O(height + width) numbers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A rectangle of a scene, in pixels; `row` and `col` are its upper left corner."""

    row: int
    col: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows in the scene."""
        return slice(self.row, self.row + self.height)

    @property
    def cols(self) -> slice:
        """Its columns in the scene."""
        return slice(self.col, self.col + self.width)


@dataclass(frozen=True)
class Piece:
    """A finished rectangle of a mosaic: no later window reaches it.

    Attributes:
        window: where it lies.
        image: (C, window.height, window.width) float32.
    """

    window: Window
    image: NDArray[np.float32]


def plan_windows(height: int, width: int, window_px: int, overlap_px: int) -> list[Window]:
    """Return the windows that cover a scene, row by row, from left to right.

    All have the same size, `window_px` or the scene's own where that is smaller, and neighbours overlap by at
    least `overlap_px`.
    """
    rows, cols = _starts(height, window_px, overlap_px), _starts(width, window_px, overlap_px)
    size = min(window_px, height), min(window_px, width)
    return [Window(row, col, *size) for row in rows for col in cols]


class Mosaic:
    """Blends windows that come in the order of `plan_windows`, and hands back each part once it is finished.

    Only what a later window still reaches is kept: the overlap with the next row of windows over the scene's
    width, and the overlap with the next window to the right. So memory grows neither with the scene's height
    nor with its area.
    """

    def __init__(self, height: int, width: int, bands: int, *, window_px: int, overlap_px: int) -> None:
        self.windows = plan_windows(height, width, window_px, overlap_px)
        self._row_weights = axis_weights(height, window_px, overlap_px)
        self._col_weights = axis_weights(width, window_px, overlap_px)
        row_ends = _finished_ends(height, window_px, overlap_px)
        col_ends = _finished_ends(width, window_px, overlap_px)
        self._pieces = [
            Window(window.row, window.col, row_end - window.row, col_end - window.col)
            for window, (row_end, col_end) in zip(
                self.windows, ((r, c) for r in row_ends for c in col_ends), strict=True
            )
        ]
        self._size = self.windows[0].height, self.windows[0].width
        self._right = np.zeros((bands, self._size[0], 0), np.float32)
        # Allocated once: the rows below the finished ones, over the scene's width.
        reach = max(self._size[0] - piece.height for piece in self._pieces)
        self._below = np.zeros((bands, reach, width), np.float32)
        self._done = 0

    def add(self, image: NDArray[np.float32] | None) -> Piece:
        """Take the next window's image and return the piece that it finishes; the pieces tile the scene.

        Args:
            image: (C, window.height, window.width); None where no pixel of the window matters, which counts
                as zero.
        """
        piece = self._pieces[self._done]
        row, col = divmod(self._done, len(self._col_weights))
        total = np.zeros((len(self._below), *self._size), np.float32)
        if image is not None:
            weight = self._row_weights[row][:, None] * self._col_weights[col]
            np.multiply(image, weight, out=total)
        if col > 0:
            total[:, :, : self._right.shape[2]] += self._right
        self._right = total[:, :, piece.width :].copy()

        total = total[:, :, : piece.width]  # no window of this row adds to these columns any more
        below = self._below[:, :, piece.cols]
        if row > 0:
            total[:, : below.shape[1]] += below
        below[:] = 0
        below[:, : self._size[0] - piece.height] = total[:, piece.height :]
        self._done += 1
        return Piece(piece, total[:, : piece.height])


def axis_weights(length: int, window_px: int, overlap_px: int) -> list[NDArray[np.float32]]:
    """Return each window's weights along one axis, (window size,) in [0, 1]; they sum to one everywhere."""
    starts, size = _starts(length, window_px, overlap_px), min(window_px, length)
    ramps = []
    for k, start in enumerate(starts):
        ramp = np.ones(size)
        if k > 0:
            shared = starts[k - 1] + size - start
            ramp[:shared] *= _rise(shared)
        if k < len(starts) - 1:
            shared = start + size - starts[k + 1]
            ramp[size - shared :] *= _rise(shared)[::-1]
        ramps.append(ramp)
    # sin^2 + cos^2 = 1 already; three windows share a place only where the scene is little more than two
    # windows.
    total = np.zeros(length)
    for start, ramp in zip(starts, ramps, strict=True):
        total[start : start + size] += ramp
    return [
        (ramp / total[start : start + size]).astype(np.float32) for start, ramp in zip(starts, ramps, strict=True)
    ]


def _starts(length: int, window_px: int, overlap_px: int) -> list[int]:
    """Return where windows start along one axis.

    As few windows as will do. They move inward by even shares, so that every window is full size and the
    overlaps are alike; moving only the last one would make its overlap, and the memory for it, up to a whole
    window.
    """
    if not (length > 0 and window_px > 0 and 0 <= overlap_px < window_px):
        raise ValueError(f"no windows of {window_px} px with overlap {overlap_px} over {length} px")
    if length <= window_px:
        return [0]
    last = -(-(length - window_px) // (window_px - overlap_px))
    return [k * (length - window_px) // last for k in range(last + 1)]


def _finished_ends(length: int, window_px: int, overlap_px: int) -> list[int]:
    """Return, for each window, where the next one starts: up to there the axis is finished."""
    return [*_starts(length, window_px, overlap_px)[1:], length]


def _rise(size: int) -> NDArray[np.float64]:
    """Return a smooth rise from 0 to 1, (size,), such that it and its mirror image sum to one."""
    return np.asarray(np.sin((np.arange(size) + 0.5) / size * (np.pi / 2)) ** 2)
