"""Windows and their blending."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from declouder.mosaic import Mosaic, Window, areas, on_grid, plan_windows

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


def weights_of(length: int, window_px: int, overlap_px: int, origin: int = 0, **options: int) -> list[np.ndarray]:
    """Return each window's weights along a scene of one row."""
    mosaic = Mosaic(1, length, window_px=window_px, overlap_px=overlap_px, origin=(0, origin), **options)
    whole = Window(0, 0, 1, length)

    def alone(number: int) -> np.ndarray:
        def load(index, rows, cols):
            return np.ones((1, rows.stop - rows.start, cols.stop - cols.start)) if index == number else None

        return mosaic.blended(whole, 1, load)[0, 0]

    return [alone(number)[window.cols] for number, window in enumerate(mosaic.windows)]


def test_a_scene_smaller_than_a_window_is_one_window_of_its_own_size():
    (window,) = plan_windows(30, 40, 64, 8)
    assert (window.row, window.col, window.height, window.width) == (0, 0, 30, 40)


@pytest.mark.parametrize(("length", "window", "overlap"), [(h, w, o) for h, _, w, o in SIZES])
def test_blend_weights_sum_to_one_at_every_place(length, window, overlap):
    starts = [w.row for w in plan_windows(length, 1, window, overlap)] if window > 1 else list(range(length))
    total = np.zeros(length)
    for start, weight in zip(starts, weights_of(length, window, overlap), strict=True):
        assert weight.min() >= 0
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_blend_weights_have_no_ramp_at_the_scenes_own_edge():
    first, *_, last = weights_of(300, 64, 16)
    assert first[0] == 1 and last[-1] == 1


@pytest.mark.parametrize("origin", [0, 1, 31, 100, 415, -7])
@pytest.mark.parametrize("length", [513, 900, 2000])
def test_windows_of_a_scene_that_starts_elsewhere_cover_it_and_their_weights_sum_to_one(length, origin):
    windows = plan_windows(length, 1, 512, 96, (origin, 0))
    total = np.zeros(length)
    for window, weight in zip(windows, weights_of(length, 512, 96, origin), strict=True):
        assert weight.min() >= 0
        total[window.rows] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    starts = [w.row for w in windows]
    assert starts[0] == 0 and starts[-1] == length - 512
    assert all(0 < b - a <= 512 - 96 for a, b in pairwise(starts))


@pytest.mark.parametrize("origin", [0, 1, 300, 895, -7])
@pytest.mark.parametrize("length", [1025, 1400, 2048, 5000])
def test_large_windows_end_with_the_scene_and_keep_half_their_size(length, origin):
    windows = plan_windows(length, 1, 1024, 128, (origin, 0))
    assert windows[0].row == 0 and windows[-1].rows.stop == length
    assert all(512 <= w.height <= 1024 for w in windows)
    assert all(a.rows.stop - b.row >= 128 and a.row < b.row for a, b in pairwise(windows))
    # What lies on the grid and within the scene is whole, so that a crop has the same.
    grid = {row for row in range(-(origin % 896), length, 896) if 0 <= row <= length - 1024}
    assert grid <= {w.row for w in windows if w.height == 1024}
    total = np.zeros(length)
    for window, weight in zip(windows, weights_of(length, 1024, 128, origin), strict=True):
        assert weight.min() >= 0 and weight.max() <= 1 and len(weight) == window.height
        total[window.rows] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("origin", [0, 1, 300, 440, -7])
@pytest.mark.parametrize("length", [513, 718, 900, 2000])
def test_windows_may_end_with_the_scene_at_a_smaller_size(length, origin):
    windows = plan_windows(length, 1, 512, 64, (origin, 0), least_cut_px=256)
    assert windows[0].row == 0 and windows[-1].rows.stop == length
    assert all(256 <= w.height <= 512 for w in windows)
    assert all(a.rows.stop - b.row >= 64 and a.row < b.row for a, b in pairwise(windows))
    total = np.zeros(length)
    for window, weight in zip(windows, weights_of(length, 512, 64, origin, least_cut_px=256), strict=True):
        total[window.rows] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("origin", range(0, 896, 64))
def test_a_scene_somewhat_larger_than_a_window_does_not_cost_many(origin):
    windows = plan_windows(2048, 2048, 1024, 128, (origin, origin))
    assert sum(w.height * w.width for w in windows) < 2.3 * 2048**2


def test_a_crop_has_the_windows_and_weights_of_the_whole_inside():
    whole = plan_windows(3000, 3000, 512, 96, (40, -9))
    crop = plan_windows(2000, 2000, 512, 96, (40 + 333, -9 + 517))
    inside = {(w.row + 333, w.col + 517) for w in crop if 0 < w.row < 1488 and 0 < w.col < 1488}
    assert len(inside) >= 4 and inside <= {(w.row, w.col) for w in whole}
    for row, col in inside:
        assert on_grid(Window(row, col, 512, 512), (40, -9)) == Window(row, col, 512, 512)


def test_a_window_off_the_grid_reaches_up_and_left_to_it():
    found = on_grid(Window(100, 7, 512, 300), (40, -9))
    assert (found.row + 40) % 32 == 0 and (found.col - 9) % 32 == 0
    assert 100 - 32 < found.row <= 100 and found.row + found.height == 612
    assert 7 - 32 < found.col <= 7 and found.col + found.width == 307
    assert on_grid(Window(5, 5, 64, 64), (0, 0)) == Window(5, 5, 64, 64)


def test_the_ramp_takes_all_of_an_overlap_and_no_more():
    first, second, *_ = weights_of(3000, 512, 128)
    assert (first[-128:] < 1).all() and (second[:128] > 0).all() and first[-129] == second[128] == 1
    assert np.abs(np.diff(first)).max() == pytest.approx(np.pi / 2 / 128, rel=0.01)  # as flat as it can be


def test_blend_weights_change_smoothly():
    weights = weights_of(300, 64, 16)
    assert max(np.abs(np.diff(w)).max() for w in weights) < 0.2


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
    assert np.abs(np.diff(result[0, 0])).max() < 0.1


def test_a_window_that_is_left_out_counts_as_zero():
    mosaic = Mosaic(64, 112, window_px=64, overlap_px=16)
    result = blended(mosaic, {0: np.ones((1, 64, 64), np.float32), 1: None}, Window(0, 0, 64, 112))
    assert (result[0, :, :48] == 1).all() and (result[0, :, 64:] == 0).all()


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (-1, 0), (8, 8), (8, -1)])
def test_impossible_windows_are_a_mistake_of_the_caller(window, overlap):
    with pytest.raises(ValueError, match="no windows"):
        plan_windows(100, 100, window, overlap)
