"""How a mask becomes a share in [0, 1]: grown, and faded out.

With d the distance to the next cloud pixel,

    share = 1  for d <= feather / 2,    falling like cos^2 to 0 at d = feather

Only the neighbourhood of a place counts, so the share does not depend on how a scene is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


class MaskSource(Protocol):
    """Anything that can say where cloud is."""

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols); the slices lie inside the scene."""


class SceneMask:
    """A mask on a scene's grid, grown and feathered.

    Attributes:
        files: that it is read from; none where it is made of the scene itself.
        threshold: above which the scene's own cloudiness is cloud; None where it is read from files.
        scene_reach_px: how far around a place the scene itself is read for its share; None where it is not read.
    """

    def __init__(
        self,
        source: MaskSource,
        *,
        height: int,
        width: int,
        feather_px: int,
        files: Sequence[Path] = (),
        threshold: float | None = None,
        source_reach_px: int | None = None,
    ) -> None:
        self.files = tuple(files)
        self.threshold = threshold
        self.scene_reach_px = None if source_reach_px is None else feather_px + source_reach_px
        self._source = source
        self._size = height, width
        self._feather_px = feather_px

    def share(self, rows: slice, cols: slice) -> NDArray[np.float32]:
        """Return how much of each pixel is restored, (rows, cols) in [0, 1]."""
        margin = self._feather_px
        wide_rows, cut_rows = widened(rows, margin, self._size[0])
        wide_cols, cut_cols = widened(cols, margin, self._size[1])
        cloud = self._source.read(wide_rows, wide_cols)
        if margin == 0 or cloud.all() or not cloud.any():
            return cloud[cut_rows, cut_cols].astype(np.float32)
        share = np.zeros(cloud.shape, np.float32)
        # Beyond the margin around the cloud all is 0: distances are taken within it.
        near = tuple(_span(np.asarray(cloud.any(axis=axis)), margin) for axis in (1, 0))
        fall = np.clip(2 * ndimage.distance_transform_edt(~cloud[near]) / margin - 1, 0, 1)
        share[near] = np.where(fall < 1, np.cos(fall * (np.pi / 2)) ** 2, 0)
        return share[cut_rows, cut_cols]


def widened(span: slice, margin: int, length: int) -> tuple[slice, slice]:
    """Return a span with a margin as far as the scene goes, and where the span lies in that."""
    start, stop = max(0, span.start - margin), min(length, span.stop + margin)
    return slice(start, stop), slice(span.start - start, span.stop - start)


def _span(line: NDArray[np.bool_], margin: int) -> slice:
    """Return where a line, (length,), is True, with a margin as far as it goes."""
    found = np.flatnonzero(line)
    return slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin)
