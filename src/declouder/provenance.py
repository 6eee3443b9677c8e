"""Knowing what was made up: a raster that says it pixel by pixel, and tags that say how.

The provenance raster lies on the scene's grid, float32:

    1 changed   share of the pixel that is synthesised: 0 untouched, 1 all of it, between in the feathered rim
    2 w         share of the reference network's image in the fused x0 of the last step, mean over the bands
    3 spread    standard deviation over `--samples N` draws in DN, root mean square over the bands (from two on)

Where nothing was changed all are 0. The tags, on the output and on the provenance alike, begin with DECLOUDER_.
Those of an earlier run, where the scene is an output itself, begin with DECLOUDER_BEFORE_ then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from declouder.errors import DeclouderError
from declouder.raster import RasterInfo, open_raster
from declouder.tags import BEFORE, NOTE, OURS, own_tags

MEANINGS = {
    "changed": "share of the pixel that is synthesised: 0 untouched, 1 all of it",
    "w": "share of the reference network's image in it, mean over the bands",
    "spread": "standard deviation over draws of the noise, root mean square over the bands; no error bar",
}
"""What the bands of the raster say, in order."""


def provenance_info(like: RasterInfo, *, samples: int) -> RasterInfo:
    """Return what the provenance raster of a scene says of itself."""
    names = tuple(MEANINGS)[: 2 if samples == 1 else 3]
    count = len(names)
    return replace(
        like,
        count=count,
        dtype="float32",
        nodata=None,
        descriptions=names,
        colors=("gray", *["undefined"] * (count - 1)),
        units=("", "", "DN")[:count],
        scales=(1.0,) * count,
        offsets=(0.0,) * count,
        tags={key: value for key, value in like.tags.items() if key is None},
        band_tags=({},) * count,
        compression="DEFLATE",
        has_mask=False,
        icc_profile=None,
    )


def is_provenance(path: Path, like: RasterInfo, *, said: Mapping[str, str] | None = None) -> bool:
    """Return whether a file is a provenance raster that we have written for a scene such as `like`.

    Args:
        path: of the file.
        like: what the scene says of itself.
        said: the tags that its run leaves, see `own_tags`; None where they are not known yet.
    """
    try:
        with open_raster(path, max_pixels=like.height * like.width) as reader:
            info = reader.info
    except DeclouderError:
        return False
    if (info.height, info.width, info.crs, info.transform) != (like.height, like.width, like.crs, like.transform):
        return False
    tags = own_tags(info)
    return info.descriptions[:1] == ("changed",) and NOTE in tags and said in (None, tags)


def tagged(info: RasterInfo, key: Mapping[str, Any], *, masked: bool) -> RasterInfo:
    """Return `info` with the tags that say how a scene was made, and those of the last run before as such.

    Args:
        info: of the output or the provenance, with the tags of the input.
        key: all that the result depends on, as the journal has it.
        masked: whether only pixels under a mask were changed.
    """
    before = {BEFORE + name.removeprefix(OURS): said for name, said in own_tags(info).items()}
    others = {name: said for name, said in info.tags.get(None, {}).items() if not name.startswith(OURS)}
    return replace(info, tags={**info.tags, None: others | before | _output_tags(key, masked=masked)})


def _output_tags(key: Mapping[str, Any], *, masked: bool) -> dict[str, str]:
    where = "under the cloud mask" if masked else f"of the bands in {OURS}BANDS"
    said = {
        "VERSION": str(key["version"]),
        "MODEL": f"sha256:{key['model']}",
        "SAMPLER": _called(key["sampler"]),
        "STEPS": str(key["steps"]),
        "PRECISION": key["precision"] or "none",
        "SAMPLES": str(key["samples"]),
        "AVERAGED": "yes" if key["averaged"] else "no",
        "LEAST_PAINTED": f"{key['least painted']:g}",
        "ENLARGE": str(key["enlarge"]),
        "SEED": "none" if key["seed"] is None else str(key["seed"]),
        "BANDS": ",".join(map(str, key["bands"])),
        "SCALE": ",".join(f"{value:.17g}" for value in key["scale"]),
        "MASK": key["mask"] if isinstance(key["mask"], str) else key["mask kind"][0],
        "FEATHER_PX": str(key["feather"]),
    }
    note = {NOTE: f"Pixels {where} are synthesised by a generative model; they were not observed."}
    return note | {OURS + name: text for name, text in said.items()}


def _called(sampler: Mapping[str, Any] | None) -> str:
    """Return a sampler's class, and how it places its steps: `DDIMScheduler, trailing`."""
    if sampler is None:
        return "none"
    spacing = sampler["settings"].get("timestep_spacing")
    return str(sampler["name"]) if spacing is None else f"{sampler['name']}, {spacing}"
