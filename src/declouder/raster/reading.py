"""Rasters in, piece by piece, and checked before the first pixel is read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window as GdalWindow

from declouder.arguments import MOST_DN
from declouder.errors import RasterError
from declouder.raster.checks import MOST_PIXELS, as_stored, check_complete, check_dtype, check_scene, check_size
from declouder.raster.gdal import (
    DTYPES,
    GDAL_ERRORS,
    any_nodata_is_fine,
    cache_of,
    gdal_settings,
    not_georeferenced_is_fine,
    one_line,
)
from declouder.raster.info import RasterInfo, info_of
from declouder.raster.reduced import bytes_of_blocks, looked_at, reduced_shape, skimmed, takes_all_columns
from declouder.raster.sources import check_source, opened_as
from declouder.raster.undeclared import Undeclared, find_extreme, find_undeclared


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
    with opened(path, max_pixels=max_pixels, allow_outside=allow_outside) as reader:
        check_scene(reader.info, reader.dataset)
        yield reader


@contextmanager
def opened(
    path: Path, *, max_pixels: int, allow_outside: bool, dtypes: Sequence[str] = DTYPES
) -> Iterator[RasterReader]:
    """Open a file with the one driver that its first bytes call for; it can be read, whatever it shows."""
    check_source(path)
    with gdal_settings(), not_georeferenced_is_fine():
        source = opened_as(path, allow_outside=allow_outside)
        try:
            source.check_company()
            with any_nodata_is_fine():
                dataset = rasterio.open(source.name, driver=source.driver)
        except UnicodeDecodeError as error:  # rasterio reads the CRS as it opens
            raise RasterError(
                f"the CRS of {path} is no text in UTF-8 ({error}); write it anew: gdal_edit.py -a_srs EPSG:CODE"
            ) from None
        except GDAL_ERRORS as error:
            raise _damaged(path, error) from error
        with dataset:
            try:
                check_size(path, dataset, max_pixels)
                if not all(map(math.isfinite, dataset.transform)):
                    raise RasterError(
                        f"{path} says that it lies at {tuple(dataset.transform)[:6]}, which is nowhere; mend its"
                        " place: gdal_edit.py -a_ullr, or -unsetgt"
                    )
                reader = RasterReader(info_of(path, dataset, source.files), dataset)
                check_dtype(reader.info, dtypes)
                check_complete(reader)
                needed_bytes = bytes_of_blocks(dataset, source.files)
            except GDAL_ERRORS as error:
                raise _damaged(path, error) from error
            # Windows and what is written pass over the image row by row: else blocks are decoded for each anew.
            with cache_of(needed_bytes):
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
        self._also_nodata: tuple[float, ...] = ()
        # What a file does not declare, its overviews have mixed with the ground.
        self._trusts_overviews = info.nodata is not None or info.has_mask or info.alpha is not None
        self._alpha = info.alpha
        self._kept: tuple[slice, list[int], NDArray[Any]] | None = None  # rows, bands, DN; see `keep_rows`
        self._reduced: dict[tuple[Any, ...], tuple[NDArray[Any], list[NDArray[np.bool_]]]] = {}

    def declare_nodata(self, value: float) -> None:
        """Take a number for no data, besides what the raster says.

        `info` has it from now on where the raster declares none, and has neither an alpha band, which programs
        would no longer heed beside it, nor a transparent colour, beside which they would not heed it.

        Raises:
            RasterError: if the raster's dtype cannot hold it.
        """
        kind = self.info.dtype
        stored = as_stored(value, kind)
        if stored is None:
            raise RasterError(
                f"{self.info.path} is of {kind}, which is never {value:.17g}; give a nodata that it can be"
            )
        value, declared = stored, self.info.nodata
        if value == declared or (declared is not None and not math.isfinite(value)):
            return
        self._trusts_overviews = False  # they have mixed it with the ground
        self._reduced.clear()
        if declared is None and self.info.alpha is None and self.info.nodata_color is None:
            self.info = replace(self.info, nodata=float(value))
        else:
            self._also_nodata = (float(value),)

    @property
    def no_data(self) -> tuple[float, ...]:
        """The numbers that hold no data by what the raster says and what it was told."""
        return (*(() if self.info.nodata is None else (self.info.nodata,)), *self._also_nodata)

    def take_for_data(self, bands: Sequence[int]) -> None:
        """Take these 1-based bands for what a user says that they are: one of them is no transparency.

        Many programs call the fourth of four bands alpha, near infrared or not, and water has hardly any of that.
        """
        if self._alpha in bands:
            self._alpha = None
            self._trusts_overviews = self._trusts_overviews and (self.info.nodata is not None or self.info.has_mask)
            self._reduced.clear()

    def look_for_undeclared(self, bands: Sequence[int]) -> None:
        """Look whether pixels hold no data though nothing says so, and leave them out from now on.

        Only where the raster has neither nodata, nor a mask, nor alpha, nor a transparent colour, and
        `declare_nodata` has told none. Where its nodata is NaN, which holds none anyway, only for a number far from
        all others.
        """
        info = self.info
        if (
            info.has_mask
            or info.nodata_color is not None
            or self._alpha is not None
            or any(map(math.isfinite, self.no_data))
        ):
            return
        dn, _ = self.read_reduced(bands)
        find = find_undeclared if info.nodata is None else find_extreme
        self.undeclared = find(dn, height=info.height, width=info.width)
        if self.undeclared is not None and self._trusts_overviews:
            self._trusts_overviews = False  # they have mixed it with the ground
            self._reduced.clear()

    def read(self, rows: slice, cols: slice, bands: Sequence[int] | None = None) -> NDArray[Any]:
        """Return DN of the 1-based `bands` (all by default): (C, rows, cols) in the raster's dtype."""
        if self._kept is not None:
            kept_rows, kept_bands, kept = self._kept
            wanted = self._numbers(bands)
            if kept_rows.start <= rows.start and rows.stop <= kept_rows.stop and set(wanted) <= set(kept_bands):
                inside = kept[:, rows.start - kept_rows.start : rows.stop - kept_rows.start, cols]
                return np.asarray(inside[[kept_bands.index(band) for band in wanted]])
        with self._reading(rows, cols):
            window = GdalWindow.from_slices(rows, cols)
            values: NDArray[Any] = self.dataset.read(None if bands is None else list(bands), window=window)
        return values

    def keep_rows(self, rows: slice, bands: Sequence[int] | None = None) -> None:
        """Have these rows at hand for reads that take parts of them, in place of those that were kept before.

        They are kept of `bands` (all by default) and of an alpha band.

        Only where blocks are so wide that every part would decode more of them than GDAL's cache holds: strips of
        a wide scene.
        """
        info = self.info
        kept = sorted({*self._numbers(bands), *([self._alpha] if self._alpha is not None else [])})
        same = self._kept is not None and self._kept[:2] == (rows, kept)
        if same or not takes_all_columns(self.dataset, rows.stop - rows.start):
            return
        self._kept = None  # before its successor is read: there is room for one
        self._kept = rows, kept, self.read(rows, slice(0, info.width), kept)

    def _numbers(self, bands: Sequence[int] | None) -> list[int]:
        return list(range(1, self.info.count + 1) if bands is None else bands)

    def read_valid(
        self, rows: slice, cols: slice, bands: Sequence[int] | None = None, *, heed_alpha: bool = True
    ) -> NDArray[np.bool_]:
        """Return where samples hold data, (C, rows, cols): no nodata, NaN, infinity, mask or transparency.

        Without `heed_alpha` a band that is called alpha is one like the others.
        """
        return self.valid_of(self.read(rows, cols, bands), rows, cols, heed_alpha=heed_alpha)

    def valid_of(self, dn: NDArray[Any], rows: slice, cols: slice, *, heed_alpha: bool = True) -> NDArray[np.bool_]:
        """Return where samples that were read, (C, rows, cols), hold data, as `read_valid` does."""
        hidden = []
        if self.info.has_mask or self.info.nodata_color is not None:
            hidden.append(self.read_mask(rows, cols)[None] == 0)
        if heed_alpha and self._alpha is not None:
            hidden.append(self.read(rows, cols, [self._alpha]) == 0)
        return self._valid(dn, hidden, np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop))

    def read_mask(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the raster's own mask, or of a transparent colour, (rows, cols), 0 or 255."""
        with self._reading(rows, cols):
            mask: NDArray[np.uint8] = self.dataset.dataset_mask(window=GdalWindow.from_slices(rows, cols))
        return mask

    def read_reduced(self, bands: Sequence[int], *, max_px: int = 1024) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the whole scene at a size of at most `max_px`, by leaving out pixels.

        Returns:
            DN (C, h, w) in the raster's dtype, and where they hold data (C, h, w).
        """
        info = self.info
        shape = reduced_shape(info.height, info.width, max_px)
        # Kept, for of a large scene it takes minutes, and more than one asks for it.
        if (kept := (*bands, max_px)) not in self._reduced:
            whole = slice(0, info.height), slice(0, info.width)
            with self._reading(*whole), contextlib.ExitStack() as stack:
                dataset = self.dataset
                if not self._trusts_overviews and dataset.overviews(1):
                    name, driver = dataset.name, dataset.driver
                    with any_nodata_is_fine():
                        dataset = stack.enter_context(rasterio.open(name, driver=driver, OVERVIEW_LEVEL="NONE"))
                # The overviews of a VRT's sources are no matter of its own settings.
                at_full_size = not self._trusts_overviews and dataset.driver == "VRT"
                dn = skimmed(dataset, list(bands), shape, by_blocks=at_full_size)
                hidden = []
                if info.has_mask or info.nodata_color is not None:
                    hidden.append(dataset.dataset_mask(out_shape=shape)[None] == 0)
                if self._alpha is not None:
                    hidden.append(skimmed(dataset, [self._alpha], shape, by_blocks=at_full_size) == 0)
            self._reduced[kept] = dn, hidden
        dn, hidden = self._reduced[kept]
        return dn, self._valid(dn, hidden, *looked_at(shape, info))

    def _valid(
        self,
        dn: NDArray[Any],
        hidden: Sequence[NDArray[np.bool_]],
        rows: NDArray[np.int_],
        cols: NDArray[np.int_],
    ) -> NDArray[np.bool_]:
        """Return where `dn`, samples (C, h, w) at these rows and columns, holds data; `hidden` are (1, h, w)."""
        valid = np.ones(dn.shape, np.bool_)
        for value in self.no_data if self.info.nodata_color is None else self._also_nodata:
            valid &= dn != value
        if dn.dtype.kind == "f":  # nor is a number that no scale reaches, such as the lowest that float32 has
            valid &= np.abs(dn) <= MOST_DN
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
