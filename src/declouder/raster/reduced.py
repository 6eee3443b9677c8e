"""A whole raster at a smaller size, by leaving out pixels, without decoding any block more often than need be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from declouder.raster.company import plain_name
from declouder.raster.gdal import CACHE_BYTES, driver_of

_LEAST_VRT_BLOCK_PX = 512
_LOW_PX = 256


def reduced_shape(height: int, width: int, max_px: int) -> tuple[int, int]:
    """Return height and width of an image of at most `max_px` a side that shows a larger one.

    Each side by itself: of a long strip every row is looked at, and a frame of a few rows is seen.
    """
    return min(height, max_px), min(width, max_px)


def skimmed(dataset: Any, bands: Sequence[int], shape: tuple[int, int], *, by_blocks: bool = False) -> NDArray[Any]:
    """Return the whole image of a dataset at a smaller `shape` (h, w): (C, h, w) of the 1-based `bands`.

    With `by_blocks` it is read at full size in any case.
    """
    skim = _skim_by_blocks if by_blocks or _outgrows_cache(dataset) else _skim_at_once
    return skim(dataset, bands, shape)


def looked_at(shape: tuple[int, int], whole: Any) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return the rows and columns of an image that are taken to show it at a smaller `shape`."""
    rows, cols = (
        np.floor((np.arange(count) + 0.5) * length / count).astype(int)
        for count, length in zip(shape, (whole.height, whole.width), strict=True)
    )
    return rows, cols


def _outgrows_cache(dataset: Any) -> bool:
    """Return whether GDAL could not keep a row of blocks in its cache, and has no smaller copy of the image."""
    if dataset.driver not in {"GTiff", "VRT"} or dataset.overviews(1):
        return False
    bytes_a_row = _skimmed_block(dataset)[0] * dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    return bool(bytes_a_row > CACHE_BYTES // 2)


def bytes_of_blocks(dataset: Any, files: Sequence[Path]) -> int:
    """Return what two rows of an image's decoded blocks take, as windows side by side touch them; 0 of low blocks.

    A row of low ones is written at once, so hardly any is decoded twice.

    Args:
        dataset: the image, open.
        files: of a VRT, which has blocks of its own making, the first is asked for those that are decoded.
    """
    blocks = dataset.block_shapes
    if dataset.driver == "VRT" and (images := [path for path in files if path.suffix.lower() != ".vrt"]):
        with rasterio.open(plain_name(images[0]), driver=driver_of(images[0])) as first:
            blocks = first.block_shapes
    tallest = max(height for height, _ in blocks)
    if tallest <= _LOW_PX:
        return 0
    rows = min(2 * tallest, dataset.height)
    return int(rows * dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize)


def takes_all_columns(dataset: Any, rows: int) -> bool:
    """Return whether to read a part of so many rows GDAL decodes all of their columns, and could not keep them."""
    bytes_of_all = rows * dataset.width * dataset.count * np.dtype(dataset.dtypes[0]).itemsize
    # A VRT's blocks say nothing of those of its files.
    is_wide = dataset.driver != "VRT" and dataset.block_shapes[0][1] > dataset.width // 2
    return is_wide and bool(bytes_of_all > CACHE_BYTES // 2)


def _skim_at_once(dataset: Any, bands: Sequence[int], shape: tuple[int, int]) -> NDArray[Any]:
    """Return the whole image at a smaller `shape` (h, w), by leaving out pixels: (C, h, w)."""
    values: NDArray[Any] = dataset.read(bands, out_shape=(len(bands), *shape))
    return values


def _skim_by_blocks(dataset: Any, bands: Sequence[int], shape: tuple[int, int]) -> NDArray[Any]:
    """Return what `_skim_at_once` returns, but read each block once.

    GDAL goes line by line over the whole width. Where its cache does not hold a row of blocks, it decodes each
    block of the row anew for every line that it takes from there.
    """
    rows, cols = looked_at(shape, dataset)
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


def _runs(numbers: NDArray[np.int_]) -> list[slice]:
    """Return the slices of a rising sequence over which its number stays the same."""
    ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]
