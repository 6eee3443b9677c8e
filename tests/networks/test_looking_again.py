"""Remains of thick cloud are taken from what a network makes of the image at half the size, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from declouder.networks.compact import CompactNet
from declouder.networks.looking_again import LEAST_PX, looked_again

SIDE = 256
GROUND, CLOUD = -0.6, 0.8
WHOLE = (slice(0, 128), slice(0, 128))
"""The corner that cloud covers."""
REST = (slice(0, 32), slice(0, 128))
"""What the network leaves of it."""


class Stand:
    """Stands for a network: everything becomes one number."""

    def __init__(self, value: float = GROUND) -> None:
        self.value, self.shapes = value, []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.full_like(x, self.value)


def scene(height: int = SIDE, width: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return an image with cloud in a corner, and what a network makes of it that leaves some at the edge."""
    cloudy = torch.full((1, 3, height, width), GROUND)
    restored = cloudy.clone()
    cloudy[..., *WHOLE] = CLOUD
    restored[..., *REST] = CLOUD
    return cloudy, restored


def test_cloud_that_is_left_beside_cloud_that_went_is_taken_from_half_the_size():
    cloudy, restored = scene()
    half = Stand(-0.5)
    result = looked_again(half, cloudy, restored)
    assert half.shapes == [(1, 3, SIDE // 2, SIDE // 2)]
    assert torch.allclose(result[..., :24, :120], torch.tensor(-0.5))
    assert torch.equal(result[..., 64:, :], restored[..., 64:, :])
    assert torch.equal(restored, scene()[1])


def test_white_ground_stays_where_no_cloud_was_taken_away():
    cloudy, _ = scene()
    half = Stand()
    assert looked_again(half, cloudy, cloudy) is cloudy
    assert half.shapes == []


def test_white_ground_far_from_cloud_stays():
    cloudy, restored = scene(512, 512)
    for image in (cloudy, restored):
        image[..., 400:, 400:] = CLOUD
    result = looked_again(Stand(), cloudy, restored)
    assert torch.equal(result[..., 400:, 400:], cloudy[..., 400:, 400:])
    assert not torch.equal(result, restored)


@pytest.mark.parametrize("value", [CLOUD - 0.05, CLOUD, 1.0])
def test_what_is_hardly_darker_at_half_the_size_stays(value):
    cloudy, restored = scene()
    assert torch.equal(looked_again(Stand(value), cloudy, restored), restored)


def test_dark_or_coloured_ground_under_cloud_stays():
    cloudy, restored = scene()
    restored[:, 2, *REST] = -0.5  # bright in two bands of three
    half = Stand()
    assert looked_again(half, cloudy, restored) is restored


def test_what_is_darker_in_one_band_alone_at_half_the_size_stays():
    cloudy, restored = scene()

    def half(x: Tensor) -> Tensor:
        return torch.tensor([GROUND, CLOUD, CLOUD]).view(1, 3, 1, 1).expand_as(x)

    assert torch.equal(looked_again(half, cloudy, restored), restored)


def test_remains_of_what_was_no_white_cloud_stay():
    cloudy, restored = scene()
    cloudy[:, 0, *REST] = -0.5  # bright in two bands of three
    result = looked_again(Stand(), cloudy, restored)
    assert torch.equal(result[..., :16, :64], restored[..., :16, :64])


def test_ground_that_changed_in_one_band_alone_is_no_cloud_that_went():
    cloudy, restored = scene()
    restored[:, 1:, *WHOLE] = CLOUD
    half = Stand()
    assert looked_again(half, cloudy, restored) is restored
    assert half.shapes == []


def test_at_the_edge_of_an_image_as_much_is_taken_as_further_in():
    cloudy, restored = scene()
    value = CLOUD - 0.21  # just enough darker to be taken in full
    result = looked_again(Stand(value), cloudy, restored)
    torch.testing.assert_close(result[..., :16, :64], torch.full((1, 3, 16, 64), value))


def test_cloud_under_which_a_little_more_detail_appears_is_thick_for_the_most_part():
    cloudy, restored = scene()
    texture = torch.sin(torch.arange(SIDE) * 0.9).expand(SIDE, SIDE)
    cloudy[..., *WHOLE] += 0.1 * texture[WHOLE]
    restored[..., *WHOLE] += 0.12 * texture[WHOLE]
    share = (restored - looked_again(Stand(), cloudy, restored)) / (restored - GROUND)
    torch.testing.assert_close(share[..., :16, :32], torch.full((1, 3, 16, 32), 0.6), atol=0.02, rtol=0)


def test_pale_ground_that_was_no_brighter_in_the_cloudy_image_stays():
    cloudy, restored = scene()
    for image in (cloudy, restored):
        image[..., 136:184, 136:184] = 0.0
    result = looked_again(Stand(), cloudy, restored)
    assert torch.equal(result[..., 136:184, 136:184], restored[..., 136:184, 136:184])
    assert not torch.equal(result, restored)


def test_haze_that_went_does_not_count_as_thick_cloud():
    cloudy, restored = scene()
    cloudy[..., 32:128, :128] = GROUND + 0.4
    half = Stand()
    assert looked_again(half, cloudy, restored) is restored


def test_strong_haze_that_hid_no_detail_is_no_thick_cloud():
    plain = torch.full((1, 3, SIDE, SIDE), GROUND)
    plain[..., 64:80, 64:80] = CLOUD  # a white roof
    ground = plain + 0.15 * torch.sin(torch.arange(SIDE) * 0.9)
    half = Stand()
    assert looked_again(half, 0.8 - 0.4 * (0.8 - ground), ground) is ground
    assert half.shapes == []
    assert not torch.equal(looked_again(half, torch.full_like(plain, 0.5), plain), plain)


def test_an_image_of_a_batch_is_as_it_is_alone_and_those_without_remains_are_not_sent():
    cloudy, restored = scene()
    plain = torch.full_like(cloudy, GROUND)
    half = Stand()
    result = looked_again(half, torch.cat([plain, cloudy, plain]), torch.cat([plain, restored, plain]))
    assert half.shapes == [(1, 3, SIDE // 2, SIDE // 2)]
    assert torch.equal(result[1:2], looked_again(Stand(), cloudy, restored))
    assert torch.equal(result[::2], torch.cat([plain, plain]))


@pytest.mark.parametrize("size", [(129, 203), (131, 256)])
def test_odd_sizes(size):
    cloudy, restored = scene(*size)
    half = Stand()
    result = looked_again(half, cloudy, restored)
    assert result.shape == cloudy.shape
    assert half.shapes == [(1, 3, -(-size[0] // 2), -(-size[1] // 2))]
    assert float(result[0, 0, 8, 8]) == pytest.approx(GROUND)


def test_small_images_are_looked_at_once():
    cloudy, restored = (image[..., : LEAST_PX - 1, :] for image in scene())
    assert looked_again(Stand(), cloudy, restored) is restored
    cloudy, restored = (image[..., :LEAST_PX, :] for image in scene())
    assert not torch.equal(looked_again(Stand(), cloudy, restored), restored)


class Leaving(CompactNet):  # type: ignore[misc]
    """Takes cloud away but for some rows at the upper edge, fewer the smaller the image; notes the sizes."""

    def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
        side = cloudy.shape[-1]
        self.sizes.append(side)
        rows = side // 8 - 16
        restored = torch.where(cloudy > 0, GROUND, cloudy)
        restored[..., :rows, :] = cloudy[..., :rows, :]
        return [restored]


@pytest.mark.parametrize(
    ("again", "sizes", "left"),
    [(0, [512], 48), (1, [512, 256], 32), (2, [512, 256, 128], 0), (5, [512, 256, 128], 0)],
)
def test_a_network_looks_as_often_as_it_is_told_while_something_is_left(again, sizes, left):
    network = Leaving(widths=(8, 8), blocks=(1, 1), look_again=again)
    network.sizes = []
    cloudy = torch.full((1, 3, 512, 512), GROUND)
    cloudy[..., :384, :] = CLOUD
    with torch.inference_mode():
        restored = network(cloudy)
    assert network.sizes == sizes
    assert int((restored[0, 0] > 0).sum(dim=0).amax()) == pytest.approx(left, abs=8)


def test_training_learns_from_the_image_at_its_own_size():
    torch.manual_seed(0)
    plain = CompactNet(widths=(8, 8), blocks=(1, 1))
    again = CompactNet(widths=(8, 8), blocks=(1, 1), look_again=2)
    again.load_state_dict(plain.state_dict())
    cloudy, _ = scene()
    assert torch.equal(again.supervised_outputs(cloudy)[0], plain.supervised_outputs(cloudy)[0])
