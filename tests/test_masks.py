"""Masks: how files are read, how they lie over a scene, how they are grown, and our own estimate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import warp
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_bounds
from rasterio.warp import transform_bounds
from scipy import ndimage

from conftest import write_tif
from declouder.errors import OptionError, RasterError
from declouder.masks import MaskChoice, SceneMask, open_mask, veil
from declouder.raster import open_raster
from declouder.scaling import Scaling
from declouder.scene import auto_scale
from declouder.scene.inputs import grid_origin

RGB = ("red", "green", "blue")
PLACE = Affine(10, 0, 5e5, 0, -10, 4e6)


GEOS = "+proj=geos +h=35785831 +lon_0=140.7"
"""What a weather satellite sees: beside the disk there is nothing."""


def share_of(scene: Path, choice: MaskChoice) -> np.ndarray:
    """Return the mask's share over a whole scene, read in parts that fit nothing."""
    with open_raster(scene) as reader:
        scale = auto_scale(reader, (1, 2, 3))
        height, width = reader.info.height, reader.info.width
        share = np.full((height, width), np.nan, np.float32)
        with open_mask(choice, reader, bands=(1, 2, 3), names=RGB, scale=scale) as mask:
            for row in range(0, height, 37):
                for col in range(0, width, 41):
                    rows = slice(row, min(height, row + 37))
                    cols = slice(col, min(width, col + 41))
                    share[rows, cols] = mask.share(rows, cols)
    return share


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_tif(tmp_path / "scene.tif", np.full((3, 80, 100), 90, np.uint8))


def mask_file(folder: Path, values: np.ndarray, **profile: object) -> Path:
    return write_tif(folder / "mask.tif", values[None], **profile)


def test_every_number_but_zero_is_cloud_unless_values_are_listed(scene, tmp_path):
    values = np.arange(8000, dtype=np.uint8).reshape(80, 100) % 5
    path = mask_file(tmp_path, values)
    np.testing.assert_array_equal(share_of(scene, MaskChoice(path, feather_px=0)), values != 0)
    listed = MaskChoice(path, values=(2, 4), feather_px=0)
    np.testing.assert_array_equal(share_of(scene, listed), np.isin(values, (2, 4)))


def test_a_mask_of_many_numbers_that_is_cloud_nearly_everywhere_is_told(scene, tmp_path, caplog):
    quality = np.where(np.arange(8000).reshape(80, 100) % 7, 2720, 6896).astype(np.uint16)
    plain, half = np.ones_like(quality), np.where(np.arange(100) < 50, 0, quality).astype(np.uint16)
    for values, fields, is_told in (
        (quality, {}, True),
        (quality, {"values": (6896,)}, False),
        (plain, {}, False),
        (half, {}, False),
    ):
        caplog.clear()
        share_of(scene, MaskChoice(mask_file(tmp_path, values), **fields))
        assert ("is cloud on 100 % of itself" in caplog.text) == is_told


def test_a_mask_with_numbers_that_compression_made_is_told(scene, tmp_path, caplog):
    values = np.zeros((80, 100), np.uint8)
    values[20:60, 30:70] = 255
    Image.fromarray(values).save(tmp_path / "mask.jpg")
    path = mask_file(tmp_path, values, compress="JPEG", tiled=True, blockxsize=64, blockysize=64)
    for choice, told in (
        (MaskChoice(tmp_path / "mask.jpg"), True),
        (MaskChoice(path), True),
        (MaskChoice(path, values=(255,)), False),
        (MaskChoice(write_tif(tmp_path / "plain.tif", values[None])), False),
    ):
        caplog.clear()
        share_of(scene, choice)
        assert ("is a JPEG, which has numbers of its own beside every edge" in caplog.text) == told, choice


def test_nan_and_nodata_of_a_mask_are_clear(scene, tmp_path):
    values = np.ones((80, 100), np.float32)
    values[:10], values[10:20] = np.nan, -1
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values, nodata=-1), feather_px=0))
    assert (share[:20] == 0).all() and (share[20:] == 1).all()


def test_a_mask_on_another_grid_is_resampled_and_clear_beyond_its_edge(scene, tmp_path):
    values = np.zeros((30, 40), np.uint8)
    values[10:20, 10:20] = 1
    # Pixels of 20 m, begun 100 m to the east and south: pixel (10, 10) covers rows and columns 30..31.
    path = mask_file(tmp_path, values, transform=Affine(20, 0, 5e5 + 100, 0, -20, 4e6 - 100))
    expected = np.zeros((80, 100))
    expected[30:50, 30:50] = 1
    np.testing.assert_array_equal(share_of(scene, MaskChoice(path, feather_px=0)), expected)


@pytest.mark.parametrize("turned", ["scene", "mask"])
def test_a_mask_that_is_the_scene_turned_over_its_diagonal_lies_where_it_says(turned, tmp_path):
    values = np.zeros((40, 40), np.uint8)
    values[5:20, 25:30] = 1
    plain, diagonal = Affine(10, 0, 5e5, 0, -10, 4e6), Affine(0, 10, 5e5, -10, 0, 4e6)
    places = {"scene": plain, "mask": plain, turned: diagonal}
    scene = write_tif(tmp_path / "scene.tif", np.full((3, 40, 40), 90, np.uint8), transform=places["scene"])
    path = mask_file(tmp_path, values, transform=places["mask"])
    np.testing.assert_array_equal(share_of(scene, MaskChoice(path, feather_px=0)), values.T)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_a_mask_may_be_of_64_bits_as_numpy_makes_it(dtype, scene, tmp_path):
    values = np.arange(1200, dtype=dtype).reshape(30, 40) % 5
    same = mask_file(tmp_path, np.kron(values, np.ones((3, 3), dtype))[:80, :100])
    expected = np.kron(values, np.ones((2, 2)))
    share = share_of(scene, MaskChoice(same, values=(2, 4), feather_px=0))
    np.testing.assert_array_equal(share, np.isin(np.kron(values, np.ones((3, 3)))[:80, :100], (2, 4)))
    other = mask_file(tmp_path, values, transform=Affine(20, 0, 5e5, 0, -20, 4e6), nodata=4)
    share = share_of(scene, MaskChoice(other, values=(2, 4), feather_px=0))
    np.testing.assert_array_equal(share[:60, :80], expected == 2)
    assert not share[60:].any() and not share[:, 80:].any()


def test_a_mask_with_a_mask_of_its_own_is_clear_beyond_its_edge_too(scene, tmp_path):
    path = mask_file(tmp_path, np.zeros((40, 50), np.uint8))
    seen = np.full((40, 50), 255, np.uint8)
    seen[:, 25:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(seen)
    expected = np.zeros((80, 100))
    expected[:40, :25] = 1
    share = share_of(scene, MaskChoice(path, values=(0,), feather_px=0))
    np.testing.assert_array_equal(share, expected)


@pytest.mark.parametrize("bands", [2, 3, 4, 5])
@pytest.mark.parametrize("colour", ["undefined", "alpha"])
def test_a_mask_of_several_bands_is_clear_beyond_its_edge_and_where_it_is_transparent(
    bands, colour, scene, tmp_path
):
    values = np.zeros((bands, 40, 50), np.uint8)
    values[-1, :, 25:] = 255
    path = write_tif(tmp_path / "mask.tif", values)
    with rasterio.open(path, "r+") as dataset:
        others = ["gray", *["undefined"] * (bands - 2)]
        dataset.colorinterp = [ColorInterp[name] for name in (*others, colour)]
    expected = np.zeros((80, 100))
    expected[:40, 25 if colour == "alpha" else 0 : 50] = 1
    choice = MaskChoice(path, values=(0,), feather_px=0)
    np.testing.assert_array_equal(share_of(scene, choice), expected)
    same_size = write_tif(tmp_path / "small.tif", np.full((3, 40, 50), 90, np.uint8))
    np.testing.assert_array_equal(share_of(same_size, choice), expected[:40, :50])


def test_a_mask_in_another_projection_lands_in_its_place(scene, tmp_path):
    with rasterio.open(scene) as dataset:
        west, south, east, north = transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
    values = np.zeros((200, 200), np.uint8)
    values[:100] = 1  # the northern half
    transform = from_bounds(west, south, east, north, 200, 200)
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values, crs="EPSG:4326", transform=transform)))
    assert share[:35].mean() > 0.97 and share[55:].mean() < 0.03


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_mask_without_a_place_must_have_the_scenes_size(scene, tmp_path):
    values = np.ones((80, 100), np.uint8)
    path = mask_file(tmp_path, values, crs=None, transform=Affine.identity())
    assert share_of(scene, MaskChoice(path)).min() == 1
    path = mask_file(tmp_path, values[:70], crs=None, transform=Affine.identity())
    with pytest.raises(RasterError, match="give a mask of that size"):
        share_of(scene, MaskChoice(path))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_mask_that_lies_elsewhere_is_refused_without_a_crs_too(tmp_path):
    scene = write_tif(tmp_path / "scene.tif", np.full((3, 80, 100), 90, np.uint8), crs=None)
    values = np.ones((80, 100), np.uint8)
    for transform in (PLACE, Affine.identity()):
        assert share_of(scene, MaskChoice(mask_file(tmp_path, values, crs=None, transform=transform))).min() == 1
    path = mask_file(tmp_path, values, crs=None, transform=Affine(10, 0, 5e5 + 30, 0, -10, 4e6))
    with pytest.raises(RasterError, match=r"lies elsewhere than .*scene\.tif by their transforms, and neither has"):
        share_of(scene, MaskChoice(path))
    placed = write_tif(tmp_path / "placed.tif", np.full((3, 80, 100), 90, np.uint8))
    south_up = Affine(10, 0, 5e5, 0, 10, 4e6 - 800)
    for transform in (Affine(10, 0, 6e5, 0, -10, 4e6), south_up):
        path = mask_file(tmp_path, values, crs=None, transform=transform)
        with pytest.raises(RasterError, match=r"elsewhere than .*placed\.tif by their transforms, and one has no"):
            share_of(placed, MaskChoice(path))
    assert share_of(placed, MaskChoice(mask_file(tmp_path, values, crs=None, transform=PLACE))).min() == 1


def by_points(path: Path, dn: np.ndarray, *, east: float, kind: str) -> Path:
    """Write (C, H, W) that lies by control points or RPCs, so far east."""
    write_tif(path, dn, crs=None, transform=None)
    height, width = dn.shape[1:]
    with rasterio.open(path, "r+") as dataset:
        if kind == "control points":
            corners = [(row, col) for row in (0, height) for col in (0, width)]
            points = [GroundControlPoint(row, col, east + col / 1000, 50 - row / 1000) for row, col in corners]
            dataset.gcps = points, rasterio.CRS.from_epsg(4326)
        else:
            ones = [1.0] + [0.0] * 19
            dataset.rpcs = RPC(*(100.0, 50.0, 50.0, 1.0, ones, ones, 5.0, 5.0, east, 1.0), *(ones, ones, 5.0, 5.0))
    return path


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", ["control points", "RPCs"])
def test_a_mask_whose_points_say_that_it_lies_elsewhere_is_refused(kind, tmp_path, caplog):
    scene = by_points(tmp_path / "scene.tif", np.full((3, 80, 100), 90, np.uint8), east=10, kind=kind)
    values = np.ones((1, 80, 100), np.uint8)
    same = MaskChoice(by_points(tmp_path / "same.tif", values, east=10.0001, kind=kind))
    assert share_of(scene, same).min() == 1 and not caplog.messages
    with pytest.raises(
        RasterError, match=rf"lies elsewhere than .*scene\.tif by their {kind}; give a mask of the same"
    ):
        share_of(scene, MaskChoice(by_points(tmp_path / "other.tif", values, east=10.5, kind=kind)))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("kind", ["control points", "RPCs"])
def test_a_mask_that_says_by_other_means_where_it_lies_is_laid_on_with_a_warning(kind, scene, tmp_path, caplog):
    mask = by_points(tmp_path / "mask.tif", np.ones((1, 80, 100), np.uint8), east=10, kind=kind)
    assert share_of(scene, MaskChoice(mask)).min() == 1
    told = [
        text for text in caplog.messages if "pixel by pixel: they say by different means where they lie" in text
    ]
    assert len(told) == 1 and kind in told[0] and "transform" in told[0]


@pytest.mark.parametrize("nodata", [None, 255])
def test_a_mask_of_another_place_is_told(scene, tmp_path, caplog, nodata):
    values = np.ones((80, 100), np.uint8)
    for east, is_told in ((5e5, False), (5e5 + 990, False), (5e5 + 1000, True), (7e5, True)):
        caplog.clear()
        place = Affine(10, 0, east, 0, -10, 4e6)
        path = mask_file(tmp_path, values, transform=place, nodata=nodata)
        assert (share_of(scene, MaskChoice(path, feather_px=0)).max() == 0) == is_told
        assert any("is it of another place?" in text for text in caplog.messages) == is_told


@pytest.mark.parametrize(
    ("pixel_m", "east", "told"),
    [(20, 5e5, "60 %"), (20, 5e5 + 600, "30 %"), (27.5, 5e5 - 50, None), (10, 5e5, None), (20, 7e5, None)],
)
def test_a_mask_on_a_part_of_the_scene_is_told(pixel_m, east, told, scene, tmp_path, caplog):
    place = Affine(pixel_m, 0, east, 0, -pixel_m, 4e6)
    values = np.zeros((30, 40) if pixel_m > 10 else (80, 100), np.uint8)
    share_of(scene, MaskChoice(mask_file(tmp_path, values, transform=place)))
    lies_on = [text for text in caplog.messages if "what is beyond it stays as it is" in text]
    assert len(lies_on) == (told is not None) and all(f"lies on {told} of the scene" in text for text in lies_on)


@pytest.mark.parametrize(
    ("scene_crs", "scene_place", "mask_crs", "mask_place", "told"),
    [
        (GEOS, (-5.5e6, -5.5e6, 5.5e6, 5.5e6), "EPSG:4326", (-180, -90, 180, 90), None),
        (GEOS, (-5.5e6, -5.5e6, 5.5e6, 5.5e6), "EPSG:4326", (140, -90, 180, 90), "lies on "),
        ("EPSG:4326", (-180, -90, 180, 90), GEOS, (-5.5e6, -5.5e6, 5.5e6, 5.5e6), "lies on 3"),
        ("EPSG:4326", (-180, -90, 180, 90), "EPSG:32633", (3e5, 5e6, 7e5, 6e6), "lies on 0 % of the scene"),
    ],
)
def test_places_that_the_other_grid_does_not_know_do_not_end_a_run(
    scene_crs, scene_place, mask_crs, mask_place, told, tmp_path, caplog
):
    pixels = np.full((3, 80, 100), 90, np.uint8)
    scene = write_tif(tmp_path / "scene.tif", pixels, crs=scene_crs, transform=from_bounds(*scene_place, 100, 80))
    mask = mask_file(
        tmp_path, np.ones((50, 90), np.uint8), crs=mask_crs, transform=from_bounds(*mask_place, 90, 50)
    )
    share_of(scene, MaskChoice(mask))
    lies_on = [text for text in caplog.messages if "what is beyond it stays as it is" in text]
    assert len(lies_on) == (told is not None) and all(told in text for text in lies_on)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(7, 9)])
def test_a_mask_on_a_part_of_little_ground_is_told(rows, tmp_path, caplog):
    pixels = np.zeros((3, 300, 300), np.uint8)
    pixels[:, rows] = 90
    scene = write_tif(tmp_path / "scene.tif", pixels, nodata=0)
    place = Affine(20, 0, 5e5, 0, -20, 4e6)
    share_of(scene, MaskChoice(mask_file(tmp_path, np.ones((150, 75), np.uint8), transform=place)))
    assert "lies on 50 % of the scene" in caplog.text


def test_ground_without_data_need_not_be_covered_by_a_mask(tmp_path, caplog):
    pixels = np.full((3, 80, 100), 90, np.uint8)
    pixels[:, 60:], pixels[:, :, 80:] = 0, 0
    scene = write_tif(tmp_path / "scene.tif", pixels, nodata=0)
    place = Affine(20, 0, 5e5, 0, -20, 4e6)
    share_of(scene, MaskChoice(mask_file(tmp_path, np.zeros((30, 40), np.uint8), transform=place)))
    assert "of the scene" not in caplog.text


@pytest.mark.parametrize("west", [179.0, -181.0, 0.0, -180.0])
@pytest.mark.parametrize("kind", ["nodata", "mask", "plain"])
def test_a_mask_covers_a_scene_across_the_antimeridian(west, kind, tmp_path, caplog):
    (x,), (y,) = warp.transform("EPSG:4326", "EPSG:32660", [180.0], [0.5])
    across = Affine(100, 0, x - 5000, 0, -100, y + 4000)
    scene = write_tif(
        tmp_path / "scene.tif", np.full((3, 80, 100), 90, np.uint8), crs="EPSG:32660", transform=across
    )
    width = 2.0 if abs(west) > 180 or west == 179 else 360.0
    values = np.ones((100, 1000), np.uint8)
    values[50:] = 2
    transform = from_bounds(west, 0, west + width, 1, 1000, 100)
    path = mask_file(tmp_path, values, crs="EPSG:4326", transform=transform, nodata=9 if kind == "nodata" else None)
    if kind == "mask":
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.full(values.shape, 255, np.uint8))
    share = share_of(scene, MaskChoice(path, values=(1,), feather_px=0))
    assert (share[:37] == 1).all() and (share[43:] == 0).all()
    assert share_of(scene, MaskChoice(path, feather_px=0)).min() == 1
    assert "of the scene" not in caplog.text


def test_the_share_is_one_on_cloud_zero_beyond_the_feather_and_falls_between(scene, tmp_path):
    values = np.zeros((80, 100), np.uint8)
    values[40, 50] = values[41:44, 10:30] = 1
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values), feather_px=10))
    distance = ndimage.distance_transform_edt(values == 0)
    assert (share[distance <= 5] == 1).all()
    assert (share[distance >= 10] == 0).all()
    between = (distance > 5) & (distance < 10)
    assert (share[between] > 0).all() and (share[between] < 1).all()
    order = np.argsort(distance[between])
    assert (np.diff(share[between][order]) <= 1e-6).all()


CLEAR, CLOUD = 0, 1
QA = {
    "Landsat 8": ("Collection 2", {CLEAR: [21824, 21888], CLOUD: [21826, 22080, 22280, 23888, 54596]}),
    "Landsat 5": ("Collection 2", {CLEAR: [5440, 5504], CLOUD: [5442, 5696, 5896, 7440]}),
    "Landsat 8, older": (
        "Collection 1",
        {CLEAR: [2720, 2724, 256, 4096], CLOUD: [2752, 2800, 2976, 6816, 7072, 16, 64, 384, 6144]},
    ),
    "Landsat 7, older": ("Collection 1", {CLEAR: [672, 676], CLOUD: [704, 752, 928]}),
    "Landsat 8, before": ("before Collection 1", {CLEAR: [20480, 20512], CLOUD: [36864, 53248, 28672]}),
}
"""Numbers of its quality band."""


@pytest.mark.parametrize("sensor", QA)
def test_a_landsat_quality_band_is_read_by_its_generation(sensor, scene, tmp_path, caplog):
    caplog.set_level("INFO", "declouder")
    generation, said = QA[sensor]
    numbers = [*said[CLEAR], *said[CLOUD]]
    cloudy = [CLEAR] * len(said[CLEAR]) + [CLOUD] * len(said[CLOUD])
    values = np.ones((80, 100), np.uint16)  # 1: outside the ground taken
    values[:, : len(numbers)] = numbers
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values), kind="landsat-qa", feather_px=0))
    np.testing.assert_array_equal(share[0, : len(numbers)], cloudy)
    assert (share[:, len(numbers) :] == 0).all()
    assert generation in caplog.text


@pytest.mark.parametrize(
    ("kind", "numbers", "refused"),
    [
        ("landsat-qa", [0, 1], "no number above 0, a quality band of Landsat"),
        ("landsat-qa", [4, 9, 11], "no number above 11, a quality band of Landsat"),
        ("landsat-qa", [1], None),
        ("landsat-qa", [0, 672], None),
        ("sentinel2-scl", [0, 255], "up to 255, a scene classification of Sentinel-2 has 0 to 11"),
        ("sentinel2-scl", [1, 21824, 22280], "up to 22280, a scene classification"),
        ("sentinel2-scl", [0], None),
        ("sentinel2-scl", [4, 9, 11, 255], None),
    ],
)
def test_a_mask_of_another_kind_is_refused(kind, numbers, refused, scene, tmp_path):
    values = np.resize(np.array(numbers, np.uint16), (80, 100))
    choice = MaskChoice(mask_file(tmp_path, values), kind=kind)
    if refused is None:
        assert not np.isnan(share_of(scene, choice)).any()
        return
    with pytest.raises(OptionError, match=refused):
        share_of(scene, choice)


def test_a_landsat_quality_band_is_known_by_smaller_copies_that_hold_means(scene, tmp_path, caplog):
    caplog.set_level("INFO", "declouder")
    values = np.full((2200, 2200), 21824, np.uint16)
    values[::2, :700] = 1  # a collar that the means mix in
    values[:700] = 22280
    path = mask_file(tmp_path, values)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], rasterio.enums.Resampling.average)
    with (
        open_raster(path) as reader,
        open_mask(
            MaskChoice(path, kind="landsat-qa"), reader, bands=(1,), names=("grey",), scale=Scaling(0, 1)
        ) as mask,
    ):
        assert mask.share(slice(8, 600), slice(900, 1000)).all()
        assert not mask.share(slice(900, 1000), slice(900, 1000)).any()
    assert "Collection 2" in caplog.text


def test_a_sentinel2_scene_classification_is_read(scene, tmp_path):
    values = np.zeros((80, 100), np.uint8)
    values[:, :12] = np.arange(12)
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values), kind="sentinel2-scl", feather_px=0))
    np.testing.assert_array_equal(np.flatnonzero(share[0]), [3, 8, 9, 10])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "modis"}, "landsat-qa"),
        ({"kind": "landsat-qa", "values": (1,)}, "kind values"),
        ({"feather_px": -1}, "feather is -1"),
        ({"feather_px": 513}, "feather is 513 px; give 0 to 512"),
    ],
)
def test_a_choice_outside_its_meaning_is_refused(fields, words):
    with pytest.raises(OptionError, match=words):
        MaskChoice("a.tif", **fields)


def test_a_quality_band_of_floats_is_refused(scene, tmp_path):
    path = mask_file(tmp_path, np.ones((80, 100), np.float32))
    with pytest.raises(RasterError, match="band of integers"):
        share_of(scene, MaskChoice(path, kind="landsat-qa"))


def test_the_share_does_not_depend_on_how_it_is_read(rng):
    class Blobs:
        cloud = ndimage.gaussian_filter(rng.standard_normal((120, 130)), 5) > 0.05

        def read(self, rows, cols):
            return self.cloud[rows, cols]

    mask = SceneMask(Blobs(), height=120, width=130, feather_px=9)
    whole = mask.share(slice(0, 120), slice(0, 130))
    np.testing.assert_array_equal(mask.share(slice(31, 70), slice(5, 99)), whole[31:70, 5:99])


def test_veil_is_high_for_white_and_haze_and_low_for_dark_and_red_ground():
    pixels = {
        "white": (0.9, 0.9, 0.9),
        "haze": (0.3, 0.35, 0.45),
        "dark": (0.1, 0.1, 0.1),
        "soil": (0.5, 0.35, 0.2),
    }
    x = np.array(list(pixels.values()), np.float32).T[:, :, None] * 2 - 1
    white, haze, dark, soil = veil(x)[:, 0]
    assert white > haze > 0.3 > dark > soil


def test_the_estimate_finds_white_blobs_on_dark_ground_and_no_cloud_in_nodata(tmp_path, rng):
    dn = rng.integers(20, 40, (3, 120, 130)).astype(np.uint8)
    dn[:, 30:60, 40:80] = 220
    dn[:, 90:] = 0
    share = share_of(write_tif(tmp_path / "a.tif", dn, nodata=0), MaskChoice("auto", feather_px=0))
    assert (share[32:58, 42:78] == 1).all()
    assert (share[:24] == 0).all() and (share[68:] == 0).all()


def test_the_estimate_wants_red_green_and_blue(scene):
    with (
        open_raster(scene) as reader,
        pytest.raises(OptionError, match="give a mask file"),
        open_mask(MaskChoice("auto"), reader, bands=(1,), names=("grey",), scale=Scaling(0, 255)),
    ):
        pass


def test_the_estimate_finds_its_bands_whatever_their_order_and_case(tmp_path):
    dn = np.full((3, 80, 100), 90, np.uint8)
    dn[:, 20:60, 30:70] = 250
    plain = share_of(write_tif(tmp_path / "rgb.tif", dn), MaskChoice("auto"))
    assert 0 < plain.mean() < 1
    names, scale = ("Blue", "RED", "green"), Scaling(0, 255)
    with (
        open_raster(write_tif(tmp_path / "brg.tif", dn[[2, 0, 1]])) as reader,
        open_mask(MaskChoice("auto"), reader, bands=(1, 2, 3), names=names, scale=scale) as mask,
    ):
        np.testing.assert_array_equal(mask.share(slice(0, 80), slice(0, 100)), plain)


def test_the_estimate_agrees_with_the_quality_band_of_a_real_landsat_scene():
    folder = Path(os.environ.get("DECLOUDER_TEST_DATA", "no-such-folder")) / "scenes"
    if not folder.is_dir():
        pytest.skip("DECLOUDER_TEST_DATA names no folder with scenes/landsat8_cloudy_RGBN_uint16_30m.tif")
    scene = folder / "landsat8_cloudy_RGBN_uint16_30m.tif"
    found = share_of(scene, MaskChoice("auto", feather_px=0)) > 0
    wanted = share_of(scene, MaskChoice(folder / "landsat8_cloudy_BQA.tif", kind="landsat-qa", feather_px=0)) > 0
    precision = (found & wanted).sum() / found.sum()
    recall = (found & wanted).sum() / wanted.sum()
    print(f"precision {precision:.3f}, recall {recall:.3f}")
    assert precision > 0.75 and recall > 0.75


def test_the_share_does_not_depend_on_where_in_the_read_area_the_cloud_lies(rng):
    """Distances are taken near the cloud only; this is the plain way."""
    from scipy import ndimage

    class Source:
        def read(self, rows: slice, cols: slice) -> np.ndarray:
            return cloud[rows, cols]

    for _ in range(20):
        cloud = np.zeros((80, 90), bool)
        top, left = rng.integers(0, 70), rng.integers(0, 80)
        cloud[top : top + rng.integers(1, 20), left : left + rng.integers(1, 20)] = True
        fall = np.clip(2 * ndimage.distance_transform_edt(~cloud) / 9 - 1, 0, 1)
        expected = np.where(fall < 1, np.cos(fall * (np.pi / 2)) ** 2, 0).astype(np.float32)
        share = SceneMask(Source(), height=80, width=90, feather_px=9).share(slice(0, 80), slice(0, 90))
        np.testing.assert_array_equal(share, expected)


def test_classes_of_a_coarser_mask_are_not_mixed(scene, tmp_path):
    values = np.tile(np.array([8, 4], np.uint8), (1, 40, 25))  # stripes of 20 m, cloud and vegetation
    mask = write_tif(tmp_path / "scl.tif", values, transform=Affine(20, 0, 5e5, 0, -20, 4e6))
    share = share_of(scene, MaskChoice(mask, kind="sentinel2-scl", feather_px=0))
    np.testing.assert_array_equal(share, np.kron(values[0] == 8, np.ones((2, 2))))


def test_a_scene_without_bright_places_has_no_cloud_to_the_estimate(tmp_path, rng):
    dn = rng.integers(20, 41, (3, 80, 100), dtype=np.uint8)
    assert not share_of(write_tif(tmp_path / "a.tif", dn), MaskChoice("auto", feather_px=0)).any()


def test_cloud_beside_a_frame_without_data_is_cloud_and_the_frame_is_not(tmp_path):
    dn = np.full((3, 80, 100), 60, np.uint8)
    dn[:, 30:60, 20:50] = 240
    dn[:, :, :20] = 0
    share = share_of(write_tif(tmp_path / "a.tif", dn, nodata=0), MaskChoice("auto", feather_px=0))
    assert (share[33:57, 20:47] == 1).all() and not share[:, :20].any() and not share[:, 60:].any()


@pytest.mark.parametrize("how", ["alpha", "mask"])
def test_what_is_hidden_does_not_stretch_the_scale(how, tmp_path, rng):
    dn = rng.integers(500, 3000, (4 if how == "alpha" else 3, 60, 80)).astype(np.uint16)
    visible = np.zeros((60, 80), bool)
    visible[:, 40:] = True
    dn[:3, ~visible] = 60000
    if how == "alpha":
        dn[3] = np.where(visible, 65535, 0)
    path = tmp_path / "a.tif"
    profile = {"photometric": "RGB", "alpha": "YES"} if how == "alpha" else {}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tif(path, dn, **profile)
        if how == "mask":
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(np.where(visible, 255, 0).astype(np.uint8))
    with open_raster(path) as reader:
        assert auto_scale(reader, (1, 2, 3)).high < 3000


def test_scale_tags_that_differ_between_bands_say_nothing_of_the_scale(tmp_path, rng):
    dn = rng.integers(500, 3000, (3, 60, 80)).astype(np.uint16)
    found = []
    for scales in ((1e-4, 1e-4, 1e-4), (1e-4, 2e-4, 1e-4)):
        path = write_tif(tmp_path / "a.tif", dn)
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = scales
        with open_raster(path) as reader:
            found.append(auto_scale(reader, (1, 2, 3)))
    assert found[0] == Scaling(0, 10000) and 400 < found[1].low < found[1].high < 3000


def test_a_turned_scene_has_no_place_on_a_grid(tmp_path):
    dn = np.ones((3, 8, 8), np.uint8)
    turned = write_tif(tmp_path / "a.tif", dn, transform=Affine.translation(5e5, 4e6) @ Affine.rotation(15))
    for path, placed in ((turned, False), (write_tif(tmp_path / "b.tif", dn), True)):
        with open_raster(path) as reader:
            assert (grid_origin(reader.info) != (0, 0)) == placed


def test_a_place_on_the_grid_that_rounding_brings_below_a_whole_pixel_is_that_pixel(tmp_path):
    assert 0.3 / 0.1 < 3
    path = write_tif(tmp_path / "a.tif", np.ones((3, 8, 8), np.uint8), transform=Affine(0.1, 0, 0.3, 0, -0.1, -0.3))
    with open_raster(path) as reader:
        assert grid_origin(reader.info) == (3, 3)


def test_the_estimate_takes_the_bands_that_are_named(tmp_path, rng):
    dn = rng.integers(20, 90, (4, 80, 100), dtype=np.uint8)
    dn[:3, 20:60, 30:70] = 230
    dn[3] = rng.integers(0, 256, (80, 100))  # near infrared says nothing
    path = write_tif(tmp_path / "a.tif", dn[[3, 0, 1, 2]])
    plain = share_of(write_tif(tmp_path / "b.tif", dn[:3]), MaskChoice("auto"))
    names, scale = ("nir", "red", "green", "blue"), Scaling(0, 255)
    with (
        open_raster(path) as reader,
        open_mask(MaskChoice("auto"), reader, bands=(1, 2, 3, 4), names=names, scale=scale) as mask,
    ):
        np.testing.assert_array_equal(mask.share(slice(0, 80), slice(0, 100)), plain)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"feather_px": 1.5}, r"feather is 1\.5; give a whole number"),
        ({"feather_px": "8"}, "feather is '8'; give a whole number"),
        ({"values": (1.5,)}, r"a mask value is 1\.5; give a whole number"),
        ({"source": None}, "the mask is None; give a file, 'auto' or 'none'"),
        ({"source": 3}, "the mask is 3; give a file"),
    ],
)
def test_what_no_mask_can_be_is_told_before_anything_is_done(fields, told):
    with pytest.raises(OptionError, match=told):
        MaskChoice(**{"source": "m.tif", **fields})
    assert MaskChoice("m.tif", values=3).values == (3,)


def test_cloud_that_is_not_much_brighter_than_ground_is_cloud_up_to_a_frame_without_data(tmp_path):
    dn = np.full((3, 80, 100), 90, np.uint8)
    dn[:, 30:60, 20:50] = 200
    dn[:, :, :20] = 0
    share = share_of(write_tif(tmp_path / "a.tif", dn, nodata=0), MaskChoice("auto", feather_px=0))
    # Smoothed with the frame, the cloud's first columns would be half as bright as it is.
    assert (share[33:57, 20:47] == 1).all() and not share[:, :20].any() and not share[:, 60:].any()


def test_a_frame_without_data_does_not_change_what_the_estimate_takes_for_dark_and_bright(tmp_path, rng):
    dn = rng.integers(60, 120, (3, 80, 100)).astype(np.uint8)
    dn[:, 20:30, 20:40] = 240
    wide = np.zeros((3, 160, 200), np.uint8)
    wide[:, 40:120, 50:150] = dn
    thresholds = []
    for name, values in (("alone", dn), ("framed", wide)):
        with (
            open_raster(write_tif(tmp_path / f"{name}.tif", values, nodata=0)) as reader,
            open_mask(MaskChoice("auto"), reader, bands=(1, 2, 3), names=RGB, scale=Scaling(0, 255)) as mask,
        ):
            thresholds.append(mask.threshold)
    assert thresholds[0] == thresholds[1]


def test_the_transparency_of_a_mask_is_no_band_that_is_left_out(scene, tmp_path, caplog):
    path = write_tif(tmp_path / "mask.tif", np.full((2, 80, 100), 255, np.uint8), alpha="YES")
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[1].name == "alpha"
    share_of(scene, MaskChoice(path, feather_px=0))
    assert "the first one is taken" not in caplog.text


def test_a_plain_mask_of_a_part_of_the_scene_is_not_told_for_its_nodata(scene, tmp_path, caplog):
    values = np.full((80, 100), 255, np.uint8)
    values[:, :50] = 1
    share_of(scene, MaskChoice(write_tif(tmp_path / "mask.tif", values[None], nodata=255)))
    assert "of itself" not in caplog.text


def test_a_scale_tag_that_turns_numbers_round_says_nothing_of_the_scale(tmp_path, rng):
    path = write_tif(tmp_path / "a.tif", rng.integers(500, 3000, (3, 60, 80)).astype(np.uint16))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (-1e-4,) * 3, (1.0,) * 3
    with open_raster(path) as reader:
        scale = auto_scale(reader, (1, 2, 3))
    assert 400 < scale.low < scale.high < 3000


def test_a_mask_that_is_off_by_a_part_of_a_pixel_is_resampled(scene, tmp_path, rng):
    values = rng.integers(0, 2, (80, 100)).astype(np.uint8)
    for east, columns in ((0.05, 0), (6, 1)):  # of 10 m
        path = mask_file(tmp_path, values, transform=Affine(10, 0, 5e5 + east, 0, -10, 4e6))
        expected = np.zeros((80, 100))
        expected[:, columns:] = values[:, : 100 - columns]
        np.testing.assert_array_equal(share_of(scene, MaskChoice(path, feather_px=0)), expected)


def test_a_mask_that_is_the_scene_turned_over_its_upper_edge_lies_where_it_says(scene, tmp_path):
    values = np.ones((80, 100), np.uint8)
    # From the scene's first row on upwards: that row alone do they share.
    path = mask_file(tmp_path, values, transform=Affine(10, 0, 5e5, 0, 10, 4e6 - 10))
    expected = np.zeros((80, 100))
    expected[0] = 1
    np.testing.assert_array_equal(share_of(scene, MaskChoice(path, feather_px=0)), expected)


def test_a_mask_may_be_as_large_as_the_scene_that_is_let_in(scene, tmp_path, monkeypatch):
    monkeypatch.setattr("declouder.raster.aligned.MOST_PIXELS", 100)
    path = mask_file(tmp_path, np.ones((80, 100), np.uint8))
    assert share_of(scene, MaskChoice(path)).min() == 1
    with pytest.raises(RasterError, match=r"claims 101 x 80 px"):
        share_of(scene, MaskChoice(mask_file(tmp_path, np.ones((80, 101), np.uint8))))


def test_a_number_below_zero_is_cloud_too(scene, tmp_path):
    values = np.zeros((80, 100), np.int16)
    values[10:20, 30:40] = -1
    share = share_of(scene, MaskChoice(mask_file(tmp_path, values), feather_px=0))
    np.testing.assert_array_equal(share, values != 0)


@pytest.mark.parametrize("value", [256, -1])
def test_a_value_that_the_mask_cannot_hold_is_refused(value, scene, tmp_path):
    path = mask_file(tmp_path, np.full((80, 100), 255, np.uint8))
    with pytest.raises(OptionError, match=rf"value {value} is none that .*mask\.tif can hold, .* from 0 to 255"):
        share_of(scene, MaskChoice(path, values=(255, value)))
    assert share_of(scene, MaskChoice(path, values=(255, 0))).all()


def test_the_estimates_threshold_lies_above_the_darker_part_of_a_scene(tmp_path):
    grey = np.tile(np.arange(100, dtype=np.uint8) * 2, (80, 1))  # a veil of 0 to 198 / 255, evenly
    path = write_tif(tmp_path / "ramp.tif", np.stack([grey] * 3))
    with (
        open_raster(path) as reader,
        open_mask(MaskChoice("auto"), reader, bands=(1, 2, 3), names=RGB, scale=Scaling(0, 255)) as mask,
    ):
        dark, bright = np.percentile(grey / 255, [20, 98])
        assert mask.threshold == pytest.approx(dark + 0.3 * (bright - dark), abs=0.005)
