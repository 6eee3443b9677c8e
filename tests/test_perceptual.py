"""LPIPS with a gradient is the LPIPS that is scored."""

import numpy as np
import pytest
import torch

from declouder.lpips import load_lpips
from declouder.perceptual import PerceptualLoss, log_perceptual


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clear = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
    return (clear + 0.2 * torch.randn(clear.shape, generator=generator)).clamp(-1, 1), clear


def test_it_equals_the_score(backbone):
    restored, clear = images()
    network, _ = load_lpips(backbone)
    expected = network.distances(*(image.permute(0, 2, 3, 1).numpy() for image in (restored, clear)))
    found = PerceptualLoss(["red", "green", "blue"], backbone)(restored, clear)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_bands_are_compared_as_colours_where_they_are(backbone):
    restored, clear = images()
    as_rgb = PerceptualLoss(["red", "green", "blue"], backbone)(restored, clear)
    turned = PerceptualLoss(["blue", "green", "red"], backbone)(restored.flip(1), clear.flip(1))
    torch.testing.assert_close(as_rgb, turned)
    near_infrared = PerceptualLoss(["nir"], backbone)(restored[:, :1], clear[:, :1])
    assert near_infrared.shape == (2,) and (near_infrared > 0).all()


def test_its_gradient_leads_to_the_clear_image(backbone):
    restored, clear = images()
    loss = PerceptualLoss(["red", "green", "blue"], backbone)
    restored.requires_grad_()
    before = loss(restored, clear).mean()
    before.backward()
    assert loss(restored - 0.1 * restored.grad / restored.grad.abs().max(), clear).mean() < before
    assert float(loss(clear, clear).mean()) == pytest.approx(0, abs=1e-6)
    assert not loss.state_dict()


def test_of_logarithms_thin_haze_counts_as_much_as_thick_cloud():
    distances = torch.tensor([0.02, 0.4], requires_grad=True)
    log_perceptual(distances).backward()
    gained = (distances.grad * distances).detach()
    assert 0.75 < gained[0] / gained[1] < 1
    assert torch.isfinite(log_perceptual(torch.zeros(2)))
