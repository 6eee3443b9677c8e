"""Where a new raster goes: whether it can be written there, and whether its format can hold the image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import rasterio

from declouder.errors import MisfitError, OutputError, RasterError
from declouder.raster.company import check_company, plain_name
from declouder.raster.gdal import (
    DTYPES,
    GDAL_ERRORS,
    OUTPUT_DRIVERS,
    check_name,
    driver_of,
    gdal_settings,
    lies_there,
    not_georeferenced_is_fine,
)
from declouder.raster.info import RasterInfo, info_of
from declouder.rgb import RGB

_LONGEST_NAME = 255
"""Bytes of a file's name that file systems take: what would be longer is not there."""


def check_output(output: Path, *, sources: Sequence[Path], overwrite: bool, called: str = "output") -> None:
    """Raise OutputError unless `output` is a place for a new file that is none of `sources`.

    `called` is the output in the message that it is one of them.
    """
    check_name(output, OutputError)
    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name in it, such as {output / 'clear.tif'}")
    if output.suffix.lower() not in OUTPUT_DRIVERS:
        known = ", ".join(OUTPUT_DRIVERS)
        lossy = "JPEG would lose detail; " if output.suffix.lower() in {".jpg", ".jpeg"} else ""
        is_free = not output.suffix and not output.exists() and str(output) != "-"
        folder = f", or make the folder first: mkdir -p {output}" if is_free else ""
        raise OutputError(f"{output} has no suffix that can be written; {lossy}use one of {known}{folder}")
    check_folder(output.parent)
    if output.is_symlink():  # what it points to is written
        try:
            place = output.resolve()
            is_loop = place.is_symlink()
        except RuntimeError:  # as Python before 3.13 says it
            is_loop = True
        if is_loop:
            raise OutputError(f"{output} is a link that leads round to itself; give another name")
        check_folder(place.parent)
    for source in sources:
        if output.resolve() == source.resolve() or (
            output.exists() and source.exists() and output.samefile(source)
        ):
            raise OutputError(f"{called} {output} is the input {source} itself; give another name")
        if source.resolve() in {side.resolve() for side in side_files(output)}:
            raise OutputError(f"{source} is named as a side file of {output}, which goes with it; rename one")
    if output.exists() and not output.is_file():
        raise OutputError(f"{output} is not a regular file; give another name")
    if not overwrite and output.exists():
        raise OutputError(f"{output} exists already; give --overwrite to replace it, or another name")


def check_folder(folder: Path) -> None:
    """Raise OutputError unless files can be made in `folder`."""
    if not folder.exists():
        raise OutputError(f"the output folder {folder} does not exist; make it first: mkdir -p {folder}")
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder to write into; give another output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the output folder {folder} may not be written; give another one")


def check_fits(output: Path, info: RasterInfo, *, cog: bool = False) -> None:
    """Raise MisfitError if the format of `output` cannot hold the bands, dtype and mask of `info`."""
    driver, tif = OUTPUT_DRIVERS[output.suffix.lower()], output.with_suffix(".tif")
    if cog and driver != "GTiff":
        raise MisfitError(f"{output} cannot be a cloud-optimised GeoTIFF; name it {tif}")
    bands, dtypes, most_px = {
        "GTiff": (range(1, 65536), DTYPES, 2**31 - 1),
        "PNG": (range(1, 5), ("uint8", "uint16"), 2**31 - 1),
        "WEBP": (range(3, 5), ("uint8",), 16383),
    }[driver]
    if info.count not in bands or info.dtype not in dtypes or max(info.height, info.width) > most_px:
        raise MisfitError(
            f"{output} cannot hold {info.count} bands of {info.dtype}, {info.width} x {info.height} px; "
            f"write {tif} instead"
        )
    if driver == "GTiff":
        return
    if driver == "WEBP" and info.nodata is not None:
        raise MisfitError(f"{output} cannot hold the nodata value of {info.path}; write {tif} instead")
    if driver == "PNG" and info.nodata is not None and info.alpha is not None:
        raise MisfitError(f"{output} cannot hold both nodata and transparency of {info.path}; write {tif} instead")
    if info.has_mask:
        raise MisfitError(f"{output} cannot hold the mask of {info.path}; write {tif} instead")
    names = [
        said.lower() if said and color in {"undefined", "gray"} else color
        for color, said in zip(info.colors, info.descriptions, strict=True)
    ]
    if not _is_picture(names):
        raise MisfitError(
            f"{output} would show the bands {', '.join(names)} as grey or as red, green, blue, and a further one "
            f"as transparency; write {tif} instead"
        )


def _is_picture(names: Sequence[str]) -> bool:
    """Return whether bands of these names are what a picture of so many bands shows them as."""
    shown = 1 if len(names) < len(RGB) else len(RGB)
    further_is_alpha = all(name == "alpha" for name in names[shown:])
    if shown == 1:  # whatever it is, it is shown as grey
        return further_is_alpha and names[0] != "alpha"
    # A name that is none of theirs says nothing against them.
    misplaced = [name for name, place in zip(names, RGB, strict=False) if name != place]
    return further_is_alpha and not {*RGB, "alpha"}.intersection(misplaced)


def output_name(source: Path) -> str:
    """Return the name of the result of `source` in an output folder: its own, where that can be lossless.

    A JPEG becomes a PNG, or a GeoTIFF where it says where it lies on Earth.
    """
    if source.suffix.lower() in OUTPUT_DRIVERS:
        return source.name
    is_plain = source.suffix.lower() in {".jpg", ".jpeg"} and not _is_georeferenced(source)
    return source.with_suffix(".png" if is_plain else ".tif").name


def _is_georeferenced(path: Path) -> bool:
    try:
        if not path.is_file():  # a pipe would be waited for without end
            return False
        driver = driver_of(path)
        with gdal_settings(), not_georeferenced_is_fine():
            check_company(path, driver)
            with rasterio.open(plain_name(path), driver=driver) as dataset:
                return info_of(path, dataset).is_georeferenced
    except (RasterError, *GDAL_ERRORS):  # which whoever reads it will tell
        return False


def side_files(image: Path) -> list[Path]:
    """Return where GDAL looks for statistics, overviews and a mask of an image besides in it."""
    found = [image.with_name(image.name + suffix) for suffix in (".aux.xml", ".ovr", ".msk")]
    return [path for path in found if len(os.fsencode(path.name)) <= _LONGEST_NAME]


def metadata_beside(image: Path) -> list[Path]:
    """Return the files of satellite operators beside an image: of its acquisition, or where it lies."""
    endings = (".IMD", ".imd", ".RPB", ".rpb", "_RPC.TXT", "_rpc.txt")
    return [place for end in endings if lies_there(place := image.with_name(image.stem + end))]
