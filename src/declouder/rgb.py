"""Red, green and blue: what bands are called where nobody says so, and where these three are among others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")
USUAL_BANDS: Mapping[int, tuple[str, ...]] = {len(names): names for names in (RGB, RGBN)}
"""What so many bands are where nobody says so."""


SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "red": ("red", "r", "b04", "surreflb01"),
    "green": ("green", "g", "b03", "surreflb04"),
    "blue": ("blue", "b", "b02", "surreflb03"),
    "nir": ("nir", "nearinfrared", "nearir", "nir08", "b08", "surreflb02"),
}
"""What bands are called, in small letters and digits alone: by Sentinel-2 and HLS with a zero, by MODIS last."""
COLOR_OF: Mapping[str, str] = {word: color for color, words in SYNONYMS.items() for word in words}


def rgb_places(names: Sequence[str]) -> list[int] | None:
    """Return the places, from 0, of red, green and blue among bands of these names; None if one is missing.

    Where they are not called so, by their synonyms, if each is there once.
    """
    spoken = spoken_colors(names)
    if any(color not in spoken for color in RGB):
        return None
    return [spoken.index(color) for color in RGB]


def spoken_colors(names: Sequence[str]) -> list[str]:
    """Return the names of bands in small letters; where red, green and blue are missing, synonyms as their colours.

    If two are synonyms of one colour, all stay as they are.
    """
    spoken = [name.lower() for name in names]
    if set(RGB) <= set(spoken):
        return spoken
    colors = [COLOR_OF.get(re.sub("[^a-z0-9]", "", name), name) for name in spoken]
    return spoken if any(colors.count(color) > 1 for color in RGB) else colors
