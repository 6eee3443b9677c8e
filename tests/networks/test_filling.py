"""Ground that flows in under thick cloud: whose colours it has, and how far they come."""

import math

import pytest
import torch
import torch.nn.functional as F

from declouder.networks import CompactNet
from declouder.networks.filling import REACH_PX, SIDES, Filling
from declouder.networks.guided import AS_IS, REDUCTION

FEATURES, WIDTH = 6, 8
RESTORED, FILL, FILL_WITH_TEXTURE, OWN_TEXTURE = 0, 1, 2, 3


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def filling(taken: int | None = None) -> Filling:
    """Return a block that takes one image alone, or all as it begins."""
    torch.manual_seed(0)
    block = Filling(FEATURES, 3, 2, WIDTH, torch.nn.Sequential()).requires_grad_(False)
    if taken is not None:
        scores = torch.full((4,), -40.0)
        scores[taken] = 0.0
        block.decide.bias.copy_(scores.repeat_interleave(4))
    return block


def hole(height: int, width: int, place: tuple[slice, slice]) -> torch.Tensor:
    seen = torch.ones(1, 1, height, width)
    seen[..., place[0], place[1]] = 0
    return seen


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_ground_around_flows_in_whatever_its_colours(scale):
    ground = (torch.tensor([-0.9, -0.3, 0.4]) * scale).view(1, 3, 1, 1).expand(1, 3, 48, 48)
    seen = hole(48, 48, (slice(16, 32), slice(16, 32)))
    under_cloud = torch.where(seen > 0, ground, 1.0)
    filled = filling().flow(under_cloud, seen)
    torch.testing.assert_close(filled, ground, atol=0.01, rtol=0)


def test_the_nearest_ground_comes_first():
    ground = torch.full((1, 1, 64, 64), -0.5)
    ground[..., 32:] = 0.5
    left, right = (filling().flow(ground, hole(64, 64, (slice(28, 36), slice(at, at + 8)))) for at in (14, 42))
    assert (left[..., 30:34, 16:20] < -0.35).all()
    assert (right[..., 30:34, 44:48] > 0.35).all()


def test_each_size_of_squares_has_a_lean_of_its_own():
    """Where the narrowest squares count for nothing, a single bright pixel is spread over the next."""
    dot = torch.zeros(1, 1, 48, 48)
    dot[..., 24, 24] = 1.0
    block = filling()
    block.log_lean.fill_(-20.0)
    block.log_lean[0] = 20.0
    spread = block.flow(dot, torch.ones_like(dot))
    assert float(spread[..., 24, 24]) == pytest.approx(1 / SIDES[1] ** 2, rel=0.01)


def test_ground_without_any_texture_can_be_learnt_from():
    torch.manual_seed(0)
    block = Filling(FEATURES, 3, 2, WIDTH, torch.nn.Sequential(), keep_unfilled=1.0, fill_thick=1.0)
    flat = torch.full((1, 3, 32, 48), 0.1, requires_grad=True)
    features = random(1, FEATURES, 16, 24).requires_grad_()
    block(features, flat, flat, flat, torch.ones(1, 1, 32, 48)).mixture().sum().backward()
    gradients = [flat.grad, features.grad, *(parameter.grad for parameter in block.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_an_image_that_is_all_cloud_has_a_fill_too():
    image = random(1, 3, 16, 16) * 2 - 1
    filled = filling().flow(image, torch.zeros(1, 1, 16, 16))
    assert (filled >= image.amin((-2, -1), keepdim=True)).all()
    assert (filled <= image.amax((-2, -1), keepdim=True)).all()


def test_what_is_far_away_does_not_come():
    reach = REACH_PX // REDUCTION
    assert reach == SIDES[-1] - 1
    image, seen = random(1, 3, 4, 2 * reach), random(1, 1, 4, 2 * reach)
    other = image.clone()
    other[..., reach + 8 :] = 0
    block = filling()
    filled, again = block.flow(image, seen), block.flow(other, seen)
    torch.testing.assert_close(filled[..., :8], again[..., :8], atol=1e-6, rtol=0)
    assert not torch.allclose(filled[..., 9:], again[..., 9:], atol=1e-6)


def test_a_window_that_begins_elsewhere_has_the_same_fill():
    image, seen = random(1, 3, 16, 200), random(1, 1, 16, 200)
    block, off, reach = filling(), 5, REACH_PX // REDUCTION
    part = block.flow(image[..., off:], seen[..., off:])
    torch.testing.assert_close(block.flow(image, seen)[..., off + reach :], part[..., reach:], atol=1e-5, rtol=0)


def test_the_texture_of_the_restored_image_can_stay_on_the_fill():
    restored = random(1, 3, 64, 64)
    images = filling()(random(1, FEATURES, 32, 32), restored, restored, restored).images
    assert images[RESTORED] is restored
    texture = images[FILL_WITH_TEXTURE] - images[FILL]
    assert texture.mean().abs() < 0.02
    fine = restored - F.interpolate(F.avg_pool2d(restored, 4), scale_factor=4, mode="bilinear")
    assert (texture * fine).mean() > 0.5 * fine.square().mean()


@pytest.mark.parametrize("taken", [RESTORED, FILL, FILL_WITH_TEXTURE, OWN_TEXTURE])
def test_shares_say_which_image_is_taken(taken):
    cloudy, restored = random(1, 3, 32, 48), random(1, 3, 32, 48, seed=1)
    choice = filling(taken)(random(1, FEATURES, 16, 24), cloudy, restored, cloudy)
    torch.testing.assert_close(choice.mixture(), choice.images[taken])


def test_clear_ground_can_keep_its_texture_in_the_light_of_the_restored_image():
    """Though the restored image is flat, and thick cloud, which the network's own image changed, lies beside."""
    ground = 0.4 * F.interpolate(random(1, 3, 32, 48), scale_factor=2) - 0.6
    light = torch.tensor([0.1, 0.05, -0.05]).view(1, 3, 1, 1)
    cloudy, restored = ground.clone(), (ground + light).mean((2, 3), keepdim=True).expand_as(ground)
    cloudy[..., 64:] = 1.0
    own = torch.where(cloudy == 1.0, restored, cloudy)
    features = random(1, FEATURES, 32, 48)
    kept = filling(OWN_TEXTURE)(features, cloudy, restored, own).images[OWN_TEXTURE]
    wanted, inner = ground + light, (slice(None), slice(None), slice(8, 56), slice(8, 56))
    assert (kept - wanted)[inner].abs().mean() < 0.3 * (restored - wanted)[inner].abs().mean()
    block = filling()
    block.decide.bias.view(4, 4)[OWN_TEXTURE] = 8.0
    shares = block(features, cloudy, restored, own).shares[:, OWN_TEXTURE]
    assert shares[..., :40].min() > 0.95
    assert shares[..., 72:].max() < 0.05


def test_specks_on_calm_sea_are_no_texture_to_keep():
    sea = torch.full((1, 3, 128, 128), -0.8)
    sea[..., 64:66, 64:66] = -0.6
    fields = sea + 0.2 * (F.interpolate(random(1, 3, 32, 32), scale_factor=4) - 0.5)
    block = filling()
    block.decide.bias.view(4, 4)[OWN_TEXTURE] = 6.0
    shares = [block(random(1, FEATURES, 64, 64), x, x, x).shares[:, OWN_TEXTURE].mean() for x in (sea, fields)]
    assert shares[0] < 0.05
    assert shares[1] > 0.8


def test_ground_that_was_left_as_it_is_can_keep_free_of_the_fill():
    cloudy, restored, features = random(1, 3, 32, 48), random(1, 3, 32, 48, seed=1), random(1, FEATURES, 16, 24)
    block = filling()
    block.decide.bias.view(4, 4)[FILL] = 3.0  # as much as the restored image begins with
    as_it_is = torch.zeros(1, 1, 32, 48)
    as_it_is[..., :24] = 1.0
    before = block(features, cloudy, restored, cloudy, as_it_is).shares
    assert torch.equal(before, block(features, cloudy, restored, cloudy).shares)
    assert before[:, RESTORED].max() < 0.6
    block.keep_unfilled = 16.0
    kept = block(features, cloudy, restored, cloudy, as_it_is).shares
    assert kept[:, FILL, :, :24].max() < 0.005
    assert torch.equal(kept[..., 24:], before[..., 24:])
    thick = block(features, cloudy, restored, cloudy - 0.8, as_it_is).shares
    calm = block(features, torch.full_like(cloudy, -0.8), restored, torch.full_like(cloudy, -0.8), as_it_is).shares
    assert max(thick[:, RESTORED].max(), calm[:, RESTORED].max()) < 0.6


def test_a_network_keeps_clear_ground_free_of_the_fill():
    """A network that takes the cloudy image as it is in its first choice, and then the fill."""
    torch.manual_seed(0)
    options = {"widths": [8, 16], "blocks": [1, 1], "stem": 2, "guided": [3], "filling": 8}
    cloudy = F.interpolate(random(1, 3, 16, 16), scale_factor=4)
    made = []
    for keep_unfilled in (0.0, 40.0):
        network = CompactNet(**options, keep_unfilled=keep_unfilled).requires_grad_(False)
        network.fill.decide.bias.view(4, 4)[FILL] = 20.0
        network.choice.decide.bias.view(-1, 4)[2 + AS_IS] = 20.0
        made.append(network(cloudy))
    assert (made[0] - cloudy).abs().mean() > 0.05
    assert (made[1] - cloudy).abs().mean() < 0.02  # of the fits of the second choice


def test_under_thick_cloud_ground_is_sure_to_flow_in_and_under_haze_it_is_not():
    cloudy, restored, features = random(1, 3, 32, 48), random(1, 3, 32, 48, seed=1), random(1, FEATURES, 16, 24)
    own = cloudy.clone()
    own[..., :16] -= 1.0
    own[..., 32:] -= 0.5  # a quarter of the range
    block = filling()
    before = block(features, cloudy, restored, own).shares
    block.fill_thick = 6.0
    after = block(features, cloudy, restored, own).shares
    assert after[:, FILL, :, :8].min() > 0.85 > 0.2 > before[:, FILL].max()
    assert torch.equal(after[..., 24:], before[..., 24:])


def test_a_haze_that_is_removed_is_not_clear():
    block, cloudy = filling(), random(1, 3, 16, 16) - 0.5
    hazes = [float(block.log_clear(cloudy, cloudy - change).exp().mean()) for change in (0.0, 0.08, 0.16, 0.6)]
    assert hazes[0] == 1
    assert hazes[1] == pytest.approx(math.exp(-0.25), abs=1e-4)  # half of what all around may change by
    assert hazes[2] == pytest.approx(math.exp(-1), abs=1e-4)
    assert hazes[3] < 1e-6


def test_ground_in_another_light_is_clear_and_what_is_removed_from_it_is_not():
    cloudy = random(1, 3, 64, 64) - 0.5
    light = torch.tensor([-0.06, -0.03, 0.03]).view(1, 3, 1, 1)
    own = cloudy + light
    own[..., 28:36, 28:36] -= 0.12  # a thin cloud
    clear = filling().log_clear(cloudy, own).exp()
    assert clear[..., :12, :].min() > 0.85
    assert clear[..., 30:34, 30:34].max() < 0.05


def test_clear_ground_can_keep_more_of_its_texture_than_was_learnt():
    cloudy = F.interpolate(random(1, 3, 16, 24), scale_factor=2)
    patches = 0.06 * (F.interpolate(random(1, 1, 4, 6, seed=1), scale_factor=8) - 0.5)
    block, features = filling(), random(1, FEATURES, 16, 24)

    def odds(change: torch.Tensor) -> torch.Tensor:
        share = block(features, cloudy, cloudy, cloudy + change).shares[:, OWN_TEXTURE]
        return share / (1 - share)

    changes = torch.zeros_like(patches), patches
    before = [odds(change) for change in changes]
    block.keep_texture(1.0, 0.5)
    even, uneven = (odds(change) / odds_before for change, odds_before in zip(changes, before, strict=True))
    torch.testing.assert_close(even, torch.full_like(even, math.e))
    assert uneven.max() < math.e  # the tolerance is less
    assert uneven.min() < 1


def test_sharper_shares_lean_to_the_image_that_has_most():
    block, cloudy = filling(), random(1, 3, 32, 48)
    for head in (block.decide, block.decide_wide):  # which begin at zero
        head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    arguments = random(1, FEATURES, 16, 24), cloudy, cloudy, cloudy
    before = block(*arguments).shares[:, :OWN_TEXTURE]  # how clear ground is stays as it is
    block.sharpen(2.0)
    after = block(*arguments).shares[:, :OWN_TEXTURE]
    before, after = (x / x.sum(1, keepdim=True) for x in (before.square(), after))
    torch.testing.assert_close(after, before)


def test_the_grid_of_the_features_does_not_show_in_the_shares():
    block = filling()
    block.decide.weight.normal_(generator=torch.Generator().manual_seed(0))
    choice = block(torch.ones(1, FEATURES, 32, 32), *(random(1, 3, 64, 64) for _ in range(3)))
    inner = choice.shares[..., 16:-16, 16:-16]
    assert (inner[..., 1:] - inner[..., :-1]).abs().max() < 0.2


def test_a_network_with_a_filling_begins_as_it_was():
    torch.manual_seed(0)
    options = {"widths": (8, 16), "blocks": (1, 1), "block": "residual", "stem": 2, "guided": (3, 5)}
    network, without = CompactNet(**options, filling=WIDTH), CompactNet(**options)
    without.load_state_dict(network.state_dict(), strict=False)
    cloudy = random(1, 3, 30, 41) * 2 - 1
    choices, (output,) = network.supervised_choices(cloudy), network.supervised_outputs(cloudy)
    assert [len(choice.images) for choice in choices] == [9, 4, 4]
    assert output.shape == cloudy.shape
    torch.testing.assert_close(choices[-1].mixture(), output)
    torch.testing.assert_close(choices[-1].images[RESTORED], without.supervised_outputs(cloudy)[0])
    assert choices[-1].shares[:, RESTORED].min() > 0.88


def test_a_network_without_fits_can_have_a_filling():
    torch.manual_seed(0)
    network = CompactNet(widths=(8, 16), blocks=(1, 1), filling=WIDTH)
    cloudy = random(1, 3, 21, 34) * 2 - 1
    assert network(cloudy).shape == cloudy.shape
    # Gradients reach what is said to be seen, though its layer begins at zero.
    network.supervised_outputs(cloudy)[0].square().mean().backward()
    assert network.fill.seen.weight.grad.abs().max() > 0


def test_half_precision_changes_little():
    torch.manual_seed(0)
    network = CompactNet(widths=(8, 16), blocks=(1, 1), stem=2, guided=(3,), filling=WIDTH).eval()
    cloudy = random(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        whole = network(cloudy)
        half = network.to(torch.bfloat16)(cloudy.to(torch.bfloat16))
    torch.testing.assert_close(half.float(), whole, atol=0.05, rtol=0)


def test_a_stem_must_fit_the_fillings_size():
    with pytest.raises(ValueError, match="a stem of 3"):
        CompactNet(widths=(8, 16), blocks=(1, 1), stem=3, filling=WIDTH)
