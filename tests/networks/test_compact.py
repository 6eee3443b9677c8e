"""CompactNet: the wide neighbourhood, any image size, and what a pixel depends on."""

import pytest
import torch

from declouder.networks import CompactNet
from declouder.networks.compact import Extremes, WideContext

SMALL = {"widths": (8, 16), "blocks": (1, 1), "block": "residual", "stem": 2}


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    "options", [{}, {"context": 5}, {"guided": (3, 9)}, {"guided": (3,), "stem": 1}, {"extremes": True}]
)
def test_a_new_network_leaves_an_image_as_it_is(options):
    cloudy = images(1, 3, 21, 33)
    # Fits from white and dark, of which a guided network takes a few per cent at first, change a clear image.
    most = 0.1 if "guided" in options else 1e-5
    assert (CompactNet(**{**SMALL, **options})(cloudy) - cloudy).abs().mean() < most


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


@pytest.mark.parametrize("side", [0, 3])
def test_one_dark_pixel_is_told_as_far_as_the_neighbourhood_reaches(side):
    torch.manual_seed(0)
    block = Extremes(3, 4, 4, side)
    x, image = images(1, 4, 6, 10), images(1, 3, 24, 40) / 4
    darker = image.clone()
    darker[..., 2, 2] = -1.0  # in the first pixel of the features
    told = (block(x, darker) - block(x, image)).abs().amax(dim=1)[0] > 1e-6
    reach = 1 + side // 2
    assert told[:reach, :reach].all()
    assert not told[reach:].any()
    assert not told[:, reach:].any()


def test_extremes_need_coarse_features():
    with pytest.raises(ValueError, match="more levels"):
        CompactNet(widths=(8, 16), blocks=(1, 1), stem=1, extremes=True)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"third_choice": True}, "guided"),
        ({"keep_clear": 1.0}, "guided"),
        ({"keep_near_cloud": 1.0, "filling": 4}, "guided"),
        ({"keep_unfilled": 1.0, "guided": (9,)}, "filling"),
        ({"fill_thick": 1.0}, "filling"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, needed):
    with pytest.raises(ValueError, match=f"does nothing without {needed}; give {needed}, or leave"):
        CompactNet(widths=(8, 16), blocks=(1, 1), **options)
