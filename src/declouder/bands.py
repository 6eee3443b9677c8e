"""Which bands of a raster the model sees: by number, else by what they say of themselves, else in order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from declouder.errors import OptionError, RasterError
from declouder.raster import RasterInfo
from declouder.rgb import COLOR_OF, RGB, SYNONYMS


@dataclass(frozen=True)
class BandChoice:
    """Which bands the model sees.

    Attributes:
        numbers: 1-based, in the model's order.
        names: the model's names for them.
        how: the reason, for the log.
        doubtful: descriptions of bands taken that say nothing to us, or mean other bands on other sensors.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    how: str
    doubtful: tuple[str, ...] = ()


def choose_bands(info: RasterInfo, names: Sequence[str], given: Sequence[int | str] | None = None) -> BandChoice:
    """Find the model's bands `names` in a raster: as given, else by description or colour, else in order.

    A band that is described as another one, such as near infrared for a model of red, green and blue, is not taken.

    Args:
        info: what the raster says of itself.
        names: of the model's bands.
        given: which band each of them is, by its 1-based number or by what it is called there.

    Raises:
        RasterError: if the raster has not got them.
    """
    if given is not None:
        return _as_given(info, names, given)
    described = [text or "" for text in info.descriptions]
    by_description, by_color, free = _claimed(info, names, described)
    found = by_color | by_description
    missing = [name for name in names if name not in found]
    if len(missing) > len(free):
        colors = ["" if color in _COLORS_OF_NONE else color for color in info.colors]
        said = [text or color for text, color in zip(described, colors, strict=True)]
        called = f" ({', '.join(text or 'no name' for text in said)})" if any(said) else ""
        mend = "name them by number with --bands" if info.count >= len(names) else "give an image that has them"
        if info.count == 1 < len(names):
            mend = "if each band has a file, stack them (rio stack RED GREEN BLUE -o STACK.tif)"
        raise RasterError(
            f"{info.path} has {_count(info.count)}{called or _besides_alpha(info)}, {_wanted(names)}; "
            f"{mend}, or give a model for these bands"
        )
    in_order = dict(zip(missing, free, strict=False))
    bands = {name: (found | in_order)[name] for name in names}
    ambiguous = _numbers_are_ambiguous(described)
    doubtful = [
        text
        for name, number in bands.items()
        if (text := described[number - 1]) and (name in in_order or (ambiguous and _is_number(text)))
    ]
    hows = {
        "by description": [name for name in names if name in by_description],
        "by colour interpretation": [name for name in names if name in by_color],
        "the first in order": missing,
    }
    told = [(how, which) for how, which in hows.items() if which]
    how = told[0][0] if len(told) == 1 else "; ".join(f"{', '.join(which)} {how}" for how, which in told)
    return BandChoice(tuple(bands.values()), tuple(names), how, tuple(doubtful))


def numbered(info: RasterInfo, given: Sequence[int | str]) -> tuple[int, ...]:
    """Return the 1-based numbers of bands, some of which are given by what they are called.

    Raises:
        RasterError: if no band, or more than one, is called so, or there is none of a number.
    """
    numbers = tuple(_called(info, band) if isinstance(band, str) else int(band) for band in given)
    if max(numbers) > info.count or min(numbers) < 1:
        raise RasterError(
            f"{info.path} has {_count(info.count)}, --bands {listed(numbers)} asks for others; "
            f"give numbers from 1 to {info.count}"
        )
    return numbers


def _as_given(info: RasterInfo, names: Sequence[str], given: Sequence[int | str]) -> BandChoice:
    if len(given) != len(names):
        raise OptionError(f"--bands {listed(given)} names {len(given)} bands, {_wanted(names)}; give {len(names)}")
    numbers = numbered(info, given)
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"--bands {listed(given)} names bands {listed(numbers)} of {info.path}; give each once")
    return BandChoice(numbers, tuple(names), "as given")


def _claimed(
    info: RasterInfo, names: Sequence[str], described: Sequence[str]
) -> tuple[dict[str, int], dict[str, int], list[int]]:
    """Return which of `names` bands claim to be, and which bands are free to be any.

    Args:
        info: what the raster says of itself.
        names: of the model's bands.
        described: what each band is called, "" where it is not.

    Returns:
        Bands by name as their descriptions have it, further ones as their colours have it, and the numbers of
        those that may be taken for a name that no band claims.
    """
    spoken = [_spoken(text) for text in described]
    by_description = _found(names, spoken, [_whole(text) for text in described])
    colors: Sequence[str] = info.colors
    of_color = _found(names, colors, colors)
    if set(RGB) <= set(colors) and not set(RGB) <= set(names) and not set(names) <= {*by_description, *of_color}:
        # Other bands are shown in red, green and blue as well: that does not say what they are.
        colors, of_color = ["undefined"] * len(colors), {}
    # A description says more than a colour.
    others = {
        number
        for number, (text, word, color) in enumerate(zip(described, spoken, colors, strict=True), start=1)
        if _is_another(text, names) or (word not in SYNONYMS and _is_another(color.replace("_", " "), names))
    }
    by_color = {
        name: number for name, number in of_color.items() if number not in others and name not in by_description
    }
    if set(by_color.values()) & set(by_description.values()):
        by_color = {}
    # "red uncertainty" beside "red" is no band for another colour.
    namesakes = {number for number, word in enumerate(spoken, start=1) if word in map(_spoken, by_description)}
    taken = {*by_description.values(), *by_color.values(), *others, *namesakes}
    free = [number for number, color in enumerate(info.colors, start=1) if color != "alpha" and number not in taken]
    return by_description, by_color, free


def _called(info: RasterInfo, name: str) -> int:
    described = [text or "" for text in info.descriptions]
    whole, spoken = [_whole(text) for text in described], [_spoken(text) for text in described]
    for said, word in (
        (described, name),
        (whole, _whole(name)),
        (spoken, _spoken(name)),
        (info.colors, _spoken(name)),
    ):
        if word and (count := list(said).count(word)):
            if count == 1:
                return list(said).index(word) + 1
            break
    called = ", ".join(text or color for text, color in zip(described, info.colors, strict=True))
    which = "several bands that are" if word and count else "no band that is"
    raise RasterError(f"{info.path} has {which} called {name!r} ({called}); give numbers from 1 to {info.count}")


def _found(names: Sequence[str], said: Sequence[str], wholly: Sequence[str]) -> dict[str, int]:
    """Return, for each of `names` that exactly one band says, that band's 1-based number.

    Args:
        names: of the model's bands.
        said: band by band, what it speaks of, maybe among other words.
        wholly: the same where it says nothing else; such bands come first.
    """
    found: dict[str, int] = {}
    for name in names:
        word = _spoken(name) or name
        for speakers in ([COLOR_OF.get(text, text) == word for text in wholly], [text == word for text in said]):
            if any(speakers):
                if sum(speakers) == 1:
                    found[name] = speakers.index(True) + 1
                break
    return found


# Band numbers with a leading zero are Sentinel-2's and HLS's, which agree on these. "B4" says nothing: it is
# red to Landsat 8 and near infrared to Landsat 5; neither does "B05": red edge or near infrared.
_NUMBERS = {word: color for word, color in COLOR_OF.items() if re.fullmatch(r"b0\d", word)}
# "red edge", "coastal blue", "short wave infrared": neighbours of our bands, not they.
_NEIGHBOUR_WORDS = {"edge", "rededge", "coastal", "deep", "short", "shortwave", "mid", "thermal", "swir", "i"}
# Words of which the names of other bands are made: "SWIR2", "QA_PIXEL", "coastal aerosol", "panchromatic".
_WORDS_OF_OTHERS = {
    *("coastal", "aerosol", "rededge", "cirrus", "pan", "panchromatic"),
    *("short", "shortwave", "swir", "mid", "mir", "mwir", "far", "infrared", "other"),
    *("wave", "longwave", "lwir", "thermal", "tir", "tirs", "ir"),
    *("alpha", "mask", "qa", "bqa", "pixel", "radsat", "scl", "fmask", "cloud", "aot", "wvp"),
    *("ndvi", "dem", "vv", "vh", "st", "reg", "saa", "sza", "vaa", "vza"),
}
_COLORS_OF_NONE = {"undefined", "gray", "palette", "alpha"}
_NO_MATTER = {"band", "channel", "b", "nm", "um"}
# Beside a band number: words that leave it Sentinel-2's, and words that make it so whatever else is said.
_BESIDE_NUMBER = re.compile(r"band|channel|central|wavelength|\d*(nm|um|m)?")
_SENTINEL2 = re.compile(r"sentinel|sentinel2[abc]?|s2[abc]?|msi|hls|[sl]30|t\d\d[a-z]{3}")  # the last one is a tile


def _is_another(text: str, names: Sequence[str]) -> bool:
    """Return whether a description speaks of a band that is none of `names`, all of which must be known colours."""
    wanted = {_spoken(name) for name in names}
    if not wanted <= set(SYNONYMS):
        return False
    if (spoken := _spoken(text)) in SYNONYMS:
        return spoken not in wanted
    if spoken == "ir":  # of aerial images the near one
        return "nir" not in wanted
    words = [word for word in re.findall(r"[a-z]+", text.lower()) if word not in _NO_MATTER]
    neighbour = words[:2] == ["red", "edge"] or words[:1] in (["coastal"], ["deep"])
    return bool(words) and (neighbour or "qa" in words or set(words) <= _WORDS_OF_OTHERS)


def _spoken(text: str) -> str:
    """Return the band a description speaks of: a colour of `SYNONYMS`, else its letters in lower case."""
    words, whole = _words(text), _whole(text)
    if whole in COLOR_OF or _NEIGHBOUR_WORDS.intersection(words):
        return COLOR_OF.get(whole, whole)
    if "infrared" in whole:
        return "nir" if "near" in whole else whole
    # "Band 4 - Red", "red (B4)": one colour among other words, the single letters left out.
    colors = {COLOR_OF[word] for word in words if word in COLOR_OF and len(word) > 1 and word not in _NUMBERS}
    colors |= {_NUMBERS[word] for word in words if word in _NUMBERS and _is_sentinel2s(words)}
    return colors.pop() if len(colors) == 1 else whole


def _is_sentinel2s(words: Sequence[str]) -> bool:
    """Return whether a band number among these words is Sentinel-2's: that in "sur_refl_b04" is MODIS's."""
    beside = [word for word in words if word not in _NUMBERS and word not in COLOR_OF]
    return any(map(_SENTINEL2.fullmatch, words)) or all(map(_BESIDE_NUMBER.fullmatch, beside))


def _is_number(text: str) -> bool:
    """Return whether nothing but a band number says which band it is."""
    words = _words(text)
    return bool(_NUMBERS.keys() & words) and not any(word in COLOR_OF and word not in _NUMBERS for word in words)


def _numbers_are_ambiguous(described: Sequence[str]) -> bool:
    """Return whether "B02" may be another sensor's, such as Himawari's, whose B01 to B03 are blue, green and red.

    Sets with B01 are doubted unless they hold bands that Sentinel-2 or HLS has further on, and none beyond theirs.
    Of Himawari's, B01 to B06 are often all that is kept: those of reflected light.
    """
    words = {word for text in described for word in _words(text)}
    further = any(re.fullmatch(r"b8a|b0[7-9]|b1[0-2]", word) for word in words)
    beyond = any(re.fullmatch(r"b1[3-9]", word) for word in words)
    return "b01" in words and (beyond or not further) and not any(map(_SENTINEL2.fullmatch, words))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _whole(text: str) -> str:
    return "".join(_words(text))


def listed(bands: Sequence[int | str]) -> str:
    """Return numbers or names as they are given to --bands."""
    return ",".join(str(band) for band in bands)


def _wanted(names: Sequence[str]) -> str:
    return f"this model wants {len(names)} ({', '.join(names)})"


def _count(bands: int) -> str:
    return f"{bands} band" if bands == 1 else f"{bands} bands"


def _besides_alpha(info: RasterInfo) -> str:
    return " (one of them alpha)" if info.alpha else ""
