"""Which files of a STAC item hold red, green, blue and near infrared, and what their numbers mean.

What a band is called: bands (STAC 1.1) or eo:bands (1.0), by `eo:common_name`, `common_name` or, where there is
none, `name`; else the asset's key. What its numbers mean: raster:scale, raster:offset (1.1), raster:bands (1.0).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pystac

from declouder.errors import RasterError, reason_of
from declouder.raster import BandFile, grid_of, lies_there, vrt_of_bands
from declouder.rgb import RGB

log = logging.getLogger(__name__)

_FURTHER = "nir"
_MOST_BYTES = 16 * 2**20
# Assets that show a scene to people; their numbers are no measurements.
_SHOWN_ROLES = {"thumbnail", "overview", "visual"}


@dataclass(frozen=True)
class SourceItem:
    """A STAC item and the files of its bands.

    Attributes:
        path: of the item.
        fields: the item, as JSON knows it.
        bands: by what the model calls them.
    """

    path: Path
    fields: Mapping[str, Any]
    bands: Mapping[str, BandFile]


def read_item(path: Path, *, allow_outside: bool = False) -> SourceItem:
    """Read a STAC item and find its bands.

    Args:
        path: of the item's JSON.
        allow_outside: assets may lie outside the item's folder.

    Raises:
        RasterError: if it is no STAC item, lacks red, green or blue, or names files that are not here.
    """
    fields = _read_json(path)
    try:
        pystac.Item.from_dict(dict(fields), preserve_dict=True)
    except Exception as error:  # whatever a strange text leads to in a parser of others
        raise RasterError(f"{path} is no STAC item ({reason_of(error)}); give the JSON of an item") from error
    assets = fields.get("assets")
    if not isinstance(assets, Mapping) or not all(isinstance(asset, Mapping) for asset in assets.values()):
        raise RasterError(f"{path} has no assets; give the JSON of a STAC item with its bands")
    applied = fields.get("properties", {}).get("earthsearch:boa_offset_applied") is True
    found = {color: _chosen(color, assets) for color in (*RGB, _FURTHER)}
    missing = [color for color in RGB if found[color] is None]
    if missing:
        raise RasterError(
            f"{path} names no band {', '.join(missing)} (its assets: {', '.join(map(str, assets))[:200]}); "
            "give an item that has red, green and blue, or files of these, stacked: gdalbuildvrt -separate"
            " scene.vrt RED GREEN BLUE"
        )
    bands: dict[str, BandFile] = {}
    for color, choice in found.items():
        if choice is not None:
            file = _local_file(path, assets[choice.asset], choice.asset, allow_outside=allow_outside)
            # Earth Search has taken the offset off the numbers, and still names it.
            bands[color] = _meant(path, file, choice, assets[choice.asset], offset_applied=applied)
    values = {color: _nodata(bands[color]) for color in RGB}
    if len({*values.values()} - {"None"}) > 1:
        told = ", ".join(f"{color} {value}" for color, value in values.items())
        raise RasterError(f"{path}: nodata differs ({told}); give files of one nodata: gdal_translate -a_nodata")
    if _FURTHER in bands and not grid_of(bands[_FURTHER]).is_as(grid_of(bands["red"])):
        log.info("nir of %s lies on another grid; left out", path)
        del bands[_FURTHER]
    if _FURTHER in bands and _nodata(bands[_FURTHER]) != _nodata(bands["red"]):
        log.info("nir of %s has another nodata; left out", path)
        del bands[_FURTHER]
    return SourceItem(path, fields, bands)


@contextlib.contextmanager
def scene_of(item: SourceItem) -> Iterator[Path]:
    """Yield a VRT of an item's bands, for as long as the block lasts.

    Raises:
        RasterError: if they do not lie on one grid.
    """
    text = vrt_of_bands(item.bands)
    newest_ns = max(band.path.stat().st_mtime_ns for band in item.bands.values())
    with tempfile.TemporaryDirectory(prefix="declouder-") as folder:
        scene = Path(folder) / f"{item.path.stem}.vrt"
        scene.write_text(text, encoding="utf-8")
        # As old as what it names: a run that was stopped knows its input again.
        os.utime(scene, ns=(newest_ns, newest_ns))
        yield scene


@dataclass(frozen=True)
class _Choice:
    asset: str
    number: int
    """1-based, of the band in the asset."""


def _chosen(color: str, assets: Mapping[str, Mapping[str, Any]]) -> _Choice | None:
    """Return the band of a colour: the asset of that key first, then the one with fewest bands."""
    found = []
    for place, (key, asset) in enumerate(assets.items()):
        roles = asset.get("roles") or []
        if not isinstance(roles, list) or _SHOWN_ROLES.intersection(map(str, roles)):
            continue
        names = [_name(band) for band in _bands(asset)]
        is_named_so = key.lower() == color
        if len(names) <= 1 and is_named_so:
            names = [color]
        if names.count(color) == 1:
            found.append((not is_named_so, len(names), place, _Choice(key, names.index(color) + 1)))
    return min(found, key=lambda one: one[:3])[3] if found else None


def _bands(asset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    for name in ("bands", "eo:bands"):
        bands = asset.get(name)
        if isinstance(bands, list) and bands and all(isinstance(band, Mapping) for band in bands):
            return bands
    return []


def _name(band: Mapping[str, Any]) -> str:
    for field in ("eo:common_name", "common_name", "name"):
        if isinstance(band.get(field), str):
            name = str(band[field]).lower()
            return _FURTHER if name == "nir08" else name  # Landsat's, by the same specification
    return ""


def _is_name(href: str) -> bool:
    """Return whether a file could be called so."""
    try:
        return bool(os.fsencode(href)) and "\0" not in href
    except UnicodeEncodeError:
        return False


def _local_file(item: Path, asset: Mapping[str, Any], key: str, *, allow_outside: bool) -> Path:
    href = asset.get("href")
    if not isinstance(href, str) or not _is_name(href):
        raise RasterError(f"{item}: asset {key[:40]} has no href; give an item whose assets are files")
    try:
        parts = urlsplit(href)
    except ValueError as error:
        raise RasterError(f"{item}: asset {key[:40]} has the href {href[:200]} ({error}); mend the item") from None
    name = unquote(parts.path) if parts.scheme == "file" and parts.netloc in {"", "localhost"} else href
    if "://" in name or name.startswith("/vsi"):
        raise RasterError(
            f"{item}: asset {key[:40]} lies at {href[:200]}; download it first, and name the file in the item"
        )
    file = item.absolute().parent / name
    with contextlib.suppress(OSError):  # a name too long for the file system is no file either
        # An href is a URI, where a space is %20; most people write file names.
        if not file.is_file() and (item.absolute().parent / unquote(name)).is_file():
            file = item.absolute().parent / unquote(name)
    if not allow_outside and not file.resolve().is_relative_to(item.resolve().parent):
        raise RasterError(
            f"{item}: asset {key[:40]} is {href[:200]}, outside the item's folder; if that is meant, allow it "
            "with --allow-outside"
        )
    if not lies_there(file):
        raise RasterError(f"{item}: asset {key[:40]} is {href[:200]}, and there is no such file; download it first")
    return file


def _nodata(band: BandFile) -> str:
    value = grid_of(band).nodata if band.nodata is None else band.nodata
    return str(value)  # a NaN is not itself


def _meant(item: Path, file: Path, choice: _Choice, asset: Mapping[str, Any], *, offset_applied: bool) -> BandFile:
    """Return a band with what its numbers mean."""
    said: dict[str, Any] = {}
    # What a band says comes after, and over, what the asset says of all its bands.
    for fields in (asset, _at(asset.get("raster:bands"), choice.number), _at(asset.get("bands"), choice.number)):
        for name in ("scale", "offset", "nodata"):
            value = fields.get(f"raster:{name}", fields.get(name))
            if value is not None:
                said[name] = value
    values = {name: _number(item, choice.asset, name, value) for name, value in said.items()}
    if values.get("scale") == 0:
        raise RasterError(f"{item}: asset {choice.asset[:40]} has scale 0; mend the item")
    offset = 0.0 if offset_applied else values.get("offset")
    return BandFile(file, choice.number, values.get("scale"), offset, values.get("nodata"))


def _at(bands: Any, number: int) -> Mapping[str, Any]:
    """Return the fields of the band of a 1-based number, if they are there."""
    is_there = isinstance(bands, list) and len(bands) >= number and isinstance(bands[number - 1], Mapping)
    return bands[number - 1] if is_there else {}


def _number(item: Path, key: str, field: str, value: Any) -> float:
    if field == "nodata" and isinstance(value, str) and value.lower() in {"nan", "inf", "-inf"}:
        return float(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or (isinstance(value, float) and not math.isfinite(value)):
        raise RasterError(
            f"{item}: asset {key[:40]} has {field} {str(value)[:40]!r}, wanted a number; mend the item"
        )
    try:
        return float(value)
    except OverflowError:
        raise RasterError(f"{item}: asset {key[:40]} has a {field} beyond any number; mend the item") from None


def _read_json(path: Path) -> Mapping[str, Any]:
    mend = "give the JSON of a STAC item"
    try:
        if not path.is_file():
            raise RasterError(f"{path} does not exist, or is no file; {mend}")
        if path.stat().st_size > _MOST_BYTES:
            raise RasterError(f"{path} is of over {_MOST_BYTES >> 20} MiB; {mend}")
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RasterError(f"{path} cannot be read ({reason_of(error)}); {mend}") from None
    if not isinstance(fields, dict) or fields.get("type") != "Feature" or "stac_version" not in fields:
        raise RasterError(f"{path} is no STAC item; {mend}")
    if not isinstance(fields.get("properties"), dict):
        raise RasterError(f"{path} has no properties; {mend}")
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        raise RasterError(f"{path} is no STAC item, as it has no id; {mend}")
    return fields
