"""Scores by part of an image: what they are means of, and where."""

from __future__ import annotations

import math

import numpy as np
import pytest

from declouder.breakdown import change_scores, pooled_spread, region_scores, spread_scores
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
