"""The first band of a raster on the grid of another, such as a cloud mask on that of its scene."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import warp
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as GdalWindow

from declouder.errors import RasterError
from declouder.raster.checks import MOST_PIXELS, MOST_PIXELS_IN_MEMORY
from declouder.raster.gdal import GDAL_ERRORS, NUMBER_DTYPES, one_line
from declouder.raster.info import RasterInfo
from declouder.raster.places import lie_alike, same_corners
from declouder.raster.reading import opened
from declouder.raster.reduced import looked_at, reduced_shape

log = logging.getLogger(__name__)

_LOOKED_AT_PX = 256
"""Side up to which it is looked whether a raster says anything over another."""
_PLACES = 4096
"""On about so many places it is looked whether a raster lies there."""
_LONGITUDE_LATITUDE = CRS.from_epsg(4326)


@contextmanager
def open_aligned(path: Path, like: RasterInfo, *, allow_outside: bool = False) -> Iterator[AlignedReader]:
    """Open the first band of a raster on the grid of another; on another grid it is resampled (nearest).

    Args:
        path: as for `open_raster`; a palette image too, whose numbers are classes.
        like: the other.
        allow_outside: a VRT may name files outside its own folder.

    Raises:
        RasterError: if it cannot be read, or nothing says how it lies over `like`.
    """
    most = max(MOST_PIXELS, like.height * like.width)
    with opened(path, max_pixels=most, allow_outside=allow_outside, dtypes=NUMBER_DTYPES) as reader:
        info, dataset = reader.info, reader.dataset
        if _lies_on(info, like):
            yield AlignedReader(info, dataset, dataset, alpha=info.alpha)
        else:
            with _warped(info, dataset, like) as aligned:
                yield aligned


def read_numbers(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the first band of a raster, of a palette image the numbers of its colours, and where it holds data.

    Returns:
        (H, W) in the raster's dtype, and (H, W).

    Raises:
        RasterError: if it cannot be read.
    """
    most = MOST_PIXELS_IN_MEMORY
    with opened(path, max_pixels=most, allow_outside=False, dtypes=NUMBER_DTYPES) as reader:
        info = reader.info
        aligned = AlignedReader(info, reader.dataset, reader.dataset, alpha=info.alpha)
        return aligned.read(slice(0, info.height), slice(0, info.width))


class AlignedReader:
    """The first band of a raster on another's grid; made by `open_aligned`."""

    def __init__(self, info: RasterInfo, dataset: Any, *aligned: Any, alpha: int | None) -> None:
        self.info = info
        self._dataset, self._aligned = dataset, aligned
        self._alpha = alpha  # of each of `aligned`

    def read(self, rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return values and where there are any, (rows, cols) each."""
        window = GdalWindow.from_slices(rows, cols)
        first, *others = (self._read(aligned, self._alpha, window=window) for aligned in self._aligned)
        values, valid = first
        for further, there in others:
            values, valid = np.where(valid, values, further), valid | there
        return values, valid

    def says_anything(self) -> bool:
        """Return whether there is a value anywhere on the other's grid; in single pixels it may miss some."""
        first = self._aligned[0]
        shape = reduced_shape(first.height, first.width, _LOOKED_AT_PX)
        return any(self._read(aligned, self._alpha, out_shape=shape)[1].any() for aligned in self._aligned)

    def share_of(self, ground: NDArray[np.bool_]) -> float:
        """Return on which share of the other's ground this raster lies at all, with data or without.

        Places that are nowhere on Earth, as beside the disk that a satellite sees, count neither way.

        Args:
            ground: where the other holds data, (h, w), the whole of it at a smaller size.
        """
        first = self._aligned[0]
        if first is self._dataset:
            return 1.0
        lines = looked_at(ground.shape, first)
        rows, cols = (found[index] for found, index in zip(lines, np.nonzero(ground), strict=True))
        step = max(1, rows.size // _PLACES)
        rows, cols = rows[::step], cols[::step]
        places = np.array(rasterio.transform.xy(first.transform, rows, cols), np.float64).reshape(2, -1)
        on_earth = np.isfinite(_transformed(places, first.crs, _LONGITUDE_LATITUDE)).all(axis=0)
        own = _transformed(places[:, on_earth], first.crs, self.info.crs)
        if not np.isfinite(own).any():
            return 1.0
        inside = np.zeros(own.shape[1], np.bool_)
        for turn in _turns(self.info, self._dataset.bounds):
            x, y = ~turn @ (own[0], own[1])
            inside |= (x >= 0) & (x <= self.info.width) & (y >= 0) & (y <= self.info.height)
        return float(inside.mean())

    def read_reduced(self, *, max_px: int = 1024) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the raster itself, on its own grid, at a size of at most `max_px`, by leaving out pixels."""
        shape = reduced_shape(self._dataset.height, self._dataset.width, max_px)
        return self._read(self._dataset, self.info.alpha, out_shape=shape)

    def _read(self, dataset: Any, alpha: int | None, **part: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            valid = dataset.read_masks(1, **part) > 0
            if alpha is not None:  # GDAL heeds it in files of two or four bands alone
                valid &= dataset.read(alpha, **part) > 0
            values = dataset.read(1, **part)
            if dataset.nodatavals[0] is not None:  # which a warped file of 64 bits does not heed in its mask
                valid &= values != dataset.nodatavals[0]
            return values, valid
        except GDAL_ERRORS as error:
            raise RasterError(
                f"mask {self.info.path} cannot be read ({one_line(error)}); "
                "it is damaged or truncated: get it again"
            ) from error


def _lies_on(info: RasterInfo, like: RasterInfo) -> bool:
    """Return whether a raster needs no resampling to lie on another's grid.

    Raises:
        RasterError: if one has no CRS, and sizes or transforms say that they are not of one place.
    """
    same_size = (info.height, info.width) == (like.height, like.width)
    unplaced = info.crs is None or like.crs is None
    if not unplaced:
        return same_size and lie_alike(info, like)
    if not same_size:
        raise RasterError(
            f"mask {info.path} is {info.width} x {info.height} px without a place on Earth that could be compared, "
            f"{like.path} is {like.width} x {like.height} px; give a mask of that size, or georeferenced ones"
        )
    _compare_points(info, like)
    if _are_apart(info, like):
        without = "neither has a CRS" if info.crs is None and like.crs is None else "one has no CRS"
        raise RasterError(
            f"mask {info.path} lies elsewhere than {like.path} by their transforms, and {without}; "
            "give a mask of the same place, or one without a transform"
        )
    return True


@contextmanager
def _warped(info: RasterInfo, dataset: Any, like: RasterInfo) -> Iterator[AlignedReader]:
    """Yield a reader that resamples a raster to the grid of another; both have a CRS."""
    grid = {"crs": like.crs, "transform": like.transform, "height": like.height, "width": like.width}
    # What is beyond its edge must come out as no data; a mask of its own does not see to that.
    says_so = dataset.nodatavals[0] is not None or info.alpha is not None
    options = {"resampling": Resampling.nearest, "add_alpha": not says_so, **grid}
    with contextlib.ExitStack() as stack:
        try:
            warped = [
                stack.enter_context(WarpedVRT(dataset, src_transform=transform, **options))
                for transform in _turns(info, dataset.bounds)
            ]
        except GDAL_ERRORS as error:
            raise RasterError(
                f"mask {info.path} cannot be laid over {like.path} ({one_line(error)}); give both the same grid"
            ) from error
        yield AlignedReader(info, dataset, *warped, alpha=info.alpha if says_so else warped[0].count)


def _transformed(places: NDArray[np.float64], source: Any, target: Any) -> NDArray[np.float64]:
    """Return places (2, N) in another CRS, NaN where one has none there: for GDAL then none of the N has any."""
    try:
        return np.asarray(warp.transform(source, target, *places), np.float64)
    except GDAL_ERRORS:
        count = places.shape[1]
        if count < 2:
            return np.full_like(places, np.nan)
        halves = (places[:, : count // 2], places[:, count // 2 :])
        return np.concatenate([_transformed(half, source, target) for half in halves], axis=1)


def _turns(info: RasterInfo, bounds: Any) -> list[Any]:
    """Return the transforms by which a raster lies where longitudes are from -180 to 180 degrees.

    One that goes on beyond lies on the other side of the antimeridian as well.
    """
    a, b, west, d, e, north = info.transform[:6]
    turns = [info.transform]
    if info.crs.is_geographic:
        turns += [Affine(a, b, west - 360, d, e, north)] if bounds.right > 180 else []
        turns += [Affine(a, b, west + 360, d, e, north)] if bounds.left < -180 else []
    return turns


def _compare_points(info: RasterInfo, like: RasterInfo) -> None:
    """Compare where control points or RPCs say that two rasters of one size lie; tell where that cannot be done.

    Raises:
        RasterError: if it is not the same place.
    """
    ours, theirs = _places(info), _places(like)
    if "transform" in ours.keys() & theirs.keys():
        return
    how = ", ".join(sorted({*ours, *theirs}))
    alike = [_alike(ours[kind], theirs[kind]) for kind in ours.keys() & theirs.keys()]
    if False in alike:
        raise RasterError(
            f"mask {info.path} lies elsewhere than {like.path} by their {how}; give a mask of the same place"
        )
    if ours and theirs and True not in alike:
        log.warning(
            "mask %s is laid on %s pixel by pixel: they say by different means where they lie (%s)",
            *(info.path, like.path, how),
        )


def _places(info: RasterInfo) -> dict[str, dict[Any, tuple[float, float]]]:
    """Return by what means a raster says where it lies, with places by pixel that can be compared."""
    found: dict[str, dict[Any, tuple[float, float]]] = {}
    if not info.transform.is_identity:
        found["transform"] = {}  # two are compared by their corners
    if info.gcps[0]:
        found["control points"] = {(point.row, point.col): (point.x, point.y) for point in info.gcps[0]}
    if info.rpcs:
        found["RPCs"] = {(info.rpcs.line_off, info.rpcs.samp_off): (info.rpcs.long_off, info.rpcs.lat_off)}
    return found


def _alike(ours: Mapping[Any, tuple[float, float]], theirs: Mapping[Any, tuple[float, float]]) -> bool | None:
    """Return whether the same pixels have the same places; None if no pixel has one in both."""
    common = ours.keys() & theirs.keys()
    if not common:
        return None
    places = np.array([theirs[pixel] for pixel in theirs])
    # A refined model of one frame is not another frame.
    allowed = np.maximum(np.ptp(places, axis=0) / 100, 0.01)
    return all(bool((np.abs(np.subtract(ours[pixel], theirs[pixel])) <= allowed).all()) for pixel in common)


def _are_apart(info: RasterInfo, like: RasterInfo) -> bool:
    """Return whether two rasters of one size both say where they lie, and it is not the same place."""
    if info.transform.is_identity or like.transform.is_identity:
        return False
    return not same_corners(info.transform, like.transform, width=like.width, height=like.height)
