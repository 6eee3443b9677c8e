"""LPIPS with a gradient is the LPIPS that is scored."""

import numpy as np
import pytest
import torch

from declouder.lpips import load_lpips
from declouder.perceptual import PerceptualLoss


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    clear = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
    return (clear + 0.2 * torch.randn(clear.shape, generator=generator)).clamp(-1, 1), clear


def test_it_equals_the_score(backbone):
    restored, clear = images()
    network, _ = load_lpips(backbone)
    expected = network.distances(*(image.permute(0, 2, 3, 1).numpy() for image in (restored, clear)))
    found = PerceptualLoss(["red", "green", "blue"], backbone)(restored, clear)
    assert float(found) == pytest.approx(float(np.mean(expected)), rel=1e-4)


def test_bands_are_compared_as_colours_where_they_are(backbone):
    restored, clear = images()
    as_rgb = PerceptualLoss(["red", "green", "blue"], backbone)(restored, clear)
    turned = PerceptualLoss(["blue", "green", "red"], backbone)(restored.flip(1), clear.flip(1))
    torch.testing.assert_close(as_rgb, turned)
    near_infrared = PerceptualLoss(["nir"], backbone)(restored[:, :1], clear[:, :1])
    assert near_infrared > 0


def test_its_gradient_leads_to_the_clear_image(backbone):
    restored, clear = images()
    loss = PerceptualLoss(["red", "green", "blue"], backbone)
    restored.requires_grad_()
    before = loss(restored, clear)
    before.backward()
    assert loss(restored - 0.1 * restored.grad / restored.grad.abs().max(), clear) < before
    assert float(loss(clear, clear)) == pytest.approx(0, abs=1e-6)
    assert not loss.state_dict()
