"""What a path names: a file of a known format, a VRT that was looked through first, or a Sentinel-2 folder.

A VRT is a text that names other files, so it could make us read, and write out again, whatever its author chose.
It is let in when its name ends in .vrt, it holds elements of a closed list only, and every file it names lies in
its own folder or below (or anywhere, where the user allows it). Sentinel-2 folders (.SAFE) are read through a VRT
of our own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from declouder.errors import RasterError
from declouder.raster.gdal import INPUT_DRIVERS

_MOST_VRT_BYTES = 64 * 2**20
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
}
_SAFE_BANDS = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}


def check_source(path: Path) -> None:
    """Raise RasterError unless `path` is a file that can be read, or a Sentinel-2 folder."""
    if path.is_dir():
        if is_safe(path):
            return
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


def is_safe(path: Path) -> bool:
    """Return whether a folder is a Sentinel-2 product as it is delivered."""
    return path.is_dir() and path.suffix.upper() == ".SAFE"


def opened_as(path: Path, *, allow_outside: bool) -> tuple[str, str]:
    """Return what GDAL shall open, and with which driver.

    Raises:
        RasterError: if it is no image by its first bytes, or a VRT that may not be read.
    """
    if is_safe(path):
        return _vrt_of_safe(path), "VRT"
    if path.suffix.lower() == ".vrt":
        _check_vrt(path, path.resolve().parent, allow_outside=allow_outside)
        return str(path), "VRT"
    return str(path), driver_of(path)


def driver_of(path: Path) -> str:
    """Return GDAL's driver for a file by its first bytes; RasterError if it is none of ours."""
    with path.open("rb") as file:
        start = file.read(16)
    for magic, driver in INPUT_DRIVERS.items():
        if re.match(magic, start, re.DOTALL):
            return driver
    raise RasterError(f"{path} is not an image by its first bytes; give a GeoTIFF, TIFF, PNG, JPEG or WebP file")


def _check_vrt(path: Path, folder: Path, *, allow_outside: bool) -> None:
    if path.stat().st_size > _MOST_VRT_BYTES:
        raise RasterError(f"{path} is a VRT of over {_MOST_VRT_BYTES >> 20} MiB; give the files that it names")
    text = path.read_bytes()
    if b"<!" in text.replace(b"<!--", b""):
        raise RasterError(f"{path} declares entities, which a VRT has no use for; write it anew: gdalbuildvrt")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise RasterError(f"{path} is no VRT ({error}); write it anew: gdalbuildvrt") from None
    if root.tag != "VRTDataset":
        raise RasterError(f"{path} is no VRT but <{root.tag[:40]}>; give an image")
    for element in root.iter():
        subclass = element.get("subClass", "VRTSourcedRasterBand")
        if element.tag not in _VRT_ELEMENTS or subclass != "VRTSourcedRasterBand":
            what = element.tag if element.tag not in _VRT_ELEMENTS else subclass
            raise RasterError(
                f"{path} holds {what[:40]}, more than a plain mosaic; make an image of it: gdal_translate"
            )
        if element.tag == "SourceFilename":
            _check_named(path, folder, element, allow_outside=allow_outside)


def _check_named(path: Path, folder: Path, element: ElementTree.Element, *, allow_outside: bool) -> None:
    """Raise RasterError unless a VRT names an image file, in its own folder or where that is allowed."""
    name = (element.text or "").strip()
    is_relative = element.get("relativeToVRT", element.get("relativetoVRT", "0")) == "1"
    target = (path.parent / name if is_relative else Path(name)).resolve()
    if ":" in name or name.startswith("/vsi"):
        raise RasterError(f"{path} names {name[:200]}, which is no plain file; give the files themselves")
    if not allow_outside and not target.is_relative_to(folder):
        raise RasterError(
            f"{path} names {name[:200]}, outside its own folder; if that is meant, allow it with --allow-outside"
        )
    # An existing file and no other string of GDAL's: /vsicurl/, a database, a VRT within.
    check_source(target)
    if target.is_dir():
        raise RasterError(f"{path} names the folder {name[:200]}; give the files in it")
    driver_of(target)


def _vrt_of_safe(folder: Path) -> str:
    """Return a VRT of the four bands of 10 m of a Sentinel-2 product, as text."""
    files = {}
    for color, band in _SAFE_BANDS.items():
        found = sorted(
            path
            for pattern in (f"GRANULE/*/IMG_DATA/R10m/*_{band}_10m.jp2", f"GRANULE/*/IMG_DATA/*_{band}.jp2")
            for path in folder.glob(pattern)
            if path.resolve().is_relative_to(folder.resolve())
        )
        if len(found) != 1:
            raise RasterError(
                f"{folder} holds {len(found)} files of {band} ({color}, 10 m); give one whole Sentinel-2 product"
            )
        (files[color],) = found
        check_source(found[0])
    return vrt_of_bands(files)


def vrt_of_bands(files: dict[str, Path]) -> str:
    """Return a VRT, as text, that stacks the first bands of files on one grid under the given names."""
    import rasterio

    with rasterio.open(next(iter(files.values())), driver=driver_of(next(iter(files.values())))) as first:
        height, width, dtype = first.height, first.width, first.dtypes[0]
        place = ",".join(str(value) for value in first.transform.to_gdal())
        crs = escape(first.crs.to_wkt()) if first.crs else ""
        nodata = first.nodata
    for color, path in files.items():
        with rasterio.open(path, driver=driver_of(path)) as other:
            if (other.height, other.width, other.dtypes[0]) != (height, width, dtype):
                raise RasterError(
                    f"{path} is {other.width} x {other.height} px of {other.dtypes[0]}, the other bands are "
                    f"{width} x {height} px of {dtype}; give bands of one grid (not {color} of another resolution)"
                )
    kind = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}.get(dtype)
    if kind is None:
        raise RasterError(
            f"{next(iter(files.values()))} is of dtype {dtype}; give bands of uint8, uint16 or float32"
        )
    bands = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}"><Description>{escape(color)}</Description>'
        + ("" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>")
        + f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(str(path.resolve()))}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
        for number, (color, path) in enumerate(files.items(), start=1)
    )
    srs = f"<SRS>{crs}</SRS>" if crs else ""
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{srs}'
        f"<GeoTransform>{place}</GeoTransform>{bands}</VRTDataset>"
    )
