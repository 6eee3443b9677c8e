"""The denoiser and the weight network: two ADM U-Nets, built from diffusers' `UNet2DModel`.

    eps = denoiser(concat[x_t, cloudy], t)                  Ho et al. 2020; Dhariwal & Nichol 2021 (ADM)
    w   = weight_net(concat[x_t, cloudy, reference], t)     Sui et al. 2024: weight allocation

The defaults are the paper's networks: 32.1 M and 4.66 M parameters for 3 bands. Both outputs are
unbounded. Sources: Sui et al., IEEE TGRS 2024, doi 10.1109/TGRS.2024.3411671.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from declouder.networks.padding import padded_to_multiple

TimeShift = Literal["scale_shift", "default"]


class _ConditionedUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What both networks share: conditioning images joined as channels, any size, one time per image."""

    unet: UNet2DModel

    def forward(self, x: Tensor, t: Tensor | int) -> Tensor:
        """Return the network's raw output.

        Args:
            x: (B, k*bands, H, W) float, of any height and width: the noisy image, then, in [-1, 1], the
                images it is conditioned on.
            t: time step in [0, 999]: one number, or (B,) for one a sample.

        Returns:
            (B, bands, H, W), unbounded.
        """
        stem, widths = self.config["stem"], self.config["widths"]

        def at_stem_size(padded: Tensor) -> Tensor:
            return F.pixel_shuffle(self.unet(F.pixel_unshuffle(padded, stem), t).sample, stem)

        coarsest = stem * 2 ** (len(widths) - 1)
        height, width = x.shape[-2:]
        if max(height, width) <= coarsest and widths[-1] == self.config["norm_groups"]:
            # One pixel of one channel a group has no deviation to be normalised by.
            x = F.pad(x, (0, coarsest + 1 - width, 0, 0), mode="replicate")
        return padded_to_multiple(at_stem_size, x, coarsest)[..., :width]


class Denoiser(_ConditionedUNet):
    """Predicts the noise eps in x_t, given the cloudy image: `denoiser(cat[x_t, cloudy], t)`.

    Args:
        bands: spectral bands of an image.
        widths: channels of each level; every level after the first halves height and width.
        attention_levels: levels (0 is full size) whose blocks attend.
        heads: attention heads, in every attention alike.
        layers: residual blocks a level on the way down (one more on the way up).
        time_shift: how t enters a block: "scale_shift" (FiLM) or "default" (added).
        norm_groups: groups of every group normalisation; divides all widths.
        stem: side of the pixel squares that the first level takes as channels. The paper's networks have
            1; 2 works at half size throughout, at about a quarter of the cost.
        middle_attention: whether the middle attends, from every place of the image to every other, as the
            paper's networks do. Without it a wide window costs no more a pixel than a small one.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        bands: int = 3,
        widths: Sequence[int] = (96, 96, 192, 192, 288),
        attention_levels: Sequence[int] = (2, 3),
        heads: int = 4,
        layers: int = 2,
        time_shift: TimeShift = "scale_shift",
        norm_groups: int = 32,
        stem: int = 1,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        self.unet = _adm_unet(2, self.config)


class WeightNet(_ConditionedUNet):
    """Predicts w, how much of x0 the reference image gives: `weight_net(cat[x_t, cloudy, reference], t)`.

    One weight a pixel, band and step, without a bound: `fusion.predict_x0` bounds it when sampling. The last layer
    starts at zero, so an untrained network says w = 0: pure diffusion. Arguments as for `Denoiser`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        bands: int = 3,
        widths: Sequence[int] = (64, 64, 128),
        attention_levels: Sequence[int] = (2,),
        heads: int = 1,
        layers: int = 2,
        time_shift: TimeShift = "default",
        norm_groups: int = 32,
        stem: int = 1,
        middle_attention: bool = True,
    ) -> None:
        super().__init__()
        self.unet = _adm_unet(3, self.config)


def _adm_unet(images: int, config: Mapping[str, Any]) -> UNet2DModel:
    """Return the U-Net of a network's config that reads so many images, joined as channels."""
    channels, widths = config["bands"] * config["stem"] ** 2, config["widths"]
    levels = range(len(widths))
    if beyond := sorted(set(config["attention_levels"]).difference(levels)):
        raise ValueError(f"attention_levels holds {beyond[0]!r}, but its widths are of levels 0 to {levels[-1]}")
    attends = [level in config["attention_levels"] for level in levels]
    unet = UNet2DModel(
        in_channels=images * channels,
        out_channels=channels,
        block_out_channels=tuple(widths),
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        layers_per_block=config["layers"],
        add_attention=config["middle_attention"],
        attention_head_dim=None,
        resnet_time_scale_shift=config["time_shift"],
        norm_num_groups=config["norm_groups"],
        attn_norm_num_groups=config["norm_groups"],
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
    )
    for module in unet.modules():
        if isinstance(module, Attention):
            if module.inner_dim % config["heads"]:
                raise ValueError(f"heads is {config['heads']}, which does not divide a width of {module.inner_dim}")
            # UNet2DModel sets heads by their size, ADM by their number; the weights are the same for both.
            module.heads = config["heads"]
            module.scale = (module.inner_dim // config["heads"]) ** -0.5
    with torch.no_grad():
        for parameter in unet.conv_out.parameters():
            nn.init.zeros_(parameter)
    return unet
