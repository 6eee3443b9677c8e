"""How we use GDAL: its settings, its errors, the formats that are let in."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning
from rasterio.errors import RasterioError as GdalError

from declouder.errors import DeclouderError, RasterError, reason_of

# Without a handler Python prints GDAL's messages to stderr; our errors repeat what matters of them.
logging.getLogger("rasterio").addHandler(logging.NullHandler())

# GDAL's drivers by a file's first bytes. A closed list: GDAL itself would also open formats that name other
# files (VRT) under any suffix.
INPUT_DRIVERS = {
    rb"II[*+]\0|MM\0[*+]": "GTiff",
    rb"\x89PNG\r\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"RIFF....WEBP": "WEBP",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JP2OpenJPEG",
}
INPUT_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2", ".vrt", ".safe")
_TO_TIFF = "make a GeoTIFF of it: gdal_translate IN OUT.tif"
_OTHER_KINDS = {
    ".json": "if it is a STAC item, name it with --stac",
    ".xml": "of Sentinel-2 give the .SAFE folder",
    ".zip": "unpack it first",
    **dict.fromkeys((".nc", ".h5", ".hdf", ".img", ".ntf"), _TO_TIFF),
}
"""What to do with what is often given, by its suffix."""
OUTPUT_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG", ".webp": "WEBP"}
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""Of images."""
NUMBER_DTYPES = (*DTYPES, "uint64", "int64")
"""Of masks and classes, which numpy makes in 64 bits."""

GDAL_ERRORS = (GdalError, CPLE_BaseError, OSError)
CACHE_BYTES = 64 * 2**20
"""Of decoded blocks that GDAL keeps, where nobody needs more."""
MOST_CACHE_BYTES = 256 * 2**20
"""Of them at most, whatever an image needs: the memory of a large scene is to stay that of a small one."""
_needed_bytes: list[int] = []
"""Of the cache, which is one for the process, by each `cache_of`."""


def _cache_bytes() -> int:
    return max([CACHE_BYTES, *_needed_bytes])


@contextmanager
def cache_of(needed_bytes: int) -> Iterator[None]:
    """Have GDAL keep so many bytes of decoded blocks, `MOST_CACHE_BYTES` at most; far more would be in vain."""
    if not CACHE_BYTES < needed_bytes <= 2 * MOST_CACHE_BYTES:
        yield
        return
    kept_bytes = min(needed_bytes, MOST_CACHE_BYTES)
    _needed_bytes.append(kept_bytes)
    try:
        with rasterio.Env(GDAL_CACHEMAX=_cache_bytes()):
            yield
    finally:
        _needed_bytes.remove(kept_bytes)


@contextmanager
def gdal_settings(**options: Any) -> Iterator[None]:
    """Settings for GDAL: bounded cache, no broken image passed off as whole, masks inside the file."""
    with rasterio.Env(
        GDAL_CACHEMAX=_cache_bytes(),  # the default grows with the machine
        GDAL_ERROR_ON_LIBJPEG_WARNING=True,  # a truncated JPEG is grey from there on otherwise
        GDAL_TIFF_INTERNAL_MASK=True,
        **options,
    ):
        yield


class _OneFilter:
    """A filter of warnings that is set while somebody wants it, and nothing else of the process's filters.

    `warnings.catch_warnings` puts back all of them: those that others set meanwhile would be lost, and of several
    threads the last to leave would put back the filter itself.
    """

    def __init__(self, category: type[Warning]) -> None:
        self._category = category
        self._entry = ("ignore", None, category, None, 0)
        self._lock = threading.Lock()
        self._users = 0
        self._is_ours = False

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._is_ours = self._entry not in warnings.filters
            if self._entry not in warnings.filters:  # or a block around another user has taken it along
                warnings.simplefilter("ignore", self._category)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._is_ours and self._entry in warnings.filters:
                cast("list[Any]", warnings.filters).remove(self._entry)


_PLAIN_IMAGES = _OneFilter(NotGeoreferencedWarning)


@contextmanager
def not_georeferenced_is_fine() -> Iterator[None]:
    """Let plain images pass without a warning."""
    with _PLAIN_IMAGES:
        yield


@contextmanager
def any_nodata_is_fine() -> Iterator[None]:
    """Open a file without a warning that a nodata is beyond its numbers: rasterio then says that there is none."""
    with np.errstate(over="ignore"):
        yield


def one_line(error: BaseException) -> str:
    """Return GDAL's reason in one line; rasterio often hides it in the exception's cause."""
    return reason_of(error.__cause__ or error)


def lies_there(path: Path) -> bool:
    """Return whether a file lies at a place that is looked at by its name; one too long for a file has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_name(path: Path, error: type[DeclouderError]) -> None:
    """Raise `error` if GDAL, which knows UTF-8 alone, cannot be told the name of a file."""
    name = os.fsencode(path)
    try:
        if str(path).encode() == name:
            return
    except UnicodeEncodeError:  # Python could make no sense of some of its bytes
        with suppress(UnicodeDecodeError):
            name.decode()  # in another locale it can
            raise _other_locale(path, error) from None
        raise error(f"the name {str(path)!r} is no UTF-8; rename the file or folder") from None
    raise _other_locale(path, error)


def _other_locale(path: Path, error: type[DeclouderError]) -> DeclouderError:
    return error(
        f"the name {str(path)!r} is no UTF-8 in this locale, {sys.getfilesystemencoding()}; set another, such"
        " as LC_ALL=C.UTF-8"
    )


def driver_of(path: Path) -> str:
    """Return GDAL's driver for a file by its first bytes; RasterError if it is none of ours."""
    with path.open("rb") as file:
        start = file.read(16)
    for magic, driver in INPUT_DRIVERS.items():
        if re.match(magic, start, re.DOTALL):
            return driver
    mend = _OTHER_KINDS.get(path.suffix.lower(), "give a GeoTIFF, TIFF, PNG, JPEG, JPEG 2000, WebP or VRT file")
    raise RasterError(f"{path} is not an image that can be read, by its first bytes; {mend}")
