"""What is let in: rasters of a size, type and layout that we can handle, and files that are all there.

All is looked at before hours of work, and before a pixel is read where the file's own tables tell.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio

from declouder.errors import RasterError
from declouder.raster.gdal import DTYPES, GDAL_ERRORS
from declouder.raster.info import RasterInfo

if TYPE_CHECKING:
    from declouder.raster.reading import RasterReader

MOST_PIXELS = 10**10
"""A raster of more pixels (100,000 x 100,000) is refused unless more are asked for."""
MOST_PIXELS_IN_MEMORY = 2**28
"""The same of one that is read as a whole (16,384 x 16,384)."""
MOST_BANDS = 1024
# Formats without blocks are decoded as a whole, or up to the place that is read.
_MOST_PIXELS_AT_ONCE = 2**28
_MOST_BLOCK_BYTES = 2**29


def _is_animated(webp: Path) -> bool:
    """Return whether the header of a WebP image says so: in the second bit of the flags of its VP8X chunk."""
    with webp.open("rb") as file:
        header = file.read(21)
    return header[12:16] == b"VP8X" and len(header) > 20 and bool(header[20] & 2)


def check_size(path: Path, dataset: Any, max_pixels: int) -> None:
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
    if dataset.driver == "WEBP" and _is_animated(path):
        raise RasterError(f"{path} is an animation; give a WebP of one image")
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


def check_dtype(info: RasterInfo, allowed: Sequence[str]) -> None:
    """Raise RasterError if the numbers are of another type than is `allowed`."""
    if info.dtype.startswith("complex"):
        raise RasterError(
            f"{info.path} holds complex numbers ({info.dtype}), not an optical image; "
            "convert it to real numbers first"
        )
    if info.dtype not in allowed:
        raise RasterError(f"{info.path} is of dtype {info.dtype}; convert it to one of {', '.join(allowed)}")


def as_stored(value: float, dtype: str) -> float | None:
    """Return a number as pixels of a type hold it, of floats the nearest; None if they never do."""
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        return value if limits.min <= value <= limits.max and float(value).is_integer() else None
    with np.errstate(over="ignore"):
        stored = float(kind.type(value).real)
    # NaN and infinity are floats of every size.
    return stored if math.isfinite(stored) or not math.isfinite(value) else None


def check_scene(info: RasterInfo, dataset: Any) -> None:
    """Refuse what is no image of the ground, or what no GeoTIFF could hold again."""
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
        common = np.result_type(*dtypes).name  # which holds all numbers of each
        raise RasterError(
            f"{info.path} has bands of {' and '.join(sorted(dtypes))}; give bands of one dtype: "
            f"gdal_translate -ot {common if common in DTYPES else 'float64'} IN OUT.tif"
        )
    nodata = {str(value): value for value in dataset.nodatavals if value is not None}  # a NaN is not itself
    if len(nodata) > 1:
        raise RasterError(
            f"{info.path} has bands whose nodata are {' and '.join(nodata)}; give all bands one: "
            "gdalwarp -srcnodata 'A B C' -dstnodata A IN OUT.tif"
        )


def check_complete(reader: RasterReader) -> None:
    """Find a truncated file before hours of work: every block of a TIFF must end inside the file.

    PNG, JPEG and WebP have no table of blocks; they are small, and read once as a whole.
    """
    path, dataset = reader.info.path, reader.dataset
    if dataset.driver == "GTiff":
        wanted_bytes = _end_of_last_block(dataset)
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
                if _end_of_last_block(directory) > size:
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


def _end_of_last_block(dataset: Any) -> int:
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
