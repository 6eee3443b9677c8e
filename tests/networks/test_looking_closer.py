"""Remains of small clouds are taken from what a network makes at twice the size, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from declouder.networks.compact import CompactNet
from declouder.networks.looking_closer import AROUND_PX, GREY, MARGIN_PX, SPOT, TILE_PX, looked_closer
from declouder.small_clouds import GREY_TO, SPOT_FROM

SIDE = 128
GROUND, CLOUD = -0.6, 0.8
WENT, STAYED = (slice(36, 52), slice(40, 60)), (slice(60, 68), slice(60, 72))


class Stand:
    """Stands for a network: everything becomes one number."""

    def __init__(self, value: float = GROUND) -> None:
        self.value, self.shapes = value, []

    def __call__(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.full_like(x, self.value)


def scene(height: int = SIDE, width: int = SIDE, top: int = 0, left: int = 0) -> tuple[Tensor, Tensor]:
    """Return an image with two small clouds, and what a network makes of it that leaves one of them."""
    cloudy = torch.full((1, 3, height, width), GROUND)
    restored = cloudy.clone()
    for rows, columns in (WENT, STAYED):
        cloudy[..., top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] = CLOUD
    rows, columns = STAYED
    restored[..., top + rows.start : top + rows.stop, left + columns.start : left + columns.stop] = CLOUD
    return cloudy, restored


def test_a_small_cloud_that_is_left_beside_one_that_went_is_taken_from_twice_the_size():
    cloudy, restored = scene()
    twice = Stand(-0.5)
    result = looked_closer(twice, cloudy, restored)
    assert twice.shapes == [(1, 3, 2 * SIDE, 2 * SIDE)]
    assert torch.allclose(result[..., STAYED[0], STAYED[1]], torch.tensor(-0.5))
    far = torch.ones(SIDE, SIDE, dtype=torch.bool)
    far[52:76, 52:80] = False
    assert torch.equal(result[..., far], restored[..., far])
    assert torch.equal(restored, scene()[1])


def test_a_spots_dim_rim_goes_with_it():
    cloudy, restored = scene()
    rows, columns = STAYED
    rim = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    rim[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1] = True
    rim[rows, columns] = False
    for image in (cloudy, restored):
        image[..., rim] = GROUND + 0.1
    result = looked_closer(Stand(), cloudy, restored)
    assert (result[..., rim] < GROUND + 0.05).float().mean() > 0.8


def test_bright_spots_stay_where_no_cloud_went():
    cloudy, _ = scene()
    twice = Stand()
    assert looked_closer(twice, cloudy, cloudy) is cloudy
    assert twice.shapes == []


def test_spots_far_from_clouds_that_went_stay():
    cloudy, restored = scene(256, 256)
    for image in (cloudy, restored):
        image[..., 200:208, 200:212] = CLOUD
    result = looked_closer(Stand(), cloudy, restored)
    assert torch.equal(result[..., 190:, 190:], restored[..., 190:, 190:])


@pytest.mark.parametrize("change", ["larger", "coloured", "new"])
def test_what_is_no_small_cloud_stays(change):
    cloudy, restored = scene()
    rows, columns = STAYED
    if change == "larger":
        for image in (cloudy, restored):
            image[..., 56:100, 56:100] = CLOUD
    if change == "coloured":
        for image in (cloudy, restored):
            image[:, 2, rows, columns] = CLOUD - 0.5
    if change == "new":  # the network has put it there
        cloudy[..., rows, columns] = GROUND
    assert torch.equal(looked_closer(Stand(), cloudy, restored), restored)


@pytest.mark.parametrize("value", [CLOUD, CLOUD - 0.05])
def test_what_is_as_bright_at_twice_the_size_stays(value):
    cloudy, restored = scene()
    assert torch.equal(looked_closer(Stand(value), cloudy, restored), restored)


def test_an_image_smaller_than_what_lies_around_a_spot_is_looked_at_once():
    cloudy, restored = (image[..., 20 : 20 + max(AROUND_PX) - 1, 20:100] for image in scene())
    twice = Stand()
    assert looked_closer(twice, cloudy, restored) is restored and twice.shapes == []


def test_a_large_image_goes_part_by_part_and_only_those_with_remains():
    cloudy, restored = scene(TILE_PX + 200, 2 * TILE_PX, top=TILE_PX, left=TILE_PX + 100)
    twice = Stand(-0.5)
    result = looked_closer(twice, cloudy, restored)
    assert twice.shapes == [(1, 3, 2 * (200 + MARGIN_PX), 2 * (TILE_PX + MARGIN_PX))]
    rows, columns = STAYED
    taken = result[..., TILE_PX + rows.start : TILE_PX + rows.stop, TILE_PX + 100 + columns.start :][..., :12]
    assert torch.allclose(taken, torch.tensor(-0.5))


def test_what_is_taken_lies_where_it_lay():
    cloudy, restored = scene(TILE_PX + 200, 2 * TILE_PX, top=TILE_PX, left=TILE_PX + 100)
    ground = torch.linspace(-0.9, -0.3, 2 * TILE_PX).expand_as(cloudy)

    def twice(x: Tensor) -> Tensor:
        first = TILE_PX - MARGIN_PX  # the columns that the part begins with
        fine = (torch.arange(x.shape[-1]) + 0.5) / 2 - 0.5 + first
        return (-0.9 + 0.6 * fine / (2 * TILE_PX - 1)).expand_as(x)

    result = looked_closer(twice, cloudy, restored)
    rows, _ = STAYED
    there = (..., slice(TILE_PX + rows.start, TILE_PX + rows.stop), slice(TILE_PX + 160, TILE_PX + 172))
    assert torch.allclose(result[there], ground[there], atol=1e-4)


def test_each_image_of_a_batch_is_looked_at_by_itself():
    cloudy, restored = scene()
    plain = torch.full_like(cloudy, GROUND)
    twice = Stand()
    result = looked_closer(twice, torch.cat([plain, cloudy]), torch.cat([plain, restored]))
    assert len(twice.shapes) == 1 and torch.equal(result[:1], plain)
    assert torch.equal(result[1:], looked_closer(Stand(), cloudy, restored))


def test_white_stays_white_and_odd_sides_are_whole():
    cloudy, restored = scene(131, 129)
    result = looked_closer(Stand(), cloudy, restored)
    assert result.shape == cloudy.shape and (result[..., STAYED[0], STAYED[1]] < 0).all()


@pytest.mark.parametrize("closer", [0, 1])
def test_a_network_looks_closer_only_if_it_is_told_to(closer):
    class Leaving(CompactNet):
        """Leaves what is small: at twice the size all goes."""

        def supervised_outputs(self, cloudy: Tensor) -> list[Tensor]:
            if cloudy.shape[-1] > SIDE:
                return [torch.full_like(cloudy, GROUND)]
            return [scene()[1]]

    cloudy, restored = scene()
    network = Leaving(widths=(8, 8), blocks=(1, 1), look_closer=closer).eval()
    found = network(cloudy)
    assert torch.equal(found, restored) == (closer == 0)
    assert (found[..., STAYED[0], STAYED[1]] > 0).all() == (closer == 0)


def test_a_spot_is_surely_one_where_the_count_of_small_clouds_takes_it_for_one():
    """They are told in [-1, 1] here and in [0, 1] there."""
    assert (SPOT[1], GREY[0]) == (2 * SPOT_FROM, 2 * GREY_TO)


def test_what_is_taken_around_a_cloud_that_went_fades_out():
    """The edge of a square would be seen among clouds that stay."""
    cloudy = torch.full((1, 3, 256, 256), GROUND)
    for top in range(8, 248, 20):
        for left in range(8, 248, 20):
            cloudy[..., top : top + 8, left : left + 8] = CLOUD
    restored = cloudy.clone()
    restored[..., 100:140, 100:160] = GROUND
    result = looked_closer(Stand(), cloudy, restored)
    taken = ((restored - result) / (CLOUD - GROUND))[0, 0, 112, 12::20]  # in the middle of the clouds of a row
    left, right = taken[:5], taken[8:].flip(0)
    for side in (left, right):
        assert (side.diff() >= 0).all() and side[0] < 0.05
    partly = (taken > 0.05) & (taken < 0.95)
    assert int(partly.sum()) >= 3


def test_the_arms_of_a_large_cloud_stay_with_it():
    """Cut off, they would leave straight edges."""
    cloudy, restored = scene(256, 256)
    for image in (cloudy, restored):
        image[..., 90:150, 90:150] = CLOUD
        image[..., 70:90, 100:110] = CLOUD
    twice = Stand()
    result = looked_closer(twice, cloudy, restored)
    assert len(twice.shapes) == 1 and (result[..., STAYED[0], STAYED[1]] < 0).all()
    assert torch.equal(result[..., 70:150, 90:150], restored[..., 70:150, 90:150])


@pytest.mark.filterwarnings("error")
def test_gradients_go_through_in_silence():
    cloudy, restored = scene()
    restored.requires_grad_()
    result = looked_closer(Stand(), cloudy, restored)
    result.sum().backward()
    assert restored.grad is not None and (restored.grad >= 0).all()
