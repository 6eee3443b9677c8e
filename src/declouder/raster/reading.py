"""Rasters in, piece by piece, and checked before the first pixel is read."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import xy
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as GdalWindow

from declouder.errors import RasterError
from declouder.raster.gdal import (
    CACHE_BYTES,
    DTYPES,
    GDAL_ERRORS,
    gdal_settings,
    not_georeferenced_is_fine,
    one_line,
)
from declouder.raster.info import RasterInfo, info_of
from declouder.raster.sources import check_source, opened_as
from declouder.raster.undeclared import Undeclared, find_undeclared

MOST_PIXELS = 10**10
"""A raster of more pixels (100,000 x 100,000) is refused unless more are asked for."""
MOST_PIXELS_IN_MEMORY = 2**28
"""The same of one that is read as a whole (16,384 x 16,384)."""
MOST_BANDS = 1024
# Formats without blocks are decoded as a whole, or up to the place that is read.
_MOST_PIXELS_AT_ONCE = 2**28
_MOST_BLOCK_BYTES = 2**29
_LEAST_VRT_BLOCK_PX = 512


@contextmanager
def open_raster(
    path: Path, *, max_pixels: int = MOST_PIXELS, allow_outside: bool = False
) -> Iterator[RasterReader]:
    """Open a raster for reading in pieces.

    Args:
        path: a file, or a Sentinel-2 folder (.SAFE).
        max_pixels: height x width that are let in.
        allow_outside: a VRT may name files outside its own folder.

    Raises:
        RasterError: if the file is missing, not an image we read, truncated, larger than allowed, a palette
            image, of a complex dtype, or of bands that differ in dtype or nodata.
    """
    with _opened(path, max_pixels=max_pixels, allow_outside=allow_outside) as reader:
        _check_scene(reader)
        yield reader


def read_numbers(path: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the first band of a raster, of a palette image the numbers of its colours, and where it holds data.

    Returns:
        (H, W) in the raster's dtype, and (H, W).

    Raises:
        RasterError: if it cannot be read.
    """
    with _opened(path, max_pixels=MOST_PIXELS_IN_MEMORY, allow_outside=False) as reader:
        info = reader.info
        aligned = AlignedReader(info, reader.dataset, reader.dataset, alpha=info.alpha)
        return aligned.read(slice(0, info.height), slice(0, info.width))


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
    with (
        _opened(path, max_pixels=most, allow_outside=allow_outside) as reader,
        contextlib.ExitStack() as stack,
    ):
        info, dataset = reader.info, reader.dataset
        same_size = (info.height, info.width) == (like.height, like.width)
        unplaced = info.crs is None or like.crs is None
        if same_size and unplaced and _are_apart(info, like):
            without = "neither has a CRS" if info.crs is None and like.crs is None else "one has no CRS"
            raise RasterError(
                f"mask {path} lies elsewhere than {like.path} by their transforms, and {without}; "
                "give a mask of the same place, or one without a transform"
            )
        if same_size and (unplaced or _same_grid(info, like)):
            yield AlignedReader(info, dataset, dataset, alpha=info.alpha)
            return
        if unplaced:
            raise RasterError(
                f"mask {path} is {info.width} x {info.height} px without a place on Earth that could be compared, "
                f"{like.path} is {like.width} x {like.height} px; give a mask of that size, or georeferenced ones"
            )
        grid = {"crs": like.crs, "transform": like.transform, "height": like.height, "width": like.width}
        # What is beyond its edge must come out as no data; a mask of its own does not see to that.
        says_so = dataset.nodatavals[0] is not None or info.alpha is not None
        options = {"resampling": Resampling.nearest, "add_alpha": not says_so, **grid}
        try:
            warped = [
                stack.enter_context(WarpedVRT(dataset, src_transform=transform, **options))
                for transform in _turns(info, dataset.bounds)
            ]
        except GDAL_ERRORS as error:
            raise RasterError(
                f"mask {path} cannot be laid over {like.path} ({one_line(error)}); give both the same grid"
            ) from error
        yield AlignedReader(info, dataset, *warped, alpha=info.alpha if says_so else warped[0].count)


def _turns(info: RasterInfo, bounds: Any) -> list[Any]:
    """Return the transforms by which a raster lies where longitudes are from -180 to 180 degrees.

    One that goes on beyond lies on the other side of the antimeridian as well.
    """
    turns = [info.transform]
    if info.crs.is_geographic:
        turns += [Affine.translation(-360, 0) @ info.transform] if bounds.right > 180 else []
        turns += [Affine.translation(360, 0) @ info.transform] if bounds.left < -180 else []
    return turns


def _are_apart(info: RasterInfo, like: RasterInfo) -> bool:
    """Return whether two rasters of one size both say where they lie, and it is not the same place."""
    return not (info.transform.is_identity or like.transform.is_identity or _same_corners(info, like))


def _same_grid(info: RasterInfo, like: RasterInfo) -> bool:
    """Return whether two rasters of one size lie on each other within a hundredth of a pixel."""
    return bool(info.crs == like.crs) and _same_corners(info, like)


def _same_corners(info: RasterInfo, like: RasterInfo) -> bool:
    """Return whether two rasters of one size have the same corners, in whatever CRS."""
    step = max(abs(like.transform.a), abs(like.transform.b))
    corners = ((0, 0), (like.height, like.width))  # row, column
    return all(
        abs(a - b) <= step / 100
        for corner in corners
        for a, b in zip(xy(info.transform, *corner), xy(like.transform, *corner), strict=True)
    )


@contextmanager
def _opened(path: Path, *, max_pixels: int, allow_outside: bool) -> Iterator[RasterReader]:
    """Open a file with the one driver that its first bytes call for; it can be read, whatever it shows."""
    check_source(path)
    with gdal_settings(), not_georeferenced_is_fine():
        source = opened_as(path, allow_outside=allow_outside)
        try:
            source.check_company()
            dataset = rasterio.open(source.name, driver=source.driver)
        except GDAL_ERRORS as error:
            raise _damaged(path, error) from error
        with dataset:
            try:
                _check_size(path, dataset, max_pixels)
                reader = RasterReader(info_of(path, dataset, source.files), dataset)
                _check_dtype(reader.info)
                _check_complete(reader)
            except GDAL_ERRORS as error:
                raise _damaged(path, error) from error
            yield reader


def _damaged(path: Path, error: BaseException) -> RasterError:
    return RasterError(f"{path} cannot be opened ({one_line(error)}); it is damaged or truncated: get it again")


class RasterReader:
    """Pixels of an open raster; made by `open_raster`.

    Attributes:
        info: what the raster says of itself.
        dataset: rasterio's.
        undeclared: a number that means no data though the raster does not say so; see `look_for_undeclared`.
    """

    def __init__(self, info: RasterInfo, dataset: Any) -> None:
        self.info = info
        self.dataset = dataset
        self.undeclared: Undeclared | None = None
        # What a file does not declare, its overviews have mixed with the ground.
        self._trusts_overviews = info.nodata is not None or info.has_mask or info.alpha is not None
        self._reduced: dict[tuple[Any, ...], tuple[NDArray[Any], list[NDArray[np.bool_]]]] = {}

    def declare_nodata(self, value: float) -> None:
        """Take a number for no data, whatever the raster says; `info` has it from now on.

        Raises:
            RasterError: if the raster's dtype cannot hold it.
        """
        kind = np.dtype(self.info.dtype)
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            if not (limits.min <= value <= limits.max and float(value).is_integer()):
                raise RasterError(
                    f"{self.info.path} is of {kind}, which is never {value:g}; give a nodata that it can be"
                )
        self.info = replace(self.info, nodata=float(value))

    def look_for_undeclared(self, bands: Sequence[int]) -> None:
        """Look whether pixels hold no data though nothing says so, and leave them out from now on.

        Only where the raster has neither nodata, nor a mask, nor alpha.
        """
        info = self.info
        if info.nodata is None and not info.has_mask and info.alpha is None:
            dn, _ = self.read_reduced(bands)
            self.undeclared = find_undeclared(dn, height=info.height, width=info.width)

    def read(self, rows: slice, cols: slice, bands: Sequence[int] | None = None) -> NDArray[Any]:
        """Return DN of the 1-based `bands` (all by default): (C, rows, cols) in the raster's dtype."""
        with self._reading(rows, cols):
            window = GdalWindow.from_slices(rows, cols)
            values: NDArray[Any] = self.dataset.read(_listed(bands), window=window)
        return values

    def read_valid(
        self, rows: slice, cols: slice, bands: Sequence[int] | None = None, *, heed_alpha: bool = True
    ) -> NDArray[np.bool_]:
        """Return where samples hold data, (C, rows, cols): no nodata, NaN, infinity, mask or transparency.

        Without `heed_alpha` a band that is called alpha is one like the others.
        """
        hidden = []
        if self.info.has_mask:
            hidden.append(self.read_mask(rows, cols)[None] == 0)
        if heed_alpha and self.info.alpha is not None:
            hidden.append(self.read(rows, cols, [self.info.alpha]) == 0)
        dn = self.read(rows, cols, bands)
        return self._valid(dn, hidden, np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop))

    def read_mask(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the raster's own mask, (rows, cols), 0 or 255."""
        with self._reading(rows, cols):
            mask: NDArray[np.uint8] = self.dataset.dataset_mask(window=GdalWindow.from_slices(rows, cols))
        return mask

    def read_reduced(self, bands: Sequence[int], *, max_px: int = 1024) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the whole scene at a size of at most `max_px`, by leaving out pixels.

        Returns:
            DN (C, h, w) in the raster's dtype, and where they hold data (C, h, w).
        """
        info = self.info
        step = max(1.0, max(info.height, info.width) / max_px)
        shape = max(1, round(info.height / step)), max(1, round(info.width / step))
        # Kept, for of a large scene it takes minutes, and more than one asks for it.
        if (kept := (*bands, max_px)) not in self._reduced:
            whole = slice(0, info.height), slice(0, info.width)
            with self._reading(*whole), contextlib.ExitStack() as stack:
                dataset = self.dataset
                if not self._trusts_overviews and dataset.overviews(1):
                    name, driver = dataset.name, dataset.driver
                    dataset = stack.enter_context(rasterio.open(name, driver=driver, OVERVIEW_LEVEL="NONE"))
                skim = _skim_by_blocks if _outgrows_cache(dataset) else _skim_at_once
                dn = skim(dataset, list(bands), shape)
                hidden = []
                if info.has_mask:
                    hidden.append(dataset.dataset_mask(out_shape=shape)[None] == 0)
                if info.alpha is not None:
                    hidden.append(skim(dataset, [info.alpha], shape) == 0)
            self._reduced[kept] = dn, hidden
        dn, hidden = self._reduced[kept]
        return dn, self._valid(dn, hidden, *_looked_at(shape, info))

    def _valid(
        self,
        dn: NDArray[Any],
        hidden: Sequence[NDArray[np.bool_]],
        rows: NDArray[np.int_],
        cols: NDArray[np.int_],
    ) -> NDArray[np.bool_]:
        """Return where `dn`, samples (C, h, w) at these rows and columns, holds data; `hidden` are (1, h, w)."""
        valid = np.ones(dn.shape, np.bool_)
        if self.info.nodata is not None:
            valid &= dn != self.info.nodata
        if dn.dtype.kind == "f":
            valid &= np.isfinite(dn)
        if self.undeclared is not None:
            valid &= ~self.undeclared.hides(dn, rows, cols)
        for mask in hidden:
            valid &= ~mask
        return valid

    @contextmanager
    def _reading(self, rows: slice, cols: slice) -> Iterator[None]:
        try:
            yield
        except GDAL_ERRORS as error:
            where = f"rows {rows.start}..{rows.stop}, columns {cols.start}..{cols.stop}"
            raise RasterError(
                f"{self.info.path} cannot be read at {where} ({one_line(error)}); "
                "the file is damaged or truncated: get it again"
            ) from error


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

    def read_reduced(self, *, max_px: int = 1024) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the raster itself, on its own grid, at a size of at most `max_px`, by leaving out pixels."""
        size = self._dataset.height, self._dataset.width
        step = max(1.0, max(size) / max_px)
        shape = tuple(max(1, round(length / step)) for length in size)
        return self._read(self._dataset, self.info.alpha, out_shape=shape)

    def _read(self, dataset: Any, alpha: int | None, **part: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            valid = dataset.read_masks(1, **part) > 0
            if alpha is not None:  # GDAL heeds it in files of two or four bands alone
                valid &= dataset.read(alpha, **part) > 0
            return dataset.read(1, **part), valid
        except GDAL_ERRORS as error:
            raise RasterError(
                f"mask {self.info.path} cannot be read ({one_line(error)}); "
                "it is damaged or truncated: get it again"
            ) from error


def _outgrows_cache(dataset: Any) -> bool:
    """Return whether GDAL could not keep a row of blocks in its cache, and has no smaller copy of the image."""
    if dataset.driver not in {"GTiff", "VRT"} or dataset.overviews(1):
        return False
    bytes_a_row = _skimmed_block(dataset)[0] * dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    return bool(bytes_a_row > CACHE_BYTES // 2)


def _skim_at_once(dataset: Any, bands: Sequence[int], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the whole image at a smaller `shape` (h, w), by leaving out pixels: (C, h, w)."""
    values: NDArray[Any] = dataset.read(bands, out_shape=(len(bands), *shape))
    return values


def _skim_by_blocks(dataset: Any, bands: Sequence[int], shape: tuple[int, int]) -> NDArray[Any]:
    """Return what `_skim_at_once` returns, but read each block once.

    GDAL goes line by line over the whole width. Where its cache does not hold a row of blocks, it decodes each
    block of the row anew for every line that it takes from there.
    """
    rows, cols = _looked_at(shape, dataset)
    block = _skimmed_block(dataset)
    values = np.empty((len(bands), *shape), np.dtype(dataset.dtypes[0]))
    for lines in _runs(rows // block[0]):
        for columns in _runs(cols // block[1]):
            own_rows, own_cols = rows[lines], cols[columns]
            top, left = int(own_rows[0]), int(own_cols[0])
            window = GdalWindow.from_slices((top, int(own_rows[-1]) + 1), (left, int(own_cols[-1]) + 1))
            part = dataset.read(bands, window=window)
            values[:, lines, columns] = part[:, own_rows - top][:, :, own_cols - left]
    return values


def _skimmed_block(dataset: Any) -> tuple[int, int]:
    height, width = dataset.block_shapes[0]
    # A VRT's blocks say nothing of those of its files; of many small ones each would be read several times.
    least = _LEAST_VRT_BLOCK_PX if dataset.driver == "VRT" else 1
    return max(height, least), max(width, least)


def _looked_at(shape: tuple[int, int], whole: Any) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return the rows and columns of an image that are taken to show it at a smaller `shape`."""
    rows, cols = (
        np.floor((np.arange(count) + 0.5) * length / count).astype(int)
        for count, length in zip(shape, (whole.height, whole.width), strict=True)
    )
    return rows, cols


def _runs(numbers: NDArray[np.int_]) -> list[slice]:
    """Return the slices of a rising sequence over which its number stays the same."""
    ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def _check_size(path: Path, dataset: Any, max_pixels: int) -> None:
    """Refuse what would take more memory or time than any scene needs, before a pixel is read."""
    pixels, size = dataset.height * dataset.width, f"{dataset.width} x {dataset.height} px"
    if pixels > max_pixels:
        raise RasterError(f"{path} claims {size}; if that is right, allow it with --max-pixels {pixels}")
    if dataset.count > MOST_BANDS:
        raise RasterError(f"{path} claims {dataset.count} bands; give an image of at most {MOST_BANDS}")
    if dataset.driver in {"PNG", "JPEG", "WEBP"} and pixels > _MOST_PIXELS_AT_ONCE:
        raise RasterError(
            f"{path} is a {dataset.driver} image of {size}, too large to be decoded as a whole; "
            "convert it: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT.tif"
        )
    if dataset.driver != "GTiff":
        return
    height, width = dataset.block_shapes[0]
    together = dataset.count if dataset.interleaving and dataset.interleaving.name == "pixel" else 1
    if height * width * together * np.dtype(dataset.dtypes[0]).itemsize > _MOST_BLOCK_BYTES:
        raise RasterError(
            f"{path} is stored in blocks of {width} x {height} px, too large for memory; "
            "store it in tiles: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT.tif"
        )
    blocks = -(-dataset.height // height) * -(-dataset.width // width)
    # Its table alone takes so much; a file that claims more is made to keep us busy.
    if blocks > 2**16 and 2 * blocks > path.stat().st_size:
        raise RasterError(
            f"{path} claims {blocks} blocks, more than its bytes can list; it is damaged: get it again"
        )


def _check_dtype(info: RasterInfo) -> None:
    if info.dtype.startswith("complex"):
        raise RasterError(
            f"{info.path} holds complex numbers ({info.dtype}), not an optical image; "
            "convert it to real numbers first"
        )
    if info.dtype not in DTYPES:
        raise RasterError(f"{info.path} is of dtype {info.dtype}; convert it to one of {', '.join(DTYPES)}")


def _check_scene(reader: RasterReader) -> None:
    """Refuse what is no image of the ground, or what no GeoTIFF could hold again."""
    info, dataset = reader.info, reader.dataset
    if "palette" in info.colors:
        raise RasterError(
            f"{info.path} is a palette image, its pixels are numbers of colours; "
            "expand it first: gdal_translate -expand rgb IN OUT.tif"
        )
    if not all(dataset.mask_flag_enums):
        raise RasterError(
            f"{info.path} has a mask for each band; give all bands one: gdal_translate -mask mask,1 IN OUT.tif"
        )
    if len(dtypes := set(dataset.dtypes)) > 1:
        raise RasterError(
            f"{info.path} has bands of {' and '.join(sorted(dtypes))}; give bands of one dtype: "
            f"gdal_translate -ot {max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize)} IN OUT.tif"
        )
    nodata = {str(value): value for value in dataset.nodatavals if value is not None}  # a NaN is not itself
    if len(nodata) > 1:
        raise RasterError(
            f"{info.path} has bands whose nodata are {' and '.join(nodata)}; give all bands one: "
            "gdalwarp -srcnodata 'A B C' -dstnodata A IN OUT.tif"
        )


def _check_complete(reader: RasterReader) -> None:
    """Find a truncated file before hours of work: every block of a TIFF must end inside the file.

    PNG, JPEG and WebP have no table of blocks; they are small, and read once as a whole.
    """
    path, dataset = reader.info.path, reader.dataset
    if dataset.driver == "GTiff":
        wanted_bytes = end_of_last_block(dataset)
        if wanted_bytes > path.stat().st_size:
            raise RasterError(
                f"{path} is truncated: its pixels need {wanted_bytes} bytes, "
                f"the file has {path.stat().st_size}; get it again"
            )
        if reader.info.has_mask and not is_whole(path):
            raise RasterError(f"{path} is truncated: its mask is not all there; get it again")
    elif dataset.driver == "PNG" and not is_whole(path):
        raise RasterError(f"{path} is truncated: it has no end mark (IEND); get it again")
    elif dataset.driver in {"PNG", "JPEG", "WEBP"}:
        for row in range(0, dataset.height, 256):
            reader.read(slice(row, min(row + 256, dataset.height)), slice(0, dataset.width))


def is_whole(path: Path) -> bool:
    """Return whether a GeoTIFF with its mask and overviews, a PNG or a WebP ends where it says that it does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
    if head.startswith(b"\x89PNG"):
        return _png_is_whole(path)
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    try:
        for number in itertools.count(1):  # the image, then what belongs to it
            with rasterio.open(f"GTIFF_DIR:{number}:{path}") as directory:
                if end_of_last_block(directory) > size:
                    return False
    except GDAL_ERRORS:
        # There is no such directory: the one before was the last. A first one there must be.
        return number > 1
    return True


def _png_is_whole(path: Path) -> bool:
    """Walk over the chunks (length, name, data, checksum) to the last one; GDAL takes a PNG without it."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] == b"IEND":
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def end_of_last_block(dataset: Any) -> int:
    """Return how many bytes a GeoTIFF must have for all its blocks."""
    end = 0
    for band in dataset.indexes if dataset.interleaving.name == "band" else [1]:
        block_height, block_width = dataset.block_shapes[band - 1]
        for y in range(-(-dataset.height // block_height)):
            for x in range(-(-dataset.width // block_width)):
                # A sparse block has no offset.
                offset = dataset.get_tag_item(f"BLOCK_OFFSET_{x}_{y}", "TIFF", bidx=band)
                if offset is not None:
                    size = dataset.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band)
                    end = max(end, int(offset) + int(size or 0))
    return end


def _listed(bands: Sequence[int] | None) -> list[int] | None:
    return None if bands is None else list(bands)
