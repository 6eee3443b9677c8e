"""What a path names: a file of a known format, a VRT that was looked through first, or a Sentinel-2 folder.

A VRT is a text that names other files, so it could make us read, and write out again, whatever its author chose.
It is let in when its name ends in .vrt, it holds elements of a closed list only, and every file it names lies in
its own folder or below (or anywhere, where the user allows it). Sentinel-2 folders (.SAFE) are read through a VRT
of our own (`sentinel2`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from declouder.errors import RasterError
from declouder.raster.company import check_company, files_beside, plain_name
from declouder.raster.gdal import check_name, driver_of
from declouder.raster.info import HISTOGRAM
from declouder.raster.sentinel2 import files_of_safe, is_safe
from declouder.raster.stack import vrt_of_bands
from declouder.raster.xml import parsed_xml

_MOST_VRT_BYTES = 64 * 2**20
_ADDRESS = re.compile(r"(?i)(https?|s3|gs|az|ftp):/|/vsi\w+/")  # a Path has one slash for the two
_IN_ARCHIVE = re.compile(r"/vsi(zip|gzip|tar|7z|rar)/")
# All that a mosaic, a stack of bands, or `gdal_translate -of VRT` writes. Warping, pixel functions, raw bands and
# other subclasses run code or reach elsewhere; they are not here.
_VRT_ELEMENTS = {
    *("VRTDataset", "SRS", "GeoTransform", "GCPList", "GCP", "Metadata", "MDI"),
    *(
        "VRTRasterBand",
        "ColorInterp",
        "NoDataValue",
        "HideNoDataValue",
        "Description",
        "UnitType",
        "Offset",
        "Scale",
    ),
    *("SimpleSource", "ComplexSource", "AveragedSource", "SourceFilename", "SourceBand", "SourceProperties"),
    *("SrcRect", "DstRect", "NODATA", "ScaleOffset", "ScaleRatio", "UseMaskBand", "MaskBand", "OverviewList"),
    *("ColorTable", "Entry", "CategoryNames", "Category"),
    *HISTOGRAM,
}
# GDAL reads names in any case, and an attribute as it reads an element: <SimpleSource SourceFilename="/etc/x.tif">.
_VRT_ATTRIBUTES = {
    *("rasterxsize", "rasterysize", "datatype", "band", "subclass", "blockxsize", "blockysize", "nbits"),
    *("dataaxistosrsaxismapping", "coordinateepoch", "projection", "id", "info", "pixel", "line", "x", "y", "z"),
    *("domain", "format", "key", "resampling", "relativetovrt", "shared", "xoff", "yoff", "xsize", "ysize"),
    *("c1", "c2", "c3", "c4"),
}
_USUAL_BAND = "VRTSourcedRasterBand"


def check_source(path: Path) -> None:
    """Raise RasterError unless `path` is a file that can be read, or a Sentinel-2 folder."""
    check_name(path, RasterError)
    if path.is_dir():
        if is_safe(path):
            return
        raise RasterError(f"{path} is a folder, not an image; give the files in it")
    if not path.exists():
        if _IN_ARCHIVE.match(str(path)):
            raise RasterError(f"{path} looks like a file in an archive; only files are read: unpack it first")
        if _ADDRESS.match(str(path)):
            raise RasterError(f"{path} looks like an address; only files are read: download it first")
        raise RasterError(f"{path} does not exist; check the name")
    # A pipe or device would be waited for without end.
    if not path.is_file():
        raise RasterError(f"{path} is not a regular file; give an image file")
    if not os.access(path, os.R_OK):
        raise RasterError(f"{path} may not be read; check its permissions")
    if path.stat().st_size == 0:
        raise RasterError(f"{path} is empty (0 bytes); get it again")


@dataclass(frozen=True)
class Source:
    """What GDAL shall open, with which driver, and all files that it will read pixels from."""

    name: str
    driver: str
    files: tuple[Path, ...]

    def check_company(self) -> None:
        """Raise RasterError if one of the files would make GDAL read others; see `check_company`."""
        beside: dict[Path, dict[str, list[Path]]] = {}  # a mosaic has many files in a folder
        for path in self.files:
            if path.parent not in beside:
                beside[path.parent] = files_beside(path.parent)
            is_vrt = path.suffix.lower() == ".vrt"
            check_company(path, "VRT" if is_vrt else driver_of(path), beside[path.parent])


def opened_as(path: Path, *, allow_outside: bool) -> Source:
    """Return what GDAL shall open for a path.

    Raises:
        RasterError: if it is no image by its first bytes, or a VRT that may not be read.
    """
    if is_safe(path):
        files = files_of_safe(path)
        return Source(vrt_of_bands(files), "VRT", tuple(band.path for band in files.values()))
    if path.suffix.lower() == ".vrt":
        named = _files_of_vrt(path, path.resolve().parent, allow_outside=allow_outside)
        return Source(plain_name(path), "VRT", (path, *named))
    return Source(plain_name(path), driver_of(path), (path,))


def _files_of_vrt(path: Path, folder: Path, *, allow_outside: bool) -> list[Path]:
    named: dict[Path, None] = {}  # a mosaic names a file once for every band
    root = parsed_xml(path, most_bytes=_MOST_VRT_BYTES, mend="write it anew: gdalbuildvrt")
    if root.tag != "VRTDataset":
        raise RasterError(f"{path} is no VRT but <{root.tag[:40]}>; give an image")
    for element in root.iter():
        attributes = {name.lower(): value for name, value in element.attrib.items()}
        strange = _strange_in(element, attributes)
        if strange is not None:
            raise RasterError(
                f"{path} holds {strange[:40]}, more than a plain mosaic; make an image of it: gdal_translate"
            )
        if element.tag == "SourceFilename":
            is_relative = attributes.get("relativetovrt") == "1"
            named[_named(path, folder, element.text, is_relative, allow_outside=allow_outside)] = None
    return list(named)


def _strange_in(element: ElementTree.Element, attributes: Mapping[str, str]) -> str | None:
    """Return what of an element no plain mosaic has, or None; `attributes` are its own, named in small letters."""
    if element.tag not in _VRT_ELEMENTS:
        return element.tag
    unknown = [name for name in element.attrib if name.lower() not in _VRT_ATTRIBUTES]
    if unknown or len(attributes) < len(element.attrib):  # one name twice, of which GDAL takes one
        return [*unknown, *element.attrib][0]
    subclass, relative = attributes.get("subclass", _USUAL_BAND), attributes.get("relativetovrt", "0")
    if subclass != _USUAL_BAND:
        return subclass
    return None if relative in ("0", "1") else f'relativeToVRT="{relative}"'


def _named(path: Path, folder: Path, text: str | None, is_relative: bool, *, allow_outside: bool) -> Path:
    """Return the image file that a VRT names, in its own folder or where that is allowed."""
    name = (text or "").strip()
    # GDAL follows a link to the VRT before it looks beside it.
    target = (folder / name if is_relative else Path(name)).resolve()
    # A colon may make another driver's name of it (GTIFF_DIR:1:FILE), save where the name begins at the root.
    is_strange = ":" in name and not name.startswith("/")
    if is_strange or name.startswith("/vsi"):
        raise RasterError(f"{path} names {name[:200]}, which is no plain file; give the files themselves")
    if not allow_outside and not target.is_relative_to(folder):
        raise RasterError(
            f"{path} names {name[:200]}, outside its own folder; if that is meant, allow it with --allow-outside"
        )
    # An existing file and no other string of GDAL's: /vsicurl/, a database, a VRT within.
    try:
        check_source(target)
    except RasterError as error:
        raise RasterError(f"{path} names a file that cannot be read: {error}") from None
    if target.suffix.lower() == ".vrt":
        raise RasterError(
            f"{path} names {name[:200]}, a VRT in turn; give the files themselves, or make an image of it:"
            " gdal_translate"
        )
    if target.is_dir():
        raise RasterError(f"{path} names the folder {name[:200]}; give the files in it")
    driver_of(target)
    return target
