"""The STAC item of a result: where it comes from, what was done, and where it lies."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac

from declouder.errors import OutputError
from declouder.raster import RasterInfo, open_raster
from declouder.rgb import RGBN
from declouder.stac.reading import SourceItem
from declouder.tags import NOTE, own_tags
from declouder.version import __version__
from declouder.whole_files import write_text

_PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_EO = "https://stac-extensions.github.io/eo/v2.0.0/schema.json"
_RASTER = "https://stac-extensions.github.io/raster/v2.0.0/schema.json"
_UNTOLD = "Pixels, all or those under a mask, are synthesised by a generative model; they were not observed."
_PREFIXES = {"scientific": "sci"}
"""Of the fields of extensions that are not called as they are."""
# Of the whole source, they are wrong of the result or about its files.
_DROPPED = (
    *("eo:cloud_cover", "eo:bands", "bands", "created", "updated", "proj:", "processing:", "raster:", "file:"),
    *("earthsearch:s3_path", "earthsearch:payload_id"),
)


def derived_path(output: Path, *, overwrite: bool) -> Path:
    """Return where the item of an output goes: beside it, under its name.

    Raises:
        OutputError: if something is there already.
    """
    path = output.with_suffix(".json")
    if path.is_dir() or (path.exists() and not overwrite):
        raise OutputError(f"{path} exists already; give --overwrite to replace it, or another output")
    return path


def write_derived(
    item: SourceItem,
    output: Path,
    *,
    max_pixels: int,
    tags: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the STAC item of `output`, which was made of `item`; return where it lies.

    Args:
        item: what was restored.
        output: the restored image.
        max_pixels: a larger image is not opened.
        tags: how it was made, as `SceneReport.tags` says; None takes its own word, and WebP has none.
        overwrite: replace an item that exists.

    Raises:
        OutputError: if it cannot be written, or the image is not one of ours.
    """
    path = derived_path(output, overwrite=overwrite)
    with open_raster(output, max_pixels=max_pixels) as reader:
        info = reader.info
    source = item.fields
    said = own_tags(info) if tags is None else dict(tags)
    if tags is None and not said and info.driver != "WEBP":  # which holds no tags
        raise OutputError(f"{output} was not made by declouder, so no item is written for it; give another output")
    said = {NOTE: _UNTOLD} | said
    fields: dict[str, Any] = {
        "type": "Feature",
        "stac_version": pystac.get_stac_version(),
        "id": f"{source['id']}-declouder",
        "geometry": _finite(source.get("geometry")),
        "bbox": _finite(source.get("bbox")),
        "properties": _properties(source["properties"], info, said),
        "links": [
            {"rel": "derived_from", "href": _relative(item.path, path.parent), "type": "application/geo+json"}
        ],
        "assets": {"clear": _asset(info, output, list(item.bands))},
    }
    # An extension that is named and not used makes an item invalid.
    band_fields = {name for band in fields["assets"]["clear"]["bands"] for name in band}
    used = {_PROCESSING: True, _PROJECTION: True, _EO: "eo:common_name" in band_fields}
    used[_RASTER] = any(name.startswith("raster:") for name in band_fields)
    kept = [url for url in source.get("stac_extensions") or [] if _is_used(url, fields["properties"])]
    fields["stac_extensions"] = list(dict.fromkeys([url for url, is_used in used.items() if is_used] + kept))
    fields = pystac.Item.from_dict(fields).to_dict(include_self_link=False, transform_hrefs=False)
    write_text(path, json.dumps(fields, indent=2, allow_nan=False) + "\n", mend="is the folder read-only?")
    return path


def _properties(source: dict[str, Any], info: RasterInfo, said: dict[str, str]) -> dict[str, Any]:
    """Return what still holds of the source, and what was done."""
    kept = {name: _finite(value) for name, value in source.items() if not name.startswith(_DROPPED)}
    place: dict[str, Any] = {"proj:shape": [info.height, info.width]}
    if not info.transform.is_identity:
        place["proj:transform"] = list(info.transform)[:6]
    epsg = info.crs.to_epsg() if info.crs else None
    if epsg is not None:
        place["proj:code"] = f"EPSG:{epsg}"
    return kept | {
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "processing:software": {"declouder": __version__},
        "processing:level": "L4",  # output of a model
        "processing:lineage": said[NOTE],
        "processing:expression": {"format": "declouder remove", "expression": said},
        **place,
    }


def _finite(value: Any) -> Any:
    """Return a value of the source with null for numbers that JSON has not, which Python reads and writes."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_used(url: Any, properties: Mapping[str, Any]) -> bool:
    """Return whether one of the source's extensions has fields among properties that are none of ours."""
    found = re.search(r"/([a-z0-9-]+)/v\d", str(url))
    if found is None or f"{found[1]}:" in _DROPPED or found[1] == "eo":
        return False
    prefix = _PREFIXES.get(found[1], found[1])
    return any(name.startswith(f"{prefix}:") for name in properties)


def _asset(info: RasterInfo, output: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the asset of a file; where it does not say what its bands are, as a picture, they are `names`."""
    bands = []
    for number, described in enumerate(info.descriptions, start=1):
        name = described or (names[number - 1] if number <= len(names) else str(number))
        band: dict[str, Any] = {"name": name, "data_type": info.dtype}
        if name in RGBN:
            band["eo:common_name"] = name
        if info.nodata is not None:
            # JSON has no such numbers: STAC's words are nan, inf and -inf.
            band["nodata"] = info.nodata if math.isfinite(info.nodata) else str(info.nodata)
        if (info.scales[number - 1], info.offsets[number - 1]) != (1, 0):
            band |= {"raster:scale": info.scales[number - 1], "raster:offset": info.offsets[number - 1]}
        bands.append(band)
    kind = {".png": "image/png", ".webp": "image/webp"}.get(
        output.suffix.lower(), "image/tiff; application=geotiff"
    )
    return {"href": f"./{output.name}", "type": kind, "roles": ["data"], "bands": bands}


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target.absolute(), folder.absolute())).as_posix()
