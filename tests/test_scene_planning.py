"""No more goes through the model than cloud and its surroundings, and every cloudy pixel does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FakePipeline, read_tif, write_tif
from declouder.masks import MaskChoice
from declouder.mosaic import plan_windows
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene
from declouder.scene.planning import Plan


def draws(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    return (cloudy * 0.5 + 0.1 + 0.02 * latents).clamp(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 90), st.data())
def test_the_cores_of_the_windows_tile_the_scene(height, width, window_px, data):
    overlap_px = data.draw(st.integers(0, window_px // 2))
    plan = Plan(plan_windows(height, width, window_px, overlap_px), context_px=0)
    count = np.zeros((height, width), int)
    for index, window in enumerate(plan.windows):
        rows, cols = plan.core(index)
        count[window.rows, window.cols][rows, cols] += 1
    assert (count == 1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(0, 2000), st.integers(500, 1500), st.data())
def test_the_cores_of_windows_that_the_edge_cuts_tile_the_scene_too(height, origin, window_px, data):
    overlap_px = data.draw(st.integers(0, window_px // 2))
    plan = Plan(plan_windows(height, 1, window_px, overlap_px, (origin, 0)), context_px=0)
    count = np.zeros(height, int)
    for index, window in enumerate(plan.windows):
        count[window.rows][plan.core(index)[0]] += 1
    assert (count == 1).all()


def box(data: st.DataObject, height: int, width: int) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Draw a rectangle of cloud; return where it is True and its rows and columns."""
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = slice(top, data.draw(st.integers(top + 1, height)))
    cols = slice(left, data.draw(st.integers(left + 1, width)))
    cloudy = np.zeros((height, width), bool)
    cloudy[rows, cols] = True
    return cloudy, (rows, cols)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.data())
def test_a_cut_window_holds_its_cloud_and_lies_in_the_window(height, width, data):
    plan = Plan(plan_windows(height, width, 600, 0), context_px=20)
    cloudy, (rows, cols) = box(data, height, width)
    part = plan.part(0, cloudy, ground=np.ones_like(cloudy), cut=True)
    assert part.row >= 0 and part.col >= 0
    assert part.row + part.height <= height and part.col + part.width <= width
    assert part.row <= max(0, rows.start - 4) and part.row + part.height >= min(height, rows.stop + 4)
    assert part.col <= max(0, cols.start - 4) and part.col + part.width >= min(width, cols.stop + 4)
    assert part.height == height or part.height % 32 == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.data())
def test_a_window_without_a_mask_ends_where_data_end_but_is_not_tiny(height, width, data):
    plan = Plan(plan_windows(height, width, 600, 0), context_px=20)
    valid, spans = box(data, height, width)
    part = plan.part(0, valid, ground=valid, cut=False)
    places = (part.row, part.height, height), (part.col, part.width, width)
    for (start, size, length), span in zip(places, spans, strict=True):
        assert 0 <= start <= span.start and span.stop <= start + size <= length
        assert size == max(span.stop - span.start, min(192, length))


def disc(tmp_path: Path, px: int, share: float) -> tuple[Path, np.ndarray]:
    rows, cols = np.ogrid[:px, :px]
    radius = px * np.sqrt(share / np.pi)
    cloud = (rows - 0.37 * px) ** 2 + (cols - 0.37 * px) ** 2 < radius**2
    return write_tif(tmp_path / "mask.tif", cloud[None].astype(np.uint8)), cloud


@pytest.mark.parametrize("batch", [1, 4])
def test_pixels_under_a_mask_are_those_of_a_run_without(batch, tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 9000, (3, 700, 700), dtype=np.uint16))
    mask, cloud = disc(tmp_path, 700, 0.1)
    options = SceneOptions(window_px=320, overlap_px=48, batch=batch, scale=Scaling(0, 9000))
    remove_from_scene(source, tmp_path / "all.tif", FakePipeline(draws), options)
    seen = FakePipeline(draws)
    remove_from_scene(source, tmp_path / "partly.tif", seen, replace(options, mask=MaskChoice(mask, feather_px=0)))
    whole, partly = read_tif(tmp_path / "all.tif"), read_tif(tmp_path / "partly.tif")
    np.testing.assert_allclose(partly[:, cloud], whole[:, cloud], atol=1)
    np.testing.assert_array_equal(partly[:, ~cloud], read_tif(source)[:, ~cloud])
    assert len({x.shape[2:] for x in seen.seen}) > 1  # cut to several sizes


def test_windows_that_the_edge_cuts_put_every_pixel_in_its_place(tmp_path, rng):
    dn = rng.integers(0, 9000, (3, 1100, 1300), dtype=np.uint16)
    source, seen = write_tif(tmp_path / "a.tif", dn), FakePipeline(lambda cloudy, latents: cloudy * 0.5 + 0.25)
    remove_from_scene(source, tmp_path / "b.tif", seen, SceneOptions(scale=Scaling(0, 9000), batch=2))
    np.testing.assert_allclose(read_tif(tmp_path / "b.tif"), dn * 0.5 + 2250, atol=1)
    assert len({x.shape[2:] for x in seen.seen}) > 1  # some are smaller


def test_five_per_cent_of_cloud_send_less_than_a_tenth_of_the_pixels_through_the_model(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 2048, 2048), 90, np.uint8))
    mask, _ = disc(tmp_path, 2048, 0.05)
    partly, whole = FakePipeline(draws), FakePipeline(draws)
    remove_from_scene(source, tmp_path / "b.tif", partly, SceneOptions(mask=MaskChoice(mask)))
    remove_from_scene(source, tmp_path / "c.tif", whole, SceneOptions())
    pixels = [sum(x[:, 0].numel() for x in pipeline.seen) for pipeline in (partly, whole)]
    assert pixels[0] < 0.1 * pixels[1]


@pytest.mark.parametrize("context_px", [0, 30, 60, 64])
def test_a_cut_window_holds_all_the_ground_that_is_wanted_around_its_cloud(context_px):
    plan = Plan(plan_windows(700, 800, 1000, 0), context_px=context_px)
    cloudy = np.zeros((700, 800), bool)
    cloudy[100:500, 150:450] = True
    part = plan.part(0, cloudy, ground=np.ones_like(cloudy), cut=True)
    for start, size, first, end in ((part.row, part.height, 100, 500), (part.col, part.width, 150, 450)):
        assert first - context_px - 32 < start <= first - context_px
        assert end + context_px <= start + size < end + context_px + 32


def test_the_model_sees_64_px_of_ground_around_a_cloud(tmp_path, darker):
    source = write_tif(tmp_path / "a.tif", np.full((3, 900, 900), 90, np.uint8))
    cloud = np.zeros((1, 900, 900), np.uint8)
    cloud[:, 200:600, 300:700] = 1
    mask = MaskChoice(write_tif(tmp_path / "mask.tif", cloud), feather_px=0)
    remove_from_scene(source, tmp_path / "b.tif", darker, SceneOptions(mask=mask))
    (seen,) = darker.seen
    assert min(seen.shape[2:]) >= 400 + 2 * 64
