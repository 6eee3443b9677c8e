"""Images seen larger: what is left as it is comes back, wherever it is smooth, sharp, black or white."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from declouder.arguments import MOST_ENLARGED, checked_enlarge
from declouder.enlarging import enlarged, shrunk
from declouder.errors import OptionError
from declouder.mosaic import Window, enlarged_window


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_what_was_enlarged_shrinks_to_what_it_was_and_stays_in_range(factor):
    images = torch.rand(2, 3, 9, 14, generator=torch.Generator().manual_seed(0))
    images[0, :, 2:5, 3:9] = 1.0
    images[1, :, :, 7:] = 0.0
    large = enlarged(images, factor)
    assert large.shape == (2, 3, 9 * factor, 14 * factor)
    assert large.min() >= -1e-6 and large.max() <= 1 + 1e-6
    torch.testing.assert_close(shrunk(large, factor), images, atol=1e-6, rtol=0)


def test_enlarged_ground_is_smooth_not_blocks():
    """A wave keeps its shape, where repeated pixels would make steps of it."""
    wave = 0.5 + 0.3 * torch.sin(torch.arange(32) * 0.4).expand(1, 1, 32, 32)
    fine = 0.5 + 0.3 * torch.sin((torch.arange(96) - 1) / 3 * 0.4)
    inner = slice(6, -6)
    error = (enlarged(wave, 3)[0, 0, 48] - fine)[inner].abs().max()
    blocks = (F.interpolate(wave, scale_factor=3)[0, 0, 48] - fine)[inner].abs().max()
    assert error < blocks / 4


def test_a_window_of_a_finer_grid_lies_where_the_window_lies():
    assert enlarged_window(Window(-3, 5, 7, 9), 3) == Window(-9, 15, 21, 27)


@pytest.mark.parametrize("factor", [0, -1, MOST_ENLARGED + 1, 1.5])
def test_other_factors_are_refused(factor):
    with pytest.raises(OptionError, match=f"enlarge is {factor}; give a whole number from 1 to 4"):
        checked_enlarge(factor)


def test_numpys_whole_numbers_are_whole():
    for whole in (np.int64(2), torch.tensor(2)):
        assert type(checked_enlarge(whole)) is int
