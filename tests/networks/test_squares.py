"""Means over squares: of what lies within, by every way, and of the same pixels alone."""

import pytest
import torch
import torch.nn.functional as F

from declouder.networks.squares import MATRIX_PX, MATRIX_REACH, box_mean

SIZES = [(5, 9), (40, MATRIX_PX), (MATRIX_PX + 1, 40), (3, 3 * MATRIX_REACH + 1)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_over_a_square_is_of_what_lies_within(size, dtype, learnt):
    x = torch.rand(2, 3, *size).to(dtype).requires_grad_(learnt)
    means = box_mean(x, 3)
    assert means.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(means.float(), within(x.detach().float(), 3), atol=tolerance, rtol=0)


@pytest.mark.parametrize("side", [1, 5, 7, 9, 31, 63])
def test_sides_of_any_odd_number_of_pixels(side):
    x = torch.rand(1, 2, 70, 90)
    torch.testing.assert_close(box_mean(x, side), within(x, side), atol=1e-6, rtol=0)
    small = x[..., :64, :64]
    torch.testing.assert_close(box_mean(small, side), within(small, side), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(20, 24), (3, 3 * MATRIX_REACH + 1)])
def test_gradients_are_those_of_pooling(size):
    x = torch.rand(1, 2, *size).requires_grad_()
    weight = torch.rand(1, 2, *size)
    (box_mean(x, 3) * weight).sum().backward()
    found, x.grad = x.grad, None
    (within(x, 3) * weight).sum().backward()
    torch.testing.assert_close(found, x.grad, atol=1e-6, rtol=0)


def test_a_mean_is_the_same_to_the_bit_wherever_a_window_begins():
    x = torch.rand(1, 2, 150, 160)
    whole, window = box_mean(x, 9), box_mean(x[..., 37:137, 21:141], 9)
    assert torch.equal(window[..., 4:-4, 4:-4], whole[..., 41:133, 25:137])


def test_means_over_squares_stay_precise_under_autocast():
    for side in (16, 2 * MATRIX_PX):
        x = 1 + 1e-3 * torch.rand(1, 1, side, side)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(box_mean(x, 3).mean(), x.mean(), atol=1e-5, rtol=0)


def within(x, side):
    """Sum all pixels of each square, in double precision, and divide by how many there are."""
    kernel = torch.ones(1, 1, side, side, dtype=torch.double)
    total = F.conv2d(x.double().flatten(0, 1)[:, None], kernel, padding=side // 2).view_as(x)
    count = F.conv2d(torch.ones(1, 1, *x.shape[-2:], dtype=torch.double), kernel, padding=side // 2)
    return (total / count).float()
