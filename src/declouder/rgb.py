"""Red, green and blue: what bands are called where nobody says so, and where these three are among others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

RGB = ("red", "green", "blue")
RGBN = (*RGB, "nir")
USUAL_BANDS: Mapping[int, tuple[str, ...]] = {len(names): names for names in (RGB, RGBN)}
"""What so many bands are where nobody says so."""


def rgb_places(names: Sequence[str]) -> list[int] | None:
    """Return the places, from 0, of red, green and blue among bands of these names; None if one is missing."""
    spoken = [name.lower() for name in names]
    return [spoken.index(name) for name in RGB] if set(RGB) <= set(spoken) else None
