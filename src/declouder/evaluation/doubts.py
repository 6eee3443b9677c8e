"""What makes scores doubtful although nothing is wrong with them: noted of each image, told of all in the end.

The notes go into the journal with the image's row, so that a run which was stopped tells the same as one that was
not; the file of scores is without them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from declouder import breakdown
from declouder.arguments import largest_of
from declouder.data.images import least_used
from declouder.raster import find_undeclared

log = logging.getLogger(__name__)

DOUBTS = "doubts"
"""Under this name a row of the journal has its notes."""


def doubts_of(
    cloudy: NDArray[Any],
    clear: NDArray[Any],
    mask: NDArray[Any] | None,
    *,
    span: float,
    data_range: tuple[float, float] | None,
) -> dict[str, Any]:
    """Return what is to be noted of a pair, as JSON holds it.

    Args:
        cloudy: (H, W, C) in the data's numbers.
        clear: the same.
        mask: (H, W, 1) cloud mask, or None.
        span: from black to white.
        data_range: DN that are black and white; None is the dtype's.

    Returns:
        "used": the share of the range that the images use, "least_used": what it is to be at least, "framed":
        whether pixels look as if they held no data, and "thickest": the largest share of its data type's range
        that a mask of several levels uses, otherwise None.
    """
    low = data_range[0] if data_range else 0.0
    framed = find_undeclared(cloudy.transpose(2, 0, 1), height=cloudy.shape[0], width=cloudy.shape[1]) is not None
    thickest = None
    if mask is not None and breakdown.is_graded(mask):
        thickest = float(mask.max()) / largest_of(mask.dtype)
    return {
        "used": (float(max(cloudy.max(), clear.max())) - low) / span,
        "least_used": least_used(data_range, clear.dtype),
        "framed": framed,
        "thickest": thickest,
    }


def tell_doubts(noted: Mapping[str, Mapping[str, Any]], *, data_range: tuple[float, float] | None) -> None:
    """Warn of what the images or masks of a run have in common and makes their scores doubtful.

    Args:
        noted: what `doubts_of` gave, by the name of the pair, in their order.
        data_range: as there.
    """
    used = max((doubt["used"] for doubt in noted.values()), default=1.0)
    if used < max((doubt["least_used"] for doubt in noted.values()), default=0.0):
        log.warning(
            "the images use %.2g of %s, so errors look small; give the range that counts: --data-range SPAN, or"
            " LOW,HIGH",
            used,
            "--data-range" if data_range else "their data type's range",
        )
    if framed := [name for name, doubt in noted.items() if doubt["framed"]]:
        log.warning(
            "%d images, the first is %s, have a frame of 0 or a lowest number that looks like no data; here it"
            " is ground, to declouder remove it is not",
            len(framed),
            framed[0],
        )
    levels = [doubt["thickest"] for doubt in noted.values() if doubt["thickest"] is not None]
    if levels and max(levels) < breakdown.MASK_THICK_FROM:
        log.warning(
            "the masks go up to %.2g of their data type's range, so none of their cloud counts as thick, which"
            " is from %g on; write thick cloud as the range's end",
            max(levels),
            breakdown.MASK_THICK_FROM,
        )


def without_doubts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows as the file of scores has them."""
    return [{key: value for key, value in row.items() if key != DOUBTS} for row in rows]
