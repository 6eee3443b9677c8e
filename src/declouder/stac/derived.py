"""The STAC item of a result: where it comes from, what was done, and where it lies."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pystac

from declouder.errors import OutputError
from declouder.provenance import MEANINGS, is_provenance
from declouder.raster import BandFile, RasterInfo, grid_of, open_raster
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
_PREFIXES = {"scientific": "sci", "sentinel-1": "s1", "sentinel-2": "s2", "sentinel-3": "s3"}
"""Of the fields of extensions that are not called as they are."""
# Of the whole source, they are wrong of the result or about its files.
_DROPPED = re.compile(
    "(eo:bands|bands|created|updated|earthsearch:s3_path|earthsearch:payload_id)$"
    "|(proj|processing|raster|file):|.*(cloud|cirrus)"
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


def is_outdated(item: Path, output: Path, *, max_pixels: int) -> bool:
    """Return whether the item beside an output of ours tells of another run than the output itself.

    A run that replaces both and is killed between the two leaves them so. WebP holds no tags, so nobody knows.
    """
    with open_raster(output, max_pixels=max_pixels) as reader:
        said = own_tags(reader.info)
    try:
        told = json.loads(item.read_text(encoding="utf-8"))["properties"]["processing:expression"]["expression"]
    except (LookupError, OSError, TypeError, ValueError):
        return False  # not ours
    return bool(said) and told != {NOTE: _UNTOLD} | said


def write_derived(
    item: SourceItem,
    output: Path,
    *,
    max_pixels: int,
    tags: Mapping[str, str] | None = None,
    provenance: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the STAC item of `output`, which was made of `item`; return where it lies.

    Args:
        item: what was restored.
        output: the restored image.
        max_pixels: a larger image is not opened.
        tags: how it was made, as `SceneReport.tags` says; None takes its own word, and WebP has none.
        provenance: where its provenance raster lies, which becomes an asset too; one of another run does not.
        overwrite: replace an item that exists.

    Raises:
        OutputError: if it cannot be written, or the image is not one of ours.
    """
    path = derived_path(output, overwrite=overwrite)
    with open_raster(output, max_pixels=max_pixels) as reader:
        info = reader.info
        is_cog = reader.dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
    source = item.fields
    said = own_tags(info) if tags is None else dict(tags)
    if tags is None and not said and info.driver != "WEBP":  # which holds no tags
        raise OutputError(f"{output} was not made by declouder, so no item is written for it; give another output")
    if info.driver in {"PNG", "WEBP"}:  # which hold neither place nor what the numbers mean
        info = _as_the_source(info, list(item.bands.values()))
    has_provenance = provenance is not None and is_provenance(provenance, info, said=said or None)
    said = {NOTE: _UNTOLD} | said
    geometry = _finite(source.get("geometry"))
    fields: dict[str, Any] = {
        "type": "Feature",
        "stac_version": pystac.get_stac_version(),
        "id": f"{source['id']}-declouder",
        "geometry": geometry,
        "bbox": _finite(source.get("bbox")) or _bbox_of(geometry),
        "properties": _properties(source["properties"], info, said),
        "links": [
            {"rel": "derived_from", "href": _relative(item.path, path.parent), "type": "application/geo+json"}
        ],
        "assets": {"clear": _asset(info, output, list(item.bands), is_cog=is_cog)},
    }
    if provenance is not None and has_provenance:
        fields["assets"]["provenance"] = _provenance_asset(provenance, path.parent, max_pixels=max_pixels)
    if item.gsd is not None:
        for asset in fields["assets"].values():
            asset["gsd"] = item.gsd
    # An extension that is named and not used makes an item invalid.
    band_fields = {name for band in fields["assets"]["clear"]["bands"] for name in band}
    used = {_PROCESSING: True, _PROJECTION: True, _EO: "eo:common_name" in band_fields}
    used[_RASTER] = any(name.startswith("raster:") for name in band_fields)
    still = [url for url in source.get("stac_extensions") or [] if _still_holds(url, source["properties"])]
    fields["stac_extensions"] = list(dict.fromkeys([url for url, is_used in used.items() if is_used] + still))
    fields = pystac.Item.from_dict(fields).to_dict(include_self_link=False, transform_hrefs=False)
    write_text(path, json.dumps(fields, indent=2, allow_nan=False) + "\n", mend="is the folder read-only?")
    return path


def _properties(source: dict[str, Any], info: RasterInfo, said: dict[str, str]) -> dict[str, Any]:
    """Return what still holds of the source, and what was done."""
    kept = {name: _finite(value) for name, value in source.items() if not _DROPPED.match(name)}
    place: dict[str, Any] = {"proj:shape": [info.height, info.width]}
    if not info.transform.is_identity:
        place["proj:transform"] = list(info.transform)[:6]
    epsg = info.crs.to_epsg() if info.crs else None
    if epsg is not None:
        place["proj:code"] = f"EPSG:{epsg}"
    elif info.crs:
        place["proj:wkt2"] = info.crs.to_wkt(version="WKT2_2019")
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


def _bbox_of(geometry: Any) -> list[float] | None:
    """Return the bounds of a GeoJSON geometry in two dimensions; None if it is something else."""
    try:
        return list(pystac.utils.geometry_to_bbox(geometry))
    except (AssertionError, LookupError, TypeError, ValueError):
        return None


def _still_holds(url: Any, source: Mapping[str, Any]) -> bool:
    """Return whether one of the source's extensions, none of ours, has fields there that all are kept."""
    found = re.search(r"/([a-z0-9-]+?)(-extension)?/v\d", str(url))  # USGS calls its own "landsat-extension"
    if found is None or found[1] == "eo":
        return False
    fields = [name for name in source if name.startswith(f"{_PREFIXES.get(found[1], found[1])}:")]
    return bool(fields) and not any(map(_DROPPED.match, fields))


def _as_the_source(info: RasterInfo, bands: Sequence[BandFile]) -> RasterInfo:
    """Return what a picture of a scene's bands says, with their place and what their numbers mean."""
    grids = [grid_of(band) for band in bands[: info.count]]
    transparency = info.count - len(grids)
    return replace(
        info,
        transform=grids[0].place,
        crs=grids[0].parsed_crs,
        scales=(*[grid.scale for grid in grids], *[1.0] * transparency),
        offsets=(*[grid.offset for grid in grids], *[0.0] * transparency),
    )


def _asset(info: RasterInfo, output: Path, names: Sequence[str], *, is_cog: bool) -> dict[str, Any]:
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
    tiff = pystac.MediaType.COG if is_cog else pystac.MediaType.GEOTIFF
    kind = {".png": "image/png", ".webp": "image/webp"}.get(output.suffix.lower(), str(tiff))
    return {"href": f"./{output.name}", "type": kind, "roles": ["data"], "bands": bands}


def _provenance_asset(file: Path, folder: Path, *, max_pixels: int) -> dict[str, Any]:
    with open_raster(file, max_pixels=max_pixels) as reader:
        info = reader.info
    bands = [
        {"name": name, "description": MEANINGS[name], "data_type": info.dtype} | ({"unit": unit} if unit else {})
        for name, unit in zip(map(str, info.descriptions), info.units, strict=True)
    ]
    return {
        "href": _relative(file, folder),
        "type": str(pystac.MediaType.GEOTIFF),
        "title": "What was made up",
        "roles": ["metadata"],
        "bands": bands,
    }


def _relative(target: Path, folder: Path) -> str:
    return Path(os.path.relpath(target.absolute(), folder.absolute())).as_posix()
