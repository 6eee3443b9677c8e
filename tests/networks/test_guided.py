"""Smooth gain and offset: what a fit over a square finds, and what it lets be."""

import pytest
import torch
import torch.nn.functional as F

from declouder.networks import CompactNet
from declouder.networks.guided import AS_IS, USUAL_DARK, USUAL_WHITE, Choice, GuidedChoice

WIDTH, SIDE = 8, 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


DIRECT, EACH_BAND, ALL_BANDS, FROM_WHITE, FROM_DARK = 0, 2, 3, 4, 5
"""Of the first choice, with squares of one side; the second has its first choice, and the fits from 1 on."""


def choice(first: int | None = None, second: int = 0) -> GuidedChoice:
    """Return a block that takes one image alone, of each choice."""
    block = GuidedChoice(WIDTH, 2, (SIDE,)).requires_grad_(False)
    if first is not None:
        shares = torch.full((10,), -40.0)
        shares[first] = shares[6 + second] = 0.0
        block.decide.bias[8:] = shares.repeat_interleave(4)
    return block


def last(choices: tuple[Choice, ...]) -> torch.Tensor:
    """Return the last choice's mixture."""
    return choices[-1].mixture()


def run(block: GuidedChoice, cloudy: torch.Tensor, direct: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    height, width = cloudy.shape[-2:]
    features = random(1, WIDTH, height // 2, width // 2)
    return last(block(features, cloudy, direct, torch.full_like(cloudy, gain)))


@pytest.mark.parametrize("first", [DIRECT, EACH_BAND, ALL_BANDS, FROM_WHITE])
@pytest.mark.parametrize("second", [0, 1, 2, 3])
def test_what_is_one_grey_haze_everywhere_stays_as_it_is(first, second):
    clear = random(1, 3, 48, 64) - 0.5
    hazy = USUAL_WHITE - 0.5 * (1 - clear)
    torch.testing.assert_close(run(choice(first, second), hazy, clear, gain=2.0), clear, atol=1e-3, rtol=0)


def test_from_white_a_haze_has_one_unknown():
    """What the network says may be wrong in many ways; the law leaves only the haze's strength to be wrong."""
    clear = F.interpolate(random(1, 3, 16, 16) - 0.5, scale_factor=4)
    hazy = USUAL_WHITE - 0.5 * (1 - clear)
    tinted = clear + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    result = run(choice(FROM_WHITE), hazy, tinted, gain=2.0)
    assert (result - clear).abs().mean() < (tinted - clear).abs().mean() / 5


def test_shade_tells_how_thick_a_haze_is_whatever_the_network_says():
    clear = F.interpolate(random(1, 3, 16, 16), scale_factor=4)
    clear[..., 24:28, 40:44] = 2 * USUAL_DARK - 1
    hazy = USUAL_WHITE - 0.5 * (1 - clear)
    result = run(choice(FROM_DARK), hazy, torch.zeros_like(clear), gain=9.0)
    torch.testing.assert_close(result, clear, atol=1e-3, rtol=0)


def test_cloud_that_is_brighter_than_white_is_not_turned_into_its_negative():
    cloudy = USUAL_WHITE + 0.1 + 0.1 * F.interpolate(random(1, 3, 16, 16), scale_factor=4)
    result = run(choice(FROM_DARK), cloudy, cloudy)
    assert torch.corrcoef(torch.stack([result.flatten(), cloudy.flatten()]))[0, 1] > 0.99


def test_noise_of_single_pixels_is_fitted_away():
    cloudy = random(1, 3, 64, 64) - 0.5
    clear = 2 * cloudy - 0.3
    noisy = clear + 0.2 * (random(1, 3, 64, 64, seed=1) - 0.5)
    before, after = ((x - clear).std() for x in (noisy, run(choice(EACH_BAND), cloudy, noisy, gain=2.0)))
    assert after < before / 5


def test_bands_of_their_own_need_fits_of_their_own():
    cloudy = F.interpolate(random(1, 3, 16, 16) - 0.5, scale_factor=4)
    clear = cloudy * torch.tensor([2.0, 1.5, 1.0]).view(1, 3, 1, 1)
    assert (run(choice(EACH_BAND), cloudy, clear) - clear).abs().max() < 0.02
    assert (run(choice(ALL_BANDS), cloudy, clear) - clear).abs().max() > 0.1


def test_flat_ground_takes_the_gain_that_the_network_gives():
    fine = F.interpolate(random(1, 3, 16, 16), scale_factor=4) * 1e-3  # far below the regularization
    result = run(choice(EACH_BAND), fine, torch.full_like(fine, 0.25), gain=3.0)
    inner = (slice(None), slice(None), slice(20, 44), slice(20, 44))
    assert 2.5 < float((result - 0.25)[inner].std() / fine[inner].std()) < 3.5


def test_pixels_of_little_weight_do_not_count_in_a_fit():
    cloudy = random(1, 3, 64, 64) - 0.5
    clear = 2 * cloudy
    direct = clear.clone()
    direct[..., 32:] = 0.8  # cloud, painted over
    block = choice(EACH_BAND)
    features = torch.ones(1, WIDTH, 32, 32)
    features[..., 16:] = -1.0
    errors = []
    for weight in (0.0, 2.0):  # of the features in the confidence: 16 clear, -16 cloudy
        block.decide.weight[:4, :, 1, 1] = weight
        result = last(block(features, cloudy, direct, torch.full_like(cloudy, 2.0)))
        errors.append(float((result - clear)[..., 16:32].abs().mean()))
    assert errors[1] < errors[0] / 4


def test_a_clear_image_can_stay_as_it_is():
    cloudy = random(1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(run(choice(AS_IS), cloudy, torch.zeros_like(cloudy)), cloudy)


def test_the_second_choice_fits_the_first():
    """The first leans on the haze's law in one half alone; the law holds for what the second makes of all of it."""
    clear = F.interpolate(random(1, 3, 16, 16) - 0.5, scale_factor=4)
    hazy = USUAL_WHITE - 0.5 * (1 - clear)
    tinted = clear + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    law = run(choice(DIRECT, 3), hazy, tinted, gain=2.0)
    assert (law - clear).abs().mean() < (tinted - clear).abs().mean() / 5


@pytest.mark.parametrize("second", [1, 2, 3])
def test_what_is_clear_can_keep_its_texture_beside_thick_cloud(second):
    """White cloud became dark ground: a square with some of it has a fit that flattens the ground beside."""
    ground = 0.2 * random(1, 3, 64, 64) - 0.6
    cloudy, direct = ground.clone(), ground.clone()
    cloudy[..., 32:], direct[..., 32:] = 0.9, -0.5
    features = torch.ones(1, WIDTH, 32, 32)
    features[..., 16:] = -1.0
    kept = []
    for keep_clear in (0.0, 40.0):
        block = choice(DIRECT, second)
        block.keep_clear = keep_clear
        block.decide.bias.view(-1, 4)[8] = -5.0  # of the first mixture: the fits alone are hardly outweighed
        block.decide.bias.view(-1, 4)[2 + DIRECT : 4 + DIRECT] = 0.0
        block.decide.weight.view(-1, 4, WIDTH, 3, 3)[2 + AS_IS, :, :, 1, 1] = 4.0
        result = last(block(features, cloudy, direct, torch.ones_like(cloudy)))
        kept.append(float(result[..., 24:30].std() / ground[..., 24:30].std()))
    assert abs(kept[0] - 1) > 0.3
    assert kept[1] == pytest.approx(1, abs=0.02)


def test_ground_near_thick_cloud_is_left_as_it_is():
    """A network that would change all of an image a little changes thick cloud alone."""
    cloudy = 0.2 * random(1, 3, 256, 256) - 0.6
    cloudy[..., 192:] = 0.9
    direct = cloudy + 0.06
    direct[..., 192:] = -0.5
    block = choice(DIRECT)
    block.decide.bias[8:].clamp_(min=-5.0)  # the cloudy image is hardly taken, but can be
    block.keep_near_cloud = 20.0
    result = run(block, cloudy, direct)
    torch.testing.assert_close(result[..., 120:180], cloudy[..., 120:180], atol=0.01, rtol=0)
    torch.testing.assert_close(result[..., 204:], direct[..., 204:], atol=0.02, rtol=0)


def test_where_no_thick_cloud_is_near_haze_is_removed_as_ever():
    cloudy = 0.2 * random(1, 3, 64, 64) - 0.2
    direct = cloudy - 0.5  # a change by a quarter of the range
    block = choice(DIRECT)
    before = run(block, cloudy, direct)
    block.keep_near_cloud = 20.0
    assert torch.equal(run(block, cloudy, direct), before)


def test_shares_are_of_a_pixel_and_those_around_it():
    block = choice()
    features = torch.zeros(1, WIDTH, 64, 64)
    features[..., 32:, 32:] = 1.0
    block.decide.weight[4 * (2 + DIRECT) : 4 * (3 + DIRECT), :, 1, 1] = 0.2
    cloudy = random(1, 3, 128, 128)
    first, _ = block(features, cloudy, cloudy, torch.ones_like(cloudy))
    share = first.shares[0, DIRECT]
    assert share[8, 8] < share[56, 56] < share[72, 72] < share[120, 120]
    torch.testing.assert_close(first.shares.sum(1), torch.ones(1, 128, 128))


def test_shares_do_not_follow_the_grid_of_the_network():
    """Single pixels that choose for themselves, every second or fourth one, show as dots under cloud."""
    block = choice()
    block.decide.bias[4 * (2 + DIRECT)] += 6.0  # one pixel of each square of two
    cloudy = random(1, 3, 64, 64)
    first, _ = block(torch.zeros(1, WIDTH, 32, 32), cloudy, cloudy, torch.ones_like(cloudy))
    share = first.shares[0, DIRECT, 16:48, 16:48]
    assert 0.5 < share.mean() < 0.99
    assert share.max() - share.min() < 0.06


def test_sharpened_shares_go_to_the_best_image():
    torch.manual_seed(0)
    block = choice()
    block.decide.weight.normal_(0, 0.1)
    cloudy = random(1, 3, 32, 32)
    arguments = random(1, WIDTH, 16, 16), cloudy, cloudy + 0.1, torch.ones_like(cloudy)
    before = block(*arguments)
    block.sharpen(2.0, 1.0)
    after = block(*arguments)
    squares = before[0].shares.square()
    torch.testing.assert_close(after[0].shares, squares / squares.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after[1].shares, before[1].shares)
    # What is fitted, and with which weights, stays as it was.
    torch.testing.assert_close(after[0].images[4], before[0].images[4])


def test_where_there_is_doubt_the_image_can_be_left_alone():
    block = choice()
    cloudy = random(1, 3, 32, 32)
    arguments = random(1, WIDTH, 16, 16), cloudy, cloudy + 0.1, torch.ones_like(cloudy)
    before = block(*arguments)[0].shares
    block.sharpen(1.0, 1.0, as_is=0.5)
    after = block(*arguments)[0].shares
    odds = [shares[:, AS_IS] / (1 - shares[:, AS_IS]) for shares in (before, after)]
    # Every pixel says it, and all around it say it again.
    torch.testing.assert_close(odds[1], odds[0] * torch.e, atol=0, rtol=1e-4)
    assert (after[:, DIRECT] < before[:, DIRECT]).all()


def test_choices_are_what_the_output_is_mixed_of_at_any_size():
    torch.manual_seed(0)
    network = CompactNet(widths=(8, 16), blocks=(1, 1), block="residual", guided=(3, 5))
    cloudy = random(1, 3, 27, 21) * 2 - 1
    first, second = network.supervised_choices(cloudy)
    (output,) = network.supervised_outputs(cloudy)
    torch.testing.assert_close(second.mixture(), output)
    torch.testing.assert_close(second.images[0], first.mixture())
    assert len(first.images) == first.shares.shape[1] == 9
    assert first.shares.shape[-2:] == (27, 21)
    assert CompactNet(widths=(8, 16), blocks=(1, 1)).supervised_choices(cloudy) == ()


def test_third_choice_is_of_each_pixel_alone():
    block = GuidedChoice(WIDTH, 2, (SIDE,), third=True).requires_grad_(False)
    features = torch.zeros(1, WIDTH, 64, 64)
    features[..., 32:, 32:] = 1.0
    as_is = 2
    # In the middle of the convolution alone, so that the border is sharp.
    block.decide_third.weight[4 * as_is : 4 * (as_is + 1), :, 1, 1] = 5.0
    cloudy = random(1, 3, 128, 128)
    direct = cloudy - 0.2
    arguments = features, cloudy, direct, torch.ones_like(cloudy)
    *_, second, third = block(*arguments)
    torch.testing.assert_close(third.shares.sum(1), torch.ones(1, 128, 128))
    assert (third.shares[:, as_is, 64:, 64:] > 0.999).all()
    assert (third.shares[:, as_is, :64] < 0.1).all()
    torch.testing.assert_close(third.images[0], second.mixture())
    torch.testing.assert_close(last(block(*arguments))[..., 64:, 64:], cloudy[..., 64:, 64:], atol=1e-3, rtol=0)


def test_third_choice_changes_little_at_first():
    """So that a network that was trained without it can go on with it."""
    torch.manual_seed(0)
    options = {"widths": (8, 16), "blocks": (1, 1), "block": "residual", "guided": (3, 5)}
    network, without = CompactNet(**options, third_choice=True), CompactNet(**options)
    without.load_state_dict(network.state_dict(), strict=False)
    cloudy = random(1, 3, 32, 32) * 2 - 1
    choices = network.supervised_choices(cloudy)
    assert len(choices) == 3
    torch.testing.assert_close(choices[-1].mixture(), network.supervised_outputs(cloudy)[0])
    assert choices[-1].shares[:, 0].min() > 0.9
    difference = (network(cloudy) - without(cloudy)).abs().mean()
    assert 0 < difference < 0.1 * (without(cloudy) - cloudy).abs().mean() + 1e-3


@pytest.mark.parametrize("side", [4, 0, -1])
def test_a_square_has_a_middle(side):
    with pytest.raises(ValueError, match="odd number"):
        CompactNet(widths=(8, 16), blocks=(1, 1), guided=(side,))


def test_every_parameter_learns_and_survives_saving(tmp_path):
    torch.manual_seed(0)
    network = CompactNet(widths=(8, 16), blocks=(1, 1), block="residual", guided=(3, 5))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    cloudy = random(1, 3, 24, 20) * 2 - 1
    network(cloudy).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
    network.save_pretrained(tmp_path)
    torch.testing.assert_close(CompactNet.from_pretrained(tmp_path)(cloudy), network(cloudy))
