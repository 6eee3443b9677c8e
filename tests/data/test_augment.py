import numpy as np
import pytest

from declouder.data.augment import (
    ARID_CONTRAST,
    CALM_COLOR,
    CALM_LEVEL,
    RELIT_LEVEL,
    RELIT_TOP,
    crop_patch,
    flip,
    make_arid,
    make_calm,
    relight,
    vary_cloud_strength,
    vary_color,
    vary_sensor,
    zoom,
)


def broken_cloud(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (cloudy, clear): even ground with texture, a thin cloud on half of it."""
    clear = np.float32(0.3) + np.float32(0.05) * rng.random((3, 40, 40), dtype=np.float32)
    cloudy = clear.copy()
    cloudy[:, :, 20:] = 0.5 * clear[:, :, 20:] + 0.45
    return cloudy, clear


def draws(cloudy: np.ndarray, clear: np.ndarray, count: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    return [tuple(vary_sensor(cloudy, clear, np.random.default_rng(seed))) for seed in range(count)]


def test_another_sensor_changes_both_images_alike_where_no_cloud_is(rng):
    cloudy, clear = broken_cloud(rng)
    for made_cloudy, made_clear in draws(cloudy, clear):
        assert made_cloudy.dtype == made_clear.dtype == np.float32
        assert min(made_cloudy.min(), made_clear.min()) >= 0 and max(made_cloudy.max(), made_clear.max()) <= 1
        np.testing.assert_array_equal(made_cloudy[:, :, :12], made_clear[:, :, :12])


def test_clouds_of_another_sensor_saturate_at_times_and_its_ground_does_not(rng):
    made = draws(*broken_cloud(rng))
    assert 3 < sum(float(cloudy[:, :, 28:].min()) == 1 for cloudy, _ in made) < 38
    assert all(float(np.median(clear)) < 0.95 for _, clear in made)
    assert len({clear.tobytes() for _, clear in made}) == len(made)


def test_some_other_sensors_have_bands_out_of_balance(rng):
    grey = np.repeat(np.float32(0.3) + np.float32(0.05) * rng.random((1, 40, 40), dtype=np.float32), 3, axis=0)
    means = np.array([clear.mean((1, 2)) for _, clear in draws(grey, grey, 100)])
    unbalanced = means.max(axis=1) / means.min(axis=1) > 1.45
    assert 0.1 < unbalanced.mean() < 0.5
    assert len(set(means[unbalanced].argmax(axis=1))) == 3


def test_an_even_haze_gets_no_thicker_than_that_ground_is_seen(rng):
    clear = 0.2 + 0.2 * rng.random((3, 40, 40), dtype=np.float32)
    for hazy, ground in draws(0.4 * clear + np.float32(0.45), clear):
        seen, there = hazy[:, 10:-10, 10:-10].std(), ground[:, 10:-10, 10:-10].std()
        assert seen > 0.25 * there


def test_calm_water_is_dark_in_some_band_and_flat(rng):
    ground = rng.random((3, 40, 40), dtype=np.float32)
    made = [make_calm(ground, np.random.default_rng(seed)) for seed in range(40)]
    means = np.array([image.mean((1, 2)) for image in made])
    darkest = means.min(axis=1)
    assert darkest.min() > CALM_LEVEL[0] - 0.01 and darkest.max() < CALM_LEVEL[1] + 0.01
    assert 0.05 < (means.max(axis=1) - darkest).max() < CALM_COLOR + 0.01
    assert len(set(means.argmin(axis=1))) == 3
    assert all(0 < image.std((1, 2)).max() < 0.45 * ground.std() for image in made)
    assert all(image.dtype == np.float32 and image.min() >= 0 for image in made)


def test_equal_generators_give_equal_images(rng):
    cloudy, clear = broken_cloud(rng)
    first, again = (vary_sensor(cloudy, clear, np.random.default_rng(7)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_relit_ground_is_of_any_brightness_and_keeps_its_shape(rng):
    ground = 0.15 + 0.1 * rng.random((3, 32, 32), dtype=np.float32)
    made = [relight(ground, np.random.default_rng(seed), lifts=0.5) for seed in range(60)]
    means = [float(image.mean()) for image in made]
    assert min(means) < 0.2
    assert max(means) > 0.6
    assert max(means) <= RELIT_LEVEL[1] + 0.02
    for image in made:
        assert image.dtype == np.float32
        assert np.quantile(image.mean(axis=0), 0.97) <= RELIT_TOP
        assert np.corrcoef(image.mean(axis=0).ravel(), ground.mean(axis=0).ravel())[0, 1] > 0.99


def test_relit_ground_is_as_warm_as_sand_and_seldom_bluer(rng):
    ground = np.repeat(0.3 + 0.1 * rng.random((1, 32, 32), dtype=np.float32), 3, axis=0)
    made = [relight(ground, np.random.default_rng(seed), lifts=0.5) for seed in range(60)]
    warmth = [float(image[0].mean() - image[2].mean()) for image in made]
    assert np.mean(np.array(warmth) > 0) > 0.7
    ground[:, 0, 0] = 0
    dark = [relight(ground, np.random.default_rng(seed), lifts=0) for seed in range(60)]
    assert max(image[:, 0, 0].max() for image in dark) == 0
    assert relight(ground[:1], np.random.default_rng(0), band_names=["grey"]).shape == (1, 32, 32)
    # The tint is that of the bands, wherever they stand.
    four = np.concatenate([ground, ground[:1]])
    for seed in range(10):
        rgb = relight(ground, np.random.default_rng(seed))
        other = relight(four, np.random.default_rng(seed), band_names=["blue", "green", "red", "NIR"])
        np.testing.assert_allclose(other[[2, 1, 0]].mean((1, 2)), rgb.mean((1, 2)), rtol=0.05)
        np.testing.assert_allclose(other[3], other[2])


def test_zoom_enlarges_a_part_and_shrinks_all_of_an_image_alike(rng):
    stripes = np.tile((np.arange(64) % 16 < 8).astype(np.float32), (3, 64, 1))
    images = [stripes, 1 - stripes, stripes.transpose(0, 2, 1)]
    for factor in (0.5, 2.0):
        one, other, across = zoom(images, (factor, factor), rng)
        assert one.shape == other.shape == stripes.shape
        np.testing.assert_allclose(one + other, 1, atol=1e-5)
        for line in (one[0, 32], across[0, :, 32]):
            edges = int((np.diff((line > 0.5).astype(int)) != 0).sum())
            assert abs(edges - 7 / factor) <= 1  # of 7 in the whole image
    assert zoom(images, (1.0, 1.0), rng) is images


def test_zooms_are_drawn_from_their_range(rng):
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (3, 64, 1))
    slopes = [float(np.diff(zoom([ramp], (1.0, 2.0), rng)[0][0, 0]).max() * 63) for _ in range(40)]
    assert 0.45 < min(slopes) < 0.65 and 0.85 < max(slopes) < 1.05


def test_dry_ground_is_as_bright_as_what_it_is_like_or_brighter_and_keeps_its_shape(rng):
    ground = rng.random((3, 40, 40), dtype=np.float32)
    like = np.array([0.45, 0.4, 0.36], np.float32)[:, None, None] + 0.04 * ground
    levels = []
    for seed in range(30):
        made = make_arid(ground, like, np.random.default_rng(seed))
        assert np.corrcoef(made.mean(0).ravel(), ground.mean(0).ravel())[0, 1] > 0.99
        assert made.std(axis=(1, 2)).mean() < 2 * like.std(axis=(1, 2)).mean()
        assert made[0].mean() > made[2].mean()
        levels.append(float(made.mean() / like.mean()))
    assert 0.85 < min(levels) < 1 and 1.35 < max(levels) < 1.6


def test_bright_ground_seldom_saturates_in_another_sensor(rng):
    ground = 0.6 + 0.2 * rng.random((3, 32, 32), dtype=np.float32)
    made = [vary_sensor(ground, ground, np.random.default_rng(seed))[1] for seed in range(60)]
    assert np.mean([(image == 1).mean() for image in made]) < 0.05


def test_all_images_are_cut_at_one_place_and_places_are_drawn():
    image = np.arange(3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)
    corners = set()
    for seed in range(20):
        one, other = crop_patch([image, image + 0.5], 16, np.random.default_rng(seed))
        assert one.shape == (3, 16, 16)
        np.testing.assert_array_equal(other - one, np.float32(0.5))
        corners.add(float(one[0, 0, 0]))
    assert len(corners) > 15 and len({corner // 50 for corner in corners}) > 5


@pytest.mark.parametrize("how", ["none", "horizontal", "dihedral"])
def test_images_are_flipped_alike_in_all_ways_that_are_meant(how):
    image = np.arange(2 * 6 * 6, dtype=np.float32).reshape(2, 6, 6)
    mirrored = image[..., ::-1]
    wanted = {"none": [image], "horizontal": [image, mirrored]}
    wanted["dihedral"] = [np.rot90(x, turns, axes=(1, 2)) for x in (image, mirrored) for turns in range(4)]
    seen = set()
    for seed in range(80):
        one, other = flip([image, image + 100], how, np.random.default_rng(seed))
        np.testing.assert_array_equal(other, one + 100)
        seen.add(one.tobytes())
    assert seen == {x.tobytes() for x in wanted[how]}


def test_the_strength_of_a_cloud_is_drawn_from_all_of_its_range():
    clear = np.full((3, 4, 4), 0.2, np.float32)
    cloudy = clear + np.float32(0.4)
    made = [vary_cloud_strength(cloudy, clear, (0.5, 1.5), np.random.default_rng(seed)) for seed in range(60)]
    strengths = [float((image - clear).mean() / 0.4) for image in made]
    assert 0.5 <= min(strengths) < 0.6 and 1.4 < max(strengths) <= 1.5
    assert all(np.ptp(image) < 1e-6 for image in made)


def test_every_place_of_an_image_that_is_not_square_is_cut_out():
    image = np.arange(17 * 30, dtype=np.float32).reshape(1, 17, 30)
    made = [crop_patch([image], 16, np.random.default_rng(seed))[0] for seed in range(400)]
    assert {int(patch[0, 0, 0]) for patch in made} == {30 * top + left for top in range(2) for left in range(15)}


def test_an_image_narrower_than_a_patch_keeps_its_width():
    image = np.arange(40 * 12, dtype=np.float32).reshape(1, 40, 12)
    (patch,) = crop_patch([image], 16, np.random.default_rng(0))
    assert patch.shape == (1, 16, 12)
    np.testing.assert_array_equal(patch[0, 0], image[0, int(patch[0, 0, 0]) // 12])


def test_images_are_enlarged_as_often_as_they_shrink_and_stay_within_their_range():
    squares = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((8, 8))).astype(np.float32)[None]
    made = [zoom([squares], (0.25, 4.0), np.random.default_rng(seed))[0] for seed in range(200)]
    assert min(image.min() for image in made) >= 0 and max(image.max() for image in made) <= 1
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 1))
    made = [zoom([ramp], (0.25, 4.0), np.random.default_rng(seed))[0] for seed in range(200)]
    assert 0.4 < np.mean([np.diff(image[0, 32]).max() < 1 / 63 for image in made]) < 0.6


def test_another_sharpness_mixes_no_bands(rng):
    image = np.full((3, 32, 32), 0.4, np.float32)
    image[1] += 0.2 * (rng.random((32, 32), dtype=np.float32) - 0.5)
    for seed in range(20):
        made = vary_sensor(image, image, np.random.default_rng(seed))[1]
        flat = [band for band in made if np.ptp(band) < 1e-5]
        assert len(flat) == 2


def test_the_color_of_calm_water_is_not_that_of_the_ground():
    ground = np.array([0.9, 0.1, 0.1], np.float32)[:, None, None] * np.ones((1, 8, 8), np.float32)
    darkest = [make_calm(ground, np.random.default_rng(seed)).mean((1, 2)).min() for seed in range(30)]
    assert CALM_LEVEL[0] - 1e-6 <= min(darkest) and max(darkest) <= CALM_LEVEL[1] + 1e-6


def test_ground_with_the_contrast_of_sand_is_warm_and_bands_without_a_color_keep_theirs():
    grey = np.repeat(np.float32(0.2) + np.float32(0.4) * np.indices((16, 16))[:1] / np.float32(16), 3, axis=0)
    for seed in range(30):
        red, green, blue = relight(grey, np.random.default_rng(seed), lifts=1.0).mean((1, 2))
        assert red >= green >= blue
        made = relight(grey, np.random.default_rng(seed), band_names=["green", "swir", "red"])
        np.testing.assert_array_equal(made[0], made[1])


def test_dry_ground_has_about_the_contrast_of_what_it_is_like_whatever_its_own_is(rng):
    noise = rng.random((1, 40, 40), dtype=np.float32).repeat(3, axis=0)
    like = np.float32(0.35) + np.float32(0.05) * noise
    for contrast in (0.1, 0.8):
        ground = np.float32(0.1) + np.float32(contrast) * noise
        made = [make_arid(ground, like, np.random.default_rng(seed)) for seed in range(60)]
        ratios = [float(image.std(axis=(1, 2)).mean() / like.std(axis=(1, 2)).mean()) for image in made]
        assert ARID_CONTRAST[0] - 0.01 < min(ratios) < ARID_CONTRAST[0] + 0.15
        assert ARID_CONTRAST[1] - 0.15 < max(ratios) < ARID_CONTRAST[1] + 0.01


@pytest.mark.parametrize(("amount", "least", "most"), [(1.0, 0.1, 0.25), (0.1, 0.0, 0.05)])
def test_bands_are_shuffled_one_time_in_five_alike_in_all_images_and_less_often_in_a_small_change(
    amount, least, most
):
    image = np.array([0.2, 0.5, 0.9], np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    shuffled = []
    for seed in range(200):
        one, other = vary_color([image, image], amount, np.random.default_rng(seed))
        np.testing.assert_array_equal(one, other)
        assert one.max() <= 1
        shuffled.append(bool((np.diff(one[:, 0, 0]) < 0).any()))
    assert least <= np.mean(shuffled) <= most
