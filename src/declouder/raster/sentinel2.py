"""Sentinel-2 products as they are delivered (.SAFE): four bands of 10 m, and what their numbers mean.

    reflectance = (DN + offset) / quantification

Since processing baseline 04.00 (January 2022) the offset is -1000, so that dark ground needs no negative DN; older
products know none: it is 0. DN 0 is no data. (Sentinel-2 Products Specification Document, ESA,
S2-PDGS-TAS-DI-PSD: MTD_MSIL1C.xml has RADIO_ADD_OFFSET and QUANTIFICATION_VALUE, MTD_MSIL2A.xml has BOA_ADD_OFFSET
and BOA_QUANTIFICATION_VALUE.)
"""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

from declouder.errors import RasterError
from declouder.raster.stack import BandFile
from declouder.raster.xml import parsed_xml

# By what the model calls them: the name in file names, and band_id in the metadata.
_BANDS = {"red": ("B04", 3), "green": ("B03", 2), "blue": ("B02", 1), "nir": ("B08", 7)}
_TAGS = {
    "MTD_MSIL2A.xml": ("BOA_QUANTIFICATION_VALUE", "BOA_ADD_OFFSET"),
    "MTD_MSIL1C.xml": ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET"),
}
_NODATA = 0
_MOST_XML_BYTES = 16 * 2**20
_MEND = "get the product's metadata again"


def is_safe(path: Path) -> bool:
    """Return whether a folder is a Sentinel-2 product as it is delivered."""
    return path.is_dir() and path.resolve().suffix.upper() == ".SAFE"


def files_of_safe(folder: Path) -> dict[str, BandFile]:
    """Return the four bands of 10 m of a Sentinel-2 product, by what the model calls them.

    Raises:
        RasterError: if a band is missing, lies outside the folder, or the metadata cannot be read.
    """
    meaning = radiometry(folder)
    files = {}
    for color, (band, number) in _BANDS.items():
        found = sorted(
            path
            for pattern in (f"GRANULE/*/IMG_DATA/R10m/*_{band}_10m.jp2", f"GRANULE/*/IMG_DATA/*_{band}.jp2")
            for path in folder.glob(pattern)
            if path.resolve().is_relative_to(folder.resolve())
            and path.is_file()
            # ._T32TQM_B04_10m.jp2 is what macOS leaves on other file systems.
            and not path.name.startswith(".")
        )
        if len(found) != 1:
            raise RasterError(
                f"{folder} holds {len(found)} files of {band} ({color}, 10 m); give one whole Sentinel-2 product"
            )
        scale, offset = meaning.get(number, (1.0, 0.0))
        files[color] = BandFile(found[0], scale=scale, offset=offset, nodata=_NODATA)
    return files


def radiometry(folder: Path) -> dict[int, tuple[float, float]]:
    """Return scale and offset of reflectance of each band by its band_id; nothing where there is no metadata.

    Raises:
        RasterError: if the metadata cannot be read, or say what cannot be.
    """
    for name, (quantification, offset) in _TAGS.items():
        path = folder / name
        if path.is_file():
            if not path.resolve().is_relative_to(folder.resolve()):
                raise RasterError(f"{path} lies outside its product; {_MEND}")
            root = parsed_xml(path, most_bytes=_MOST_XML_BYTES, mend=_MEND)
            return _read(path, root, quantification, offset)
    return {}


def _read(
    path: Path, root: ElementTree.Element, quantification: str, offset: str
) -> dict[int, tuple[float, float]]:
    said = list(root.iter(quantification))
    if len(said) != 1:
        raise RasterError(f"{path} has {len(said)} elements {quantification}, wanted one; {_MEND}")
    divisor = _number(path, said[0])
    if divisor <= 0:
        raise RasterError(f"{path}: {quantification} is {divisor:g}, wanted a number above 0; {_MEND}")
    offsets = {element.get("band_id", ""): _number(path, element) for element in root.iter(offset)}
    wanted = [number for _, number in _BANDS.values()]
    missing = [number for number in wanted if str(number) not in offsets]
    if offsets and missing:
        raise RasterError(f"{path} has no {offset} of band_id {missing[0]}; {_MEND}")
    return {number: (1 / divisor, offsets.get(str(number), 0.0) / divisor) for number in wanted}


def _number(path: Path, element: ElementTree.Element) -> float:
    try:
        value = float(element.text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise RasterError(f"{path}: {element.tag} is {(element.text or '')[:40]!r}, wanted a number; {_MEND}")
    return value
