"""Cloud shadows get the light of the ground around, where clouds tell them, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from declouder.networks import relighting
from declouder.networks.compact import CompactNet
from declouder.networks.relighting import LEAST_PX, relit

SIDE = 192
LEFT = 0.45
"""Share of the light in the shadows."""
OFFSET = (24, -32)


def blobs(seed: int, side: int, share: float) -> np.ndarray:
    """Return where clouds are: (H, W), True on such a share of the pixels."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal((side, side)), 8)
    return np.asarray(field > np.quantile(field, 1 - share))


def ground(side: int = SIDE, seed: int = 0, bands: int = 3) -> Tensor:
    """Return ground with texture, (bands, H, W) about 0.4."""
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal((bands, side, side)), (0, 1, 1))
    return torch.from_numpy(np.float32(np.clip(0.4 + 0.08 * texture, 0, 1)))


def scene(
    offset: tuple[int, int] = OFFSET, side: int = SIDE, seed: int = 1, **of_ground: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a cloudy image, one whose clouds are gone and whose shadows are not, the clear one, and the shadow.

    The images are (1, C, H, W) in [-1, 1], the shadow is (H, W) without what clouds hide.
    """
    clear = ground(side, **of_ground)
    clouds = blobs(seed, side, 0.12)
    shadow = np.zeros_like(clouds)
    rows, columns = np.nonzero(clouds)
    rows, columns = rows + offset[0], columns + offset[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    shadow[rows[inside], columns[inside]] = True
    restored = clear * torch.where(torch.from_numpy(shadow & ~clouds), LEFT, 1.0)
    cloudy = torch.where(torch.from_numpy(clouds), 0.9, restored)
    return *(2 * x[None] - 1 for x in (cloudy, restored, clear)), torch.from_numpy(shadow & ~clouds)


def error(image: Tensor, clear: Tensor, where: Tensor) -> float:
    return float((image - clear)[0][:, where].square().mean().sqrt())


@pytest.mark.parametrize("offset", [OFFSET, (-20, 40), (44, 0), (0, -28)])
@pytest.mark.parametrize("bands", [1, 3, 4])
def test_shadows_that_repeat_the_clouds_shapes_get_the_light_of_the_ground(offset, bands):
    cloudy, restored, clear, shadow = scene(offset, bands=bands)
    found = relit(cloudy, restored)
    assert error(restored, clear, shadow) > 0.4
    assert error(found, clear, shadow) < 0.4 * error(restored, clear, shadow)
    assert error(found, clear, ~shadow) < 0.05
    # Texture comes back, not a mean.
    inner = shadow & (found - restored)[0].mean(dim=0).gt(0.3)
    ratio = (found[0][:, inner].std() / clear[0][:, inner].std()).item()
    assert inner.sum() > 0.5 * shadow.sum() and 0.6 < ratio < 1.8


def test_each_band_gets_back_what_it_lost():
    cloudy, restored, clear, shadow = scene()
    blue = torch.tensor([1.0, 1.0, 1.4])[:, None, None]  # skylight is blue

    def bluer(x: Tensor) -> Tensor:
        return torch.where(shadow, (x + 1) * blue - 1, x)

    found = relit(bluer(cloudy), bluer(restored))
    assert error(found, clear, shadow) < 0.4 * error(restored, clear, shadow)
    means = found[0][:, shadow].mean(dim=1) - clear[0][:, shadow].mean(dim=1)
    assert float(means.max() - means.min()) < 0.06


def left_as_it_is(cloudy: Tensor, restored: Tensor) -> bool:
    return relit(cloudy, restored) is restored


def test_dark_ground_that_no_cloud_threw_stays_to_the_bit():
    cloudy, restored, clear, _ = scene()
    other = torch.from_numpy(blobs(7, SIDE, 0.12))
    dark = torch.where(other, LEFT * (clear + 1) - 1, clear)
    clouds = (cloudy[0, 0] > 0.75)[None, None]
    assert left_as_it_is(torch.where(clouds, cloudy, dark), dark)
    assert left_as_it_is(dark, dark)
    assert left_as_it_is(clear, clear)
    assert not left_as_it_is(cloudy, restored)


def test_clouds_without_shadows_and_images_all_cloud_stay_to_the_bit():
    cloudy, _, clear, _ = scene()
    assert left_as_it_is(cloudy, clear)
    white = torch.full_like(clear, 0.9)
    assert left_as_it_is(white, white) and left_as_it_is(white, clear)
    flat = torch.zeros_like(clear)
    assert left_as_it_is(flat, flat) and left_as_it_is(-torch.ones_like(flat), -torch.ones_like(flat))


def test_a_shadow_farther_than_is_looked_for_stays():
    cloudy, restored, _, _ = scene((80, 0))
    assert left_as_it_is(cloudy, restored)


def test_small_images_stay_as_they_are():
    cloudy, restored, _, _ = scene()
    assert left_as_it_is(cloudy[..., : LEAST_PX - 1, :], restored[..., : LEAST_PX - 1, :])


def test_each_image_of_a_batch_is_looked_at_by_itself():
    cloudy, restored, clear, _ = scene()
    others = scene((-20, 40), seed=3)
    together = relit(torch.cat([cloudy, clear, others[0]]), torch.cat([restored, clear, others[1]]))
    torch.testing.assert_close(together[:1], relit(cloudy, restored))
    assert torch.equal(together[1:2], clear)
    torch.testing.assert_close(together[2:], relit(others[0], others[1]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_result_has_the_precision_of_what_was_restored(dtype):
    cloudy, restored, _, _ = scene()
    found = relit(cloudy.to(dtype), restored.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), relit(cloudy, restored), atol=0.06, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(190, 187), (161, 192), (192, 130)])
def test_sides_that_cells_do_not_divide_are_fine(rows, columns):
    cloudy, restored, clear, shadow = (x[..., :rows, :columns] for x in scene())
    found = relit(cloudy, restored)
    assert found.shape == cloudy.shape
    # Clouds beyond the edge throw shadows too, which nothing tells.
    assert error(found, clear, shadow) < 0.6 * error(restored, clear, shadow)


def test_an_image_of_many_pixels_is_within_what_a_quantile_takes(monkeypatch):
    """torch.quantile refuses more than 16 million numbers; a few of them are enough."""
    sizes = []
    quantile = torch.Tensor.quantile
    monkeypatch.setattr(torch.Tensor, "quantile", lambda x, q: sizes.append(len(x)) or quantile(x, q))
    cloudy, restored, _, _ = scene(side=1200)
    relit(cloudy, restored)
    assert sizes and max(sizes) <= 100_000


def test_the_correlation_is_that_of_the_maps_moved():
    """Against numpy, offset by offset."""
    rng = np.random.default_rng(0)
    clouds, dark, free = (rng.random((20, 24)) for _ in range(3))
    reach = 5
    found = relighting._correlation(*map(torch.from_numpy, (clouds, dark, free)), reach).numpy()
    for down, right in [(0, 0), (3, -2), (-5, 5), (1, 4)]:
        here = np.s_[max(-down, 0) : 20 - max(down, 0), max(-right, 0) : 24 - max(right, 0)]
        there = np.s_[max(down, 0) : 20 + min(down, 0), max(right, 0) : 24 + min(right, 0)]
        c, d, w = clouds[here], dark[there], free[there]
        mean_c, mean_d = (w * c).sum() / w.sum(), (w * d).sum() / w.sum()
        wanted = (w * (c - mean_c) * (d - mean_d)).sum() / np.sqrt(
            (w * (c - mean_c) ** 2).sum() * (w * (d - mean_d) ** 2).sum()
        )
        assert found[reach + down, reach + right] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("relight", [0, 1])
def test_a_network_relights_shadows_only_if_it_is_told_to(relight):
    cloudy, restored, _, _ = scene()

    class Leaving(CompactNet):
        def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
            return [restored]

    network = Leaving(widths=(8, 8), blocks=(1, 1), relight_shadows=relight).eval()
    assert torch.equal(network(cloudy), restored) == (relight == 0)
