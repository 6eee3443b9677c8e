"""The four stages: which part learns, by which loss, and what it takes over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from declouder.config import StageName
from declouder.fusion import FusedPrediction, predict_x0
from declouder.losses import choice_loss, fidelity_loss, fusion_loss, joint_loss, noise_loss, reference_loss
from declouder.perceptual import log_perceptual

if TYPE_CHECKING:
    from declouder.training.module import StageModule

LPIPS_STRIDE = 4
"""Of AlexNet's first layer."""

Batch = dict[str, Tensor]
"""cloudy, clear: (B, C, H, W) in [-1, 1]; seed: (B,) int64; ambiguous: (B,) bool."""


@dataclass(frozen=True)
class Stage:
    """What a stage learns, what it takes over from earlier ones, and its loss.

    Attributes:
        learns: the networks that learn.
        takes_over: those that earlier stages have left, frozen.
        loss: of a batch.
        scored_by: what of it is compared on held-out pairs: the noise that its denoiser predicts, the reference
            image or the restored image.
        goes_on: whether earlier stages have begun what it learns.
    """

    learns: tuple[str, ...]
    takes_over: tuple[str, ...]
    loss: Callable[[StageModule, Batch], Tensor]
    scored_by: Literal["noise", "reference", "restored"]
    goes_on: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The networks that earlier stages must have left."""
        return (*self.takes_over, *(self.learns if self.goes_on else ()))


def reference_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_ref of the reference network's supervised outputs, L_choice, and the perceptual loss of the first."""
    s, clear, network = module.settings, _reference_target(module, batch), module.network("reference")
    choices = network.supervised_choices(batch["cloudy"]) if s.choice_weight else ()
    # The network's own image is supervised too: all fits of the first choice lean on it, whatever its share.
    outputs = (
        [choices[-1].mixture(), choices[0].images[0]] if choices else network.supervised_outputs(batch["cloudy"])
    )
    outputs = [y.float() for y in outputs]
    loss = reference_loss(
        outputs, clear, edge_weight=s.edge_weight, ssim_weight=s.ssim_weight, psnr_weight=s.psnr_weight
    )
    for choice in choices:
        loss = loss + s.choice_weight * choice_loss(choice.images, choice.shares, clear)
    return loss + _perceptual_loss(module, outputs[0], clear, batch)


def _reference_target(module: StageModule, batch: Batch) -> Tensor:
    """Return what the reference network is to make of the batch, (B, C, H, W) in [-1, 1].

    The clear images; of ambiguous samples, where the stage keeps to an earlier network, what that one makes of
    them (learning without forgetting: Li and Hoiem, IEEE TPAMI 2018). With the clear images for a target a network
    learns on by heart how thick the haze of each of a few pairs is, and does worse with haze of other places.
    """
    clear, unclear = batch["clear"], batch["ambiguous"]
    if module.teacher is None or not unclear.any():
        return clear
    taught = _in_float32(module.teacher, batch["cloudy"][unclear])
    target = clear.clone()
    target[unclear] = taught
    return target


def _in_float32(frozen: nn.Module, cloudy: Tensor) -> Tensor:
    """Return what a frozen network makes of the images at any precision of training, as the pipeline runs it."""
    with torch.no_grad(), torch.autocast(cloudy.device.type, enabled=False):
        made: Tensor = frozen(cloudy)
    return made


def denoiser_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_DDPM."""
    x_t, noise, t, _ = module.noisy(batch)
    eps = module.network("denoiser")(torch.cat([x_t, batch["cloudy"]], dim=1), t)
    return noise_loss(eps.float(), noise).mean()


def weights_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_WA, and what else the stage weighs; x0_diffusion comes from a frozen denoiser."""
    fused = _fused(module, batch)
    loss = fusion_loss(fused.prediction.x0.float(), fused.clear)
    return loss.mean() + _other_losses(module, fused, batch)


def joint_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_joint, and what else the stage weighs.

    As in the authors' code, the fusion loss does not reach the denoiser unless the stage says so.
    """
    fused = _fused(module, batch)
    x0, eps = fused.prediction.x0.float(), fused.prediction.eps.float()
    loss = joint_loss(eps, fused.noise, x0, fused.clear, noise_weight=module.settings.noise_weight)
    return loss.mean() + _other_losses(module, fused, batch)


class _Fused(NamedTuple):
    """What the networks say of noisy images; `noise` is the eps that would be right."""

    prediction: FusedPrediction
    noise: Tensor
    clear: Tensor


def _fused(module: StageModule, batch: Batch) -> _Fused:
    reference = _in_float32(module.network("reference"), batch["cloudy"])
    batch, reference = _square_of(batch, reference, module.settings.fused_px)
    x_t, eps, t, alpha_bar = module.noisy(batch, reference)
    prediction = predict_x0(
        module.network("denoiser"),
        module.network("weight_net"),
        x_t=x_t,
        cloudy=batch["cloudy"],
        reference=reference,
        t=t,
        alpha_bar=alpha_bar,
        w_bounds=None,
        detach_x0_diffusion=not module.settings.through_denoiser,
    )
    return _Fused(prediction, eps, batch["clear"])


def _square_of(batch: Batch, reference: Tensor, side: int | None) -> tuple[Batch, Tensor]:
    """Return the same square of each sample's images and of their reference, at a place that its seed says.

    A reference network that hears of wide surroundings needs them here as well: of a small patch it makes another
    image than of a whole one, with errors that the other networks would learn to expect.
    """
    height, width = reference.shape[-2:]
    if side is None or (side >= height and side >= width):
        return batch, reference
    # On a grid of 8 px, as whole patches begin on the grids of the networks' levels. By other digits of the seed
    # than LPIPS's corner has (`_perceptual_loss`), so that no place goes with one corner.
    places = [max(length - side, 0) // 8 + 1 for length in (height, width)]
    seeds = [seed // LPIPS_STRIDE**2 for seed in batch["seed"].tolist()]
    corners = [(seed % places[0] * 8, seed // places[0] % places[1] * 8) for seed in seeds]
    cut = [_cut(images, corners, (side, side)) for images in (batch["cloudy"], batch["clear"], reference)]
    return {**batch, "cloudy": cut[0], "clear": cut[1]}, cut[2]


def _cut(images: Tensor, corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """Return of each of (B, C, H, W) images the part of that size, or what there is of it, from its corner on."""
    parts = [
        image[:, top : top + size[0], left : left + size[1]]
        for image, (top, left) in zip(images, corners, strict=True)
    ]
    return torch.stack(parts)


def _other_losses(module: StageModule, fused: _Fused, batch: Batch) -> Tensor:
    s, x0 = module.settings, fused.prediction.x0.float()
    loss = fidelity_loss(x0, fused.clear, ssim_weight=s.ssim_weight, psnr_weight=s.psnr_weight)
    return loss + _perceptual_loss(module, x0, fused.clear, batch)


def _perceptual_loss(module: StageModule, restored: Tensor, clear: Tensor, batch: Batch) -> Tensor | float:
    if module.perceptual is None:
        return 0.0
    # LPIPS looks at every fourth pixel first. Were it always the same one of a patch, the networks, whose own grid
    # begins there too, would learn a pattern of four pixels that pleases it.
    corners = [(seed % LPIPS_STRIDE, seed // LPIPS_STRIDE % LPIPS_STRIDE) for seed in batch["seed"].tolist()]
    height, width = (length - LPIPS_STRIDE + 1 for length in restored.shape[-2:])
    shifted = [_cut(images, corners, (height, width)) for images in (restored, clear)]
    s, distance = module.settings, module.perceptual(*shifted)
    loss: Tensor = s.perceptual_weight * distance.mean()
    if s.log_perceptual_weight:
        loss = loss + s.log_perceptual_weight * log_perceptual(distance)
    return loss


STAGES: dict[StageName, Stage] = {
    "reference": Stage(("reference",), (), reference_stage_loss, "reference"),
    "denoiser": Stage(("denoiser",), (), denoiser_stage_loss, "noise"),
    "weights": Stage(("weight_net",), ("reference", "denoiser"), weights_stage_loss, "restored"),
    "joint": Stage(("denoiser", "weight_net"), ("reference",), joint_stage_loss, "restored", goes_on=True),
}
