"""Diffusion Enhancement in one file: a guess of x0 from noise, fused with the reference image.

    x0_diffusion = (x_t - sqrt(1 - alpha_bar) * eps) / sqrt(alpha_bar)      clamped to [-1, 1]
    w            = clamp(weight_net(x_t, cloudy, reference, t), w_min, w_max)
    x0           = w * reference + (1 - w) * x0_diffusion

x0 goes to any sampler that takes predictions of x0. Source: Sui et al., IEEE TGRS 2024,
doi 10.1109/TGRS.2024.3411671. The authors' code bounds w to [0.3, 1] when it samples and not when it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FusedPrediction:
    """What one step says of the clear image; all (B, C, H, W)."""

    x0: Tensor
    """The fused image, in [-1, 1] where w is within [0, 1]."""
    x0_diffusion: Tensor
    """The denoiser's own guess, clamped to [-1, 1]."""
    w: Tensor
    """Share of the reference, after bounding."""
    eps: Tensor
    """The denoiser's raw output."""


def predict_x0(
    denoiser: Network,
    weight_net: Network,
    *,
    x_t: Tensor,
    cloudy: Tensor,
    reference: Tensor,
    t: Tensor,
    alpha_bar: Tensor,
    w_bounds: tuple[float, float] | None,
    detach_x0_diffusion: bool = False,
) -> FusedPrediction:
    """Run both networks on one noisy image and fuse.

    Args:
        denoiser: `denoiser(cat[x_t, cloudy], t)` -> eps.
        weight_net: `weight_net(cat[x_t, cloudy, reference], t)` -> raw w.
        x_t: (B, C, H, W) noisy image at step t.
        cloudy: (B, C, H, W) in [-1, 1].
        reference: (B, C, H, W) in [-1, 1].
        t: (B,) time steps in [0, 999].
        alpha_bar: what `alphas_cumprod` holds at t; broadcasts against x_t.
        w_bounds: (w_min, w_max), or None to leave w as the network says (training). Equal bounds fix w,
            and the weight network is not asked.
        detach_x0_diffusion: keep the fused image's gradient out of the denoiser, as the authors train.
    """
    eps = denoiser(torch.cat([x_t, cloudy], dim=1), t)
    x0_diffusion = x0_from_eps(x_t, eps.detach() if detach_x0_diffusion else eps, alpha_bar)
    if w_bounds is not None and w_bounds[0] == w_bounds[1]:
        w = torch.full_like(x_t, w_bounds[0])
    else:
        # In the image's own precision: rounded in half precision, w and 1 - w do not add up to 1.
        w = weight_net(torch.cat([x_t, cloudy, reference], dim=1), t).to(x_t.dtype)
        if w_bounds is not None:
            w = w.clamp(*w_bounds)
    return FusedPrediction(fuse(reference, x0_diffusion, w), x0_diffusion, w, eps)


def x0_from_eps(x_t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return x0 in [-1, 1], (B, C, H, W), from the noisy image and the noise in it."""
    return ((x_t - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()).clamp(-1, 1)


def eps_from_x0(x_t: Tensor, x0: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the noise, (B, C, H, W), that leads from the noisy image to x0 by `x0_from_eps`."""
    return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


def add_noise(x0: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return x_t, (B, C, H, W): x0 in [-1, 1] with the noise eps of step t (the forward process)."""
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps


def fuse(reference: Tensor, x0_diffusion: Tensor, w: Tensor) -> Tensor:
    """Return w * reference + (1 - w) * x0_diffusion; all (B, C, H, W)."""
    return w * reference + (1 - w) * x0_diffusion
