"""Where red, green and blue are among the bands of an image."""

from __future__ import annotations

from collections.abc import Sequence

RGB = ("red", "green", "blue")


def rgb_places(names: Sequence[str]) -> list[int] | None:
    """Return the places, from 0, of red, green and blue among bands of these names; None if one is missing."""
    spoken = [name.lower() for name in names]
    return [spoken.index(name) for name in RGB] if set(RGB) <= set(spoken) else None
