from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from declouder.data.images import read_bands, read_image
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
