"""Where the windows of a scene lie, and how their results blend into one image. numpy only, no files.

Windows start at multiples of a stride counted from an origin that scenes may share, so that a scene and a crop of
it, or two neighbours, have the same windows inside. Along each axis, window k has the weight

    w_k(x) = ramp_k(x) / sum_j ramp_j(x),   ramp_k = sin^2 over the overlap with a neighbour, 1 elsewhere,

and a pixel's weight is w_row(y) * w_col(x). The first and the last window of an axis end where the scene does, so
that a scene little larger than a window costs little more than one. So the weights of all windows sum to one at
every pixel, the scene's own edge has no ramp, and only O(height + width) numbers are kept. The ramp takes all of
an overlap: where neighbours differ in tint, a steeper one shows on smooth ground (`scene_seams.py smooth`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

GRID_PX = 32
"""Networks halve an image up to five times: what they say of a place depends on where it lies on this grid."""
LEAST_CUT_PX = 512
"""Windows that the scene's edge cuts keep at least so much of their size, for the sake of their surroundings; those
that are no larger are not cut."""
SMALLEST_ALIGNED_PX = 4 * GRID_PX
"""Smaller windows keep away from the grid: too much of them would be filling."""

Origin = tuple[int, int]
"""Row and column of a scene's first pixel on a grid that goes on beyond it; any integers."""


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


Load = Callable[[int, slice, slice], "NDArray[np.float32] | None"]
"""Is called with a window's number and slices of rows and columns, counted from the window's corner; returns that
part of its image, (C, rows, cols), or None if nothing was made of the window."""


def plan_windows(
    height: int,
    width: int,
    window_px: int,
    overlap_px: int,
    origin: Origin = (0, 0),
    *,
    least_cut_px: int = LEAST_CUT_PX,
) -> list[Window]:
    """Return the windows that cover a scene, row by row, from left to right.

    Their sides are `window_px`, or less at the scene's edge, there not less than `least_cut_px`, and neighbours
    overlap by at least `overlap_px`.
    """
    rows = _spans(height, window_px, overlap_px, origin[0], least_cut_px)
    cols = _spans(width, window_px, overlap_px, origin[1], least_cut_px)
    return _crossed(rows, cols)


def areas(height: int, width: int, *, rows_px: int, cols_px: int) -> Iterator[Window]:
    """Yield areas of at most `rows_px` x `cols_px` that tile a scene, row by row."""
    for row in range(0, height, rows_px):
        for col in range(0, width, cols_px):
            yield Window(row, col, min(rows_px, height - row), min(cols_px, width - col))


def moved(window: Window, origin: Origin) -> Window:
    """Return the place on the grid of a window of a scene."""
    return Window(window.row + origin[0], window.col + origin[1], window.height, window.width)


def enlarged_window(window: Window, factor: int) -> Window:
    """Return a window in the pixels of a grid that is so many times as fine."""
    return Window(*(factor * side for side in (window.row, window.col, window.height, window.width)))


def on_grid(window: Window, origin: Origin) -> Window:
    """Return a window that reaches up and left to the next lines of the grid; small ones stay as they are."""
    if min(window.height, window.width) < SMALLEST_ALIGNED_PX:
        return window
    top, left = (window.row + origin[0]) % GRID_PX, (window.col + origin[1]) % GRID_PX
    return Window(window.row - top, window.col - left, window.height + top, window.width + left)


class Mosaic:
    """Blends the results of windows into any area of a scene, from whatever keeps those results.

    Nothing is kept here but O(height + width) numbers: which part of which window is wanted is asked for, area by
    area, so memory does not grow with the scene, and the order in which windows were made does not matter.
    Arguments as for `plan_windows`.

    Attributes:
        windows: that cover the scene, row by row, from left to right.
        origin: where the scene's first pixel lies on the grid.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        window_px: int,
        overlap_px: int,
        origin: Origin = (0, 0),
        least_cut_px: int = LEAST_CUT_PX,
    ) -> None:
        self.origin = origin
        self._rows, self._cols = (
            _spans(length, window_px, overlap_px, first, least_cut_px)
            for length, first in zip((height, width), origin, strict=True)
        )
        self.windows = _crossed(self._rows, self._cols)
        self._row_weights, self._col_weights = _weights(self._rows), _weights(self._cols)

    def reaching(self, area: Window) -> list[int]:
        """Return the numbers of the windows that have a share in an area, in order."""
        rows = [k for k, y in enumerate(self._rows) if y.start < area.rows.stop and area.rows.start < y.stop]
        cols = [k for k, x in enumerate(self._cols) if x.start < area.cols.stop and area.cols.start < x.stop]
        return [row * len(self._cols) + col for row in rows for col in cols]

    def blended(self, area: Window, bands: int, load: Load) -> NDArray[np.float32]:
        """Return the blend over an area, (bands, area.height, area.width).

        Args:
            area: anywhere in the scene.
            bands: of the images.
            load: gives the part of a window that lies in the area; None counts as zero.
        """
        total = np.zeros((bands, area.height, area.width), np.float32)
        for index in self.reaching(area):
            window = self.windows[index]
            rows = slice(max(area.row, window.row), min(area.row + area.height, window.row + window.height))
            cols = slice(max(area.col, window.col), min(area.col + area.width, window.col + window.width))
            inside = _shifted(rows, -window.row), _shifted(cols, -window.col)
            image = load(index, *inside)
            if image is None:
                continue
            row, col = divmod(index, len(self._cols))
            weight = self._row_weights[row][inside[0], None] * self._col_weights[col][inside[1]]
            total[:, _shifted(rows, -area.row), _shifted(cols, -area.col)] += image * weight
        return total


def _crossed(rows: list[slice], cols: list[slice]) -> list[Window]:
    return [
        Window(row.start, col.start, row.stop - row.start, col.stop - col.start) for row in rows for col in cols
    ]


def _weights(spans: list[slice]) -> list[NDArray[np.float32]]:
    ramps = [np.ones(span.stop - span.start) for span in spans]
    for (before, ramp_before), (after, ramp_after) in pairwise(zip(spans, ramps, strict=True)):
        shared = before.stop - after.start
        ramp_before[len(ramp_before) - shared :] *= _rise(shared)[::-1]
        ramp_after[:shared] *= _rise(shared)
    # sin^2 + cos^2 = 1 already; but more than two share a place near the scene's edge, and where the stride, which
    # keeps to the grid, leaves an overlap of more than half a window.
    total = np.zeros(spans[-1].stop)
    for span, ramp in zip(spans, ramps, strict=True):
        total[span] += ramp
    return [(ramp / total[span]).astype(np.float32) for span, ramp in zip(spans, ramps, strict=True)]


def _spans(length: int, window_px: int, overlap_px: int, origin: int, least_cut_px: int) -> list[slice]:
    """Return the windows along one axis of a scene whose first pixel is number `origin` of the grid."""
    if not (length > 0 and window_px > 0 and 0 <= overlap_px < window_px):
        raise ValueError(f"no windows of {window_px} px with overlap {overlap_px} over {length} px")
    if length <= window_px:
        return [slice(0, length)]
    stride = window_px - overlap_px
    if window_px >= SMALLEST_ALIGNED_PX and stride >= GRID_PX:
        stride -= stride % GRID_PX
    least = min(window_px, least_cut_px)
    spans: list[slice] = []
    # From the last window that begins at the scene's edge or before it, to the first that reaches the other edge.
    start = -(origin % stride)
    while not spans or spans[-1].stop < length:
        begin, end = max(start, 0), min(start + window_px, length)
        if end - begin < least:
            begin, end = (0, least) if begin == 0 else (length - least, length)
        spans.append(slice(begin, end))
        start += stride
    return spans


def _rise(size: int) -> NDArray[np.float64]:
    """Return a smooth rise from 0 to 1, (size,), such that it and its mirror image sum to one."""
    return np.asarray(np.sin((np.arange(size) + 0.5) / size * (np.pi / 2)) ** 2)


def _shifted(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)
