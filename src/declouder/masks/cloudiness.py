"""Where cloud may be, estimated from a scene itself: the mask `auto`.

The estimate is ours and simple. In the scale of the scene, [0, 1],

    veil = (mean(r, g, b) + b) / 2 - (max - min) / 4 - max(r - b, 0) / 2      smoothed with sigma = 2 px

is high where it is bright, blue rather than red (haze), and white; the smoothing leaves roofs and roads out, which
are bright but small. With d the 20 % and b the 98 % percentile of the scene's veil, cloud is where

    veil > d + max(0.08, 0.3 (b - d))

It knows neither height nor temperature, so snow, sand and white towns are cloud to it, and a scene that is all
cloud has no dark ground to compare with: docs/scenes.md has the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declouder.errors import OptionError
from declouder.masks.feathered import widened
from declouder.raster import RasterReader
from declouder.rgb import rgb_places
from declouder.scaling import Scaling

log = logging.getLogger(__name__)

_DARK_PERCENTILE, _BRIGHT_PERCENTILE = 20, 98
_LEAST_ABOVE_DARK, _SHARE_ABOVE_DARK = 0.08, 0.3
_SMOOTH_PX = 2.0
_SMOOTH_REACH_PX = 6


class Cloudiness:
    """The estimate of `auto`; see the head of this file.

    Attributes:
        threshold: cloud is where the veil is above.
        reach_px: how far around a place the scene is read.
    """

    reach_px = _SMOOTH_REACH_PX

    def __init__(self, reader: RasterReader, *, bands: Sequence[int], names: Sequence[str], scale: Scaling) -> None:
        places = rgb_places(names)
        if places is None:
            raise OptionError(
                f"the cloudiness estimate wants red, green and blue, this model has {', '.join(names)}; "
                "give a mask file"
            )
        self._reader = reader
        self._bands = [bands[place] for place in places]
        self._scale = scale
        dn, valid = reader.read_reduced(self._bands)
        everywhere = valid.all(axis=0)
        dark, bright = 0.0, 0.0
        if everywhere.any():
            seen = veil(scale.to_model(dn))[everywhere]
            dark, bright = (float(v) for v in np.percentile(seen, [_DARK_PERCENTILE, _BRIGHT_PERCENTILE]))
        self.threshold = dark + max(_LEAST_ABOVE_DARK, _SHARE_ABOVE_DARK * (bright - dark))
        log.info("cloudiness: cloud is where the veil is above %.3f of the scale", self.threshold)

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols)."""
        info = self._reader.info
        wide_rows, cut_rows = widened(rows, _SMOOTH_REACH_PX, info.height)
        wide_cols, cut_cols = widened(cols, _SMOOTH_REACH_PX, info.width)
        dn = self._reader.read(wide_rows, wide_cols, self._bands)
        valid = self._reader.valid_of(dn, wide_rows, wide_cols).all(axis=0)
        # Averaged over valid pixels only, so that a collar of nodata does not darken its neighbours.
        seen = np.where(valid, veil(self._scale.to_model(dn)), 0)
        total, count = (_smoothed(np.asarray(x, np.float32)) for x in (seen, valid))
        cloudy = total > self.threshold * count
        return np.asarray((cloudy & valid)[cut_rows, cut_cols])


def veil(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much pixels look like cloud: red, green, blue (3, H, W) in [-1, 1] -> (H, W), about 0 to 1."""
    red, green, blue = unit = (x + 1) / 2
    colourful = unit.max(axis=0) - unit.min(axis=0)
    result: NDArray[np.float32] = (
        ((red + green + blue) / 3 + blue) / 2 - colourful / 4 - np.maximum(red - blue, 0) / 2
    )
    return result


def _smoothed(x: NDArray[Any]) -> NDArray[Any]:
    truncate = _SMOOTH_REACH_PX / _SMOOTH_PX
    return np.asarray(ndimage.gaussian_filter(x, _SMOOTH_PX, truncate=truncate))
