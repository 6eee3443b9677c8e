"""Antialiased bicubic resizing, against the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from declouder.data.resize import resize_bicubic


def keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Keys' cubic kernel with a = -1/2."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def weights(size: int, wanted: int) -> NDArray[np.float64]:
    """Return (wanted, size): what every new pixel takes of every old one, in an image mirrored at its borders."""
    scale = max(1.0, size / wanted)
    center = (np.arange(wanted) + 0.5) * size / wanted - 0.5
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
