"""What lies beside an image and GDAL would read with it: looked at before GDAL opens the image."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import rasterio

from declouder.errors import RasterError
from declouder.raster.gdal import any_nodata_is_fine, driver_of, lies_there

_PIPES = "/"


def check_company(path: Path, driver: str, beside: Mapping[str, Sequence[Path]] | None = None) -> None:
    """Raise RasterError if GDAL would read a pipe, or files of a file's choice for its overviews or its mask.

    A tag may name any file, or an address in the network, where overviews are; and what lies beside the file under
    a certain name may be of any format, a VRT among others, and have such a tag itself. GDAL takes the names of
    both in large or small letters.

    Args:
        path: the file.
        driver: that opens it.
        beside: the files of its folder by their names in small letters; None looks there.
    """
    beside = files_beside(path.parent) if beside is None else beside
    if pipe := next((found for found in beside.get(_PIPES, ()) if found.name.startswith(path.stem)), None):
        raise RasterError(f"{pipe}, which may be read with {path.name}, is not a regular file; remove it")
    for suffix in (".ovr", ".msk"):
        # In a folder that may not be listed GDAL asks for these two.
        asked = [path.with_name(path.name + spelt) for spelt in (suffix, suffix.upper())]
        for company in {*beside.get(path.name.lower() + suffix, ()), *filter(lies_there, asked)}:
            if driver_of(company) != "GTiff":
                raise RasterError(
                    f"{company}, which belongs to {path.name}, is no GeoTIFF; remove it, or make it anew"
                )
            check_company(company, "GTiff", beside)
    # Without overviews the tag is not followed.
    with any_nodata_is_fine(), rasterio.open(plain_name(path), driver=driver, OVERVIEW_LEVEL="NONE") as dataset:
        tags = {name.lower(): value for name, value in dataset.tags(ns="OVERVIEWS").items()}
    if "overview_file" in tags:
        raise RasterError(
            f"{path} says that its overviews are in {tags['overview_file'][:200]}, which is not followed; make a "
            "copy without: gdal_translate IN OUT.tif"
        )


def files_beside(folder: Path) -> dict[str, list[Path]]:
    """Return the files beside which GDAL may look for overviews and masks, by their names in small letters.

    There are none where a folder may not be listed. Pipes come under a name that no file has: GDAL would wait for
    them without end.
    """
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except PermissionError:
        return found
    for entry in entries:
        is_company = entry.name.lower().endswith((".ovr", ".msk"))
        # Known without asking the disk for each of many files.
        if not is_company and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link that leads nowhere
            continue
        if is_company and stat.S_ISREG(mode):
            found.setdefault(entry.name.lower(), []).append(Path(entry.path))
        elif stat.S_ISFIFO(mode):
            found.setdefault(_PIPES, []).append(Path(entry.path))
    return found


def plain_name(path: Path) -> str:
    """Return the name by which GDAL opens a file here, whatever the name looks like."""
    # From the root on, a name such as s3:a.tif is that of a file here.
    return str(path.absolute())
