"""Small clouds that a model left are told from bright roofs, wide clouds and haze."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import FakePipeline, write_tif
from declouder.scene import SceneOptions, remove_from_scene
from declouder.small_clouds import SmallClouds

GROUND, CLOUD = 0.2, 0.7
"""In [0, 1]."""


def dots(*, every: int = 16, side_px: int = 8, columns: slice = slice(None)) -> np.ndarray:
    """Return (256, 256): where squares of so many pixels lie in a lattice."""
    one = np.zeros((every, every), bool)
    one[:side_px, :side_px] = True
    whole = np.tile(one, (256 // every, 256 // every))
    kept = np.zeros_like(whole)
    kept[:, columns] = whole[:, columns]
    return kept


def image(*, white: np.ndarray, cloud: tuple[float, float, float] = (CLOUD, CLOUD, CLOUD)) -> np.ndarray:
    """Return (3, 256, 256) in [-1, 1]: dark ground, and cloud where it is said."""
    bands = [np.where(white, level, GROUND) for level in cloud]
    return (2 * np.stack(bands) - 1).astype(np.float32)


def left(cloudy: np.ndarray, restored: np.ndarray) -> bool:
    found = SmallClouds()
    found.add(cloudy, restored)
    return found.are_left


ONE_IN_FOUR = dots(every=32)
HAZE = (0.5 * image(white=dots()) + 0.3).astype(np.float32)


@pytest.mark.parametrize(
    ("cloudy", "restored", "expected"),
    [
        pytest.param(image(white=dots()), image(white=ONE_IN_FOUR), True, id="one-in-four-is-left"),
        pytest.param(image(white=dots()), image(white=dots()), False, id="roofs-of-which-none-goes"),
        pytest.param(image(white=dots()), image(white=np.zeros((256, 256), bool)), False, id="all-are-gone"),
        pytest.param(HAZE, image(white=dots()), False, id="roofs-under-haze"),
        pytest.param(
            image(white=dots(), cloud=(CLOUD, 0.3, 0.3)),
            image(white=ONE_IN_FOUR, cloud=(CLOUD, 0.3, 0.3)),
            False,
            id="red-roofs",
        ),
        pytest.param(
            image(white=dots(every=64, side_px=40)),
            image(white=dots(every=64, side_px=40, columns=slice(128))),
            False,
            id="wide-clouds",
        ),
        pytest.param(
            image(white=dots(every=32, side_px=20)),
            image(white=dots(every=64, side_px=20)),
            False,
            id="clouds-wider-than-spots",
        ),
        pytest.param(
            image(white=dots(), cloud=(0.95, 0.5, 0.5)),
            image(white=ONE_IN_FOUR, cloud=(0.95, 0.5, 0.5)),
            False,
            id="bright-red-roofs",
        ),
        pytest.param(
            image(white=dots(), cloud=(0.35, 0.35, 0.35)),
            image(white=ONE_IN_FOUR, cloud=(0.35, 0.35, 0.35)),
            True,
            id="grey-clouds",
        ),
        pytest.param(
            image(white=dots(), cloud=(0.28, 0.28, 0.28)),
            image(white=ONE_IN_FOUR, cloud=(0.28, 0.28, 0.28)),
            False,
            id="faint-texture",
        ),
    ],
)
def test_small_clouds_are_left_where_some_are_gone_and_many_are_not(cloudy, restored, expected):
    assert left(cloudy, restored) is expected


def test_windows_count_together_and_those_without_a_whole_square_do_not():
    few = image(white=dots(every=64))
    found = SmallClouds()
    for _ in range(30):
        found.add(few, few)
    found.add(image(white=dots()), image(white=ONE_IN_FOUR))
    assert (found.squares, found.broken, found.are_left) == (31 * 16, 16, False), "one window in 31 is too little"
    found.add(image(white=dots()), image(white=ONE_IN_FOUR))
    assert found.are_left
    found.add(few[:, :63], few[:, :63])
    assert found.squares == 32 * 16


@pytest.mark.parametrize(("white", "expected"), [(ONE_IN_FOUR, True), (dots(), False)])
def test_the_report_of_a_scene_says_it(white, expected, tmp_path):
    source = write_tif(tmp_path / "scene.tif", np.uint8(np.rint((image(white=dots()) + 1) * 127.5)))
    restored = torch.from_numpy((image(white=white) + 1) / 2)

    def by_heart(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        above, before = cloudy.shape[2] - 256, cloudy.shape[3] - 256  # windows begin on a grid
        return F.pad(restored[None], (before, 0, above, 0), mode="replicate")

    report = remove_from_scene(source, tmp_path / "clear.tif", FakePipeline(by_heart), SceneOptions())
    assert report.small_clouds_left is expected


def test_roofs_of_which_one_in_four_goes_are_no_clouds():
    assert not left(image(white=dots()), image(white=dots() & ~ONE_IN_FOUR))


def test_spots_that_vanish_since_all_around_became_bright_are_not_gone():
    cell = np.ones((32, 32), bool)
    cell[:20, :20] = False
    around = np.tile(np.roll(cell, (-6, -6), (0, 1)), (8, 8)) | ONE_IN_FOUR
    assert not left(image(white=dots()), image(white=around))


def test_without_a_square_that_was_looked_at_nothing_is_said_to_be_left():
    found = SmallClouds()
    assert not found.are_left
    found.add(image(white=dots())[:, :63], image(white=ONE_IN_FOUR)[:, :63])
    assert found.squares == 0 and not found.are_left


@pytest.mark.parametrize(("height", "width", "squares"), [(64, 64, 1), (65, 127, 1), (255, 129, 3 * 2)])
def test_windows_of_any_size_are_looked_at_as_far_as_they_fill_squares(height, width, squares):
    found = SmallClouds()
    found.add(image(white=dots())[:, :height, :width], image(white=ONE_IN_FOUR)[:, :height, :width])
    assert (found.squares, found.broken, found.are_left) == (squares, squares, True)
