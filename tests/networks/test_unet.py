import pytest
import torch
from diffusers.models.attention_processor import Attention

from declouder.networks import Denoiser, WeightNet
from declouder.networks.prepared import Prepared

NARROW = {"widths": (8, 16), "attention_levels": (), "heads": 2, "layers": 1, "norm_groups": 4}


@pytest.mark.parametrize(("network", "images"), [(Denoiser, 2), (WeightNet, 3)])
def test_without_attention_in_the_middle_the_rest_is_the_same(network, images):
    torch.manual_seed(0)
    attending, plain = network(**NARROW), network(**NARROW, middle_attention=False)
    assert not any(isinstance(module, Attention) for module in plain.modules())
    with torch.no_grad():
        for parameter in attending.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        x = torch.randn(1, 3 * images, 24, 16)
        plain.load_state_dict({k: v for k, v in attending.state_dict().items() if "attentions" not in k})
        assert not torch.allclose(plain(x, 7), attending(x, 7), atol=1e-3)
        for attention in (module for module in attending.modules() if isinstance(module, Attention)):
            for parameter in attention.to_out[0].parameters():
                parameter.zero_()
        torch.testing.assert_close(plain(x, 7), attending(x, 7))
        torch.testing.assert_close(Prepared(plain)(x, 7), plain(x, 7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("network", "images"), [(Denoiser, 2), (WeightNet, 3)])
def test_an_image_whose_coarsest_level_is_one_pixel_of_one_channel_a_group_can_be_seen(network, images):
    torch.manual_seed(0)
    narrow = network(**{**NARROW, "widths": (16, 16, 16), "norm_groups": 16}).eval()
    x = torch.randn(2, 3 * images, 4, 3)
    with torch.no_grad():
        both = narrow(x, 7)
        alone = torch.cat([narrow(image[None], 7) for image in x])
    assert both.shape == (2, 3, 4, 3) and torch.isfinite(both).all()
    torch.testing.assert_close(alone, both)  # whatever else is in its batch
