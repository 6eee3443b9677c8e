"""Pixels without data that a file does not declare."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling

from conftest import FakePipeline, read_tif, write_tif
from declouder.errors import OptionError, RasterError
from declouder.raster import open_raster
from declouder.scene import SceneOptions, auto_scale, remove_from_scene

ROWS, COLS = slice(30, 90), slice(40, 140)
"""Of the ground within a frame."""


def ground(rng: np.random.Generator, dtype: str) -> np.ndarray:
    dn = rng.uniform(0.2, 0.9, (3, 60, 100))
    return dn.astype(dtype) if dtype == "float32" else (dn * 200).astype(dtype)


def framed(dn: np.ndarray, value: float = 0) -> np.ndarray:
    whole = np.full((3, 130, 170), value, dn.dtype)
    whole[:, ROWS, COLS] = dn
    return whole


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_frame_of_zeros_is_neither_seen_nor_changed_and_the_log_tells(dtype, tmp_path, rng, caplog):
    dn = ground(rng, dtype)
    dn[:, 30, 50] = 0  # black ground is ground
    pipeline = FakePipeline(lambda cloudy, latents: cloudy * 0.5 + 0.25)
    with caplog.at_level(logging.INFO, logger="declouder"):
        framed_tif = write_tif(tmp_path / "framed.tif", framed(dn))
        found = remove_from_scene(framed_tif, tmp_path / "framed_out.tif", pipeline)
    alone = remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "a_out.tif", pipeline)
    out = read_tif(tmp_path / "framed_out.tif")
    share = 1 - 60 * 100 / (130 * 170)
    assert f"no data: {share:.1%} of the scene, at its edge, is 0 in all bands" in caplog.text
    assert found.scale == alone.scale
    np.testing.assert_array_equal(out[:, ROWS, COLS], read_tif(tmp_path / "a_out.tif"))
    assert (out[:, 60, 90] != 0).all()  # the black ground, restored
    out[:, ROWS, COLS] = 0
    assert not out.any()


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_lowest_number_far_below_all_others_is_no_data_wherever_it_stands(dtype, tmp_path, rng, darker, caplog):
    dn = ground(rng, dtype)
    clean = dn.copy()
    dn[:, 10:13, 20:30] = -9999
    with caplog.at_level(logging.INFO, logger="declouder"):
        report = remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "out.tif", darker)
    assert "0.5% of the scene is -9999 in all bands" in caplog.text
    out = read_tif(tmp_path / "out.tif")
    assert (out[:, 10:13, 20:30] == -9999).all() and (out[:, 20:] != dn[:, 20:]).any()
    with open_raster(write_tif(tmp_path / "b.tif", clean)) as reader:
        scale = auto_scale(reader, (1, 2, 3))
    assert report.scale.low == pytest.approx(scale.low, abs=2)


def test_a_lowest_number_is_no_data_in_each_band_where_it_has_it(tmp_path, rng, darker):
    dn = ground(rng, "int16")
    dn[0, :, :6], dn[1, :, 3:9], dn[2, :, :8] = -9999, -9999, -9999  # as bands of one swath end
    dn[0, 30, 50] = -9999
    found = remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "out.tif", darker)
    declared = write_tif(tmp_path / "declared.tif", dn, nodata=-9999)
    assert found.scale == remove_from_scene(declared, tmp_path / "declared_out.tif", darker).scale
    np.testing.assert_array_equal(read_tif(tmp_path / "out.tif") == -9999, dn == -9999)


@pytest.mark.parametrize("declared", [None, math.nan])
@pytest.mark.parametrize("value", [1e20, -9999])
def test_a_number_far_from_all_others_is_no_data_in_floats_also_beside_nan(value, declared, tmp_path, rng, darker):
    dn = ground(rng, "float32")
    dn[:, :5] = math.nan
    dn[:, 10:13, 20:30] = value
    source = write_tif(tmp_path / "a.tif", dn, nodata=declared)
    report = remove_from_scene(source, tmp_path / "out.tif", darker)
    assert (report.scale.low, report.scale.high) == (0, 1)
    out = read_tif(tmp_path / "out.tif")
    np.testing.assert_array_equal(out == np.float32(value), dn == np.float32(value))


def test_overviews_are_not_asked_beside_nan_once_another_number_was_found(tmp_path, rng):
    dn = rng.uniform(0.2, 0.6, (3, 2200, 2200)).astype(np.float32)
    dn[:, :, 300:1001] = -9999
    path = write_tif(tmp_path / "a.tif", dn, nodata=math.nan, tiled=True)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    with open_raster(path) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None and reader.undeclared.value == -9999
        values, valid = reader.read_reduced((1, 2, 3))
    assert values[valid].min() >= 0.2


def test_bright_saturated_cloud_and_a_highest_integer_are_data(tmp_path, rng):
    for dtype, high in (("uint16", 65535), ("float32", 1.6), ("float32", 6)):
        dn = ground(rng, dtype)
        dn[:, 10:30, 20:50] = high
        with open_raster(write_tif(tmp_path / f"{dtype}.tif", dn)) as reader:
            reader.look_for_undeclared((1, 2, 3))
            assert reader.undeclared is None
    flat = np.full((3, 60, 100), 0.25, np.float32)
    flat[:, 20:30, 20:50] = 9
    with open_raster(write_tif(tmp_path / "flat.tif", flat)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.02, True)])
def test_numbers_that_stretch_the_scale_beyond_all_others_are_told(share, told, tmp_path, rng, caplog):
    dn = rng.uniform(0.2, 0.6, (3, 100, 100)).astype(np.float32)
    dn[:, : int(100 * share)] = rng.uniform(1e4, 2e4, (3, int(100 * share), 100))
    with open_raster(write_tif(tmp_path / "a.tif", dn, nodata=-1)) as reader:
        auto_scale(reader, (1, 2, 3))
    assert ("if others hold no data give --nodata, else --scale" in caplog.text) == told


@pytest.mark.parametrize(
    "change",
    [
        lambda dn: dn,
        lambda dn: np.where(np.arange(100) < 1, 0, dn),
        lambda dn: np.where((np.arange(60) == 59)[:, None] & (np.arange(100) < 8), 0, dn),  # a share of 0.0013
        lambda dn: np.where(np.arange(3)[:, None, None] < 2, 0, dn),  # dark in two of three bands
        lambda dn: np.zeros_like(dn),  # as tiles beside the swath are
    ],
    ids=["plain", "a column", "a few pixels", "two bands", "all of it"],
)
def test_what_is_taken_for_a_frame(change, tmp_path, rng, request):
    dn = change(ground(rng, "int16")).astype("int16")
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        expected = any(name in request.node.name for name in ("a column", "all of it"))
        assert (reader.undeclared is not None) == expected


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_scene_of_0_alone_stays_as_it_is_and_single_pixels_in_it_are_ground(dtype, tmp_path, darker, caplog):
    dn = np.zeros((3, 60, 100), dtype)
    with caplog.at_level(logging.INFO, logger="declouder"):
        remove_from_scene(write_tif(tmp_path / "a.tif", dn), tmp_path / "out.tif", darker)
    assert "it holds no data" in caplog.text and not darker.seen
    assert not read_tif(tmp_path / "out.tif").any()
    with open_raster(write_tif(tmp_path / "wide.tif", np.zeros((3, 2200, 2200), dtype))) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None
        part = np.zeros((3, 4, 4), dtype)
        part[0, 1, 1] = 1
        assert reader.undeclared.hides(part, np.arange(4), np.arange(4)).sum() == 15


def test_what_a_file_declares_is_its_word(tmp_path, rng):
    with open_raster(write_tif(tmp_path / "a.tif", framed(ground(rng, "int16")), nodata=-1)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None


def test_negative_ground_is_ground(tmp_path, rng):
    dn = (rng.normal(0, 1, (3, 60, 100))).astype(np.float32)
    dn[:, 5:8] = dn.min()
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None


def test_a_frame_of_a_large_scene_is_found_on_a_skimmed_one_to_the_pixel(tmp_path):
    dn = np.full((3, 500, 2900), 50, np.uint8)  # skimmed by 2900 / 1024
    for row in range(500):
        dn[:, row, : 3 * row // 2] = 0
    dn[:, 40, 2000] = 0
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        found = reader.read_valid(slice(0, 500), slice(0, 2900), (1, 2, 3))
        expected = dn > 0
        expected[:, 40, 2000] = True
        np.testing.assert_array_equal(found, expected)
        part = reader.read_valid(slice(100, 300), slice(50, 400), (1, 2, 3))
        np.testing.assert_array_equal(part, expected[:, 100:300, 50:400])


def test_nodata_that_is_given_counts_and_is_declared_in_the_output(tmp_path, rng, darker):
    dn = framed(ground(rng, "uint8"), 255)
    options = SceneOptions(nodata=255)
    source = write_tif(tmp_path / "a.tif", dn)
    remove_from_scene(source, tmp_path / "out.tif", darker, options)
    with open_raster(tmp_path / "out.tif") as reader:
        assert reader.info.nodata == 255
    out = read_tif(tmp_path / "out.tif")
    np.testing.assert_array_equal(out == 255, dn == 255)


def test_nodata_that_is_given_counts_besides_what_the_file_declares(tmp_path, rng, darker, caplog):
    caplog.set_level("INFO", "declouder")
    dn = framed(ground(rng, "uint8"), 0)
    dn[:, 20:24, 30:40] = 255
    source = write_tif(tmp_path / "a.tif", dn, nodata=0)
    remove_from_scene(source, tmp_path / "out.tif", darker, SceneOptions(nodata=255))
    assert "no data: 255 as given, besides the 0 that the file declares" in caplog.text
    with open_raster(tmp_path / "out.tif") as reader:
        assert reader.info.nodata == 0
    out = read_tif(tmp_path / "out.tif")
    np.testing.assert_array_equal(out == 0, dn == 0)
    np.testing.assert_array_equal(out == 255, dn == 255)


@pytest.mark.parametrize(
    ("declared", "given", "left"), [(-9999, math.nan, -9999), (math.nan, -9999, math.nan), (-9999, -9999, -9999)]
)
def test_nan_holds_no_data_whoever_says_so(declared, given, left, tmp_path, rng, darker):
    dn = framed(ground(rng, "float32"), -9999)
    dn[:, 20:24, 30:40] = math.nan
    source = write_tif(tmp_path / "a.tif", dn, nodata=declared)
    remove_from_scene(source, tmp_path / "out.tif", darker, SceneOptions(nodata=given))
    with open_raster(tmp_path / "out.tif") as reader:
        assert reader.info.nodata == pytest.approx(left, nan_ok=True)
    out = read_tif(tmp_path / "out.tif")
    np.testing.assert_array_equal(out == -9999, dn == -9999)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(dn))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [*[("uint8", value) for value in (256, -1, 0.5, math.nan)], ("float32", 1e40), ("float32", -3.5e38)],
)
def test_nodata_that_the_pixels_cannot_be_is_refused(dtype, value, tmp_path, rng, darker):
    source = write_tif(tmp_path / "a.tif", ground(rng, dtype))
    with pytest.raises(RasterError, match=rf"a\.tif is of {dtype}, which is never"):
        remove_from_scene(source, tmp_path / "out.tif", darker, SceneOptions(nodata=value))
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.parametrize(("value", "dtype"), [(-3.4028235e38, "float32"), (0.1, "float32"), (0.1, "float64")])
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_nodata_is_the_nearest_number_that_pixels_have(value, dtype, is_declared, tmp_path, rng):
    stored = float(np.dtype(dtype).type(value))
    dn = ground(rng, dtype)
    dn[:, :10] = stored
    source = write_tif(tmp_path / "a.tif", dn, nodata=stored if is_declared else None)
    with open_raster(source) as reader:
        reader.declare_nodata(value)
        assert reader.no_data == (stored,) and reader.info.nodata == stored
        valid = reader.read_valid(slice(0, dn.shape[1]), slice(0, dn.shape[2]))
    assert not valid[:, :10].any() and valid[:, 10:].all()


@pytest.mark.parametrize("given", [-9999, -1])
def test_where_a_nodata_is_given_none_is_looked_for_beside_nan(given, tmp_path, rng):
    dn = ground(rng, "float32")
    dn[:, 10:30] = -9999
    with open_raster(write_tif(tmp_path / "a.tif", dn, nodata=math.nan)) as reader:
        reader.declare_nodata(given)
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None and given in reader.no_data


def test_names_may_be_plain_strings_and_other_kinds_of_options_are_told(tmp_path, rng, darker):
    source = write_tif(tmp_path / "a.tif", ground(rng, "uint8"))
    options = SceneOptions(provenance=str(tmp_path / "p.tif"))  # type: ignore[arg-type]
    remove_from_scene(str(source), str(tmp_path / "out.tif"), darker, options)  # type: ignore[arg-type]
    assert (tmp_path / "out.tif").exists() and isinstance(options.provenance, Path)
    for field, value in (("mask", "auto"), ("scale", (0, 1))):
        with pytest.raises(OptionError, match=f"{field} is .*; give a "):
            SceneOptions(**{field: value})


@pytest.mark.parametrize("other", [np.nan, -np.inf, np.inf])
def test_a_lowest_number_is_found_beside_numbers_that_are_none(other, tmp_path, rng):
    dn = ground(rng, "float32")
    dn[:, 10:30] = -9999
    dn[:, 50:55, 50:60] = other
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None and reader.undeclared.value == -9999
        assert auto_scale(reader, (1, 2, 3)).low == 0


@pytest.mark.parametrize("through", ["tif", "vrt"])
@pytest.mark.parametrize("value", [-9999, 0])
def test_overviews_that_mix_no_data_with_ground_are_not_looked_at(value, through, tmp_path, rng):
    whole = np.full((3, 1500, 2300), value, np.float32)
    # Odd edges: with even ones overviews of 2 would mix nothing.
    whole[:, 151:1351, 151:2151] = np.tile(ground(rng, "float32"), (1, 20, 20))
    path = write_tif(tmp_path / "a.tif", whole)
    if through == "vrt":
        path = tmp_path / "a.vrt"
        rasterio.shutil.copy(tmp_path / "a.tif", path, driver="VRT")

    def found() -> tuple[object, ...]:
        with open_raster(path) as reader:
            reader.look_for_undeclared((1, 2, 3))
            assert reader.undeclared is not None
            dn, _ = reader.read_reduced((1, 2, 3))
            return reader.undeclared.value, reader.undeclared.share, dn.tobytes()

    before = found()
    assert before[0] == value
    with rasterio.open(tmp_path / "a.tif", "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.average)
    assert found() == before


@pytest.mark.parametrize("edge", ["top", "bottom", "left", "right"])
def test_a_frame_along_any_one_edge_is_found(edge, tmp_path, rng):
    dn = rng.integers(50, 200, (3, 60, 100), dtype=np.uint8)
    edges = {"top": np.s_[:5, 8:-8], "bottom": np.s_[-5:, 8:-8], "left": np.s_[8:-8, :5], "right": np.s_[8:-8, -5:]}
    dn[:, *edges[edge]] = 0  # not up to the corners, which belong to two edges
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None
        valid = reader.read_valid(slice(0, 60), slice(0, 100), (1, 2, 3))
    np.testing.assert_array_equal(valid, dn > 0)


def test_one_pixel_far_below_all_others_is_an_outlier_and_ground(tmp_path, rng):
    dn = rng.integers(50, 200, (3, 60, 100)).astype(np.int16)
    dn[:, 20, 30] = -9999
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None


def test_a_bright_cloud_over_even_sea_is_data(tmp_path, rng):
    dn = rng.uniform(0.25, 0.26, (3, 60, 100)).astype(np.float32)
    dn[:, 20:30, 20:50] = 1  # saturated: a hundred spans above the sea
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is None


def test_a_lowest_number_is_found_under_ground_of_wide_range_and_beside_outliers(tmp_path, rng):
    dn = rng.integers(200, 10_000, (3, 60, 100)).astype(np.int16)  # as of Sentinel-2
    dn[:, 20:30, 20:50] = -9999
    dn[:, 40, 60] = 32767
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None and reader.undeclared.value == -9999


def test_a_highest_float_is_no_data_in_each_band_where_it_has_it(tmp_path, rng):
    dn = ground(rng, "float32")
    dn[0, :, :6], dn[1, :, 3:9], dn[2, :, :8] = 1e20, 1e20, 1e20
    with open_raster(write_tif(tmp_path / "a.tif", dn)) as reader:
        reader.look_for_undeclared((1, 2, 3))
        valid = reader.read_valid(slice(0, 60), slice(0, 100), (1, 2, 3))
    np.testing.assert_array_equal(valid, dn < 1)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_scene_of_one_number_below_zero_alone_holds_no_data(dtype, tmp_path):
    with open_raster(write_tif(tmp_path / "a.tif", np.full((3, 60, 100), -9999, dtype))) as reader:
        reader.look_for_undeclared((1, 2, 3))
        assert reader.undeclared is not None and reader.undeclared.value == -9999
        assert not reader.read_valid(slice(0, 60), slice(0, 100), (1, 2, 3)).any()


@pytest.mark.parametrize("is_wide", [True, False])
def test_a_frame_of_a_few_rows_along_a_long_strip_is_found(is_wide, tmp_path, rng, darker):
    pixels = rng.integers(1, 256, (3, 40, 5000), dtype=np.uint8)
    pixels[:, :1] = 0
    pixels = pixels if is_wide else pixels.transpose(0, 2, 1).copy()
    source = write_tif(tmp_path / "a.tif", pixels)
    remove_from_scene(source, tmp_path / "b.tif", darker)
    frame = (pixels == 0).all(axis=0)
    result = read_tif(tmp_path / "b.tif")
    assert (result[:, frame] == 0).all() and (result[:, ~frame] < pixels[:, ~frame]).mean() > 0.9
