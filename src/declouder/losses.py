"""What the networks learn from: noise, fusion and reference losses. All tensors (B, C, H, W).

    L_DDPM  = mean (eps - noise)^2                                        denoiser
    L_WA    = mean |x0 - (w * reference + (1 - w) * x0_diffusion)|        weight network
    L_joint = lambda * L_DDPM + L_WA                                      both (lambda 1 in the authors' code)

    L_ref    = sum over outputs of  Charbonnier + edge_weight * edge + ssim_weight * (1 - SSIM)
                                    + psnr_weight * ln MSE
    L_choice = - spread * ln sum over k of  share_k exp(-distance_k / spread)

Sources: Sui et al., IEEE TGRS 2024 (L_DDPM, L_WA, L_joint); Zamir et al., CVPR 2021 (Charbonnier and edge,
with 0.05 for the edges); Wang et al., IEEE TIP 2004 (SSIM); Chen et al., ECCV 2022 (ln MSE, as the PSNR);
Jacobs et al., Neural Computation 3, 1991 (L_choice: experts that compete).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHOICE_PX = 8
"""Side of the squares in which images are compared for a choice."""
CHOICE_SPREAD = 0.02
"""A difference of their mean distances in [-1, 1] that is beyond chance."""


def noise_loss(eps: Tensor, noise: Tensor) -> Tensor:
    """Return mean (eps - noise)^2 of each sample: (B,)."""
    return (eps - noise).square().mean(dim=(1, 2, 3))


def fusion_loss(fused: Tensor, clear: Tensor) -> Tensor:
    """Return mean |clear - fused| of each sample: (B,), for images in [-1, 1]."""
    return (clear - fused).abs().mean(dim=(1, 2, 3))


def joint_loss(eps: Tensor, noise: Tensor, fused: Tensor, clear: Tensor, *, noise_weight: float = 1.0) -> Tensor:
    """Return lambda * L_DDPM + L_WA of each sample: (B,); `noise_weight` is lambda."""
    return noise_weight * noise_loss(eps, noise) + fusion_loss(fused, clear)


def reference_loss(
    outputs: Sequence[Tensor],
    clear: Tensor,
    *,
    edge_weight: float = 0.05,
    ssim_weight: float = 0.0,
    psnr_weight: float = 0.0,
) -> Tensor:
    """Return the loss of a reference network, a scalar.

    Args:
        outputs: images in the range of `clear`, one for each supervised stage.
        clear: (B, C, H, W) in [-1, 1].
        edge_weight: share of the edge loss.
        ssim_weight: share of 1 - SSIM, on the first output alone.
        psnr_weight: share of the images' mean ln MSE, on the first output alone.
    """
    loss = torch.stack([charbonnier(y, clear) for y in outputs]).sum()
    if edge_weight:
        loss = loss + edge_weight * torch.stack([edge_loss(y, clear) for y in outputs]).sum()
    return loss + fidelity_loss(outputs[0], clear, ssim_weight=ssim_weight, psnr_weight=psnr_weight)


def fidelity_loss(y: Tensor, clear: Tensor, *, ssim_weight: float, psnr_weight: float) -> Tensor:
    """Return ssim_weight * (1 - SSIM) + psnr_weight * ln MSE of images in [-1, 1], a scalar."""
    loss = y.new_zeros(())
    if ssim_weight:
        loss = loss + ssim_weight * (1 - ssim(y, clear))
    if psnr_weight:
        loss = loss + psnr_weight * log_mse(y, clear)
    return loss


def choice_loss(
    images: Sequence[Tensor], shares: Tensor, clear: Tensor, *, spread: float = CHOICE_SPREAD
) -> Tensor:
    """Return L_choice, a scalar: how far the images are that the shares point to.

    A loss of the mixture alone is content when errors of many images cancel out in it; under this one the nearest
    image of a place learns most, and earns its share.

    Args:
        images: (B, C, H, W) each, in the range of `clear`.
        shares: (B, K, H, W), one for each image; their sum over K is 1.
        clear: (B, C, H, W) in [-1, 1]; H and W not less than `CHOICE_PX`.
        spread: a difference of distances that is beyond chance, in the range of `clear`.
    """
    # In squares: of single pixels any image is the nearest at some.
    distance = torch.stack([(image.float() - clear).abs().mean(dim=1) for image in images], dim=1)
    distance, shares = (F.avg_pool2d(x, CHOICE_PX) for x in (distance, shares.float()))
    evidence = (shares + 1e-6).log() - distance / spread
    return -spread * evidence.logsumexp(dim=1).mean()


def charbonnier(y: Tensor, target: Tensor) -> Tensor:
    """Return mean sqrt((y - target)^2 + 0.001^2): an L1 that is smooth at zero."""
    return ((y - target).square() + 1e-3**2).sqrt().mean()


def log_mse(y: Tensor, target: Tensor) -> Tensor:
    """Return the mean over images of ln(MSE + 1e-5), a scalar: the mean PSNR in [-1, 1] but for sign and scale.

    Every image weighs the same however large its error is: flat sea, nearly right already, goes on improving beside
    thick cloud. 1e-5 is about the error of rounding to 8 bits, beyond which nothing is to be gained.
    """
    mse = (y.float() - target.float()).square().mean(dim=(1, 2, 3))
    return (mse + 1e-5).log().mean()


def edge_loss(y: Tensor, target: Tensor) -> Tensor:
    """Return the Charbonnier distance of the Laplacians of Gaussian-blurred bands (Zamir et al. 2021)."""
    return charbonnier(_laplacian(y.float()), _laplacian(target.float()))


def ssim(y: Tensor, target: Tensor) -> Tensor:
    """Return the mean structural similarity of images in [-1, 1], a scalar, differentiable.

    As `metrics.ssim` (11 x 11 Gaussian window, sigma 1.5) of the same images in [0, 1]: its luminance is that of
    numbers counted from black.
    """
    y, target = (y.float() + 1) / 2, (target.float() + 1) / 2
    c1, c2 = 0.01**2, 0.03**2
    moments = _gaussian_blur(torch.cat([y, target, y * y, target * target, y * target]))
    mean_y, mean_t, square_y, square_t, product = moments.chunk(5)
    variance_y, variance_t = square_y - mean_y**2, square_t - mean_t**2
    covariance = product - mean_y * mean_t
    luminance = (2 * mean_y * mean_t + c1) / (mean_y**2 + mean_t**2 + c1)
    structure = (2 * covariance + c2) / (variance_y + variance_t + c2)
    return (luminance * structure).mean()


def _gaussian_blur(x: Tensor) -> Tensor:
    """Blur each band by an 11 x 11 window of sigma 1.5, without padding: (B, C, H, W) -> (B, C, H-10, W-10)."""
    offsets = torch.arange(11, device=x.device, dtype=x.dtype) - 5
    kernel = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = kernel / kernel.sum()
    return _separable_filter(x, kernel)


def _laplacian(x: Tensor) -> Tensor:
    """Return x minus its blur at half resolution and back, the edge image of MPRNet; same shape."""
    blurred = _binomial_blur(x)
    sparse = torch.zeros_like(blurred)
    sparse[:, :, ::2, ::2] = blurred[:, :, ::2, ::2] * 4
    return x - _binomial_blur(sparse)


def _binomial_blur(x: Tensor) -> Tensor:
    kernel = torch.tensor([0.05, 0.25, 0.4, 0.25, 0.05], device=x.device, dtype=x.dtype)
    # Mirrored at a pixel, so that the sparse grid of `_laplacian` goes on beyond the border.
    return _separable_filter(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel)


def _separable_filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns of each band, without padding.

    Two products with band matrices: on a CPU many times faster than convolutions of a single channel.
    """
    rows, columns = (_band_matrix(kernel, length) for length in x.shape[-2:])
    # Never in half precision, nor may callers give it: the variances of flat ground would vanish or turn negative.
    with torch.autocast(x.device.type, enabled=False):
        return rows @ x.contiguous() @ columns.T


def _band_matrix(kernel: Tensor, length: int) -> Tensor:
    """Return the (length - k + 1, length) matrix whose product with a vector filters it by `kernel`, (k,)."""
    size = kernel.numel()
    matrix = kernel.new_zeros(length - size + 1, length)
    for offset, weight in enumerate(kernel):
        matrix.diagonal(offset).fill_(weight)
    return matrix
