"""Synthetic clouds: the physics that must hold for every draw, and the haze's likeness to real haze."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from declouder.data.clouds import KINDS, MASK_TAU, CloudKind, _broken, fractal_noise, simulate_clouds
from declouder.data.terrain import make_terrain
from declouder.errors import OptionError


def ground(bands: int = 3, size: int = 96, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.05, 0.6, (bands, size, size)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_clouds_and_other_seeds_others(kind: CloudKind) -> None:
    first, again, other = (simulate_clouds(ground(), np.random.default_rng(seed), kind=kind) for seed in (7, 7, 8))
    assert np.array_equal(first.cloudy, again.cloudy)
    assert np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.cloudy, other.cloudy)


@pytest.mark.parametrize("kind", [*KINDS, None])
@pytest.mark.parametrize(("bands", "height", "width"), [(1, 40, 40), (3, 64, 100), (4, 33, 17), (6, 5, 9)])
def test_shapes_dtypes_and_ranges(kind: CloudKind | None, bands: int, height: int, width: int) -> None:
    clear = ground(bands, 100)[:, :height, :width]
    for seed in range(5):
        made = simulate_clouds(clear, np.random.default_rng(seed), kind=kind)
        assert made.cloudy.shape == made.transmission.shape == made.shadow.shape == (bands, height, width)
        assert made.mask.shape == (height, width)
        assert made.mask.dtype == np.bool_
        assert made.cloudy.dtype == made.transmission.dtype == made.shadow.dtype == np.float32
        assert made.cloudy.min() >= 0
        assert made.cloudy.max() <= 1
        assert made.transmission.min() > 0
        assert made.transmission.max() <= 1
        assert made.shadow.min() > 0
        assert made.shadow.max() <= 1
        assert made.kind in KINDS


def test_the_clear_image_is_left_alone() -> None:
    clear = ground()
    before = clear.copy()
    simulate_clouds(clear, np.random.default_rng(0), kind="mixed")
    assert np.array_equal(clear, before)


def test_pixels_without_cloud_and_shadow_are_unchanged() -> None:
    clear = ground()
    untouched = 0
    for seed in range(10):
        made = simulate_clouds(clear, np.random.default_rng(seed), kind="broken")
        free = (made.transmission == 1).all(0) & (made.shadow == 1).all(0)
        untouched += int(free.sum())
        assert np.array_equal(made.cloudy[:, free], clear[:, free])
    assert untouched > 1000


def test_there_is_no_cloud_so_thin_that_nobody_sees_it() -> None:
    for seed in range(6):
        made = simulate_clouds(ground(), np.random.default_rng(seed), kind="broken")
        assert not ((made.transmission < 1) & (made.transmission > 0.995)).any()


def test_shadow_darkens_the_ground_outside_cloud() -> None:
    clear = ground()
    shaded = 0
    for seed in range(10):
        made = simulate_clouds(clear, np.random.default_rng(seed), kind="broken")
        shade = (made.transmission == 1).all(0) & (made.shadow < 0.9).all(0)
        shaded += int(shade.sum())
        assert (made.cloudy[:, shade] < clear[:, shade]).all()
    assert shaded > 1000


@pytest.mark.parametrize("kind", KINDS)
def test_thin_cloud_is_more_transparent_in_the_near_infrared_than_in_blue(kind: CloudKind) -> None:
    names = ("red", "green", "blue", "nir")
    for seed in range(10):
        made = simulate_clouds(ground(4), np.random.default_rng(seed), kind=kind, band_names=names)
        _, green, blue, nir = made.transmission
        thin = (blue > 0.3) & (blue < 0.98)
        assert (nir[thin] > green[thin]).all()
        assert (green[thin] > blue[thin]).all()


def test_band_names_and_not_positions_set_the_wavelength() -> None:
    one = simulate_clouds(ground(), np.random.default_rng(3), kind="haze", band_names=("blue", "red", "nir"))
    assert one.transmission[0].mean() < one.transmission[1].mean() < one.transmission[2].mean()


def test_cover_is_about_the_share_that_was_asked_for() -> None:
    masks = [
        simulate_clouds(ground(size=128), np.random.default_rng(s), kind="broken", cover=0.5, strength=3).mask
        for s in range(20)
    ]
    assert 0.3 < np.mean(masks) < 0.55


def test_haze_is_as_strong_and_as_even_as_in_rice1() -> None:
    """RICE1's training pairs, 10th to 90th percentile: T 0.27 to 0.56, added light 0.18 to 0.46."""
    through, added, unevenness = [], [], []
    black = np.zeros((3, 64, 64), np.float32)
    for seed in range(200):
        made = simulate_clouds(black, np.random.default_rng(seed), kind="haze")
        through.append(float(made.transmission.mean()))
        added.append(float(made.cloudy.mean()))
        unevenness.append(float(made.cloudy.mean(0).std()))
    assert 0.38 < np.median(through) < 0.58
    assert 0.18 < np.median(added) < 0.32
    assert np.median(unevenness) < 0.02


def test_noise_is_normalised_and_rough_noise_varies_more_from_pixel_to_pixel() -> None:
    smooth, rough = (
        fractal_noise((60, 80), np.random.default_rng(0), beta=beta, largest_px=40) for beta in (4.0, 2.0)
    )
    for field in (smooth, rough):
        assert field.shape == (60, 80)
        assert abs(float(field.mean())) < 1e-5
        assert float(field.std()) == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(rough, axis=1)).mean() > 2 * np.abs(np.diff(smooth, axis=1)).mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "fog"}, "haze, broken, mixed"),
        ({"cover": 1.5}, "between 0 and 1"),
        ({"strength": 0.0}, "above 0"),
        ({"band_names": ("red",)}, "1 band names for 3 bands"),
        ({"clear": np.full((3, 4, 4), 255, np.float32)}, "0, 1"),
        ({"clear": np.full((3, 4, 4), np.nan, np.float32)}, "0, 1"),
        ({"clear": np.zeros((4, 4), np.float32)}, "C, H, W"),
    ],
)
def test_wrong_input_is_an_error_that_names_the_mend(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"clear": ground(), "generator": np.random.default_rng(0), **change}
    with pytest.raises(OptionError, match=message):
        simulate_clouds(given.pop("clear"), given.pop("generator"), **given)  # type: ignore[arg-type]


def test_thick_cloud_under_haze_is_veiled_and_seldom_saturates():
    black, saturated, seen = np.zeros((3, 96, 96), np.float32), [], 0
    for seed in range(12):
        found = simulate_clouds(black, np.random.default_rng(seed), kind="mixed", cover=0.5)
        thick = found.transmission.max(axis=0) < 0.1
        if thick.any():
            seen += 1
            saturated.append(float((found.cloudy[:, thick] == 1).mean()))
    assert seen >= 6 and np.mean(saturated) < 0.1


@pytest.mark.parametrize("kind", ["haze", "broken", "mixed"])
def test_the_mask_is_where_a_tenth_of_the_light_is_lost(kind):
    for seed in range(6):
        clear = np.full((1, 64, 64), 0.3, np.float32)
        made = simulate_clouds(clear, np.random.default_rng(seed), kind=kind, band_names=[""])  # tau is given there
        lost = 1 - made.transmission[0]
        np.testing.assert_array_equal(made.mask, lost > 1 - np.exp(-MASK_TAU))
        if kind == "broken":
            assert 0 < made.mask.mean() < 1
    assert MASK_TAU == 0.1


@pytest.mark.parametrize("kind", ["haze", "broken", "mixed"])
def test_strength_multiplies_the_thickness(kind):
    clear = np.full((3, 64, 64), 0.3, np.float32)
    for seed in range(4):
        thin, thick = (
            simulate_clouds(
                clear, np.random.default_rng(seed), kind=kind, strength=strength, band_names=["", "", ""]
            )
            for strength in (1.0, 2.0)
        )
        seen = (thin.transmission < 0.97) & (thick.transmission > 1e-3)
        ratio = np.log(thick.transmission[seen]) / np.log(thin.transmission[seen])
        np.testing.assert_allclose(np.median(ratio), 2, rtol=0.05)


def test_clouds_are_bright_on_the_side_that_their_shadows_are_not_on():
    found = []
    for seed in range(12):
        layer = _broken((160, 160), np.random.default_rng(seed), None, 1.0)
        tau, shadow = layer.tau, layer.shadow_tau
        spectrum = np.fft.fft2(shadow) * np.conj(np.fft.fft2(tau))
        dy, dx = np.unravel_index(np.fft.ifft2(spectrum).real.argmax(), tau.shape)
        shift = np.array([(n + 80) % 160 - 80 for n in (dy, dx)])  # from a cloud to its shadow
        if np.hypot(*shift) < 5:
            continue
        thick = tau > 0.1
        fit = np.polynomial.Polynomial.fit(1 - np.exp(-tau[thick] / 2), layer.brightness[thick], 4)
        shading = layer.brightness - fit(1 - np.exp(-tau / 2))
        height = np.log1p(tau)
        up, right = np.gradient(height)
        towards_shadow = (up * shift[0] + right * shift[1])[thick]
        found.append(np.corrcoef(shading[thick], towards_shadow)[0, 1])  # height grows there: a flank in the sun
    assert len(found) >= 8 and min(found) > 0.1


def test_terrain_is_of_fields_with_faint_furrows_and_grain():
    ground = make_terrain(np.random.default_rng(0), 128, 96, bands=4)
    assert (ground.shape, ground.dtype) == ((4, 128, 96), np.float32)
    assert ground.min() >= 0 and ground.max() <= 1
    steps = np.abs(np.diff(ground, axis=1))
    assert 0.02 < np.median(steps) < 0.05  # within fields
    assert (steps > 0.15).mean() > 0.01  # between them
    assert ground.std(axis=(1, 2)).min() > 0.05
