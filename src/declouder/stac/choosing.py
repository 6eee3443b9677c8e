"""Which asset and band of a STAC item is red, green, blue or near infrared.

What a band is called: bands (STAC 1.1) or eo:bands (1.0), by `eo:common_name`, `common_name` or, where there is
none, `name`. Of an asset with one band at most its own `eo:common_name` counts as well, and its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from declouder.errors import RasterError
from declouder.rgb import RGB, RGBN

Asset = Mapping[str, Any]

# Assets that show a scene to people; their numbers are no measurements.
_SHOWN_ROLES = {"thumbnail", "overview", "visual"}
_COMMON_NAMES = ("eo:common_name", "common_name")


@dataclass(frozen=True)
class Choice:
    """A band of an item.

    Attributes:
        asset: its key.
        number: 1-based, of the band in the asset.
        colors: numbers of the asset's bands that are called colours, this one too.
    """

    asset: str
    number: int
    colors: tuple[int, ...]


def chosen_bands(item: Path, assets: Mapping[str, Asset]) -> dict[str, Choice]:
    """Return the bands of red, green and blue and, if there is one, of the near infrared.

    Raises:
        RasterError: if red, green or blue is missing, or there twice.
    """
    found = {color: choice for color in RGBN if (choice := _chosen(color, assets)) is not None}
    if missing := [color for color in RGB if color not in found]:
        told = [f"its assets: {', '.join(map(str, assets))[:200]}", *_reasons(missing, assets)]
        raise RasterError(
            f"{item} names no band {', '.join(missing)} ({'; '.join(told)}); give an item that has red, green and"
            " blue, files of these, stacked: rio stack RED GREEN BLUE -o scene.tif, or an asset's file in place of"
            " the item"
        )
    return found


def fields_of(asset: Asset, number: int) -> Iterator[Mapping[str, Any]]:
    """Yield what an asset says of the band of a 1-based number: first of all its bands, later ones go before."""
    yield asset
    for name in ("raster:bands", "bands"):
        bands = asset.get(name)
        if isinstance(bands, list) and len(bands) >= number and isinstance(bands[number - 1], Mapping):
            yield bands[number - 1]


def _chosen(color: str, assets: Mapping[str, Asset]) -> Choice | None:
    """Return the band of a colour: the asset of that key first, then the one with fewest bands."""
    found = []
    for place, (key, asset) in enumerate(assets.items()):
        if not _is_measured(asset):
            continue
        names = _names(asset)
        is_key = key.lower() == color
        if len(names) == 1 and (is_key or (not names[0] and _called(key) == color)):
            names = [color]
        if names.count(color) == 1:
            colors = tuple(number for number, name in enumerate(names, 1) if name in RGBN)
            found.append((not is_key, len(names), place, Choice(key, names.index(color) + 1, colors)))
    return min(found, key=lambda one: one[:3])[3] if found else None


def _reasons(missing: Sequence[str], assets: Mapping[str, Asset]) -> Iterator[str]:
    """Yield why assets that name a missing colour were not taken."""
    for key, asset in assets.items():
        names = _names(asset)
        for color in missing:
            if color in names and not _is_measured(asset):
                yield f"{key[:40]} is a picture for people"
                break
            if names.count(color) > 1:
                yield f"{key[:40]} names {color} {names.count(color)} times"


def _is_measured(asset: Asset) -> bool:
    roles = asset.get("roles") or []
    return isinstance(roles, list) and not _SHOWN_ROLES.intersection(map(str, roles))


def _names(asset: Asset) -> list[str]:
    """Return what the bands of an asset are called; one without a list of bands has one."""
    for name in ("bands", "eo:bands"):
        bands = asset.get(name)
        if isinstance(bands, list) and bands and all(isinstance(band, Mapping) for band in bands):
            break
    else:
        bands = [{}]
    said_of_all = {name: asset[name] for name in _COMMON_NAMES if name in asset} if len(bands) == 1 else {}
    return [_name({**said_of_all, **band}) for band in bands]


def _name(band: Mapping[str, Any]) -> str:
    return next((_called(band[name]) for name in (*_COMMON_NAMES, "name") if isinstance(band.get(name), str)), "")


def _called(word: str) -> str:
    return "nir" if word.lower() == "nir08" else word.lower()  # Landsat's, by the same specification
