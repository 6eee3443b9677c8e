"""The tags of a raster by which it says that declouder made it; without torch, as whoever reads them needs none."""

from __future__ import annotations

from declouder.raster import RasterInfo

OURS, BEFORE = "DECLOUDER_", "DECLOUDER_BEFORE_"
"""What the names of tags begin with: of the last run, and of the one before it."""
NOTE = OURS + "NOTE"
"""Says in a sentence which pixels were not observed."""


def own_tags(info: RasterInfo) -> dict[str, str]:
    """Return the tags that the last run left on a raster; none if it is no output of ours."""
    tags = info.tags.get(None, {})
    return {name: tags[name] for name in tags if name.startswith(OURS) and not name.startswith(BEFORE)}
