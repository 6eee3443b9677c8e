import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from declouder import metrics
from declouder.losses import (
    choice_loss,
    edge_loss,
    fusion_loss,
    joint_loss,
    log_mse,
    noise_loss,
    reference_loss,
    ssim,
)


def image(seed: int, size: tuple[int, ...] = (2, 3, 32, 40)) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_loss_of_an_image_against_itself_is_its_least():
    x = image(0)
    assert noise_loss(x, x).tolist() == [0, 0]
    assert fusion_loss(x, x).tolist() == [0, 0]
    # Charbonnier is 1e-3 at zero: once for the image, 0.05 times for its edges.
    assert float(reference_loss([x], x)) == pytest.approx(1.05e-3, rel=1e-3)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-5)


def test_structure_and_ln_mse_are_of_the_final_image_alone():
    clear, noisy = image(0), image(1)

    def share(outputs, **weights):
        plain = reference_loss(outputs, clear, edge_weight=0)
        return float(reference_loss(outputs, clear, edge_weight=0, **weights) - plain)

    assert share([clear, noisy], ssim_weight=1.0) == pytest.approx(0, abs=1e-4)
    assert share([noisy, clear], ssim_weight=1.0) > 0.5
    assert share([clear, noisy], psnr_weight=1.0) < share([noisy, clear], psnr_weight=1.0) - 1


def test_losses_are_means_of_each_sample():
    x, y = image(0), image(1)
    assert torch.allclose(noise_loss(x, y)[1], ((x[1] - y[1]) ** 2).mean())
    assert torch.allclose(fusion_loss(x, y)[0], (x[0] - y[0]).abs().mean())


def test_joint_loss_weighs_the_noise_by_lambda():
    eps, noise, fused, clear = (image(seed) for seed in range(4))
    parts = noise_loss(eps, noise), fusion_loss(fused, clear)
    assert torch.allclose(joint_loss(eps, noise, fused, clear), parts[0] + parts[1])
    assert torch.allclose(joint_loss(eps, noise, fused, clear, noise_weight=0.25), 0.25 * parts[0] + parts[1])


def test_reference_loss_adds_over_the_supervised_outputs():
    outputs, clear = [image(0), image(1), image(2)], image(3)
    assert torch.allclose(
        reference_loss(outputs, clear), torch.stack([reference_loss([y], clear) for y in outputs]).sum()
    )


def shares_of(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).view(1, -1, 1, 1).expand(2, -1, 32, 40)


def test_a_choice_costs_as_much_as_what_it_chooses_is_off():
    clear = image(0)
    near, far = clear + 0.05, clear - 0.4
    assert float(choice_loss([near, far], shares_of(1.0, 0.0), clear)) == pytest.approx(0.05, abs=1e-4)
    assert float(choice_loss([near, far], shares_of(0.0, 1.0), clear)) > 0.2
    # That both images' errors cancel out in their mixture earns nothing; to be undecided costs ln 2 of chance.
    undecided = float(choice_loss([near, clear - 0.05], shares_of(0.5, 0.5), clear))
    assert undecided == pytest.approx(0.05, abs=1e-4)
    assert float(choice_loss([near, far], shares_of(0.5, 0.5), clear, spread=0.01)) == pytest.approx(
        0.05 + 0.01 * np.log(2), abs=1e-4
    )


def test_the_nearest_image_of_a_choice_earns_its_share_and_learns():
    clear = image(0)
    images = [(clear + off).requires_grad_() for off in (0.05, 0.3)]
    scores = torch.zeros(2, 2, 32, 40, requires_grad=True)
    choice_loss(images, scores.softmax(dim=1), clear).backward()
    assert (scores.grad[:, 0] < 0).all() and (scores.grad[:, 1] > 0).all()
    assert images[0].grad.abs().mean() > 1e3 * images[1].grad.abs().mean()


def test_edge_loss_ignores_a_constant_and_sees_texture():
    flat, textured = torch.zeros(1, 3, 32, 32), image(4, (1, 3, 32, 32))
    assert float(edge_loss(flat + 0.5, flat)) == pytest.approx(1e-3, rel=1e-2)
    assert float(edge_loss(textured, flat)) > 0.1


def test_ssim_equals_scikit_image_away_from_the_borders():
    x, y = image(0, (1, 1, 48, 48)), image(1, (1, 1, 48, 48))
    y = 0.7 * x + 0.3 * y
    _, expected = structural_similarity(
        (x[0, 0].numpy().astype(np.float64) + 1) / 2,
        (y[0, 0].numpy().astype(np.float64) + 1) / 2,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert float(ssim(x, y)) == pytest.approx(expected[5:-5, 5:-5].mean(), abs=1e-5)


@pytest.mark.parametrize("level", [-0.8, 0.0, 0.3])
def test_ssim_is_that_of_the_scores_at_any_brightness(level):
    x = (level + 0.02 * image(0, (1, 3, 48, 48))).clamp(-1, 1)
    y = (x + 0.03 + 0.01 * image(1, (1, 3, 48, 48))).clamp(-1, 1)
    as_scored = [((part[0].permute(1, 2, 0).numpy() + 1) / 2).astype(np.float64) for part in (y, x)]
    assert float(ssim(x, y)) == pytest.approx(metrics.ssim(*as_scored, data_range=1.0), abs=1e-4)


def test_losses_are_the_same_under_half_precision_autocast():
    flat = torch.full((1, 3, 32, 32), 0.97) + 1e-3 * image(5, (1, 3, 32, 32))
    expected = float(reference_loss([flat], flat - 0.01, ssim_weight=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(reference_loss([flat], flat - 0.01, ssim_weight=1)) == pytest.approx(expected, rel=1e-4)


def test_an_image_in_half_precision_is_compared_in_full():
    y, target = image(0, (1, 3, 32, 32)).bfloat16(), image(1, (1, 3, 32, 32))
    expected = float(reference_loss([y.float()], target, ssim_weight=1))
    assert float(reference_loss([y], target, ssim_weight=1)) == pytest.approx(expected, rel=1e-6)


def test_the_psnr_loss_falls_by_the_same_step_for_each_decibel_of_any_image():
    clear = torch.zeros(2, 3, 16, 16)
    errors = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    loss = float(log_mse(clear + errors, clear))
    mean_psnr = np.mean([20 * np.log10(2 / 0.2), 20 * np.log10(2 / 0.02)])
    assert loss == pytest.approx(np.log(4) - mean_psnr * np.log(10) / 10, abs=0.03)  # the floor adds 0.025
    for better in ([0.1, 0.02], [0.2, 0.01]):  # halving either error earns the same 6 dB
        halved = float(log_mse(clear + torch.tensor(better).view(2, 1, 1, 1), clear))
        assert loss - halved == pytest.approx(np.log(4) / 2, abs=0.04)
    weighed = reference_loss([clear + errors], clear, psnr_weight=0.5)
    assert float(weighed) == pytest.approx(float(reference_loss([clear + errors], clear)) + 0.5 * loss, rel=1e-5)
