"""Rasters out, piece by piece: under a temporary name first, under their own when they are complete."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.io import MemoryFile
from rasterio.windows import Window as GdalWindow

from declouder.errors import OutputError
from declouder.interrupts import interrupts_wait
from declouder.raster.checks import is_whole
from declouder.raster.gdal import (
    GDAL_ERRORS,
    OUTPUT_DRIVERS,
    driver_of,
    gdal_settings,
    not_georeferenced_is_fine,
    one_line,
)
from declouder.raster.info import RasterInfo, world_files
from declouder.raster.outputs import check_fits, check_output, metadata_beside, side_files
from declouder.rgb import RGB
from declouder.whole_files import hidden_beginning, lives

log = logging.getLogger(__name__)

BLOCK_PX = 256
"""Height and width of the blocks of what we write."""
DEFLATE_LEVEL = 4
"""A real scene comes out as small as at GDAL's own 6; noise takes a fraction of the time."""
_HARDLY_FREE_BYTES = 2**20
# What a source's compression may be for the output to keep it: the lossy ones would harm bands that pass
# through.
_LOSSLESS = ("DEFLATE", "LZW", "ZSTD", "LZMA")


@contextmanager
def create_raster(
    output: Path, like: RasterInfo, *, overwrite: bool = False, cog: bool = False
) -> Iterator[RasterWriter]:
    """Create a raster with the size and properties of `like`; it appears when the block ends well.

    All is written to a GeoTIFF first. PNG, WebP and, with `cog`, cloud-optimised GeoTIFF with its overviews cannot
    be written in pieces; they are made of that in the end, by `RasterWriter.finish` or when the block ends. It gets
    its name by `RasterWriter.publish` or when the block ends.
    Where `output` is a link, the file that it points to is written, and the link stays.

    Raises:
        OutputError: if it cannot be written; then nothing is left behind.
    """
    check_output(output, sources=[like.path, *like.files], overwrite=overwrite)
    check_fits(output, like, cog=cog)
    driver = "COG" if cog else OUTPUT_DRIVERS[output.suffix.lower()]
    _tell_what_is_lost(output, like, driver)
    place = output.resolve()
    part = place.with_name(f"{hidden_beginning(place)}{os.getpid()}.part")
    image = part if driver == "GTiff" else part.with_name(part.name + output.suffix.lower())
    try:
        # Without PAM GDAL writes no .aux.xml beside the output.
        with gdal_settings(GDAL_PAM_ENABLED=False), not_georeferenced_is_fine():
            profile = _profile(like, final=driver == "GTiff")
            with _writing(output):
                dataset = rasterio.open(part, "w", **profile)
            try:
                with _writing(output):
                    _describe(dataset, like)
                copied = None
                if image != part:
                    copied = partial(rasterio.shutil.copy, driver=driver, **_copy_options(driver, profile, like))
                files = Files(output, place, part=part, image=image, copied=copied, overwrite=overwrite)
                writer = RasterWriter(files, dataset, like)
                yield writer
                writer.finish()
            finally:
                with _writing(output):
                    dataset.close()
        writer.publish()
    finally:
        with interrupts_wait():
            for path in (part, image, *_overviews_in_the_making(image), *_imagery_metadata([part, image])):
                with contextlib.suppress(OSError):  # a name too long for the file system was never given
                    path.unlink(missing_ok=True)


def _tell_what_is_lost(output: Path, like: RasterInfo, driver: str) -> None:
    """Warn of what a raster says of itself and an output of a driver cannot."""
    if driver in {"PNG", "WEBP"} and like.is_georeferenced:
        log.warning("%s cannot say where it lies on Earth; write a .tif to keep that", output)
    if driver in {"PNG", "WEBP"} or not like.is_georeferenced:
        for beside in world_files(output):
            log.warning("%s is there, and programs will place %s by it; is it of this image?", beside, output)
    if driver in {"GTiff", "COG"}:
        for beside in metadata_beside(output):
            log.warning("%s is there, and programs will add what it says to %s", beside, output)
    lost = {tag for tags in like.band_tags for tag in tags.get(None, {})}
    if driver == "COG" and lost and _has_namespaces(like):
        log.warning("%s cannot have the tags %s of bands; write it without --cog", output, ", ".join(sorted(lost)))


def remove_unfinished_rasters(output: Path, *, spare_living: bool = False) -> None:
    """Delete what killed runs left of an unfinished `output`.

    Args:
        output: of which the caller knows that no other run writes it, or else:
        spare_living: leave what belongs to a process that lives.
    """
    place = output.resolve()
    prefix, suffixes = hidden_beginning(place), {"", output.suffix.lower()}
    try:
        found = list(place.parent.iterdir())
    except (FileNotFoundError, PermissionError):  # a folder may let files in and not be listed
        return
    for path in found:
        number, _, rest = path.name.removeprefix(prefix).partition(".")
        is_ours = path.name.startswith(prefix) and number.isdecimal()
        is_part = rest in {"IMD", "part.IMD"} or (
            rest.startswith("part") and (rest[4:] in suffixes or rest.endswith(".tmp"))
        )
        if is_ours and is_part and not (spare_living and lives(int(number))):
            path.unlink(missing_ok=True)


def _overviews_in_the_making(image: Path) -> Iterator[Path]:
    """Yield what GDAL leaves beside a cloud-optimised GeoTIFF when it fails half way."""
    yield from (image.with_name(image.name + end) for end in (".ovr.tmp", ".msk.ovr.tmp", ".tmp"))


def _imagery_metadata(images: Sequence[Path]) -> list[Path]:
    """Return what GDAL writes beside GeoTIFFs that have tags of the namespace IMD: they hold it themselves."""
    return [image.with_suffix(".IMD") for image in images]


def _copy_options(driver: str, profile: dict[str, Any], like: RasterInfo) -> dict[str, Any]:
    """Return GDAL's creation options for a copy of the GeoTIFF that `profile` made."""
    if driver == "WEBP":
        return {"LOSSLESS": "YES", "EXACT": "1"}  # colours too where it is transparent
    if driver == "PNG":
        return {"WRITE_METADATA_AS_TEXT": "YES"}
    if driver == "COG":
        level = {"LEVEL": DEFLATE_LEVEL} if profile["compress"] == "DEFLATE" else {}
        return {
            "COMPRESS": profile["compress"],
            **level,
            "PREDICTOR": "YES",
            "BLOCKSIZE": 512,
            "BIGTIFF": "IF_SAFER",
            "OVERVIEW_RESAMPLING": "AVERAGE",
            "STATISTICS": "NO",
            # Tags of every namespace; but then GDAL leaves out those of bands that are in none.
            "COPY_SRC_MDD": "YES" if _has_namespaces(like) else "AUTO",
        }
    return {}


def _has_namespaces(info: RasterInfo) -> bool:
    return any(namespace is not None for tags in (info.tags, *info.band_tags) for namespace in tags)


@dataclass(frozen=True)
class Files:
    """Where a new raster is made.

    Attributes:
        output: its name, and what messages call it.
        place: where that is, which may be a link.
        part: the GeoTIFF that is written piece by piece.
        image: the whole file, before it gets its name: that GeoTIFF, or another that is made of it in the end.
        copied: makes `image` of `part` where they are two.
        overwrite: whether it may take the place of another.
    """

    output: Path
    place: Path
    part: Path
    image: Path
    copied: Callable[[Path, Path], object] | None
    overwrite: bool


class RasterWriter:
    """Takes the pixels of a new raster; made by `create_raster`.

    Args:
        files: where it is made.
        dataset: `files.part`, open.
        like: what its properties are those of.
    """

    def __init__(self, files: Files, dataset: Any, like: RasterInfo) -> None:
        self._files = files
        self._dataset = dataset
        self._like = like
        self._is_finished = self._is_published = False

    def write(self, dn: NDArray[Any], rows: slice, cols: slice) -> None:
        """Write all bands, (C, rows, cols), in the raster's dtype."""
        with _writing(self._files.output):
            self._dataset.write(dn, window=GdalWindow.from_slices(rows, cols))

    def write_mask(self, mask: NDArray[np.uint8], rows: slice, cols: slice) -> None:
        """Write the raster's own mask, (rows, cols), 0 or 255."""
        with _writing(self._files.output):
            self._dataset.write_mask(mask, window=GdalWindow.from_slices(rows, cols))

    def finish(self) -> None:
        """Make all of the file, so that nothing is left to do but to give it its name; nothing can be written then.

        Of two files that belong together, both are finished before one appears.
        """
        if self._is_finished:
            return
        files = self._files
        with _writing(files.output):
            self._dataset.close()
            self._check_whole(files.part)
            if files.copied is not None:
                files.copied(files.part, files.image)
                self._check_whole(files.image)
            self._tell_lost_crs()
            with files.image.open("rb") as file:  # where disks are full, or far away, this is where they say so
                os.fsync(file.fileno())
        self._is_finished = True

    def publish(self) -> None:
        """Finish the file and give it its name: a matter of a moment, if `finish` was called before."""
        if self._is_published:
            return
        self.finish()
        with _writing(self._files.output):
            _publish(self._files)
        self._is_published = True

    def _check_whole(self, path: Path) -> None:
        # GDAL does not raise when the disk is full as it closes a file.
        if not is_whole(path):
            raise OutputError(f"{self._files.output} could not be written in full; is the disk full?")

    def _tell_lost_crs(self) -> None:
        """Warn where GeoTIFF has no words for a CRS, such as one with a rotated pole: GDAL does not."""
        if driver_of(self._files.image) != "GTiff" or not self._like.crs:
            return
        with rasterio.open(self._files.image, driver="GTiff") as written:
            if not written.crs:
                log.warning("%s cannot hold the CRS of %s and is without one", self._files.output, self._like.path)


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
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "interleave": "pixel",
        "bigtiff": "IF_SAFER",
        "photometric": "RGB" if like.colors[:3] == RGB else "MINISBLACK",
    }
    if profile["compress"] != "LZMA":
        profile["predictor"] = 3 if np.dtype(like.dtype).kind == "f" else 2
    if profile["compress"] == "DEFLATE":
        profile["zlevel"] = DEFLATE_LEVEL if final else 1
    if like.icc_profile:
        profile["source_icc_profile"] = like.icc_profile
    if like.crs:
        profile["crs"] = like.crs
    if not like.transform.is_identity or like.crs:
        profile["transform"] = like.transform
    if like.nodata is not None:
        profile["nodata"] = like.nodata
    return profile


def _describe(dataset: Any, like: RasterInfo) -> None:
    """Give a new dataset all that its profile could not say."""
    points, points_crs = like.gcps
    if points:
        dataset.gcps = ([_before_writing(point, like) for point in points], points_crs or CRS())
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


def _before_writing(point: GroundControlPoint, like: RasterInfo) -> GroundControlPoint:
    """Return a control point such that GDAL writes it to where it is."""
    if like.tags.get(None, {}).get("AREA_OR_POINT") != "Point":
        return point
    shift = _shift_of_points()
    row, col = point.row - shift, point.col - shift
    return GroundControlPoint(row, col, point.x, point.y, point.z, point.id, point.info)


@functools.cache
def _shift_of_points() -> float:
    """Return by how many pixels this GDAL moves control points in a GeoTIFF whose pixels are points: by 1, or 0."""
    with MemoryFile() as memory:
        with memory.open(driver="GTiff", width=1, height=1, count=1, dtype="uint8") as made:
            made.gcps = ([GroundControlPoint(0, 0, 0, 0)], CRS())
            made.update_tags(AREA_OR_POINT="Point")
        with memory.open() as written:
            return float(written.gcps[0][0].row)


def _publish(files: Files) -> None:
    """Give the complete file its name."""
    output, place = files.output, files.place
    # Looked at again: hours may have passed.
    check_output(output, sources=[], overwrite=files.overwrite)
    with contextlib.suppress(OSError):  # of a file that is replaced the permissions stay
        shutil.copymode(place, files.image)
    files.image.replace(place)
    with contextlib.suppress(OSError):  # some file systems have no folders to sync
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    # Statistics, overviews and masks beside a file that was replaced are about its old pixels.
    for beside in {*side_files(output), *side_files(place)}:
        with contextlib.suppress(OSError):  # a folder is none
            beside.unlink(missing_ok=True)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        yield
    except GDAL_ERRORS as error:
        mend = "is the disk full, or the folder read-only?"
        with contextlib.suppress(OSError):
            if shutil.disk_usage(output.resolve().parent).free < _HARDLY_FREE_BYTES:
                mend = "the disk is full: free some space and run the same command again"
        raise OutputError(f"{output} cannot be written ({one_line(error)}); {mend}") from error
