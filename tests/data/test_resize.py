"""Antialiased bicubic resizing, against the formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from declouder.data.resize import resize_bicubic, resize_nearest, resize_stored


def keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def weights(size: int, wanted: int, step: float | None = None) -> NDArray[np.float64]:
    """Return (wanted, size): what every new pixel takes of every old one, in an image mirrored at its borders.

    `step` is how many old ones a new one is wide; without it as many as make all of the image.
    """
    step = size / wanted if step is None else step
    scale = max(1.0, step)
    center = (np.arange(wanted) + 0.5) * step - 0.5
    position = np.arange(-size, 2 * size)
    spread = keys((position[None] - center[:, None]) / scale)
    spread /= spread.sum(1, keepdims=True)
    return spread[:, size : 2 * size] + spread[:, :size][:, ::-1] + spread[:, 2 * size :][:, ::-1]


@pytest.mark.parametrize(("size", "wanted"), [((64, 64), (32, 32)), ((48, 80), (20, 30)), ((20, 30), (45, 31))])
def test_resizing_is_the_mirrored_antialiased_cubic_formula(size, wanted):
    image = np.random.default_rng(0).uniform(0, 255, (2, *size)).astype(np.float32)
    expected = weights(size[0], wanted[0]) @ image.astype(np.float64) @ weights(size[1], wanted[1]).T
    assert np.abs(resize_bicubic(image, *wanted) - expected).max() < 1e-3


def test_overshoot_beside_an_edge_survives():
    image = np.zeros((1, 32, 32), np.float32)
    image[..., 17:] = 255
    half = resize_bicubic(image, 16, 16)
    assert half.min() < -5
    assert half.max() > 260


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = np.ones((3, 8, 8), np.float32)
    assert resize_bicubic(image, 8, 8) is image


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_stored_is_rounded_and_clipped_to_the_images_type(dtype):
    top = np.iinfo(dtype).max
    image = np.zeros((32, 24, 2), dtype)
    image[17:] = top
    half = resize_stored(image, 16)
    assert (half.shape, half.dtype) == ((22, 16, 2), image.dtype)  # as wide as said, as high as that makes it
    floats = resize_bicubic(image.transpose(2, 0, 1).astype(np.float32), 22, 16, rows=33)
    assert floats.min() < 0 and floats.max() > top
    assert np.array_equal(half, np.rint(floats.clip(0, top)).astype(dtype).transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_numbers_between_two_whole_ones_become_the_nearest_whether_positive_or_not(dtype):
    limits = np.iinfo(dtype)
    image = np.random.default_rng(0).integers(limits.min, limits.max, (24, 24, 2), dtype, endpoint=True)
    floats = resize_bicubic(image.transpose(2, 0, 1).astype(np.float32), 16, 16).transpose(1, 2, 0)
    assert np.abs(resize_stored(image, 16) - floats.clip(limits.min, limits.max)).max() <= 0.5


@pytest.mark.parametrize(
    ("size", "width"),
    [((101, 150), 64), ((211, 256), 128), ((33, 24), 16), ((21, 40), 55), ((64, 64), 32), ((65, 128), 16)],
)
def test_images_that_are_not_square_are_scaled_alike_in_both_directions(size, width):
    image = np.random.default_rng(0).uniform(0, 255, (*size, 2)).astype(np.float32)
    step = size[1] / width
    height = math.ceil(size[0] / step)
    expected = np.einsum("hr,rwc->hwc", weights(size[0], height, step), image.astype(np.float64))
    expected = np.einsum("wr,hrc->hwc", weights(size[1], width, step), expected)
    assert np.abs(resize_stored(image, width) - expected).max() < 1e-3


def test_a_mask_has_the_scale_of_its_image():
    mask = np.repeat(np.arange(101, dtype=np.uint8), 150).reshape(101, 150, 1)
    found = resize_nearest(mask, 64)[:, 0, 0]
    centers = (np.arange(44) + 0.5) * 150 / 64
    assert np.array_equal(found, np.minimum(centers.astype(int), 100))


def test_floats_keep_their_overshoot():
    image = np.zeros((32, 32, 1), np.float32)
    image[17:] = 1
    assert resize_stored(image, 16).min() < 0


def test_a_mask_takes_the_pixels_of_its_middles_and_makes_up_no_level():
    mask = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    assert resize_nearest(mask, 2)[..., 0].tolist() == [[7, 10], [25, 28]]
    assert set(resize_nearest(mask, 5).ravel()) <= set(mask.ravel())


@pytest.mark.parametrize("dtype", ["uint32", "int32", "uint16", "float64"])
def test_white_stays_white_and_an_image_of_the_size_stays_as_it_is(dtype):
    white = np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 1.0
    image = np.full((8, 8, 2), white, dtype)
    image[0, 0, 0] = 3_000_000_001 if dtype == "uint32" else 1
    np.testing.assert_array_equal(resize_stored(image, 8), image)
    assert resize_stored(np.full((8, 8, 1), white, dtype), 5).min() == white
