"""LPIPS as something to learn from: the distance of `declouder.lpips`, on tensors and with a gradient.

    d = sum_l mean_hw sum_c v_lc (f_lc(a) - f_lc(b))^2        f_l: AlexNet's features, length 1 over the channels

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from declouder.errors import ConfigError
from declouder.lpips import BACKBONE_FILE, BACKBONE_VARIABLE, CONVOLUTIONS, DEVIATION, MEAN, load_lpips
from declouder.rgb import rgb_places

LEAST_DISTANCE = 0.005
"""Below this nobody sees a difference, and there is nothing to be gained."""


def log_perceptual(distances: Tensor) -> Tensor:
    """Return the mean over images of ln(distance + floor), a scalar, of (B,) distances.

    Thin haze leaves a tenth of the distance that thick cloud leaves, and in a mean of both it hardly counts; of
    logarithms each image counts by the share of its distance that is gained.
    """
    return (distances + LEAST_DISTANCE).log().mean()


class PerceptualLoss(nn.Module):
    """LPIPS (AlexNet v0.1) of (B, C, H, W) images in [-1, 1]; frozen, and none of its tensors go into checkpoints.

    Args:
        band_names: where they hold red, green and blue, those are compared; else each band as a grey image.
        backbone: torchvision's AlexNet; None looks where `lpips.load_lpips` looks.

    Raises:
        ConfigError: if no backbone is to be had: without it the stage cannot be trained.
    """

    def __init__(self, band_names: Sequence[str], backbone: Path | None = None) -> None:
        super().__init__()
        network, _ = load_lpips(backbone)
        if network is None:
            raise ConfigError(
                "perceptual_weight or log_perceptual_weight is above 0, and LPIPS needs torchvision's AlexNet"
                f" weights: export {BACKBONE_VARIABLE}={BACKBONE_FILE}"
            )
        for layer, ((weight, bias), linear) in enumerate(zip(network.weights, network.linear, strict=True)):
            for name, tensor in (("weight", weight), ("bias", bias), ("linear", linear)):
                self.register_buffer(f"{name}{layer}", tensor.clone(), persistent=False)
        self.register_buffer("mean", torch.from_numpy(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.from_numpy(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self._rgb = rgb_places(band_names)

    def forward(self, image: Tensor, clear: Tensor) -> Tensor:
        """Return the distance of each image, (B,)."""
        half = len(image) if self._rgb else len(image) * image.shape[1]
        x = torch.cat([self._triples(image), self._triples(clear)])
        x = (x - self.get_buffer("mean")) / self.get_buffer("deviation")
        x = x.contiguous(memory_format=torch.channels_last)
        total = torch.zeros(half, device=x.device)
        for layer, (stride, padding, pooled) in enumerate(CONVOLUTIONS.values()):
            if pooled:
                x = F.max_pool2d(x, 3, 2)
            weight, bias = self.get_buffer(f"weight{layer}"), self.get_buffer(f"bias{layer}")
            x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=padding))
            features = F.normalize(x.float(), dim=1, eps=1e-10)
            difference = (features[:half] - features[half:]).square()
            total = total + (difference * self.get_buffer(f"linear{layer}").view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total.view(len(image), -1).mean(dim=1)

    def _triples(self, image: Tensor) -> Tensor:
        """Return (B, 3, H, W), or (B * C, 3, H, W) of bands that are no colours."""
        if self._rgb is not None:
            return image[:, self._rgb]
        return image.reshape(-1, 1, *image.shape[-2:]).expand(-1, 3, -1, -1)
