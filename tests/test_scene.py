"""Scene in, scene out, with pipelines whose result is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from rasterio.transform import Affine

from conftest import FakePipeline, read_tif, write_tif
from declouder import cli
from declouder.bands import numbered
from declouder.errors import ModelError, OptionError, OutputError, RasterError
from declouder.journal import Layer
from declouder.masks import MaskChoice
from declouder.mosaic import Window
from declouder.raster import open_raster
from declouder.scaling import Scaling
from declouder.scene import (
    SceneOptions,
    auto_scale,
    choose_bands,
    fill_invalid,
    remove_from_scene,
    restored_dn,
    scene_noise,
)
from declouder.scene.inference import layers_of, packed, threads_of, unpacked

SMALL = SceneOptions(window_px=64, overlap_px=16)
FOUR = ("red", "green", "blue", "nir")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("height", "width"), [(40, 50), (64, 64), (65, 200), (150, 61)])
def test_a_pipeline_that_changes_nothing_gives_back_the_scene(dtype, height, width, identity, tmp_path, rng):
    dn = rng.gamma(2, 400, (3, height, width)) % 255 if dtype == "uint8" else rng.gamma(2, 400, (3, height, width))
    source = write_tif(tmp_path / "a.tif", dn.astype(dtype))
    report = remove_from_scene(source, tmp_path / "b.tif", identity, SMALL)
    result = read_tif(tmp_path / "b.tif")
    if dtype == "float32":
        np.testing.assert_allclose(result, dn.astype(dtype), rtol=1e-5, atol=1e-3)
    else:
        np.testing.assert_array_equal(result, dn.astype(dtype))
    assert report.windows >= 1 and report.skipped == 0
    assert report.megapixels == pytest.approx(height * width / 1e6)


def test_only_the_models_bands_change_and_everything_else_of_the_geotiff_stays(rich_tif, darker, tmp_path):
    report = remove_from_scene(rich_tif, tmp_path / "b.tif", darker, SMALL)
    old, new = read_tif(rich_tif), read_tif(tmp_path / "b.tif")
    assert report.bands.numbers == (4, 3, 2)
    assert report.bands.how == "by description"
    np.testing.assert_array_equal(new[[0, 4]], old[[0, 4]])
    assert (new[[1, 2, 3], 20:] != old[[1, 2, 3], 20:]).mean() > 0.9
    np.testing.assert_array_equal(new == 0, old == 0)
    with rasterio.open(rich_tif) as a, rasterio.open(tmp_path / "b.tif") as b:
        assert (a.crs, a.transform, a.nodata, a.descriptions) == (
            b.crs,
            b.transform,
            b.nodata,
            b.descriptions,
        )


def test_the_model_sees_its_bands_in_its_own_order(tmp_path):
    dn = np.stack([np.full((20, 20), value, np.uint8) for value in (10, 20, 30, 40)])
    pipeline = FakePipeline(lambda cloudy, latents: cloudy, FOUR)
    remove_from_scene(
        write_tif(tmp_path / "a.tif", dn), tmp_path / "b.tif", pipeline, SceneOptions(bands=(3, 1, 4, 2))
    )
    seen = pipeline.seen[0][0, :, 0, 0] * 255
    np.testing.assert_allclose(seen, [30, 10, 40, 20], atol=1e-3)


def test_options_that_are_none_are_told(identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    with pytest.raises(OptionError, match="options is a dict; give a SceneOptions"):
        remove_from_scene(source, tmp_path / "b.tif", identity, {"steps": 0})


def test_a_callers_autocast_and_threads_change_nothing(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 256, (3, 40, 40), dtype=np.uint8))
    before, seen = torch.get_num_threads(), []

    def compute(cloudy, _):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_num_threads()))
        return cloudy

    for threads in (None, before, before + 1):
        with torch.autocast("cpu", torch.bfloat16):
            remove_from_scene(
                source, tmp_path / f"{threads}.tif", FakePipeline(compute), SceneOptions(threads=threads)
            )
    assert seen == [(False, before), (False, before), (False, before + 1)] and torch.get_num_threads() == before


@pytest.mark.parametrize("nodata", [0, 255, 7])
def test_a_valid_pixel_never_becomes_nodata_and_nodata_stays(nodata, tmp_path, rng):
    dn = rng.integers(0, 256, (3, 90, 100), dtype=np.uint8)
    dn[:, 30:60, 40:] = nodata
    source = write_tif(tmp_path / "a.tif", dn, nodata=nodata)
    pipeline = FakePipeline(lambda cloudy, latents: torch.full_like(cloudy, nodata / 255))
    remove_from_scene(source, tmp_path / "b.tif", pipeline, SMALL)
    result = read_tif(tmp_path / "b.tif")
    np.testing.assert_array_equal(result == nodata, dn == nodata)
    assert np.abs(result[dn != nodata].astype(int) - nodata).max() == 1


@pytest.mark.parametrize(("also", "moved"), [(None, (30, 34, 29)), (30, (28, 34, 29))])
def test_a_restored_pixel_never_becomes_the_transparent_colour(also, moved, tmp_path):
    """Which a tag declares, a number for each band: single samples may have theirs."""
    color = (29, 34, 29)
    dn = np.full((3, 40, 50), 200, np.uint8)
    dn[:, :10] = np.reshape(color, (3, 1, 1))
    dn[:, 30:] = 200 if also is None else also
    source = write_tif(tmp_path / "a.tif", dn)
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(NODATA_VALUES=" ".join(map(str, color)))
    shade = torch.tensor(color).view(1, 3, 1, 1) / 255
    pipeline = FakePipeline(lambda cloudy, latents: shade.expand_as(cloudy))
    remove_from_scene(source, tmp_path / "b.tif", pipeline, replace(SMALL, nodata=also))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        result, hidden = dataset.read(), dataset.dataset_mask() == 0
        assert dataset.nodata is None
    assert hidden[:10].all() and not hidden[10:].any()
    assert (result[:, :10] == dn[:, :10]).all() and (result[:, 10:30] == np.reshape(moved, (3, 1, 1))).all()
    left = np.reshape(moved, (3, 1, 1)) if also is None else also
    assert (result[:, 30:] == left).all()


def test_what_gdal_takes_for_a_transparent_colour_may_hold_words(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 20, 20), 90, np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(NODATA_VALUES="90 none 90")
    with open_raster(source) as reader:
        assert reader.info.nodata_color == (90, 0, 90)
        assert reader.read_valid(slice(0, 20), slice(0, 20)).all()


def test_a_nodata_that_is_given_leaves_an_alpha_band_in_force(darker, tmp_path):
    dn = np.full((4, 40, 50), 90, np.uint8)
    dn[3] = 255
    dn[3, :10] = 0
    dn[:3, 10:20] = 7
    source = write_tif(tmp_path / "a.tif", dn, photometric="RGB", alpha="YES")
    remove_from_scene(source, tmp_path / "b.tif", darker, replace(SMALL, nodata=7))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        result, hidden, nodata = dataset.read(), dataset.dataset_mask() == 0, dataset.nodata
    assert nodata is None and hidden[:10].all() and not hidden[10:].any()
    assert (result[:, :20] == dn[:, :20]).all() and (result[:3, 20:] < 90).all()


def test_nan_stays_and_does_not_spread(darker, tmp_path, rng):
    dn = rng.uniform(0, 1, (3, 100, 120)).astype(np.float32)
    dn[:, 40:70, 20:90] = np.nan
    dn[1, 5, 5] = np.nan
    remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "b.tif", darker, SMALL)
    np.testing.assert_allclose(read_tif(tmp_path / "b.tif"), dn / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "high", "kept"),
    [
        ("uint8", 255, "uint16"),
        ("int16", 3000, "uint16"),
        ("uint16", 65535, "uint16"),
        ("uint16", 65536, "float32"),
        ("int32", 9000, "uint16"),
        ("int32", 90000, "float32"),
        ("float32", 1, "float32"),
    ],
)
def test_a_window_is_kept_in_half_the_bytes_where_that_loses_no_number(dtype, high, kept):
    assert layers_of(SceneOptions(), bands=3, dtype=dtype, scale=Scaling(0, high)) == {"image": Layer(kept, 3)}


@pytest.mark.parametrize("high", [65535, 200000])
def test_integers_come_back_to_the_number_whatever_the_scale(high, identity, tmp_path, rng):
    dn = rng.integers(0, 65536, (3, 40, 50), dtype=np.uint16)
    options = replace(SMALL, scale=Scaling(0, high))
    remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "b.tif", identity, options)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), dn)


def test_noise_of_an_enlarged_scene_belongs_to_places_of_the_finer_grid(tmp_path, rng):
    drawn = []

    class Larger(FakePipeline):
        def __call__(self, cloudy, *, latents, enlarge, **_):
            assert enlarge == 2 and latents.shape[-1] == 2 * cloudy.shape[-1]
            drawn.append(latents[0].numpy())
            return super().__call__(cloudy, latents=latents)

    Image.fromarray(rng.integers(0, 256, (40, 100, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    options = replace(SMALL, enlarge=2, seed=4)
    remove_from_scene(tmp_path / "a.png", tmp_path / "b.png", Larger(lambda c, _: c), options)
    whole = scene_noise(4, Window(0, 0, 80, 200), 3)
    first, last = drawn
    np.testing.assert_array_equal(first, whole[:, :, :128])
    np.testing.assert_array_equal(last, whole[:, :, -128:])


def test_windows_at_the_edge_of_an_enlarged_scene_are_as_large_as_ever_to_the_networks(tmp_path, rng):
    source = write_tif(tmp_path / "scene.tif", rng.integers(0, 256, (3, 718, 40), dtype=np.uint8))
    seen = {}
    for enlarge in (1, 2):
        pipeline = FakePipeline(lambda cloudy, latents: cloudy)
        options = SceneOptions(steps=0, enlarge=enlarge, window_px=512, overlap_px=64)
        remove_from_scene(source, tmp_path / f"{enlarge}.tif", pipeline, options)
        seen[enlarge] = min(cloudy.shape[-2] for cloudy in pipeline.seen)
    assert seen[1] >= 512 > seen[2] >= 256


def test_nodata_does_not_disturb_its_neighbours(tmp_path):
    # A pipeline that looks around, as a network does: the mean over flat ground is flat.
    blur = FakePipeline(lambda cloudy, _: F.avg_pool2d(cloudy, 9, 1, 4, count_include_pad=False))
    dn = np.full((3, 100, 120), 120, np.uint8)
    dn[:, :50, :30] = 0
    dn[:, 60:70, 50:53] = 0
    remove_from_scene(write_tif(tmp_path / "a.tif", dn, nodata=0), tmp_path / "b.tif", blur, SMALL)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), dn)


def test_windows_without_data_cost_no_inference(identity, tmp_path):
    dn = np.zeros((3, 256, 256), np.uint8)
    dn[:, :40, :40] = 50
    report = remove_from_scene(write_tif(tmp_path / "a.tif", dn, nodata=0), tmp_path / "b.tif", identity, SMALL)
    assert len(identity.seen) == 1 and report.skipped == report.windows - 1
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), dn)


def test_transparent_pixels_and_alpha_pass_through(darker, tmp_path, rng):
    rgba = rng.integers(1, 256, (80, 90, 4), dtype=np.uint8)
    rgba[10:40, 20:50, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    remove_from_scene(tmp_path / "a.png", tmp_path / "b.png", darker, SMALL)
    result = np.asarray(Image.open(tmp_path / "b.png"))
    np.testing.assert_array_equal(result[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(result[10:40, 20:50], rgba[10:40, 20:50])
    assert np.abs(result[60:, :, :3] - rgba[60:, :, :3] / 2).max() <= 0.51


@pytest.mark.parametrize("described", [True, False])
def test_near_infrared_that_a_file_calls_alpha_is_restored_where_it_is_0(tmp_path, rng, described):
    dn = rng.integers(1, 255, (4, 70, 80), dtype=np.uint8)
    dn[3, :30, :30] = 0
    source = write_tif(tmp_path / "a.tif", dn)
    with rasterio.open(source, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in ("red", "green", "blue", "alpha")]
        if described:
            dataset.descriptions = FOUR
    darker = FakePipeline(lambda cloudy, _: cloudy / 2, FOUR)
    options = SMALL if described else replace(SMALL, bands=(1, 2, 3, 4))
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    assert np.abs(read_tif(tmp_path / "b.tif") - dn / 2).max() <= 0.51
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.colorinterp[3].name == "alpha"


def test_the_result_depends_neither_on_batch_nor_on_the_order_of_windows(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 200, 180), dtype=np.uint8))
    pipeline = FakePipeline(lambda cloudy, latents: torch.sigmoid(latents + cloudy))
    for batch in (1, 3, 100):
        remove_from_scene(source, tmp_path / f"{batch}.tif", pipeline, replace(SMALL, batch=batch))
    first = read_tif(tmp_path / "1.tif")
    np.testing.assert_array_equal(read_tif(tmp_path / "3.tif"), first)
    np.testing.assert_array_equal(read_tif(tmp_path / "100.tif"), first)


def test_overlapping_windows_start_from_the_same_noise(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 150, 170), 128, np.uint8))
    pipeline = FakePipeline(lambda cloudy, latents: (latents / 10 + 0.5).clamp(0, 1))
    # The scene begins at 500 km east, 4,000 km north, in pixels of 10 m.
    whole = scene_noise(3, Window(-400_000, 50_000, 150, 170), 3)
    remove_from_scene(source, tmp_path / "b.tif", pipeline, replace(SMALL, seed=3))
    expected = np.rint(np.clip(whole / 10 + 0.5, 0, 1).astype(np.float64) * 255)
    assert np.abs(read_tif(tmp_path / "b.tif") - expected).max() <= 1


def test_a_crop_restored_alone_is_the_whole_scene_away_from_its_border(tmp_path, rng):
    dn = rng.integers(0, 256, (3, 620, 640), dtype=np.uint8)
    whole = write_tif(tmp_path / "whole.tif", dn)
    crop = write_tif(tmp_path / "crop.tif", dn[:, 77:, 93:], transform=Affine(10, 0, 5e5 + 930, 0, -10, 4e6 - 770))
    # What a window becomes depends on where its squares of 32 px lie, as with any network that halves images.
    pool = torch.nn.AvgPool2d(32, ceil_mode=True)

    def by_squares(cloudy, latents):
        wide = pool(cloudy).repeat_interleave(32, 2).repeat_interleave(32, 3)
        return (wide[..., : cloudy.shape[2], : cloudy.shape[3]] + latents / 10).clamp(0, 1)

    options = SceneOptions(window_px=192, overlap_px=64)
    for source in (whole, crop):
        remove_from_scene(source, tmp_path / f"{source.stem}_clear.tif", FakePipeline(by_squares), options)
    expected, found = (read_tif(tmp_path / f"{name}_clear.tif") for name in ("whole", "crop"))
    np.testing.assert_array_equal(found[:, 192:-192, 192:-192], expected[:, 77:, 93:][:, 192:-192, 192:-192])


@pytest.mark.parametrize(("row", "col"), [(0, 0), (-128, -128), (-62_000, 7_800), (70, -(2**40))])
def test_noise_belongs_to_places_and_seeds_and_is_standard_normal(row, col):
    whole = scene_noise(1, Window(row, col, 300, 300), 3)
    part = scene_noise(1, Window(row + 130, col + 61, 100, 200), 3)
    np.testing.assert_array_equal(part, whole[:, 130:230, 61:261])
    assert abs(whole.mean()) < 0.01 and abs(whole.std() - 1) < 0.01
    assert np.abs(np.corrcoef(whole.reshape(3, -1)) - np.eye(3)).max() < 0.02
    assert (scene_noise(2, Window(row, col, 300, 300), 3) != whole).mean() > 0.99
    tiles = whole[0, :256, :256].reshape(4, 64, 4, 64).transpose(0, 2, 1, 3).reshape(16, -1)
    assert np.abs(np.corrcoef(tiles) - np.eye(16)).max() < 0.08


def test_progress_counts_every_window_once(identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 150, 170), 128, np.uint8))
    calls: list[tuple[int, int]] = []
    report = remove_from_scene(
        source, tmp_path / "b.tif", identity, SMALL, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(k, report.windows) for k in range(1, report.windows + 1)]


@pytest.mark.parametrize(
    ("descriptions", "names", "expected"),
    [
        (("Blue", "GREEN", "red", "Near Infrared"), FOUR, (3, 2, 1, 4)),
        (("B02", "B03", "B04", "B08"), FOUR, (3, 2, 1, 4)),
        (("Band 2 - Blue", "Band 3 - Green", "Band 4 - Red", "Band 5 - NIR"), FOUR, (3, 2, 1, 4)),
        (("blue", "green", "red", "nir08"), FOUR, (3, 2, 1, 4)),
        (("coastal blue", "blue", "green", "red edge", "red"), FOUR[:3], (5, 3, 2)),
        (("nir", "red", "green", None), FOUR, (2, 3, 4, 1)),
        (("nir", "red", "green", None), FOUR[:3], (2, 3, 4)),
        # "B4" is red to one sensor and near infrared to another: the order counts.
        (("B1", "B2", "B3", "B4"), FOUR, (1, 2, 3, 4)),
        ((None, None, None, "red"), FOUR[:3], (4, 1, 2)),
        (("red", "red", "green"), FOUR[:3], (1, 3, 2)),  # two bands say red: neither does
        (("B04 (red)", "Band B03, 560nm", "S2A_MSI_T32TQM_B02", "B08"), FOUR, (1, 2, 3, 4)),
        (tuple(f"T32UQD_20200101T101411_B{number}_10m" for number in ("02", "03", "04", "08")), FOUR, (3, 2, 1, 4)),
        (("QA_PIXEL", "SR_B4", "SR_B3", "SR_B2", "SR_QA_AEROSOL", "ST_B10"), FOUR[:3], (2, 3, 4)),
        (("sur_refl_b01", "sur_refl_b02", "sur_refl_b03", "sur_refl_b04"), FOUR, (1, 4, 3, 2)),  # MODIS's
        (("refl_b01", "refl_b02", "refl_b03", "refl_b04"), FOUR, (1, 2, 3, 4)),  # whosever
        (("red uncertainty", "red", "green", "blue"), FOUR[:3], (2, 3, 4)),
        (("red", "red uncertainty", "green", None), FOUR[:3], (1, 3, 4)),
        (("IR", "R", "G", "B"), FOUR, (2, 3, 4, 1)),
        (("extra", "Near Infrared 1", "Blue", "Green", "Red"), FOUR, (5, 4, 3, 2)),
        (("Infrared 10 um", "NIR", "Blue", "Green", "Red"), FOUR, (5, 4, 3, 2)),
    ],
)
def test_bands_are_found_by_what_descriptions_say(descriptions, names, expected, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((len(descriptions), 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        for band, text in enumerate(descriptions, start=1):
            if text:
                dataset.set_band_description(band, text)
    with open_raster(path) as reader:
        assert choose_bands(reader.info, names).numbers == expected


@pytest.mark.parametrize(
    "descriptions",
    [
        ("nir", "red", "green"),
        ("swir2", "nir", "red", "green"),
        ("QA_PIXEL", "red", "green"),
        ("QA_RADSAT", "SR_QA_AEROSOL", "green"),
        ("red", "ST_B10", "green"),
        ("Fmask", "red", "VZA"),
        ("green", "red", "REG"),
        ("red", "green", "pan"),
        ("IR", "R", "G"),
        ("sur_refl_b01", "sur_refl_b02", "sur_refl_b03"),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])  # GDAL calls three of uint8 red, green and blue
def test_a_band_that_says_it_is_another_is_not_taken(descriptions, dtype, identity, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((len(descriptions), 4, 4), dtype))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = descriptions
    told = rf"bands \({', '.join(descriptions)}\), this model wants 3 .* by number with --bands"
    with pytest.raises(RasterError, match=told):
        remove_from_scene(path, tmp_path / "b.tif", identity)
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.parametrize(
    ("colors", "names", "expected"),
    [
        (("nir", "red", "green"), FOUR[:3], None),
        (("pan", "coastal", "swir", "undefined"), FOUR[:3], None),
        (("nir", "nir", "nir"), FOUR[:3], None),
        (("nir", "red", "green", "undefined"), FOUR[:3], (2, 3, 4)),
        (("nir", "red", "green", "blue"), FOUR, (2, 3, 4, 1)),
        # Other bands in the colours in which they are shown: in the model's order, as training takes them.
        (("red", "green", "blue"), ("nir", "red", "green"), (1, 2, 3)),
        (("red", "green", "blue"), ("red",), (1,)),
        (("red", "green", "blue"), ("green", "red"), (2, 1)),
    ],
)
def test_a_band_whose_colour_is_another_is_not_taken(colors, names, expected, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((len(colors), 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in colors]
    with open_raster(path) as reader:
        if expected is None:
            with pytest.raises(RasterError, match=rf"bands \({colors[0]}, .*--bands"):
                choose_bands(reader.info, names)
        else:
            assert choose_bands(reader.info, names).numbers == expected


def test_names_that_tell_no_colour_are_doubted_aloud(identity, tmp_path, caplog):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 40, 40), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("SR_B2", "SR_B3", "SR_B4")
    report = remove_from_scene(path, tmp_path / "b.tif", identity)
    assert report.bands.numbers == (1, 2, 3) and report.bands.doubtful == ("SR_B2", "SR_B3", "SR_B4")
    assert "give --bands if they are not these" in caplog.text


@pytest.mark.parametrize(
    ("descriptions", "doubtful"),
    [
        (("B02", "B03", "B04"), ()),
        (("B02", "B03", "B04", "B08"), ()),
        (("B01", "B02", "B03", "B04", "B07"), ()),
        (("B01", "B02", "B03", "B04", "B8A"), ()),
        (("B01", "S2A B02", "B03", "B04"), ()),
        (("B01", "B02", "B03", "B04"), ("B04", "B03", "B02")),  # Himawari's are blue, green, red and nir
        (("B01", "B02 blue", "B03 green", "B04"), ("B04",)),
        (tuple(f"B{number:02d}" for number in range(1, 17)), ("B04", "B03", "B02")),  # Himawari has sixteen
        (tuple(f"B{number:02d}" for number in range(1, 7)), ("B04", "B03", "B02")),  # or its six of reflected light
    ],
)
def test_band_numbers_that_may_be_another_sensors_are_doubted(descriptions, doubtful, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((len(descriptions), 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = descriptions
    with open_raster(path) as reader:
        choice = choose_bands(reader.info, FOUR[:3])
    assert choice.doubtful == doubtful
    assert [descriptions[number - 1][:3] for number in choice.numbers[:1]] == ["B04"]


def test_bands_are_found_by_colour_and_the_report_says_so(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((4, 4, 4), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[c] for c in ("blue", "green", "red", "undefined")]
    with open_raster(path) as reader:
        three, four = choose_bands(reader.info, FOUR[:3]), choose_bands(reader.info, FOUR)
    assert (three.numbers, three.how) == ((3, 2, 1), "by colour interpretation")
    assert four.numbers == (3, 2, 1, 4)
    assert four.how == "red, green, blue by colour interpretation; nir the first in order"


@pytest.mark.parametrize(
    ("bands", "words"),
    [((1, 2), "names 2 bands"), ((1, 2, 9), "asks for others"), ((1, 2, 3, 4), "names 4 bands")],
)
def test_band_numbers_that_do_not_fit_are_refused(bands, words, identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((5, 4, 4), np.uint8))
    with pytest.raises((OptionError, RasterError), match=words):
        remove_from_scene(source, tmp_path / "b.tif", identity, SceneOptions(bands=bands))
    assert not (tmp_path / "b.tif").exists()


def test_a_grey_image_is_refused_by_a_model_of_three_bands(identity, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(RasterError, match=r"has 1 band, this model wants 3 \(red, green, blue\)"):
        remove_from_scene(tmp_path / "a.png", tmp_path / "b.png", identity)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("steps", 1001),
        ("least_painted", 1.5),
        ("least_painted", "much"),
        ("nodata", "none"),
        ("max_pixels", None),
        ("enlarge", 0),
        ("enlarge", 5),
        ("seed", -1),
        ("window_px", 0),
        ("overlap_px", -1),
        ("overlap_px", 600),
        ("batch", 0),
        ("bands", (0, 1, 2)),
        ("bands", (1, 1, 2)),
        ("bands", ()),
        ("bands", "red"),
    ],
)
def test_options_outside_their_meaning_are_refused(field, value):
    with pytest.raises(OptionError, match=field.removesuffix("_px").replace("_", ".")):
        SceneOptions(**{field: value})


def test_windows_are_as_large_to_the_networks_however_much_a_scene_is_enlarged():
    assert [SceneOptions(enlarge=times).window for times in (1, 2, 3, 4)] == [1024, 512, 341, 256]
    assert [SceneOptions(enlarge=times).overlap for times in (1, 2, 3, 4)] == [128, 64, 42, 32]
    assert SceneOptions(enlarge=4, window_px=500).window == 500


def test_numbers_of_numpy_are_numbers_and_others_are_told(identity, tmp_path, rng):
    scene = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 70, 70), dtype=np.uint8))
    options = SceneOptions(
        seed=np.uint8(3), window_px=np.int64(64), overlap_px=np.int16(8), bands=tuple(np.arange(3) + 1)
    )
    remove_from_scene(scene, tmp_path / "b.tif", identity, options)
    assert read_tif(tmp_path / "b.tif").shape == (3, 70, 70)
    with pytest.raises(OptionError, match=r"window is 64\.0; give a whole number"):
        SceneOptions(window_px=64.0)
    assert SceneOptions(samples=2, average=np.True_).average is True
    with pytest.raises(OptionError, match="scale is array"):
        SceneOptions(scale=np.array([0, 10000]))


def test_a_file_of_several_images_says_that_the_first_alone_is_taken(identity, tmp_path, caplog):
    pages = [Image.fromarray(np.full((20, 20, 3), level, np.uint8)) for level in (10, 20, 30)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    remove_from_scene(tmp_path / "a.tif", tmp_path / "b.tif", identity)
    assert "holds 3 images; the others than the first are left out" in caplog.text
    assert (read_tif(tmp_path / "b.tif") == 10).all()


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_transparent_colour_is_nodata_and_no_mask(suffix, darker, tmp_path, rng):
    pixels = rng.integers(1, 256, (40, 50, 3), dtype=np.uint8)
    pixels[:10, :10] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(0, 0, 0))
    output = tmp_path / f"b{suffix}"
    remove_from_scene(tmp_path / "a.png", output, darker)
    with rasterio.open(output) as dataset:
        assert dataset.nodata == 0
        hidden = dataset.dataset_mask() == 0
    assert hidden[:10, :10].all() and not hidden[10:, 10:].any()
    again = tmp_path / f"c{suffix}"
    remove_from_scene(output, again, darker)
    assert (read_tif(again)[:, :10, :10] == 0).all() and (read_tif(again)[:, 10:, 10:] > 0).all()


@pytest.mark.parametrize("reduced", [False, True])
def test_a_transparent_colour_is_none_where_one_band_alone_has_it(reduced, tmp_path):
    pixels = np.full((40, 50, 3), 90, np.uint8)
    pixels[:10] = 255
    pixels[20:30, :, 0] = 255  # bright, as cloud is
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=(255, 255, 255))
    with open_raster(tmp_path / "a.png") as reader:
        valid = reader.read_reduced((1, 2, 3))[1] if reduced else reader.read_valid(slice(0, 40), slice(0, 50))
    assert not valid[:, :10].any() and valid[:, 10:].all()


@pytest.mark.parametrize("name", ["s3:a.tif", "http:a.tif", "GTIFF_DIR:1:a.tif", "a:b.tif"])
def test_a_file_whose_name_looks_like_an_address_is_that_file(name, darker, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tif(tmp_path / name, rng.integers(0, 256, (3, 20, 20), dtype=np.uint8))
    write_tif(tmp_path / f"mask-{name}", np.ones((1, 20, 20), np.uint8))
    options = SceneOptions(mask=MaskChoice(f"mask-{name}"))
    remove_from_scene(Path(name), Path(f"out-{name}"), darker, options)
    assert (tmp_path / f"out-{name}").stat().st_size > 0


def test_tags_of_every_namespace_come_along_in_a_cloud_optimised_geotiff_too(identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 20, 20), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(ns="MINE", cover="12")
        dataset.update_tags(1, ns="MINE", gain="3")
    remove_from_scene(source, tmp_path / "b.tif", identity, SceneOptions(cog=True))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.tags(ns="MINE") == {"cover": "12"} and dataset.tags(1, ns="MINE") == {"gain": "3"}
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


@pytest.mark.parametrize("namespaces", [False, True])
def test_tags_of_bands_come_along_in_a_cloud_optimised_geotiff_or_it_is_said(
    namespaces, identity, tmp_path, caplog
):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 20, 20), np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(2, wavelength="560")
        if namespaces:
            dataset.update_tags(ns="MINE", cover="12")
    remove_from_scene(source, tmp_path / "b.tif", identity, SceneOptions(cog=True))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        kept = dataset.tags(2).get("wavelength") == "560"
    assert kept != ("cannot have the tags wavelength of bands; write it without --cog" in caplog.text)
    assert kept or namespaces


def test_nodata_does_not_get_lost_in_a_webp(identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 20, 20), np.uint8), nodata=0)
    with pytest.raises(OutputError, match=r"cannot hold the nodata value of .*; write .*b\.tif instead"):
        remove_from_scene(source, tmp_path / "b.webp", identity)


def test_a_mask_of_several_bands_says_that_the_first_is_taken(darker, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.full((3, 20, 20), 100, np.uint8))
    mask = write_tif(tmp_path / "m.tif", np.stack([np.eye(20), np.ones((20, 20))]).astype(np.uint8))
    options = SceneOptions(mask=MaskChoice(mask, feather_px=0))
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    assert "has 2 bands; the first one is taken" in caplog.text
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif")[0] != 100, np.eye(20, dtype=bool))


@pytest.mark.parametrize("values", [None, (0,)])
def test_a_mask_of_clear_ground_as_planets_is_told_until_its_value_is_given(values, darker, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.full((3, 20, 20), 100, np.uint8))
    mask = write_tif(tmp_path / "udm2.tif", np.stack([1 - np.eye(20), np.zeros((20, 20))]).astype(np.uint8))
    with rasterio.open(mask, "r+") as dataset:
        dataset.descriptions = ("clear", "snow")
    remove_from_scene(
        source, tmp_path / "b.tif", darker, SceneOptions(mask=MaskChoice(mask, values=values, feather_px=0))
    )
    assert ("cloud is where it is 0: give --mask-values 0" in caplog.text) == (values is None)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif")[0] != 100, np.eye(20) == int(values is not None))


def scale_of(path: Path, bands: tuple[int, ...] = (1, 2, 3)) -> Scaling:
    with open_raster(path) as reader:
        return auto_scale(reader, bands)


def test_auto_scale_of_bytes_is_their_range(tmp_path):
    assert scale_of(write_tif(tmp_path / "a.tif", np.full((3, 9, 9), 3, np.uint8))) == Scaling(0, 255)


@pytest.mark.parametrize(("brightest", "is_told"), [(15, True), (31, True), (32, False), (255, False)])
def test_bytes_that_use_little_of_their_range_are_told(brightest, is_told, tmp_path, rng, caplog):
    dn = rng.integers(1, brightest + 1, (3, 60, 60), dtype=np.uint8)
    dn[:, :20] = brightest
    dn[:, 0, 0] = 255  # a hot pixel is no cloud
    assert scale_of(write_tif(tmp_path / "a.tif", dn)) == Scaling(0, 255)
    told = f"the scene goes from 1 to {brightest}, and the model takes 255 for white, so it sees no cloud"
    assert (told in caplog.text) == is_told and (f"such as 0,{brightest}" in caplog.text) == is_told


def test_auto_scale_of_16_bit_is_robust_joint_over_bands_and_ignores_nodata_and_empty_borders(tmp_path, rng):
    dn = rng.integers(5000, 15000, (3, 300, 300), dtype=np.uint16)
    dn[:, 0, 0] = 65535
    plain = scale_of(write_tif(tmp_path / "a.tif", dn))
    assert plain.low == pytest.approx(5050, abs=20) and plain.high == pytest.approx(14950, abs=20)
    dn[:, :100] = 0
    assert scale_of(write_tif(tmp_path / "b.tif", dn)).low > 5000
    assert scale_of(write_tif(tmp_path / "c.tif", dn, nodata=0)).low > 5000


def test_auto_scale_of_reflectance_is_zero_to_one_and_of_other_floats_their_percentiles(tmp_path, rng):
    x = rng.uniform(0, 0.6, (3, 50, 50)).astype(np.float32)
    x[0, 0, 0] = 1.3
    assert scale_of(write_tif(tmp_path / "a.tif", x)) == Scaling(0, 1)
    assert scale_of(write_tif(tmp_path / "brighter.tif", 2 * x)).high > 1.1
    assert scale_of(write_tif(tmp_path / "b.tif", x * 10000)).high == pytest.approx(5970, abs=30)
    assert scale_of(write_tif(tmp_path / "c.tif", x * 1e-3)).high < 1e-3


def test_auto_scale_copes_with_flat_and_empty_scenes(tmp_path, caplog):
    dn = np.full((3, 90, 90), 700, np.uint16)
    flat = scale_of(write_tif(tmp_path / "a.tif", dn))
    assert flat.low < 700 < flat.high
    assert "all of the scene is 700, which says nothing of its scale; give --scale" in caplog.text
    caplog.clear()
    dn[:, 40:44, 50:55] = 9000  # less than the percentiles see
    assert scale_of(write_tif(tmp_path / "cloud.tif", dn)) == Scaling(700, 9000) and not caplog.text
    scale_of(write_tif(tmp_path / "b.tif", np.full((3, 9, 9), np.nan, np.float32)))


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ((0, 1), "--scale is 0,1, but the scene goes from 1060 to 1990, so 100 % of its numbers are plain white"),
        ((5000, 9000), "so 100 % of its numbers are plain black"),
        ((0, 50000), "so the model sees hardly any contrast; is it in the scene's own numbers?"),
        ((0, 10000), None),
        ((1200, 1800), None),
        (None, None),
    ],
)
def test_a_scale_far_from_the_scenes_numbers_is_told(scale, told, identity, tmp_path, caplog):
    dn = np.linspace(1005, 1995, 3 * 64 * 64).reshape(3, 64, 64).astype(np.uint16)
    dn[:, :10] = 0  # no data, though the file does not say so
    options = replace(SMALL, scale=None if scale is None else Scaling(*scale))
    remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "b.tif", identity, options)
    assert told in caplog.text if told else not caplog.text


def test_what_the_scale_clipped_comes_back_where_the_model_left_it_and_goes_where_it_did_not():
    dn = np.array([[[900, 900, 50, 50]]], np.uint16)
    restored = np.array([[[1.0, -0.5, -1.0, 0.0]]], np.float32)
    result = restored_dn(dn, restored, Scaling(100, 500), ())
    np.testing.assert_array_equal(result, [[[900, 200, 50, 300]]])


@pytest.mark.parametrize("shape", [(1, 1, 7), (3, 64, 64), (2, 33, 50), (4, 5, 1)])
def test_filling_keeps_valid_samples_and_stays_within_their_range(shape, rng):
    x = rng.uniform(-1, 1, shape).astype(np.float32)
    valid = rng.random(shape) < 0.2
    valid[0].flat[0] = True
    filled = fill_invalid(np.where(valid, x, np.nan).astype(np.float32), valid)
    np.testing.assert_array_equal(filled[valid], x[valid])
    assert filled.dtype == np.float32 and np.isfinite(filled).all()
    assert filled.min() >= x[valid].min() - 1e-5 and filled.max() <= x[valid].max() + 1e-5


def test_a_band_without_data_is_filled_with_the_mean_of_what_the_others_have():
    x = np.array([[[0.5, 0.7, -1]], [[-1, -1, -1]]], np.float32)
    valid = np.array([[[True, True, False]], [[False, False, False]]])
    np.testing.assert_allclose(fill_invalid(x, valid)[1], 0.6)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_failing_window_leaves_no_output(number, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 150, 170), 128, np.uint8))
    broken = FakePipeline(lambda cloudy, latents: cloudy * float(number))
    with pytest.raises(ModelError, match="row 0, column 0"):
        remove_from_scene(source, tmp_path / "b.tif", broken, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize(("dtype", "low"), [("uint16", -1.0), ("uint8", 0.0)])
def test_what_is_kept_of_a_window_is_the_nearest_step_and_within_its_range(dtype, low):
    values = np.linspace(low - 0.5, 1.5, 50, dtype=np.float32)
    found = unpacked(packed(values, Layer(dtype, 1)))
    step = (1 - low) / np.iinfo(dtype).max
    np.testing.assert_allclose(found, values.clip(low, 1), atol=0.51 * step)


def test_the_threads_are_those_that_are_asked_for_or_those_of_torch():
    assert threads_of(SceneOptions(threads=torch.get_num_threads() + 3)) == torch.get_num_threads() + 3
    assert threads_of(SceneOptions()) == torch.get_num_threads()


def test_an_output_that_exists_stays_unless_it_may_be_replaced(identity, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 20, 20), 128, np.uint8))
    output = tmp_path / "b.tif"
    output.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        remove_from_scene(source, output, identity)
    assert output.read_bytes() == b"mine"
    remove_from_scene(source, output, identity, SceneOptions(overwrite=True))
    np.testing.assert_array_equal(read_tif(output), read_tif(source))


@pytest.mark.parametrize(("restored", "expected"), [(0.8, 9000), (0.9, 9500 + 0.5 * 2000), (1.0, 12000)])
def test_what_was_clipped_comes_back_over_the_last_tenth_of_the_scale(restored, expected):
    dn = np.full((1, 1, 1), 12000, np.float32)
    found = restored_dn(dn, np.full((1, 1, 1), restored, np.float32), Scaling(0, 10000), ())
    assert float(found[0, 0, 0]) == pytest.approx(expected)


def test_windows_are_continued_to_the_grid_by_their_mirror_image(tmp_path, rng):
    dn = rng.integers(1, 255, (3, 160, 170), dtype=np.uint8)
    place = Affine(10, 0, 10 * 37, 0, -10, -10 * 21)  # 37 columns and 21 rows from where the grid begins
    pipeline = FakePipeline(lambda cloudy, latents: cloudy)
    remove_from_scene(write_tif(tmp_path / "a.tif", dn, transform=place), tmp_path / "b.tif", pipeline)
    (seen,) = pipeline.seen
    top, left = seen.shape[2] - 160, seen.shape[3] - 170
    assert top > 0 and left > 0
    np.testing.assert_array_equal(seen[:, :, :top], seen[:, :, top : 2 * top].flip(2))
    np.testing.assert_array_equal(seen[..., :left], seen[..., left : 2 * left].flip(3))


@pytest.mark.parametrize(
    ("given", "numbers"),
    [
        (("red", "green", "blue"), (4, 3, 2)),
        (("nir", "RED", "Green"), (5, 4, 3)),
        (("swir", 4, "2"), (1, 4, 2)),
    ],
)
def test_bands_are_given_by_name_or_number(given, numbers, rich_tif):
    with open_raster(rich_tif) as reader:
        assert (
            choose_bands(reader.info, ("red", "green", "blue"), SceneOptions(bands=given).bands).numbers == numbers
        )


def test_names_that_say_no_band_or_several_are_told(rich_tif, tmp_path):
    with open_raster(rich_tif) as reader:
        for given, told in (
            (
                ("red", "green", "pink"),
                r"no band that is called 'pink' \(swir, blue, green, red, nir\); give numbers",
            ),
            (("red", 4, "blue"), r"red,4,blue names bands 4,4,2 of .*; give each once"),
        ):
            with pytest.raises((RasterError, OptionError), match=told):
                choose_bands(reader.info, ("red", "green", "blue"), given)
    path = write_tif(tmp_path / "twice.tif", np.ones((3, 4, 4), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("a", "a", "b")
    with open_raster(path) as reader, pytest.raises(RasterError, match="several bands that are called 'a'"):
        choose_bands(reader.info, ("red", "green", "blue"), ("a", 2, 3))
    with pytest.raises(OptionError, match=r"a band is 1\.5"):
        SceneOptions(bands=(1.5, 2, 3))


def test_the_command_takes_bands_by_name(rich_tif, tmp_path, model_folder, capsys):
    words = ["remove", rich_tif, "-o", tmp_path / "out.tif", "--model", model_folder, "--steps", 0]
    for bands, code in (("nir,red,green", 0), ("nir,red,purple", 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in (*words, "--bands", bands, "--overwrite")])
        assert ended.value.code == code
    said = " ".join(capsys.readouterr().err.split())
    assert "bands: 5,4,3 = red, green, blue (as given)" in said and "no band that is called 'purple'" in said


def test_an_alpha_band_is_taken_for_none_of_any_model(tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in ("gray", "undefined", "alpha")]
    told = r"has 3 bands \(one of them alpha\), this model wants 3"
    for names in (("red", "green", "blue"), ("first", "second", "third")):
        with open_raster(path) as reader, pytest.raises(RasterError, match=told):
            choose_bands(reader.info, names)


@pytest.mark.parametrize("descriptions", [("coastal blue", "green", "red"), ("deep blue", "green", "red")])
def test_coastal_and_deep_blue_are_not_blue(descriptions, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((3, 4, 4), np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = descriptions
    with open_raster(path) as reader, pytest.raises(RasterError, match="this model wants 3"):
        choose_bands(reader.info, FOUR[:3])


@pytest.mark.parametrize("cog", [False, True])
def test_the_mask_of_a_scene_hides_pixels_and_stays(cog, darker, tmp_path, rng):
    dn = rng.integers(1, 256, (3, 90, 600), dtype=np.uint8)
    source = write_tif(tmp_path / "a.tif", dn)
    mask = np.full((90, 600), 255, np.uint8)
    mask[20:50, 30:500] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(source, "r+") as dataset:
        dataset.write_mask(mask)
    remove_from_scene(source, tmp_path / "b.tif", darker, replace(SMALL, cog=cog))
    with rasterio.open(tmp_path / "b.tif") as dataset:
        result = dataset.read()
        np.testing.assert_array_equal(dataset.dataset_mask(), mask)
    np.testing.assert_array_equal(result[:, mask == 0], dn[:, mask == 0])
    assert np.abs(result[:, mask > 0] - dn[:, mask > 0] / 2).max() <= 0.51


@pytest.mark.parametrize(
    ("descriptions", "numbers", "doubtful"),
    [
        (("red, b 4", "green", "blue"), (1, 2, 3), ()),
        (("QA quality", "x", "y", "z"), (2, 3, 4), None),
        (("red green ratio", "green", "blue"), (1, 2, 3), ("red green ratio",)),
    ],
)
def test_words_that_say_little_of_a_band(descriptions, numbers, doubtful, tmp_path):
    path = write_tif(tmp_path / "a.tif", np.ones((len(descriptions), 8, 8), np.uint8), photometric="MINISBLACK")
    with open_raster(path) as reader:
        plain = ("undefined",) * len(descriptions)
        found = choose_bands(replace(reader.info, descriptions=descriptions, colors=plain), FOUR[:3])
    assert found.numbers == numbers and doubtful in (None, found.doubtful)


def test_far_infrared_is_not_near_and_bands_count_from_1(tmp_path):
    with open_raster(write_tif(tmp_path / "a.tif", np.ones((4, 8, 8), np.uint8))) as reader:
        info = replace(
            reader.info, descriptions=("red", "green", "blue", "far infrared"), colors=("undefined",) * 4
        )
    with pytest.raises(RasterError):
        choose_bands(info, FOUR)
    with pytest.raises(RasterError):
        numbered(info, (0, 1, 2))
