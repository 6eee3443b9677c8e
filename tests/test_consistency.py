"""The finest detail of images under even haze comes from the cloudy image, and nothing else changes."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from declouder.consistency import held_to_haze

WHITE = 0.78


def ground(seed: int = 0, height: int = 200, width: int = 232) -> np.ndarray:
    """Return hills with fine texture, (1, 3, H, W) in [0, 1]."""
    noise = np.random.default_rng(seed).normal(0, 1, (1, 3, height, width))
    hills = sum(gaussian_filter(noise, (0, 0, sigma, sigma)) * sigma for sigma in (1, 3, 12))
    return np.clip(0.35 + 0.08 * hills, 0.02, 0.95)


def tensor(unit: np.ndarray) -> Tensor:
    return torch.from_numpy(2 * unit - 1).float()


def hazy(clear: np.ndarray, transmission: float | np.ndarray = 0.5) -> np.ndarray:
    """Return the law's haze over ground, in steps of 8-bit images."""
    return np.rint((WHITE - transmission * (1 - clear)) * 255) / 255


def smoothed(clear: np.ndarray) -> np.ndarray:
    """Return ground as a network gives it: its finest texture is gone."""
    return gaussian_filter(clear, (0, 0, 0.7, 0.7))


def error(image: Tensor, clear: np.ndarray) -> float:
    return float((image - tensor(clear)).square().mean().sqrt())


@pytest.mark.parametrize("uneven", [0.0, 0.1])
def test_texture_that_a_network_lost_comes_back_from_under_even_haze(uneven):
    clear = ground()
    slope = uneven * np.linspace(-1, 1, clear.shape[-1])
    cloudy, restored = tensor(hazy(clear, 0.5 + slope)), tensor(smoothed(clear))
    held = [held_to_haze(cloudy, restored, share) for share in (0.0, 0.5, 1.0)]
    assert held[0] is restored
    errors = [error(image, clear) for image in held]
    assert errors[2] < 0.6 * errors[0] and errors[2] < errors[1] < 0.8 * errors[0]


def test_noise_over_flat_ground_does_not_come_back():
    clear = np.full((1, 3, 160, 160), 0.3) + 0.05 * np.linspace(0, 1, 160)
    noise = np.random.default_rng(3).normal(0, 0.004, clear.shape)
    restored = tensor(clear)
    held = held_to_haze(tensor(hazy(clear) + noise), restored, 1.0)
    assert 0 < float((held - restored).std()) < 0.15 * 2 * 0.008  # of what the law makes of the noise


def test_the_tint_stays_what_the_network_made_of_it():
    clear = ground()
    tinted = smoothed(clear) * np.array([1.03, 1.0, 0.97])[:, None, None]
    held = held_to_haze(tensor(hazy(clear)), tensor(tinted), 1.0)
    before, after = (x.mean(dim=(2, 3)) for x in (tensor(tinted), held))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-3)
    assert error(
        held - held.mean((2, 3), keepdim=True) + tensor(clear).mean((2, 3), keepdim=True), clear
    ) < 0.6 * error(tensor(smoothed(clear)), clear)


def broken(clear: np.ndarray) -> np.ndarray:
    cloud = gaussian_filter(np.random.default_rng(9).normal(0, 1, clear.shape[-2:]), 9)
    share = np.clip(cloud / cloud.std(), 0, 1)
    return clear + share * (0.95 - clear)


@pytest.mark.parametrize(
    ("cloudy", "restored"),
    [
        (lambda clear: clear, lambda clear: clear),
        (lambda clear: clear, smoothed),
        (lambda clear: hazy(clear, 0.93), smoothed),
        (broken, smoothed),
        (lambda clear: np.full_like(clear, 0.9), smoothed),
        (lambda clear: hazy(clear), lambda clear: np.full_like(clear, 0.3)),
        (lambda clear: hazy(ground(1)), smoothed),
    ],
    ids=["clear", "clear, smoothed", "hardly any haze", "broken cloud", "white", "flat result", "another image"],
)
def test_what_is_under_no_even_haze_stays(cloudy, restored):
    clear = ground()
    image = tensor(restored(clear))
    held = held_to_haze(tensor(cloudy(clear)), image, 1.0)
    assert torch.isfinite(held).all() and float((held - image).abs().max()) < 1 / 255


@pytest.mark.parametrize("shape", [(63, 200), (200, 63)])
def test_small_images_stay(shape):
    clear = ground(0, *shape)
    restored = tensor(smoothed(clear))
    assert held_to_haze(tensor(hazy(clear)), restored, 1.0) is restored


def test_images_of_a_batch_do_not_heed_each_other_and_sizes_are_any():
    clears = [ground(seed, 75, 93) for seed in (0, 1)]
    cloudy = torch.cat([tensor(hazy(clear, t)) for clear, t in zip(clears, (0.4, 0.6), strict=True)])
    restored = torch.cat([tensor(smoothed(clear)) for clear in clears])
    both = held_to_haze(cloudy, restored, 0.7)
    for place in (0, 1):
        one = held_to_haze(cloudy[place : place + 1], restored[place : place + 1], 0.7)
        torch.testing.assert_close(both[place : place + 1], one, rtol=0, atol=1e-6)
    assert both.shape == restored.shape and float((both - restored).abs().max()) > 0.01


def test_numbers_keep_their_precision_and_range():
    clear = np.clip(ground() * 2 - 0.5, 0, 1)
    held = held_to_haze(tensor(hazy(clear)).double(), tensor(smoothed(clear)).double(), 1.0)
    assert held.dtype == torch.float64 and held.min() >= -1 and held.max() <= 1
