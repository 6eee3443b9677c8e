"""Real cloud on other ground."""

import numpy as np

from declouder.data.transplant import Dimming, EvenHaze, cloud_layer, move_cloud, move_hard_cloud


def textured(seed: int, size: int = 64) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.uniform(0.1, 0.6, (3, size, size)).astype(np.float32)


def test_even_haze_is_found_and_laid_over_other_ground():
    clear, other = textured(0), textured(1)
    haze = np.full((3, 1, 1), 0.45, np.float32)
    cloudy = 0.5 * clear + haze
    transmission, added = cloud_layer(cloudy, clear)
    np.testing.assert_allclose(transmission, 0.5, atol=0.02)
    np.testing.assert_allclose(added, np.broadcast_to(haze, clear.shape), atol=0.02)
    np.testing.assert_allclose(move_cloud(cloudy, clear, other), 0.5 * other + haze, atol=0.02)


def test_a_cloud_on_its_own_ground_is_the_cloudy_image():
    clear = textured(0)
    mask = np.zeros((64, 64), np.float32)
    mask[16:40, 20:50] = 0.8
    cloudy = clear * (1 - mask) + 0.9 * mask
    apart = np.abs(move_cloud(cloudy, clear, clear) - cloudy)
    assert apart.mean() < 0.02
    assert np.array_equal(move_cloud(clear, clear, clear).round(2), clear.round(2))


def test_thick_cloud_hides_the_new_ground_and_clear_sky_does_not():
    clear = np.full((3, 64, 64), 0.1, np.float32)
    cloudy = clear.copy()
    cloudy[:, :32] = 0.95
    other = textured(2)
    moved = move_cloud(cloudy, clear, other)
    np.testing.assert_allclose(moved[:, :26], 0.95, atol=0.03)
    np.testing.assert_allclose(moved[:, 38:], other[:, 38:], atol=0.03)


def test_a_shadow_darkens_the_new_ground_by_the_same_share():
    clear = np.full((3, 64, 64), 0.4, np.float32)
    cloudy = clear * 0.5
    other = textured(3)
    np.testing.assert_allclose(move_cloud(cloudy, clear, other), other * 0.5, atol=0.02)


def test_a_hard_cloud_saturates_casts_its_shadow_and_leaves_faint_things_behind():
    clear = np.full((3, 64, 64), 0.3, np.float32)
    cloudy = clear.copy()
    cloudy[:, :16] = 0.9
    cloudy[:, 16:32] = 0.15
    cloudy[:, 48:] = 0.33  # a change of the old ground
    other = textured(5)
    white = []
    for seed in range(10):
        moved, hidden = move_hard_cloud(cloudy, clear, other, np.random.default_rng(seed))
        np.testing.assert_array_equal(hidden[0, :14], 1)
        np.testing.assert_array_equal(hidden[0, 34:], 0)
        assert moved[:, :14].std() < 1e-6
        assert 0.5 < np.median(moved[:, 18:30] / other[:, 18:30]) < 0.7
        np.testing.assert_allclose(moved[:, 34:], other[:, 34:], atol=1e-6)
        white.append(float(moved[:, :14].mean()))
    assert min(white) < 0.95 and max(white) == 1


def test_what_changed_on_the_ground_does_not_move_with_the_cloud():
    """Pairs lie days apart: fields are greener in one image, and that is no veil of green."""
    clear = np.empty((3, 64, 64), np.float32)
    clear[:] = np.array([0.3, 0.32, 0.2], np.float32)[:, None, None]
    cloudy = clear * np.array([0.9, 1.15, 0.8], np.float32)[:, None, None]
    cloudy[:, :20] = 0.95
    other = textured(4)
    moved = move_cloud(cloudy, clear, other)
    np.testing.assert_allclose(moved[:, :16], 0.95, atol=0.03)
    difference = (moved - other)[:, 24:].mean(axis=(1, 2))
    assert np.abs(difference).max() < 0.05
    assert np.ptp(difference) < 0.02


def hazy(clear: np.ndarray, white: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
    """Return `clear` under a grey haze that thickens from left to right, and its transmission."""
    transmission = np.broadcast_to(np.linspace(0.6, 0.4, clear.shape[-1], dtype=np.float32), clear.shape[1:])
    return (white - transmission * (1 - clear)).astype(np.float32), transmission


def test_the_law_of_an_even_haze_is_found():
    clear = textured(0, size=128)
    cloudy, transmission = hazy(clear)
    haze = EvenHaze.of_pair(cloudy, clear)
    assert haze is not None
    assert abs(haze.white - 0.75) < 0.005
    np.testing.assert_allclose(haze.transmission[0], transmission, atol=0.03)
    np.testing.assert_allclose(haze.over(clear), cloudy, atol=1e-6)


def test_flat_ground_of_one_color_tells_the_law_too():
    clear = np.empty((3, 96, 96), np.float32)
    clear[:] = np.array([0.1, 0.2, 0.5], np.float32)[:, None, None]
    haze = EvenHaze.of_pair(hazy(clear)[0], clear)
    assert haze is not None
    assert abs(haze.white - 0.75) < 0.005


def test_other_ground_and_other_strength_keep_to_the_law():
    clear, other = textured(0, size=128), textured(1, size=128)
    cloudy, transmission = hazy(clear)
    haze = EvenHaze.of_pair(cloudy, clear)
    assert haze is not None
    expected = 0.75 - transmission / 1.25 * (1 - other)
    np.testing.assert_allclose(haze.over(other, strength=1.25), expected, atol=0.03)


def test_a_clean_haze_has_none_of_what_a_codec_left_in_its_pair():
    clear, other = textured(0, size=128), textured(1, size=128)
    cloudy = hazy(clear)[0]
    noise = np.random.default_rng(0).normal(0, 0.005, cloudy.shape).astype(np.float32)
    haze = EvenHaze.of_pair(cloudy + noise, clear)
    assert haze is not None
    expected = haze.white - haze.transmission / 1.25 * (1 - other)
    clean = haze.clean_over(other, strength=1.25)
    np.testing.assert_allclose(clean * 255, np.rint(clean * 255), atol=1e-3)
    np.testing.assert_allclose(clean, expected, atol=0.5 / 255 + 1e-6)
    assert (haze.over(other, strength=1.25) - expected).std() > 0.003


def test_broken_cloud_colored_haze_and_clear_images_are_no_even_haze():
    clear = textured(0, size=96)
    broken = clear.copy()
    broken[:, 20:40, 20:60] = 0.9
    colored = 0.5 * clear + np.array([0.2, 0.3, 0.4], np.float32)[:, None, None]
    assert EvenHaze.of_pair(broken, clear) is None
    assert EvenHaze.of_pair(colored, clear) is None
    assert EvenHaze.of_pair(clear, clear) is None


def dry_pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (cloudy, clear): bright ground under a thin cloud that takes more light than it gives."""
    generator = np.random.default_rng(seed)
    clear = generator.uniform(0.35, 0.65, (3, 96, 96)).astype(np.float32)
    cloudy = 0.9 * clear + np.array([-0.08, -0.06, -0.04], np.float32)[:, None, None]
    return cloudy, clear


def test_a_cloud_that_darkens_dry_ground_is_found_and_darkens_other_ground():
    cloudy, clear = dry_pair(0)
    dimming = Dimming.of_pair(cloudy, clear)
    assert dimming is not None
    np.testing.assert_allclose(dimming.transmission, 0.9, atol=0.01)
    other = textured(1, 96)
    expected = 0.9 * other + np.array([-0.08, -0.06, -0.04], np.float32)[:, None, None]
    np.testing.assert_allclose(dimming.over(other), expected.clip(0, 1), atol=0.01)


def test_hazes_bright_clouds_and_clear_images_darken_nothing():
    cloudy, clear = dry_pair(0)
    shade = clear.copy()
    shade[:, :30] *= 0.6  # on less than all of the image
    for other in (clear, clear + 0.1, shade, 0.75 - 0.8 * (1 - clear)):
        assert Dimming.of_pair(other.astype(np.float32), clear) is None
    assert Dimming.of_pair(clear, cloudy) is None


class Least:
    """Draws the least of each range: cloud from a tenth on, no gain, a white of 0.8."""

    def uniform(self, low, _high):
        return low


def test_what_a_hard_cloud_hides_grows_from_what_it_may_forget():
    clear = np.full((3, 64, 64), 0.1, np.float32)
    half = 0.5 * clear + 0.45
    half[:, :8, :8] = 0.9  # says how white the cloud is
    moved, hidden = move_hard_cloud(half, clear, textured(5), Least())
    np.testing.assert_allclose(hidden[0, 20:, 20:], (0.5 - 0.1) / (1 - 0.1), atol=0.02)
    expected = (1 - hidden) * textured(5) + 0.8 * hidden
    np.testing.assert_allclose(moved[:, 20:, 20:], expected[:, 20:, 20:], atol=0.02)
