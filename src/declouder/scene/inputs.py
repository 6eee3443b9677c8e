"""What the model sees of a scene: one scale for all of it, and windows without holes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from declouder.mosaic import Origin
from declouder.raster import RasterInfo, RasterReader, open_raster
from declouder.scaling import LEAST_USED, Scaling
from declouder.scene.options import SceneOptions

log = logging.getLogger(__name__)

# A scale that was given is doubted where so much of a scene lies beyond one end.
_MOST_BEYOND = 0.5
# One that was found, where it is so many times as wide as what nine in ten numbers span. Bright cloud over an even
# sea stretches it too, so the number is large.
_WIDEST = 1000
# Bytes are doubted whose bright end is below this share of 255: no cloud is so dark.
_DARKEST = 1 / 8


@contextmanager
def open_scene(source: Path, options: SceneOptions) -> Iterator[RasterReader]:
    """Open a scene as its options want it read: as large as they let in, with the nodata that they declare.

    Raises:
        RasterError: as `open_raster`, or if the scene's dtype cannot hold that nodata.
    """
    with open_raster(source, max_pixels=options.max_pixels, allow_outside=options.allow_outside) as reader:
        if options.nodata is not None:
            reader.declare_nodata(options.nodata)
        yield reader


def grid_origin(info: RasterInfo) -> Origin:
    """Return where the scene's first pixel lies on a grid that begins at the origin of its coordinates.

    So a crop, or a neighbour, that keeps its place on Earth has the same grid. (0, 0) where a scene has no place,
    or is turned.
    """
    t = info.transform
    if info.crs is None or t.b or t.d or not t.a or not t.e:
        return 0, 0
    y, x = t.f / t.e, t.c / t.a
    if not (math.isfinite(y) and math.isfinite(x)):  # pixels of next to no size
        return 0, 0
    # Whole or half pixels, as scenes use to begin at, are far from where rounding could go either way.
    return math.floor(y + 0.25), math.floor(x + 0.25)


def auto_scale(reader: RasterReader, bands: Sequence[int]) -> Scaling:
    """Find the DN that are 0 and 1 to the model, once for the scene and jointly for its bands.

    uint8 is 0..255. Others are stretched between the 0.5 % and 99.5 % percentiles of the valid samples of all
    `bands` together (one scale for all keeps the colours), read at reduced size; floats that lie in [0, 1],
    as reflectance does, are 0..1. Where scale and offset tags say that numbers mean such a reflectance, low and
    high are the numbers that mean 0 and 1.
    """
    if reader.info.dtype == "uint8":
        _tell_dark_bytes(reader, bands)
        return Scaling.of_dtype("uint8")
    values = _valid_samples(reader, bands)
    if values.size == 0:
        return Scaling.of_dtype(reader.info.dtype)
    factor, offset = _tagged(reader, bands)
    if factor is not None:
        low, high = (factor * end + offset for end in _ends_of_most(_unsaturated(values, reader.info.dtype)))
        # Clouds and snow are brighter than a white plate; percentiles of a hazy scene reach well above 1.
        if low >= -0.05 and 0.1 <= high <= 2:
            return Scaling(0.0 - offset / factor, (1 - offset) / factor)
    low, high = _ends_of_most(values)
    # Percentiles again, as one hot pixel of 1.2 is still reflectance. A darker scene than 0.1 is in another
    # unit.
    if np.dtype(reader.info.dtype).kind == "f" and low >= -0.05 and 0.1 <= high <= 1.05:
        return Scaling(0.0, 1.0)
    if low < high:
        darker, brighter = np.percentile(values, [5, 95])
        if high - low > _WIDEST * (brighter - darker) > 0:
            log.warning(
                "the scene's numbers go from %.6g to %.6g, nine in ten of them from %.6g to %.6g; if others hold no"
                " data give --nodata, else --scale",
                *(low, high, darker, brighter),
            )
    if not low < high:
        # Flat but for less than a hundredth, which may be a cloud.
        low, high = float(values.min()), float(values.max())
    if not low < high:
        log.warning("all of the scene is %g, which says nothing of its scale; give --scale", low)
        width = max(abs(low), 1.0)
        return Scaling(low - width / 2, low + width / 2)
    return Scaling(low, high)


def _tell_dark_bytes(reader: RasterReader, bands: Sequence[int]) -> None:
    """Warn if bytes use so little of 0..255 that another number seems to be white, as where they hold few bits."""
    values, full = _valid_samples(reader, bands), Scaling.of_dtype("uint8").high
    if values.size == 0:
        return
    low, high = _ends_of_most(values)
    if high < _DARKEST * full:
        log.warning(
            "the scene goes from %.6g to %.6g, and the model takes %g for white, so it sees no cloud; if cloud is"
            " darker here, give --scale with the numbers that are black and white, such as 0,%.6g",
            *(low, high, full, max(high, 1)),
        )


def tell_misfit(reader: RasterReader, bands: Sequence[int], scale: Scaling) -> None:
    """Warn if a scale that was given is far from the scene's numbers: most is beyond, or all in a part."""
    values = _valid_samples(reader, bands)
    if values.size == 0:
        return
    low, high = _ends_of_most(values)
    whiter, blacker = (float(beyond.mean()) for beyond in (values > scale.high, values < scale.low))
    if max(whiter, blacker) > _MOST_BEYOND:
        end = "white" if whiter > blacker else "black"
        found = f"{100 * max(whiter, blacker):.0f} % of its numbers are plain {end} to the model"
    elif high - low < LEAST_USED * (scale.high - scale.low):
        found = "the model sees hardly any contrast"
    else:
        return
    log.warning(
        "--scale is %.6g,%.6g, but the scene goes from %.6g to %.6g, so %s; is it in the scene's own numbers?",
        *(scale.low, scale.high, low, high, found),
    )


def _valid_samples(reader: RasterReader, bands: Sequence[int]) -> NDArray[np.float64]:
    """Return all numbers of the bands that are data, read at reduced size, as one line."""
    dn, valid = reader.read_reduced(bands)
    if not reader.no_data and dn.dtype.kind == "u":
        # Landsat and others leave 0 around the ground without saying that it is nodata.
        valid = valid & (dn != 0).any(axis=0)
    return dn[valid].astype(np.float64)


def _ends_of_most(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 0.5 % and 99.5 % percentiles."""
    low, high = np.percentile(values, [0.5, 99.5])
    return float(low), float(high)


def _unsaturated(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    """Leave out the highest number of a type of integers, by which Sentinel-2 says that a detector was saturated.

    Where there is no other, it stays.
    """
    if np.dtype(dtype).kind == "f":
        return values
    sound = values[values < np.iinfo(dtype).max]
    return sound if sound.size else values


def _tagged(reader: RasterReader, bands: Sequence[int]) -> tuple[float | None, float]:
    """Return the scale and offset that the tags give all `bands` alike; None if they say nothing."""
    said = {(reader.info.scales[band - 1], reader.info.offsets[band - 1]) for band in bands}
    if len(said) > 1 or said == {(1.0, 0.0)}:
        return None, 0.0
    ((factor, offset),) = said
    return (factor, offset) if np.isfinite([factor, offset]).all() and factor > 0 else (None, 0.0)


def fill_invalid(x: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill samples without data smoothly from the valid ones around them, band by band.

    A pyramid: halve the image, averaging valid samples only, until none is missing; then take what is missing
    from the next coarser level, a little smoothed.

    Args:
        x: (C, H, W) float32.
        valid: (C, H, W); a band without any valid sample takes the mean of the other bands' valid ones.

    Returns:
        (C, H, W); valid samples unchanged.
    """
    if valid.all():
        return x
    x = np.where(valid, x, 0)
    empty = ~valid.any(axis=(1, 2))
    if empty.any():
        x[empty] = x[valid].mean() if valid.any() else 0
        valid = valid | empty.reshape(-1, 1, 1)
    return _filled(x, valid.astype(np.float32))


def _filled(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill x (C, H, W) where weight (C, H, W) is 0; x is 0 there, and each band has some weight."""
    if weight.all():
        return x
    height, width = x.shape[1:]
    count = _quarter_sum(weight)
    mean = (_quarter_sum(x * weight) / np.maximum(count, 1)).astype(np.float32)
    coarse = _filled(mean, np.minimum(count, np.float32(1)))
    fine = _box_blurred(coarse.repeat(2, axis=1).repeat(2, axis=2))[:, :height, :width]
    return np.where(weight > 0, x, fine)


def _quarter_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum 2 x 2 neighbours: (C, H, W) -> (C, ceil(H/2), ceil(W/2))."""
    bands, height, width = x.shape
    x = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2)))
    quarters: NDArray[np.float32] = x.reshape(bands, -(-height // 2), 2, -(-width // 2), 2).sum(axis=(2, 4))
    return quarters


def _box_blurred(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over 3 x 3 neighbours, (C, H, W)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    third = np.float32(1 / 3)
    x = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) * third
    return (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) * third
