"""Rasters in and out, piece by piece: the only module that knows rasterio (GDAL).

    with open_raster("in.tif") as reader, create_raster("out.tif", like=reader.info) as writer:
        writer.write(reader.read(rows, cols), rows, cols)

`RasterInfo` holds what a raster says of itself besides its pixels: CRS, transform, nodata, band names, tags.
A new raster is made `like` it. It is written under a temporary name in the same folder and gets its own name
when it is complete, so whoever sees `out.tif` sees all of it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning
from rasterio.errors import RasterioError as GdalError
from rasterio.windows import Window as GdalWindow

from declouder.errors import OutputError, RasterError

log = logging.getLogger(__name__)
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
INPUT_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".webp", ".jp2")
OUTPUT_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG", ".webp": "WEBP"}
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

# What a source's compression may be for the output to keep it: the lossy ones would harm bands that pass
# through.
_LOSSLESS = ("DEFLATE", "LZW", "ZSTD", "LZMA")
# Namespaces that GDAL makes up from the file's layout, or that travel by another way (RPC).
_DERIVED_NAMESPACES = {
    "IMAGE_STRUCTURE",
    "DERIVED_SUBDATASETS",
    "SUBDATASETS",
    "RPC",
    "TIFF",
    "COLOR_PROFILE",
}
# Numbers about the old pixels would be wrong about the new ones.
_STALE_TAGS = ("STATISTICS_", "TIFFTAG_MINSAMPLEVALUE", "TIFFTAG_MAXSAMPLEVALUE")
_GDAL_ERRORS = (GdalError, CPLE_BaseError, OSError)

Tags = dict[str | None, dict[str, str]]


@dataclass(frozen=True)
class RasterInfo:
    """What a raster says of itself besides its pixels; lists have one entry a band."""

    path: Path
    driver: str
    height: int
    width: int
    count: int
    dtype: str
    nodata: float | None
    crs: Any
    transform: Any
    gcps: tuple[list[Any], Any]  # ground control points and their CRS
    rpcs: Any
    descriptions: tuple[str | None, ...]
    colors: tuple[str, ...]  # names of rasterio's ColorInterp
    units: tuple[str | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    tags: Tags  # by namespace; None is the default one
    band_tags: tuple[Tags, ...]
    compression: str | None
    has_mask: bool  # a mask of its own, besides nodata and alpha

    @property
    def alpha(self) -> int | None:
        """The 1-based number of the alpha band, if there is one."""
        return self.colors.index("alpha") + 1 if "alpha" in self.colors else None

    @property
    def is_georeferenced(self) -> bool:
        """Whether the raster says where on Earth it lies."""
        return bool(self.crs or self.gcps[0] or self.rpcs or not self.transform.is_identity)


@contextmanager
def open_raster(path: Path) -> Iterator[RasterReader]:
    """Open a raster for reading in pieces.

    Raises:
        RasterError: if the file is missing, not an image we read, truncated, a palette image or of a complex
            dtype.
    """
    _check_source(path)
    with _gdal(), _not_georeferenced_is_fine():
        try:
            dataset = rasterio.open(path, driver=_driver_of(path))
        except _GDAL_ERRORS as error:
            raise RasterError(
                f"{path} cannot be opened ({_one_line(error)}); it is damaged or truncated: get it again"
            ) from error
        with dataset:
            info = _info_of(path, dataset)
            _check_content(info)
            _check_complete(path, dataset)
            yield RasterReader(info, dataset)


class RasterReader:
    """Pixels of an open raster; made by `open_raster`."""

    def __init__(self, info: RasterInfo, dataset: Any) -> None:
        self.info = info
        self._dataset = dataset

    def read(self, rows: slice, cols: slice, bands: Sequence[int] | None = None) -> NDArray[Any]:
        """Return DN of the 1-based `bands` (all by default): (C, rows, cols) in the raster's dtype."""
        with self._reading(rows, cols):
            window = GdalWindow.from_slices(rows, cols)
            values: NDArray[Any] = self._dataset.read(_listed(bands), window=window)
        return values

    def read_valid(self, rows: slice, cols: slice, bands: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Return where samples hold data, (C, rows, cols): no nodata, NaN, infinity, mask or transparency."""
        hidden = []
        if self.info.has_mask:
            hidden.append(self.read_mask(rows, cols)[None] == 0)
        if self.info.alpha is not None:
            hidden.append(self.read(rows, cols, [self.info.alpha]) == 0)
        return self._valid(self.read(rows, cols, bands), hidden)

    def read_mask(self, rows: slice, cols: slice) -> NDArray[np.uint8]:
        """Return the raster's own mask, (rows, cols), 0 or 255."""
        with self._reading(rows, cols):
            mask: NDArray[np.uint8] = self._dataset.dataset_mask(window=GdalWindow.from_slices(rows, cols))
        return mask

    def read_reduced(self, bands: Sequence[int], *, max_px: int = 1024) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the whole scene at a size of at most `max_px`, by leaving out pixels.

        Returns:
            DN (C, h, w) in the raster's dtype, and where they hold data (C, h, w).
        """
        info = self.info
        step = max(1.0, max(info.height, info.width) / max_px)
        shape = max(1, round(info.height / step)), max(1, round(info.width / step))
        with self._reading(slice(0, info.height), slice(0, info.width)):
            dn = self._dataset.read(list(bands), out_shape=(len(bands), *shape))
            hidden = []
            if info.has_mask:
                hidden.append(self._dataset.dataset_mask(out_shape=shape)[None] == 0)
            if info.alpha is not None:
                hidden.append(self._dataset.read([info.alpha], out_shape=(1, *shape)) == 0)
        return dn, self._valid(dn, hidden)

    def _valid(self, dn: NDArray[Any], hidden: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Return where `dn` (C, H, W) holds data; each of `hidden` is (1, H, W)."""
        valid = np.ones(dn.shape, np.bool_)
        if self.info.nodata is not None:
            valid &= dn != self.info.nodata
        if dn.dtype.kind == "f":
            valid &= np.isfinite(dn)
        for mask in hidden:
            valid &= ~mask
        return valid

    @contextmanager
    def _reading(self, rows: slice, cols: slice) -> Iterator[None]:
        try:
            yield
        except _GDAL_ERRORS as error:
            where = f"rows {rows.start}..{rows.stop}, columns {cols.start}..{cols.stop}"
            raise RasterError(
                f"{self.info.path} cannot be read at {where} ({_one_line(error)}); "
                "the file is damaged or truncated: get it again"
            ) from error


@contextmanager
def create_raster(output: Path, like: RasterInfo, *, overwrite: bool = False) -> Iterator[RasterWriter]:
    """Create a raster with the size and properties of `like`; it appears when the block ends well.

    All is written to a GeoTIFF first. PNG and WebP, which cannot be written in pieces, are made of that in
    the end.

    Raises:
        OutputError: if it cannot be written; then nothing is left behind.
    """
    check_output(output, sources=[like.path], overwrite=overwrite)
    check_fits(output, like)
    driver = OUTPUT_DRIVERS[output.suffix.lower()]
    if driver != "GTiff" and like.is_georeferenced:
        log.warning("%s cannot say where it lies on Earth; write a .tif to keep that", output)
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    image = part.with_name(part.name + output.suffix.lower())
    try:
        # Without PAM GDAL writes no .aux.xml beside the output.
        with _gdal(GDAL_PAM_ENABLED=False), _not_georeferenced_is_fine():
            with _writing(output):
                dataset = rasterio.open(part, "w", **_profile(like, final=driver == "GTiff"))
            try:
                with _writing(output):
                    _describe(dataset, like)
                yield RasterWriter(output, dataset)
            finally:
                with _writing(output):
                    dataset.close()
            with _writing(output):
                with rasterio.open(part) as written:
                    complete = _end_of_last_block(written) <= part.stat().st_size
                # GDAL does not raise when the disk is full as it closes a file.
                if not complete:
                    raise OutputError(f"{output} could not be written in full; is the disk full?")
                if driver != "GTiff":
                    options = {"LOSSLESS": "YES"} if driver == "WEBP" else {}
                    rasterio.shutil.copy(part, image, driver=driver, **options)
        with _writing(output):
            _publish(part if driver == "GTiff" else image, output, overwrite=overwrite)
    finally:
        part.unlink(missing_ok=True)
        image.unlink(missing_ok=True)


class RasterWriter:
    """Takes the pixels of a new raster; made by `create_raster`."""

    def __init__(self, output: Path, dataset: Any) -> None:
        self._output = output
        self._dataset = dataset

    def write(self, dn: NDArray[Any], rows: slice, cols: slice) -> None:
        """Write all bands, (C, rows, cols), in the raster's dtype."""
        with _writing(self._output):
            self._dataset.write(dn, window=GdalWindow.from_slices(rows, cols))

    def write_mask(self, mask: NDArray[np.uint8], rows: slice, cols: slice) -> None:
        """Write the raster's own mask, (rows, cols), 0 or 255."""
        with _writing(self._output):
            self._dataset.write_mask(mask, window=GdalWindow.from_slices(rows, cols))


def check_output(output: Path, *, sources: Sequence[Path], overwrite: bool) -> None:
    """Raise OutputError unless `output` is a place for a new file that is none of `sources`."""
    if output.suffix.lower() not in OUTPUT_DRIVERS:
        known = ", ".join(OUTPUT_DRIVERS)
        lossy = "JPEG would lose detail; " if output.suffix.lower() in {".jpg", ".jpeg"} else ""
        raise OutputError(f"{output} has no suffix that can be written; {lossy}use one of {known}")
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name in it, such as {output / 'clear.tif'}")
    check_folder(output.parent)
    for source in sources:
        if output.resolve() == source.resolve() or (output.exists() and output.samefile(source)):
            raise OutputError(f"output {output} is the input {source} itself; give another name")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is not a regular file; give another name")
    if not overwrite and (output.exists() or output.is_symlink()):
        raise OutputError(f"{output} exists already; give --overwrite to replace it, or another name")


def check_folder(folder: Path) -> None:
    """Raise OutputError unless files can be made in `folder`."""
    if not folder.exists():
        raise OutputError(f"the output folder {folder} does not exist; make it first: mkdir -p {folder}")
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder to write into; give another output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the output folder {folder} may not be written; give another one")


def check_fits(output: Path, info: RasterInfo) -> None:
    """Raise OutputError if the format of `output` cannot hold the bands and dtype of `info`."""
    bands, dtypes, most_px = {
        "GTiff": (range(1, 65536), DTYPES, 2**31 - 1),
        "PNG": (range(1, 5), ("uint8", "uint16"), 2**31 - 1),
        "WEBP": (range(3, 5), ("uint8",), 16383),
    }[OUTPUT_DRIVERS[output.suffix.lower()]]
    if info.count not in bands or info.dtype not in dtypes or max(info.height, info.width) > most_px:
        raise OutputError(
            f"{output} cannot hold {info.count} bands of {info.dtype}, {info.width} x {info.height} px; "
            f"write {output.with_suffix('.tif')} instead"
        )


def output_name(source: Path) -> str:
    """Return the name of the result of `source` in an output folder: its own, where that can be lossless."""
    if source.suffix.lower() in OUTPUT_DRIVERS:
        return source.name
    return source.with_suffix(".tif" if source.suffix.lower() == ".jp2" else ".png").name


def _check_source(path: Path) -> None:
    if path.is_dir():
        raise RasterError(f"{path} is a folder, not an image; give the files in it")
    if not path.exists():
        raise RasterError(f"{path} does not exist; check the name")
    # A pipe or device would be waited for without end.
    if not path.is_file():
        raise RasterError(f"{path} is not a regular file; give an image file")
    if not os.access(path, os.R_OK):
        raise RasterError(f"{path} may not be read; check its permissions")
    if path.stat().st_size == 0:
        raise RasterError(f"{path} is empty (0 bytes); get it again")


def _driver_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    for magic, driver in INPUT_DRIVERS.items():
        if re.match(magic, start, re.DOTALL):
            return driver
    raise RasterError(f"{path} is not an image by its first bytes; give a GeoTIFF, TIFF, PNG, JPEG or WebP file")


def _check_content(info: RasterInfo) -> None:
    if info.dtype.startswith("complex"):
        raise RasterError(
            f"{info.path} holds complex numbers ({info.dtype}), not an optical image; "
            "convert it to real numbers first"
        )
    if info.dtype not in DTYPES:
        raise RasterError(f"{info.path} is of dtype {info.dtype}; convert it to one of {', '.join(DTYPES)}")
    if "palette" in info.colors:
        raise RasterError(
            f"{info.path} is a palette image, its pixels are numbers of colours; "
            "expand it first: gdal_translate -expand rgb IN OUT.tif"
        )


def _check_complete(path: Path, dataset: Any) -> None:
    """Find a truncated file before hours of work: every block of a TIFF must end inside the file.

    PNG, JPEG and WebP have no table of blocks; they are small, and read once as a whole.
    """
    if dataset.driver == "GTiff":
        wanted_bytes = _end_of_last_block(dataset)
        if wanted_bytes > path.stat().st_size:
            raise RasterError(
                f"{path} is truncated: its pixels need {wanted_bytes} bytes, "
                f"the file has {path.stat().st_size}; get it again"
            )
    elif dataset.driver == "PNG" and not _png_is_whole(path):
        raise RasterError(f"{path} is truncated: it has no end mark (IEND); get it again")
    elif dataset.driver in {"PNG", "JPEG", "WEBP"}:
        reader = RasterReader(_info_of(path, dataset), dataset)
        for row in range(0, dataset.height, 256):
            reader.read(slice(row, min(row + 256, dataset.height)), slice(0, dataset.width))


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


def _info_of(path: Path, dataset: Any) -> RasterInfo:
    flags = dataset.mask_flag_enums[0]
    return RasterInfo(
        path=path,
        driver=dataset.driver,
        height=dataset.height,
        width=dataset.width,
        count=dataset.count,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        crs=dataset.crs,
        transform=dataset.transform,
        gcps=dataset.gcps,
        rpcs=dataset.rpcs,
        descriptions=dataset.descriptions,
        colors=tuple(color.name for color in dataset.colorinterp),
        units=dataset.units,
        scales=dataset.scales,
        offsets=dataset.offsets,
        tags=_tags_of(dataset, 0),
        band_tags=tuple(_tags_of(dataset, band) for band in dataset.indexes),
        compression=dataset.compression.value if dataset.compression else None,
        has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
    )


def _tags_of(dataset: Any, band: int) -> Tags:
    """Return the tags of a band (0: of the whole) by namespace, without what is about the old pixels."""
    found: Tags = {}
    for namespace in [None, *dataset.tag_namespaces(band)]:
        # "xml:" namespaces hold one document instead of key=value pairs.
        if namespace in _DERIVED_NAMESPACES or (namespace or "").startswith("xml:"):
            continue
        tags = dataset.tags(band, ns=namespace)
        # `ns` and `bidx` cannot be passed on: they are rasterio's own arguments.
        kept = {k: v for k, v in tags.items() if not k.startswith(_STALE_TAGS) and k not in {"ns", "bidx"}}
        if kept:
            found[namespace] = kept
    return found


def _profile(like: RasterInfo, *, final: bool) -> dict[str, Any]:
    """Return rasterio's creation options; `final` is False for a GeoTIFF that only leads to a PNG or WebP."""
    compression = (like.compression or "").upper()
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": like.height,
        "width": like.width,
        "count": like.count,
        "dtype": like.dtype,
        "compress": compression if compression in _LOSSLESS else "DEFLATE",
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        "interleave": "pixel",
        "bigtiff": "IF_SAFER",
        "photometric": "RGB" if like.colors[:3] == ("red", "green", "blue") else "MINISBLACK",
    }
    if profile["compress"] != "LZMA":
        profile["predictor"] = 3 if np.dtype(like.dtype).kind == "f" else 2
    if profile["compress"] == "DEFLATE" and not final:
        profile["zlevel"] = 1
    if like.crs:
        profile["crs"] = like.crs
    if not like.transform.is_identity or like.crs:
        profile["transform"] = like.transform
    if like.nodata is not None and _can_hold(like.dtype, like.nodata):
        profile["nodata"] = like.nodata
    elif like.nodata is not None:
        log.warning("nodata %g is no %s value, so no pixel can have it; left out", like.nodata, like.dtype)
    return profile


def _can_hold(dtype: str, value: float) -> bool:
    kind = np.dtype(dtype)
    return kind.kind == "f" or np.iinfo(kind).min <= value <= np.iinfo(kind).max


def _describe(dataset: Any, like: RasterInfo) -> None:
    """Give a new dataset all that its profile could not say."""
    points, points_crs = like.gcps
    if points:
        dataset.gcps = (points, points_crs)
    if like.rpcs:
        dataset.rpcs = like.rpcs
    dataset.colorinterp = [ColorInterp[name] for name in like.colors]
    for band, description in enumerate(like.descriptions, start=1):
        if description:
            dataset.set_band_description(band, description)
    # Set only where they say something: GDAL writes even the defaults into the file.
    if any(like.units):
        dataset.units = [unit or "" for unit in like.units]
    if any(scale != 1 for scale in like.scales):
        dataset.scales = like.scales
    if any(like.offsets):
        dataset.offsets = like.offsets
    for band, by_namespace in enumerate([like.tags, *like.band_tags]):
        for namespace, tags in by_namespace.items():
            dataset.update_tags(band, ns=namespace, **tags)


def _publish(part: Path, output: Path, *, overwrite: bool) -> None:
    """Give the complete file its name."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    # Looked at again: hours may have passed.
    check_output(output, sources=[], overwrite=overwrite)
    part.replace(output)
    # Statistics, overviews and masks beside a file that was replaced are about its old pixels.
    for suffix in (".aux.xml", ".ovr", ".msk"):
        output.with_name(output.name + suffix).unlink(missing_ok=True)


@contextmanager
def _gdal(**options: Any) -> Iterator[None]:
    """Settings for GDAL: bounded cache, no broken image passed off as whole, masks inside the file."""
    with rasterio.Env(
        GDAL_CACHEMAX=256 * 2**20,  # bytes; the default grows with the machine
        GDAL_ERROR_ON_LIBJPEG_WARNING=True,  # a truncated JPEG is grey from there on otherwise
        GDAL_TIFF_INTERNAL_MASK=True,
        **options,
    ):
        yield


@contextmanager
def _not_georeferenced_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except _GDAL_ERRORS as error:
        raise OutputError(
            f"{output} cannot be written ({_one_line(error)}); is the disk full, or the folder read-only?"
        ) from error


def _listed(bands: Sequence[int] | None) -> list[int] | None:
    return None if bands is None else list(bands)


def _one_line(error: BaseException) -> str:
    """Return GDAL's reason in one line; rasterio often hides it in the exception's cause."""
    reason = error.__cause__ or error
    return " ".join(str(reason).split()) or type(error).__name__
