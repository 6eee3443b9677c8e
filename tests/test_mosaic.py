"""Windows and their blending."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from declouder.mosaic import Mosaic, Window, areas, axis_weights, plan_windows

SIZES = [(1, 1, 1, 0), (1, 9, 4, 1), (64, 64, 64, 8), (65, 63, 64, 32), (130, 77, 32, 16), (200, 500, 64, 0)]
SIZES += [(127, 129, 64, 8), (1000, 31, 64, 20), (97, 101, 10, 5), (3, 4, 1, 0)]


@pytest.mark.parametrize(("height", "width", "window", "overlap"), SIZES)
def test_windows_are_full_size_cover_the_scene_and_overlap_enough(height, width, window, overlap):
    windows = plan_windows(height, width, window, overlap)
    covered = np.zeros((height, width), int)
    for w in windows:
        assert (w.height, w.width) == (min(window, height), min(window, width))
        assert 0 <= w.row <= height - w.height and 0 <= w.col <= width - w.width
        covered[w.rows, w.cols] += 1
    assert covered.min() >= 1
    cols = sorted({w.col for w in windows})
    assert all(a + window - b >= overlap for a, b in pairwise(cols))
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))


def test_a_scene_smaller_than_a_window_is_one_window_of_its_own_size():
    (window,) = plan_windows(30, 40, 64, 8)
    assert (window.row, window.col, window.height, window.width) == (0, 0, 30, 40)


@pytest.mark.parametrize(("length", "window", "overlap"), [(h, w, o) for h, _, w, o in SIZES])
def test_blend_weights_sum_to_one_at_every_place(length, window, overlap):
    starts = [w.row for w in plan_windows(length, 1, window, overlap)] if window > 1 else list(range(length))
    total = np.zeros(length)
    for start, weight in zip(starts, axis_weights(length, window, overlap), strict=True):
        assert weight.min() >= 0
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blend_weights_have_no_ramp_at_the_scenes_own_edge():
    first, *_, last = axis_weights(300, 64, 16)
    assert first[0] == 1 and last[-1] == 1


def test_blend_weights_change_smoothly():
    weights = axis_weights(300, 64, 16)
    assert max(np.abs(np.diff(w)).max() for w in weights) < 0.12


def blended(mosaic: Mosaic, images: dict[int, np.ndarray | None], area: Window, bands: int = 1) -> np.ndarray:
    def load(index, rows, cols):
        image = images[index]
        return None if image is None else image[:, rows, cols]

    return mosaic.blended(area, bands, load)


@pytest.mark.parametrize(("height", "width", "window", "overlap"), SIZES)
def test_windows_cut_from_an_image_blend_back_to_it_area_by_area(height, width, window, overlap):
    image = np.random.default_rng(0).standard_normal((2, height, width)).astype(np.float32)
    mosaic = Mosaic(height, width, window_px=window, overlap_px=overlap)
    images = {k: image[:, w.rows, w.cols] for k, w in enumerate(mosaic.windows)}
    result, written = np.zeros_like(image), np.zeros((height, width), int)
    for area in areas(height, width, rows_px=50, cols_px=70):
        result[:, area.rows, area.cols] = blended(mosaic, images, area, bands=2)
        written[area.rows, area.cols] += 1
    assert (written == 1).all()
    np.testing.assert_allclose(result, image, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "window", "overlap"), SIZES)
def test_the_windows_reaching_an_area_are_those_that_overlap_it(height, width, window, overlap):
    mosaic = Mosaic(height, width, window_px=window, overlap_px=overlap)
    for area in areas(height, width, rows_px=33, cols_px=47):
        overlapping = [
            k
            for k, w in enumerate(mosaic.windows)
            if max(w.row, area.row) < min(w.row + w.height, area.row + area.height)
            and max(w.col, area.col) < min(w.col + w.width, area.col + area.width)
        ]
        assert mosaic.reaching(area) == overlapping


def test_windows_that_differ_blend_without_a_step():
    mosaic = Mosaic(64, 300, window_px=64, overlap_px=32)
    images = {k: np.full((1, 64, 64), k % 2, np.float32) for k, _ in enumerate(mosaic.windows)}
    result = blended(mosaic, images, Window(0, 0, 64, 300))
    assert np.abs(np.diff(result[0, 0])).max() < 0.07


def test_a_window_that_is_left_out_counts_as_zero():
    mosaic = Mosaic(64, 112, window_px=64, overlap_px=16)
    result = blended(mosaic, {0: np.ones((1, 64, 64), np.float32), 1: None}, Window(0, 0, 64, 112))
    assert (result[0, :, :48] == 1).all() and (result[0, :, 64:] == 0).all()


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (-1, 0), (8, 8), (8, -1)])
def test_impossible_windows_are_a_mistake_of_the_caller(window, overlap):
    with pytest.raises(ValueError, match="no windows"):
        plan_windows(100, 100, window, overlap)
