"""CompactNet: the wide neighbourhood, any image size, and what a pixel depends on."""

import pytest
import torch

from declouder.networks import CompactNet
from declouder.networks.compact import WideContext

SMALL = {"widths": (8, 16), "blocks": (1, 1), "block": "residual", "stem": 2}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("options", [{}, {"context": 5}, {"guided": (3, 9)}, {"guided": (3,), "stem": 1}])
def test_a_new_network_leaves_an_image_as_it_is(options):
    cloudy = images(1, 3, 21, 33)
    torch.testing.assert_close(CompactNet(**{**SMALL, **options})(cloudy), cloudy)


def test_a_wide_neighbourhood_covers_a_small_image_whole():
    torch.manual_seed(0)
    block = WideContext(4, 15)
    x = images(1, 4, 8, 8)
    told = (block(x) - x)[0]
    torch.testing.assert_close(told, told[:, :1, :1].expand_as(told), atol=1e-5, rtol=1e-4)


def test_beyond_its_neighbourhood_nothing_counts():
    torch.manual_seed(0)
    block = WideContext(4, 5)
    x = images(1, 4, 8, 20)
    other = x.clone()
    other[..., 10:] = 0.3
    torch.testing.assert_close(block(x)[..., :8], block(other)[..., :8])
    assert not torch.allclose(block(x)[..., 8], block(other)[..., 8])


def test_a_neighbourhood_has_a_middle():
    with pytest.raises(ValueError, match="odd number"):
        CompactNet(**SMALL, context=4)
