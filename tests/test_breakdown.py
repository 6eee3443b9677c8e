"""Scores by part of an image: what they are means of, and where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from declouder.breakdown import change_scores, cloud_distance, pooled_spread, region_scores, regions, spread_scores
from declouder.errors import DataError
from declouder.metrics import psnr, score


def test_change_is_the_mean_over_clear_pixels_and_the_share_of_those_that_changed():
    outside = np.zeros((20, 20), bool)
    outside[:, :10] = True
    change = np.zeros((20, 20, 3))
    change[:10, :10] = 0.2
    change[:, 10:] = 0.9
    found = change_scores(outside, change)
    assert found is not None and found["mean"] == pytest.approx(0.1) and found["share"] == pytest.approx(0.5)


def test_similarity_of_a_region_is_that_of_its_pixels():
    border, square = 5, np.zeros((60, 60), bool)
    square[20:40, 10:30] = True
    ssim_map = np.ones((50, 50))
    ssim_map[15:35, 5:25] = 0  # the square, less the border
    error = np.where(square, 0.1, 0)[:, :, None].repeat(3, axis=2)
    found = region_scores({"inside": square, "outside": ~square}, error, ssim_map, border)
    assert found["inside"] is not None and found["outside"] is not None
    assert found["inside"]["ssim"] == 0 and found["outside"]["ssim"] == 1
    assert found["inside"]["psnr"] == pytest.approx(20) and found["outside"]["psnr"] is None
    assert found["inside"]["mae"] == pytest.approx(0.1)


@pytest.mark.parametrize(("averaged", "wanted"), [(False, math.sqrt(2)), (True, math.sqrt(1.25))])
def test_a_calibrated_spread_depends_on_what_is_scored(averaged, wanted):
    rng = np.random.default_rng(0)
    scores = [spread_scores(rng.random((30, 30)), rng.random((30, 30)))]
    assert pooled_spread(scores, 4, averaged)["calibrated"] == pytest.approx(wanted)


def test_scores_of_a_band_are_shares_of_the_range_that_is_given():
    clear = np.full((40, 40, 3), 1000, np.uint16)
    restored = clear + np.array([0, 41, 410], np.uint16)
    found = score(restored, clear, lpips=None, data_range=4100).bands
    assert [band["mae"] for band in found] == pytest.approx([0, 0.01, 0.1])
    assert found[2]["psnr"] == pytest.approx(psnr(restored[..., 2:], clear[..., 2:], data_range=4100))


def test_regions_divide_the_image_by_thickness_and_the_edge_lies_on_the_border() -> None:
    clear = np.full((80, 80, 3), 50, np.uint8)
    cloudy = clear.copy()
    cloudy[:, 40:] += 20
    cloudy[:, 60:] += 60
    parts = regions(cloudy, clear, 255)
    assert (parts["outside"].astype(int) + parts["thin"] + parts["thick"] == 1).all()
    assert (parts["inside"] == ~parts["outside"]).all()
    assert parts["outside"][:, :30].all()
    assert parts["thin"][:, 48:52].all()
    assert parts["thick"][:, 70:].all()
    assert parts["edge"][:, 38:42].all()
    assert not parts["edge"][:, :20].any()
    assert not parts["edge"][:, 60:].any()


def test_masks_say_where_cloud_is_and_their_levels_how_thick() -> None:
    clear = np.full((40, 40, 3), 50, np.uint8)
    cloudy = clear + np.uint8(100)
    mask = np.zeros((40, 40), np.uint8)
    mask[:20] = 1
    parts = regions(cloudy, clear, 255, mask)
    assert (parts["inside"] == (mask > 0)).all()
    assert (parts["thick"] == parts["inside"]).all(), "a mask of two levels leaves thickness to the pair"
    mask[:20] = 128
    mask[:10] = 255
    parts = regions(cloudy, clear, 255, mask)
    assert (parts["thick"] == (mask == 255)).all()
    assert (parts["thin"] == (mask == 128)).all()
    with pytest.raises(DataError, match="the mask is 39 x 40"):
        regions(cloudy, clear, 255, mask[:, 1:])


def test_a_spread_that_foretells_the_error_lies_on_the_calibrated_line() -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.01, 0.1, (200, 200))
    error = np.abs(rng.normal(0, 2**0.5 * spread))
    found = pooled_spread([spread_scores(spread, error)], samples=4, averaged=False)
    for row in found["reliability"]:
        assert row["error"] / row["spread"] == pytest.approx(found["calibrated"], rel=0.1)
    assert found["correlation"] == pytest.approx(np.corrcoef(spread.ravel(), error.ravel())[0, 1])


def test_noise_is_no_cloud(rng):
    clear = np.full((80, 80, 3), 100, np.float32)
    noisy = clear + rng.choice([-20, 20], (80, 80, 3))
    assert cloud_distance(noisy, clear, 255).max() < 0.03


def test_a_region_of_less_than_a_hundredth_is_not_scored():
    few = np.zeros((60, 60), bool)
    few[:5, :7] = True  # 35 of 3600
    error = np.full((60, 60, 3), 0.1)
    found = region_scores({"inside": few, "outside": ~few}, error, np.ones((50, 50)), 5)
    assert found["inside"] is None and found["outside"] is not None
    assert change_scores(few, error) is None
    few[0, 7] = True
    assert region_scores({"inside": few}, error, np.ones((50, 50)), 5)["inside"] is not None
    assert change_scores(few, error) is not None


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_thick_is_from_three_quarters_of_what_a_masks_type_holds(dtype, top):
    clear = np.full((40, 40, 3), 50, np.uint8)
    mask = np.zeros((40, 40), dtype)
    mask[:10], mask[10:20], mask[20:30] = 0.8 * top, 0.7 * top, 0.1 * top
    parts = regions(clear, clear, 255, mask)
    assert (parts["thick"].sum(), parts["thin"].sum(), parts["outside"].sum()) == (400, 800, 400)
    mask[:10] = 0
    assert not regions(clear, clear, 255, mask)["thick"].any(), "the highest of a mask is not thick for that"


def test_a_pixel_is_changed_from_two_hundredths_of_the_range():
    change = np.array([[0.0199], [0.02], [0.5], [0.0]])[:, None]
    assert change_scores(np.ones((4, 1), bool), change)["share"] == 0.5


def test_the_rank_correlation_is_one_where_the_error_only_grows_with_the_spread():
    spread = np.linspace(0.001, 0.1, 400).reshape(20, 20)
    found = pooled_spread([spread_scores(spread, spread**6)], samples=2, averaged=False)
    assert found["rank_correlation"] == pytest.approx(1) and found["correlation"] < 0.9


def test_classes_of_spread_begin_where_they_say():
    spread = np.array([[0.0, 0.001, 0.02, 0.5]])
    found = pooled_spread([spread_scores(spread, spread)], samples=2, averaged=False)["reliability"]
    assert [(row["from"], row["pixels"]) for row in found] == [(0.0, 2), (0.02, 1), (0.12, 1)]


def test_bands_that_differ_in_both_directions_do_not_cancel_out():
    clear = np.full((60, 60, 3), 100, np.float32)
    found = cloud_distance(clear + np.float32([30, 0, -30]), clear, 255)
    np.testing.assert_allclose(found, 20 / 255, rtol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
def test_the_edge_is_as_wide_on_both_sides_in_both_directions(turned):
    mask = np.zeros((80, 80), np.uint8)
    mask[:, 40:] = 1
    clear = np.zeros((80, 80, 3), np.uint8)
    edge = regions(clear, clear, 255, mask.T if turned else mask)["edge"]
    assert np.flatnonzero((edge.T if turned else edge).any(axis=0)).tolist() == list(range(32, 48))


def test_a_region_at_the_border_has_no_ssim_and_a_change_is_the_mean_over_bands():
    part = np.zeros((60, 60), bool)
    part[:5] = True
    found = region_scores({"border": part}, np.full((60, 60, 3), 0.1), np.ones((50, 50)), 5)
    assert found["border"]["ssim"] is None
    assert change_scores(np.ones((4, 4), bool), np.full((4, 4, 3), [0, 0, 0.03]))["share"] == 0


def test_a_spread_that_is_the_same_everywhere_is_correlated_with_nothing():
    flat = spread_scores(np.full((9, 9), 0.1), np.random.default_rng(0).random((9, 9)))
    pooled = pooled_spread([flat], 2, False)
    assert flat["correlation"] is None and pooled["correlation"] is None and pooled["rank_correlation"] is None


def test_a_mask_that_lies_across_its_image_is_refused():
    with pytest.raises(DataError, match="the mask is 40 x 60 px, its image 60 x 40"):
        regions(*np.zeros((2, 40, 60, 3), np.uint8), 255, np.ones((60, 40), np.uint8))


def test_the_spread_of_several_images_is_the_mean_of_theirs():
    scores = [spread_scores(np.full((9, 9), spread), np.full((9, 9), 0.1)) for spread in (0.1, 0.2, 0.6)]
    assert pooled_spread(scores, 2, False)["mean"] == pytest.approx(0.3)


def test_an_exact_image_has_no_error_that_a_spread_could_foretell():
    exact = spread_scores(np.random.default_rng(0).random((9, 9)), np.zeros((9, 9)))
    pooled = pooled_spread([exact], 2, False)
    assert exact["correlation"] is None and pooled["correlation"] is None
    assert [row["error"] for row in pooled["reliability"]] == [0.0] * len(pooled["reliability"])
