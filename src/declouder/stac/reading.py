"""Which files of a STAC item hold red, green, blue and near infrared, and what their numbers mean.

Which bands these are: `stac.choosing`. What their numbers mean: raster:scale, raster:offset (STAC 1.1),
raster:bands (1.0), else what the files say.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pystac

from declouder.errors import RasterError, reason_of
from declouder.raster import BandFile, as_stored, grid_of, lies_there, vrt_of_bands
from declouder.rgb import RGB
from declouder.stac.choosing import Asset, Choice, chosen_bands, fields_of

log = logging.getLogger(__name__)

_FURTHER = "nir"
_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class SourceItem:
    """A STAC item and the files of its bands.

    Attributes:
        path: of the item.
        fields: the item, as JSON knows it.
        bands: by what the model calls them.
        also_nodata: what the item says where the files declare another number. The scene's is that of the files, so
            give this one as `SceneOptions.nodata`.
        gsd: size of a pixel of red, green and blue, in metres, if the item says so of them.
    """

    path: Path
    fields: Mapping[str, Any]
    bands: Mapping[str, BandFile]
    also_nodata: float | None = None
    gsd: float | None = None


def read_item(path: Path, *, allow_outside: bool = False) -> SourceItem:
    """Read a STAC item and find its bands: red, green, blue and, where it can be read beside them, near infrared.

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
    # Earth Search has taken the offset off the numbers, and still names it.
    applied = fields.get("properties", {}).get("earthsearch:boa_offset_applied") is True

    def read(choice: Choice) -> _Found:
        asset = assets[choice.asset]
        file = _local_file(path, asset, choice.asset, allow_outside=allow_outside)
        return _meant(path, file, choice, asset, offset_applied=applied)

    chosen = chosen_bands(path, assets)
    colors = [read(chosen[color]) for color in RGB]
    found = dict(zip(RGB, colors, strict=True))
    if _FURTHER in chosen:
        try:
            further = read(chosen[_FURTHER])
            _check_beside(further.band, colors[0].band)
            found[_FURTHER] = further
        except RasterError as error:
            log.info("%s is left out: %s", _FURTHER, error)
    for values in ([_nodata(each.band) for each in colors], [str(each.also_nodata) for each in colors]):
        if len({*values} - {"None"}) > 1:
            told = ", ".join(map(" ".join, zip(RGB, values, strict=True)))
            raise RasterError(
                f"{path}: nodata differs ({told}); give files of one nodata: gdal_translate -a_nodata"
            )
    for note in dict.fromkeys(each.note for each in colors if each.note is not None):
        log.warning("%s says nodata %s", path, note)
    return SourceItem(
        path,
        fields,
        {color: each.band for color, each in found.items()},
        also_nodata=next((each.also_nodata for each in colors if each.also_nodata is not None), None),
        gsd=colors[0].gsd if len({each.gsd for each in colors}) == 1 else None,
    )


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


def _is_name(href: str) -> bool:
    """Return whether a file could be called so."""
    try:
        return bool(os.fsencode(href)) and "\0" not in href
    except UnicodeEncodeError:
        return False


def _local_file(item: Path, asset: Asset, key: str, *, allow_outside: bool) -> Path:
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
    return str(grid_of(band).nodata)  # a NaN is not itself


def _check_beside(band: BandFile, first: BandFile) -> None:
    """Raise RasterError unless a band can be one of the scene whose first band is given."""
    if not grid_of(band).is_as(grid_of(first)):
        raise RasterError(f"{band.path} lies on another grid than {first.path}")
    if _nodata(band) != _nodata(first):
        raise RasterError(f"{band.path} has another nodata than {first.path}")


@dataclass(frozen=True)
class _Found:
    """A band, what its asset says beyond it, and a note on its nodata."""

    band: BandFile
    gsd: float | None
    also_nodata: float | None = None
    note: str | None = None


def _meant(item: Path, file: Path, choice: Choice, asset: Asset, *, offset_applied: bool) -> _Found:
    """Return a band with what its numbers mean."""
    said: dict[str, Any] = {}
    for fields in fields_of(asset, choice.number):
        for name in ("scale", "offset", "nodata", "gsd"):
            value = fields.get(f"raster:{name}", fields.get(name))
            if value is not None:
                said[name] = value
    values = {name: _number(item, choice.asset, name, value) for name, value in said.items()}
    if values.get("scale") == 0:
        raise RasterError(f"{item}: asset {choice.asset[:40]} has scale 0; mend the item")
    offset = 0.0 if offset_applied else values.get("offset")
    band = BandFile(file, choice.number, values.get("scale"), offset, colors=choice.colors)
    gsd, nodata = values.get("gsd"), values.get("nodata")
    if nodata is None:
        return _Found(band, gsd)
    its = grid_of(band)
    stored = as_stored(nodata, its.dtype)
    if stored is None:
        return _Found(band, gsd, note=f"{nodata:.17g}, which {its.dtype} cannot be; what its files say counts")
    if its.nodata is None or str(its.nodata) == str(stored):
        return _Found(replace(band, nodata=stored), gsd)
    return _Found(band, gsd, stored, f"{stored:.17g}, its files {its.nodata:.17g}; both count")


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
        if not path.is_file() and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise RasterError(f"{path} is an address, not a file; download the item and its assets first")
        if not path.is_file():
            raise RasterError(f"{path} does not exist, or is no file; {mend}")
        if path.stat().st_size > _MOST_BYTES:
            raise RasterError(f"{path} is of over {_MOST_BYTES >> 20} MiB; {mend}")
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RasterError(f"{path} cannot be read ({reason_of(error)}); {mend}") from None
    if not isinstance(fields, dict) or fields.get("type") != "Feature" or "stac_version" not in fields:
        raise RasterError(f"{path} is no STAC item; {mend}")
    if not isinstance(fields.get("properties"), dict):
        raise RasterError(f"{path} has no properties; {mend}")
    if not isinstance(fields.get("id"), str) or not fields["id"]:
        raise RasterError(f"{path} is no STAC item, as it has no id; {mend}")
    return fields
