"""Where red, green and blue are among bands of given names."""

from __future__ import annotations

import pytest

from declouder.rgb import rgb_places

SENTINEL2 = [f"B{number:02d}" for number in range(1, 9)] + ["B8A", "B09", "B10", "B11", "B12"]


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (("red", "green", "blue"), [0, 1, 2]),
        (("nir", "Blue", "Green", "Red"), [3, 2, 1]),
        (("B04", "B03", "B02"), [0, 1, 2]),
        (SENTINEL2, [3, 2, 1]),
        (("R", "G", "B", "NIR"), [0, 1, 2]),
        (("sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04"), [0, 3, 2]),
        (("red", "green", "blue", "B04"), [0, 1, 2]),
        (("nir", "red", "green"), None),
        (("B4", "B3", "B2"), None),
        (("B04", "red", "G", "B"), None),  # two reds
        ((), None),
    ],
)
def test_red_green_and_blue_are_known_by_their_names_and_synonyms(names, places):
    assert rgb_places(names) == places
