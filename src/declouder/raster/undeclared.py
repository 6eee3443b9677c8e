"""Pixels without data that a file does not declare: a frame of 0 around the ground, or a number such as -9999.

Scenes that were warped or cropped often lie in a frame of 0, and nothing in the file says that this is no data.
Taken for ground, it would be black ground, whose colour flows in under cloud, and it would stretch the scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_LEAST_FRAME = 0.002
"""Share of the scene that a frame of 0 takes at least: a few black pixels at the edge may be shade or water."""
_LEAST_LOW = 0.0005
"""Share that has the lowest number at least, so that it is no outlier."""
_FAR_ABOVE = 10
"""How many times the span of all other numbers, or their highest, one lies above them.

Of floats alone: saturated cloud in integers looks the same."""
_ALL_AROUND = np.ones((3, 3), np.bool_)


@dataclass(frozen=True)
class Undeclared:
    """A number that means no data, and where.

    Attributes:
        value: that all bands of such a pixel have. Where it is not 0, no ground has it, in no band.
        share: of the scene's pixels, about.
        height: of the scene.
        width: of the scene.
        cells: (h, w) in a grid over the scene, True where such pixels lie; None is anywhere.
    """

    value: float
    share: float
    height: int
    width: int
    cells: NDArray[np.bool_] | None

    def __str__(self) -> str:
        """Return what was found, for messages."""
        where = "" if self.cells is None else ", at its edge,"
        return f"{self.share:.1%} of the scene{where} is {self.value:g} in all bands"

    def hides(self, dn: NDArray[Any], rows: NDArray[np.int_], cols: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Return where there is no data in `dn`, samples (C, h, w) at these rows and columns: (C or 1, h, w)."""
        if self.value != 0:  # bands rarely end at one place
            return np.asarray(dn == self.value)
        hidden = np.asarray((dn == self.value).all(axis=0))
        if self.cells is not None:
            down, right = self.cells.shape
            hidden &= self.cells[np.ix_(rows * down // self.height, cols * right // self.width)]
        return hidden[None]


def find_extreme(dn: NDArray[Any], *, height: int, width: int) -> Undeclared | None:
    """Look for a number far below all others, or of floats far above; arguments as of `find_undeclared`."""
    finite = np.isfinite(dn)
    low, high = dn.min(where=finite, initial=0), dn.max(where=finite, initial=0)
    for end in ([low] if low < 0 else []) + ([high] if high > 0 and dn.dtype.kind == "f" else []):
        at_end = dn == end
        share = float(at_end.all(axis=0).mean())
        rest = dn[finite & ~at_end].astype(np.float64)
        if not rest.size and end < 0:  # a tile beside the swath
            return Undeclared(float(end), 1.0, height, width, None)
        if share < _LEAST_LOW or not rest.size:
            continue
        dark, bright = (float(v) for v in np.percentile(rest, [0.5, 99.5]))
        far_above = dark < bright and end > bright + _FAR_ABOVE * max(bright - dark, abs(bright))
        if far_above or end < dark - (bright - dark) / 2:
            return Undeclared(float(end), share, height, width, None)
    return None


def find_undeclared(dn: NDArray[Any], *, height: int, width: int) -> Undeclared | None:
    """Look for it in a scene whose file declares no data by no means.

    Args:
        dn: (C, h, w), the scene of `height` x `width` px at a smaller size, by leaving out pixels.
        height: of the scene.
        width: of the scene.
    """
    extreme = find_extreme(dn, height=height, width=width)
    if extreme is not None:
        return extreme
    labels, _ = ndimage.label((dn == 0).all(axis=0), _ALL_AROUND)
    at_edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    sizes = np.bincount(labels.ravel())
    frame = np.isin(labels, [label for label in at_edge if label and sizes[label] >= _LEAST_FRAME * labels.size])
    if not frame.any():
        return None
    if frame.all():  # a tile beside the swath; what is not 0 between the pixels that were looked at is ground
        return Undeclared(0.0, 1.0, height, width, None)
    # A cell more all around: between two pixels that were looked at lies where the frame ends.
    cells = ndimage.binary_dilation(frame, _ALL_AROUND)
    return Undeclared(0.0, float(frame.mean()), height, width, cells)
