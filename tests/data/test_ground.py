import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from declouder.data.ground import with_own_texture

LIGHT = np.array([-0.03, -0.04, 0.01], np.float32)[:, None, None]
"""What another day's sun adds."""


def land(seed: int, contrast: float = 0.03) -> np.ndarray:
    """Return (3, 128, 128) in [0, 1]: ground with texture some pixels wide."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((128, 128)), 1.5)
    return np.repeat(0.3 + contrast * noise / noise.std(), 3, axis=0).reshape(128, 3, 128).transpose(1, 0, 2).copy()


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (x - gaussian_filter(x, (0, 8, 8)) for x in (a, b))
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_clear_ground_has_the_cloudy_images_texture_in_the_clear_ones_light():
    cloudy, clear = (0.5 * land(0) + 0.5 * land(1)).astype(np.float32), (land(0) + LIGHT).astype(np.float32)
    made = with_own_texture(cloudy, clear)
    assert made.dtype == np.float32 and made.shape == clear.shape
    assert likeness(made, cloudy) > 0.9 > 0.8 > likeness(clear, cloudy)
    np.testing.assert_allclose(made.mean((1, 2)), clear.mean((1, 2)), atol=0.003)


def test_texture_that_thin_haze_fades_is_as_strong_as_without():
    clear = land(0).astype(np.float32)
    faded = (0.75 * clear + 0.25 * 0.45).astype(np.float32)
    made = with_own_texture(faded, clear)
    np.testing.assert_allclose(made[:, 16:-16, 16:-16].std(), clear[:, 16:-16, 16:-16].std(), rtol=0.03)


def test_one_image_twice_stays_as_it_is():
    clear = land(0).astype(np.float32)
    np.testing.assert_allclose(with_own_texture(clear, clear), clear, atol=1e-6)


@pytest.mark.parametrize("level", [0.9, 0.1])
def test_what_lies_under_cloud_or_shadow_stays_as_it_was(level):
    clear = land(0).astype(np.float32)
    cloudy = clear.copy()
    cloudy[:, 40:80, 40:80] = level
    made = with_own_texture(cloudy, clear)
    np.testing.assert_allclose(made[:, 36:84, 36:84], clear[:, 36:84, 36:84], atol=0.005)


def test_specks_over_calm_sea_are_no_texture():
    clear = np.full((3, 128, 128), 0.1, np.float32)
    specks = gaussian_filter(np.random.default_rng(0).standard_normal((128, 128)), 1.5)
    cloudy = clear + np.float32(0.02) * (specks / specks.std()).astype(np.float32)
    np.testing.assert_allclose(with_own_texture(cloudy, clear), clear, atol=1e-3)
