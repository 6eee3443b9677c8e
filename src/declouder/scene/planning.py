"""Which windows go through the model, and how much of each: no more than its cloud and what lies around it.

The windows' cores tile the scene: a core ends half way into the overlap with the next window. A window is restored
if there is cloud (and data) in its core; so every cloudy pixel is, and cloud that only reaches into the rim of a
window does not cost that window. A window is cut to what holds data: what would be filled in around that is seen by
the networks, and is not there. Under a mask it is cut further, to its cloud and some ground around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from declouder.mosaic import Window

_STEP_PX = 32  # few sizes, so that windows of a batch may share one
_LEAST_PX = 192  # of a cut window, so that a small cloud is seen with its surroundings


@dataclass(frozen=True)
class Plan:
    """The windows of a scene and their cores; `windows` are those of a Mosaic, row by row.

    `context_px` of ground are kept around the cloud of a cut window.
    """

    windows: Sequence[Window]
    context_px: int

    def core(self, index: int) -> tuple[slice, slice]:
        """Return the rows and columns of a window's core, counted from its corner."""
        window = self.windows[index]
        rows, cols = self._spans
        return _core(rows, window.rows), _core(cols, window.cols)

    @cached_property
    def _spans(self) -> tuple[list[slice], list[slice]]:
        """The windows along each axis, by where they start."""
        rows = {window.row: window.rows for window in self.windows}
        cols = {window.col: window.cols for window in self.windows}
        return [rows[start] for start in sorted(rows)], [cols[start] for start in sorted(cols)]

    def part(self, index: int, cloudy: NDArray[np.bool_], *, ground: NDArray[np.bool_], cut: bool) -> Window | None:
        """Return what of a window goes through the model, in pixels of the scene; None if nothing has to.

        Args:
            index: of the window.
            cloudy: (height, width), True where a pixel is to be restored.
            ground: (height, width), True where there is data; wherever `cloudy` is.
            cut: leave out what is far from its cloud; else only what is beyond all data.
        """
        if not cloudy[self.core(index)].any():
            return None
        window = self.windows[index]
        rows, cols = (_extent(np.asarray(ground.any(axis=axis))) for axis in (1, 0))
        if cut:
            rows, cols = (
                _within(span, _reach(np.asarray(cloudy.any(axis=axis))[span], self.context_px))
                for span, axis in ((rows, 1), (cols, 0))
            )
        return Window(
            window.row + rows.start, window.col + cols.start, rows.stop - rows.start, cols.stop - cols.start
        )


def _core(spans: Sequence[slice], span: slice) -> slice:
    place = spans.index(span)
    begin = 0 if place == 0 else (spans[place - 1].stop - span.start) // 2
    size = span.stop - span.start
    end = size if place == len(spans) - 1 else (spans[place + 1].start - span.start + size) // 2
    return slice(begin, end)


def _within(span: slice, part: slice) -> slice:
    """Return a part of a span, counted from the span's first place, as one of the whole."""
    return slice(span.start + part.start, span.start + part.stop)


def _extent(ground: NDArray[np.bool_]) -> slice:
    """Return the part of a line, (length,), from its first to its last data, but no less than a cut window has."""
    length = len(ground)
    found = np.flatnonzero(ground)
    begin, end = int(found[0]), int(found[-1]) + 1
    missing = max(min(_LEAST_PX, length) - (end - begin), 0)
    begin = min(max(begin - missing // 2, 0), length - (end - begin) - missing)
    return slice(begin, max(end, begin + min(_LEAST_PX, length)))


def _reach(cloudy: NDArray[np.bool_], context_px: int) -> slice:
    """Return the part of a line, (length,), that holds all its cloud, some context, and a multiple of a step."""
    length = len(cloudy)
    found = np.flatnonzero(cloudy)
    begin, end = int(found[0]) - context_px, int(found[-1]) + 1 + context_px
    wanted = max(min(end, length) - max(begin, 0), _LEAST_PX)
    size = min(length, -(-wanted // _STEP_PX) * _STEP_PX)
    middle = (begin + end) // 2
    start = min(max(middle - size // 2, 0), length - size)
    return slice(start, start + size)
