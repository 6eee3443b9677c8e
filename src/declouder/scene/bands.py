"""Which bands of a raster the model sees: by number, else by what they say of themselves, else in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from declouder.errors import OptionError, RasterError
from declouder.raster import RasterInfo


@dataclass(frozen=True)
class BandChoice:
    """Which bands the model sees.

    Attributes:
        numbers: 1-based, in the model's order.
        names: the model's names for them.
        how: the reason, for the log.
        doubtful: descriptions of bands taken in order that say nothing to us.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    how: str
    doubtful: tuple[str, ...] = ()


def choose_bands(info: RasterInfo, names: Sequence[str], numbers: Sequence[int] | None = None) -> BandChoice:
    """Find the model's bands `names` in a raster: by number, else by description or colour, else in order.

    A band that is described as another one, such as near infrared for a model of red, green and blue, is not taken.

    Raises:
        RasterError: if the raster has not got them.
    """
    wanted = f"this model wants {len(names)} ({', '.join(names)})"
    if numbers is not None:
        if len(numbers) != len(names):
            raise OptionError(
                f"--bands {listed(numbers)} names {len(numbers)} bands, {wanted}; give {len(names)} numbers"
            )
        if max(numbers) > info.count or min(numbers) < 1:
            raise RasterError(
                f"{info.path} has {_count(info.count)}, --bands {listed(numbers)} asks for others; "
                f"give numbers from 1 to {info.count}"
            )
        return BandChoice(tuple(numbers), tuple(names), "as given")

    described = [text or "" for text in info.descriptions]
    others = {number for number, text in enumerate(described, start=1) if _is_another(text, names)}
    by_description = _found(names, [_spoken(text) for text in described])
    by_color = {name: number for name, number in _found(names, list(info.colors)).items() if number not in others}
    found = by_color | by_description  # a description says more than a colour
    if len(set(found.values())) < len(found):
        found = by_description
    taken = {*found.values(), *others}
    free = [number for number, color in enumerate(info.colors, start=1) if color != "alpha" and number not in taken]
    missing = [name for name in names if name not in found]
    if len(missing) > len(free):
        called = f" ({', '.join(text or 'no name' for text in described)})" if any(described) else ""
        mend = "name them by number with --bands" if info.count >= len(names) else "give an image that has them"
        raise RasterError(
            f"{info.path} has {_count(info.count)}{called or _besides_alpha(info)}, {wanted}; "
            f"{mend}, or give a model for these bands"
        )
    in_order = dict(zip(missing, free, strict=False))
    hows = [
        ("by description", [name for name in names if name in by_description and name in found]),
        (
            "by colour interpretation",
            [name for name in names if name in found and name not in by_description],
        ),
        ("the first in order", missing),
    ]
    told = [(how, which) for how, which in hows if which]
    how = told[0][0] if len(told) == 1 else "; ".join(f"{', '.join(which)} {how}" for how, which in told)
    doubtful = tuple(described[number - 1] for number in in_order.values() if described[number - 1])
    return BandChoice(tuple((found | in_order)[name] for name in names), tuple(names), how, doubtful)


def _found(names: Sequence[str], said: Sequence[str]) -> dict[str, int]:
    """Return, for each of `names` that exactly one band says, that band's 1-based number."""
    wanted = {name: _spoken(name) or name for name in names}
    return {name: said.index(word) + 1 for name, word in wanted.items() if said.count(word) == 1}


# Band numbers with a leading zero are Sentinel-2's and HLS's, which agree on these. "B4" says nothing: it is
# red to Landsat 8 and near infrared to Landsat 5; neither does "B05": red edge or near infrared.
_SYNONYMS = {
    "red": ("red", "r", "b04"),
    "green": ("green", "g", "b03"),
    "blue": ("blue", "b", "b02"),
    "nir": ("nir", "nearinfrared", "nearir", "nir08", "b08"),
}
_COLOR_OF = {word: color for color, words in _SYNONYMS.items() for word in words}
# "red edge", "coastal blue", "short wave infrared": neighbours of our bands, not they.
_NEIGHBOUR_WORDS = {"edge", "rededge", "coastal", "deep", "short", "shortwave", "mid", "thermal", "swir", "i"}
# Words of which the names of other bands are made: "SWIR2", "QA_PIXEL", "coastal aerosol", "panchromatic".
_WORDS_OF_OTHERS = {
    *("coastal", "aerosol", "rededge", "cirrus", "pan", "panchromatic"),
    *("short", "shortwave", "swir", "mid", "mir", "far", "infrared"),
    *("wave", "longwave", "lwir", "thermal", "tir", "tirs"),
    *("alpha", "mask", "qa", "pixel", "scl", "cloud", "aot", "wvp"),
    *("ndvi", "dem", "vv", "vh"),
}
_NO_MATTER = {"band", "channel", "b", "nm", "um"}


def _is_another(text: str, names: Sequence[str]) -> bool:
    """Return whether a description speaks of a band that is none of `names`, all of which must be known colours."""
    wanted = {_spoken(name) for name in names}
    if not wanted <= set(_SYNONYMS):
        return False
    if (spoken := _spoken(text)) in _SYNONYMS:
        return spoken not in wanted
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in _NO_MATTER]
    neighbour = words[:2] == ["red", "edge"] or words[:1] in (["coastal"], ["deep"])
    return bool(words) and (neighbour or set(words) <= _WORDS_OF_OTHERS)


def _spoken(text: str) -> str:
    """Return the band a description speaks of: a colour of `_SYNONYMS`, else its letters in lower case."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    whole = "".join(words)
    if whole in _COLOR_OF or _NEIGHBOUR_WORDS.intersection(words):
        return _COLOR_OF.get(whole, whole)
    if "infrared" in whole:
        return "nir" if "near" in whole else whole
    # "Band 4 - Red", "red (B4)": one colour among other words, the single letters left out.
    colors = {_COLOR_OF[word] for word in words if word in _COLOR_OF and len(word) > 1}
    return colors.pop() if len(colors) == 1 else whole


def listed(numbers: Sequence[int]) -> str:
    """Return numbers as they are given to --bands."""
    return ",".join(str(number) for number in numbers)


def _count(bands: int) -> str:
    return f"{bands} band" if bands == 1 else f"{bands} bands"


def _besides_alpha(info: RasterInfo) -> str:
    return " (one of them alpha)" if info.alpha else ""
