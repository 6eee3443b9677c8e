import torch

from declouder.fusion import add_noise, eps_from_x0, fuse, predict_x0, x0_from_eps


def images(seed: int = 0, n: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, 8, 9, generator=generator) * 2 - 1 for _ in range(n)]


def test_full_weight_gives_the_reference_and_no_weight_gives_the_diffusion():
    reference, x0_diffusion, *_ = images()
    assert torch.equal(fuse(reference, x0_diffusion, torch.ones_like(reference)), reference)
    assert torch.equal(fuse(reference, x0_diffusion, torch.zeros_like(reference)), x0_diffusion)


def test_x0_from_the_true_noise_is_the_clean_image_at_every_step():
    x0, noise, *_ = images()
    for alpha_bar in (0.9999, 0.5, 2.7e-4):
        alpha = torch.tensor(alpha_bar)
        x_t = add_noise(x0, noise, alpha)
        assert torch.allclose(x0_from_eps(x_t, noise, alpha), x0, atol=2e-5)


def test_the_noise_between_an_image_and_its_noised_one_is_the_noise_that_was_added():
    x0, noise, *_ = images()
    for alpha_bar in (0.9, 0.5, 2.7e-4):
        alpha = torch.tensor(alpha_bar)
        assert torch.allclose(eps_from_x0(add_noise(x0, noise, alpha), x0, alpha), noise, atol=1e-5)


def test_x0_is_clamped_to_the_image_range():
    x_t, eps, *_ = images()
    x0 = x0_from_eps(x_t, 50 * eps, torch.tensor(0.01))
    assert x0.min() == -1
    assert x0.max() == 1


def predict(raw_w: float, bounds: tuple[float, float] | None):
    x_t, cloudy, reference, eps = images()
    asked = []

    def weight_net(x, t):
        asked.append(x)
        return torch.full_like(x_t, raw_w)

    prediction = predict_x0(
        lambda x, t: eps,
        weight_net,
        x_t=x_t,
        cloudy=cloudy,
        reference=reference,
        t=torch.tensor([5, 7]),
        alpha_bar=torch.tensor(0.7),
        w_bounds=bounds,
    )
    return prediction, asked, (x_t, cloudy, reference)


def test_w_is_bounded_when_bounds_are_given_and_raw_when_not():
    for raw, bounds, expected in ((-2.0, (0.3, 1.0), 0.3), (2.0, (0.3, 1.0), 1.0), (2.0, None, 2.0)):
        prediction, _, _ = predict(raw, bounds)
        assert torch.allclose(prediction.w, torch.full_like(prediction.w, expected))


def test_the_weight_network_sees_noisy_cloudy_and_reference_in_that_order():
    _, asked, (x_t, cloudy, reference) = predict(0.5, None)
    assert torch.equal(asked[0], torch.cat([x_t, cloudy, reference], dim=1))


def test_equal_bounds_fix_w_without_asking_the_weight_network():
    prediction, asked, (_, _, reference) = predict(0.5, (1.0, 1.0))
    assert asked == []
    assert torch.equal(prediction.x0, reference)


def test_where_both_images_agree_so_does_the_fused_one_though_w_is_in_half_precision():
    clear, noise, cloudy, _ = images()
    alpha_bar = torch.tensor(0.7)
    w = torch.rand(clear.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    prediction = predict_x0(
        lambda x, t: noise,
        lambda x, t: w,
        x_t=add_noise(clear, noise, alpha_bar),
        cloudy=cloudy,
        reference=clear,
        t=torch.tensor([5, 7]),
        alpha_bar=alpha_bar,
        w_bounds=None,
    )
    torch.testing.assert_close(prediction.x0, clear, atol=1e-5, rtol=0)
