from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from conftest import write_tif
from declouder.data.images import check_numbers, least_used, read_bands, read_image
from declouder.errors import DataError


def write(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB") -> Path:
    Image.new(mode, size, (7,) * len(mode)).save(path)
    return path


def test_images_are_read_as_they_are(tmp_path):
    assert read_image(write(tmp_path / "a.png")).shape == (6, 8, 3)
    assert read_image(write(tmp_path / "g.png", mode="L")).shape == (6, 8, 1)
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[:, :, 0], deep)
    colours = np.stack([deep, deep // 2, deep // 3])
    with rasterio.open(tmp_path / "rgb.png", "w", "PNG", 8, 6, 3, dtype="uint16") as dataset:
        dataset.write(colours)
    assert np.array_equal(read_image(tmp_path / "rgb.png"), colours.transpose(1, 2, 0))  # not cut to 8 bits


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image"):
        read_image(path)
    whole = write(tmp_path / "t.png", size=(80, 60))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"t\.png"):
        read_image(whole)


def test_yes_and_no_are_black_and_white(tmp_path):
    half = np.arange(48).reshape(6, 8) % 2 == 0
    Image.fromarray(half).save(tmp_path / "bits.png")
    assert np.array_equal(read_image(tmp_path / "bits.png")[:, :, 0], half * np.uint8(255))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_colour_that_stands_for_transparency_is_refused(tmp_path, mode):
    image = Image.new(mode, (8, 6))
    image.save(tmp_path / "x.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    with pytest.raises(DataError, match=r"x\.png has an alpha channel"):
        read_bands(tmp_path / "x.png")


def test_a_fourth_band_of_two_levels_that_are_not_none_and_full_is_near_infrared(tmp_path):
    dn = np.full((4, 8, 8), 90, np.uint8)
    dn[3] = 0
    dn[3, :, 4:] = 20  # over water, say
    path = write_tif(tmp_path / "water.tif", dn)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in ("red", "green", "blue", "alpha")]
    assert np.array_equal(read_bands(path), dn.transpose(1, 2, 0))


def test_what_is_wrong_with_a_raster_is_told_once_with_its_own_mend(tmp_path):
    path = write_tif(tmp_path / "p.tif", np.zeros((1, 8, 8), np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (1, 2, 3, 255)})
    with pytest.raises(DataError, match=r"p\.tif is a palette image.*expand it first") as told:
        read_image(path)
    assert str(told.value).count("p.tif") == 1 and "replace or remove" not in str(told.value)


@pytest.mark.parametrize(
    ("dn_range", "dtype", "least"),
    [(None, "uint16", 0.25), (None, "float32", 0.25), (None, "int16", 0.6), ((0.0, 10_000.0), "int16", 0.03)],
)
def test_a_given_range_may_be_used_less_than_a_data_types(dn_range, dtype, least):
    assert least_used(dn_range, dtype) == least


@pytest.mark.parametrize(
    ("dn", "told"), [([0.0, 1.0], ""), ([-4.9, 4.9], ""), ([-5.1, 0.5], "-5.1"), ([0, 5.1], "5.1")]
)
def test_floats_far_beyond_0_and_1_are_other_numbers(dn, told, tmp_path):
    image = np.array(dn, np.float32).reshape(1, 2, 1)
    path = tmp_path / "a.tif"
    if told:
        with pytest.raises(DataError, match=rf"{told}.*, and floats are taken as 0 to 1; give RANGE"):
            check_numbers(image, path, None, mend="RANGE")
    else:
        check_numbers(image, path, None, mend="RANGE")
    check_numbers(image, path, (-10, 10), mend="RANGE")


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_a_png_of_16_bits_with_transparency_is_refused(bands, tmp_path, rng):
    dn = rng.integers(0, 60000, (bands, 6, 8), dtype=np.uint16)
    if bands in (2, 4):
        dn[-1] = 65535
    with rasterio.open(tmp_path / "a.png", "w", "PNG", 8, 6, bands, dtype="uint16") as dataset:
        dataset.write(dn)
    if bands in (2, 4):
        with pytest.raises(DataError, match=r"a\.png has an alpha channel"):
            read_bands(tmp_path / "a.png")
    else:
        np.testing.assert_array_equal(read_bands(tmp_path / "a.png"), dn.transpose(1, 2, 0))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_a_tiff_is_one_under_any_name(suffix, tmp_path, rng):
    """Pillow would read it too, of four bands and 16 bits less, and take what is no data for ground."""
    dn = rng.integers(1, 60_000, (4, 6, 8), dtype=np.uint16)
    four = write_tif(tmp_path / "four.tif", dn).rename(tmp_path / f"four{suffix}")
    assert np.array_equal(read_bands(four), dn.transpose(1, 2, 0))
    dn[:, 2, 3] = 0
    holed = write_tif(tmp_path / "holed.tif", dn, nodata=0).rename(tmp_path / f"holed{suffix}")
    with pytest.raises(DataError, match=r"of its pixels without data \(nodata, NaN, mask or alpha\); cut them off"):
        read_image(holed)


def test_another_format_is_none_under_the_name_of_one(tmp_path):
    """A data set's formats hold no NaN but for TIFF, where it is no data."""
    path = tmp_path / "a.png"
    path.write_bytes(b"Pf\n2 2\n-1.0\n" + np.array([0.1, np.nan, 0.3, 0.4], np.float32).tobytes())
    with pytest.raises(DataError, match=r"a\.png cannot be read as an image"):
        read_image(path)
