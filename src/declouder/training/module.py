"""One stage as Lightning sees it: what learns, from which samples, and how it is scored on held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from declouder.config import LPIPS_LOSS_PX, SSIM_LOSS_PX, STAGE_NAMES, StageConfig, StageName, TrainConfig
from declouder.data.samples import BatchNumbers, StageSamples
from declouder.data.training import Sample, TrainingData
from declouder.errors import ConfigError, DataError
from declouder.fusion import add_noise, eps_from_x0, x0_from_eps
from declouder.losses import CHOICE_PX, noise_loss, ssim
from declouder.metrics import GAUSSIAN, LPIPS_SMALLEST_PX
from declouder.model_folder import NETWORKS
from declouder.perceptual import PerceptualLoss, log_perceptual
from declouder.pipeline import CloudRemovalPipeline, make_scheduler
from declouder.training.networks import build_networks, make_pipeline
from declouder.training.stages import STAGES, Batch

PICTURED = 6
"""Held-out pairs, evenly spread over all, that are shown in the pictures of a run."""

PICTURED_T = 200
"""The step whose x0 from the diffusion alone is shown: of the reference image, noised to this step."""

COLUMNS = ("cloudy", "reference", "x0_diffusion", "w", "restored", "clear")
"""What a row of the pictures shows in the stages that have all of it; w is the share of the reference."""


class StageModule(L.LightningModule):  # type: ignore[misc]
    """The networks of one stage: those that learn, their running average, and those that are frozen.

    Attributes:
        teacher: with `keep_to`, the reference network that it names, frozen; else None.
        begins_learnt: whether some of what learns begins with weights that an earlier training has left.
    """

    def __init__(self, name: StageName, config: TrainConfig, data: TrainingData) -> None:
        super().__init__()
        self.stage, self.settings, self.config = STAGES[name], config.stages[name], config
        networks = build_networks(config)
        self.learning = nn.ModuleDict({key: networks[key] for key in self.stage.learns})
        self.frozen = nn.ModuleDict({key: networks[key] for key in self.stage.takes_over})
        self.frozen.requires_grad_(False)
        _freeze_all_but(self.learning, self.settings.only, stage=name)
        self.teacher: nn.Module | None = None
        self.begins_learnt = self.stage.goes_on
        self.averaged = AveragedModel(self.learning, multi_avg_fn=_ramped_average(self.settings.ema))
        self.averaged.requires_grad_(False)
        self.samples = StageSamples(data, self.settings, seed=_stage_seed(config.seed, name))
        self.held_out = data.held_out(config.seed)
        self.learns_all_pairs = bool(data.pairs) and not data.held_pairs
        weighs = self.settings.perceptual_weight > 0 or self.settings.log_perceptual_weight > 0
        self.perceptual = PerceptualLoss(config.model.bands) if weighs else None
        if self.stage.scored_by != "noise":
            self._check_whole_images(data)
        alphas_cumprod = make_scheduler(config.model.sampler).alphas_cumprod
        self.register_buffer("alphas_cumprod", alphas_cumprod.clone(), persistent=False)

    def network(self, name: str) -> Any:
        """Return a network as it learns, or frozen."""
        return self.learning[name] if name in self.learning else self.frozen[name]

    def kept(self, name: str) -> Any:
        """Return a network as it will be kept: its running average, or frozen."""
        return cast(nn.ModuleDict, self.averaged.module)[name] if name in self.learning else self.frozen[name]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the stage's loss, a scalar."""
        loss = self.stage.loss(self, batch)
        if not torch.isfinite(loss):
            raise DataError(
                f"the loss is {loss.item()} at step {self.global_step}; lower the stage's lr or set clip_norm, and"
                f" check the images for NaN; if --resume ends here again, its checkpoint is spoilt: remove the"
                f" stage's folder to begin it anew"
            )
        self.log("loss", loss.detach(), prog_bar=True, logger=False, on_step=True, on_epoch=False)
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take a step and move the running average, both before any callback scores or saves."""
        super().optimizer_step(*arguments, **options)
        self.averaged.update_parameters(self.learning)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and the learning rate's course over the stage's steps."""
        s = self.settings
        learning = [parameter for parameter in self.learning.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=s.lr, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, s))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give what goes on the recipe's learning rate and weight decay, which may have changed since.

        Raises:
            DataError: if the checkpoint's tensors are not those of this stage.
        """
        _check_tensors(checkpoint["state_dict"], self.state_dict(), self.trainer.ckpt_path)
        s = self.settings
        for schedule, optimizer in zip(checkpoint["lr_schedulers"], checkpoint["optimizer_states"], strict=True):
            lr = s.lr * _lr_factor(schedule["last_epoch"], s)
            schedule["base_lrs"] = [s.lr for _ in schedule["base_lrs"]]
            schedule["_last_lr"] = [lr for _ in schedule["base_lrs"]]
            for group in optimizer["param_groups"]:
                group |= {"lr": lr, "initial_lr": s.lr, "weight_decay": s.weight_decay}

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the endless batches from the current step on."""
        s, workers = self.settings, self.config.data.workers
        numbers = BatchNumbers(
            s.batch,
            start=self.global_step * s.accumulate,
            rank=self.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(
            cast(Any, self.samples),
            batch_sampler=cast(Any, numbers),
            num_workers=workers,
            persistent_workers=False,
            pin_memory=self.device.type == "cuda",
        )

    def noisy(self, batch: Batch, reference: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw a step and noise for each sample: (x_t, eps, t (B,), alpha_bar (B, 1, 1, 1)).

        x_t is the clear image with noise, or `reference` with noise where the stage says so; eps is always the
        one that leads from x_t to the clear image.
        """
        clear = batch["clear"]
        drawn = [self._draw(seed, clear) for seed in batch["seed"].tolist()]
        t = torch.stack([step for step, _ in drawn]).to(clear.device)
        noise = torch.stack([eps for _, eps in drawn]).to(clear.device)
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        if reference is None or self.settings.noised == "clear":
            return add_noise(clear, noise, alpha_bar), noise, t, alpha_bar
        x_t = add_noise(reference, noise, alpha_bar)
        return x_t, eps_from_x0(x_t, clear, alpha_bar), t, alpha_bar

    def _draw(self, seed: int, clear: Tensor) -> tuple[Tensor, Tensor]:
        # Drawn sample by sample: a sample's noise is the same in any batch, on any number of processes.
        generator = torch.Generator(device=clear.device).manual_seed(seed)
        t = torch.randint(self.settings.max_t, (), generator=generator, device=clear.device)
        return t, torch.randn(clear.shape[1:], generator=generator, device=clear.device)

    def pipeline(self) -> CloudRemovalPipeline:
        """Return the pipeline of the networks as they will be kept; stages that have all three only."""
        return make_pipeline(self.config, {name: self.kept(name) for name in NETWORKS})

    @torch.no_grad()
    def score(self) -> tuple[dict[str, float], list[Tensor]]:
        """Return mean scores on the held-out pairs, and rows of pictures, (C, H, k*W) in [0, 1].

        A row shows `columns` from left to right.

        `score` is what the best checkpoint is chosen by; larger is better: PSNR, or where LPIPS is in the loss, the
        parts of L1 and LPIPS of that loss, or where only noise is learnt, that loss, each with its sign turned.
        """
        rows: list[Tensor] = []
        found: list[dict[str, float]] = []
        restores = self._restorer()
        shown = set(np.linspace(0, len(self.held_out) - 1, PICTURED).round().astype(int).tolist())
        for place, sample in enumerate(self.held_out):
            cloudy, clear = (torch.from_numpy(sample[key])[None].to(self.device) for key in ("cloudy", "clear"))
            if restores is None:
                found.append({"noise_loss": self._held_out_noise_loss(cloudy, clear, sample["seed"])})
                continue
            images = restores(cloudy, sample["seed"])
            found.append(self._scores_of(images, clear))
            if place in shown:
                if "restored" in images:
                    images["x0_diffusion"] = self._x0_diffusion(cloudy, images["reference"], sample["seed"])
                rows.append(self._row({"cloudy": cloudy, **images, "clear": clear}))
        scores = {name: float(np.mean([of_one[name] for of_one in found])) for name in found[0]}
        scores["score"] = self._score_of(scores)
        return scores, rows

    def _scores_of(self, images: dict[str, Tensor], clear: Tensor) -> dict[str, float]:
        """Return what one held-out image's reference and restored image are worth, (1, C, H, W) in [-1, 1]."""
        scores: dict[str, float] = {}
        for name in ("reference", "restored"):
            if name not in images:
                continue
            image = images[name].float()
            error = (image - clear).square().mean() / 4  # [-1, 1] has twice the range of [0, 1]
            scores[f"{name}_psnr"] = float(-10 * error.clamp_min(1e-10).log10())
            scores[f"{name}_ssim"] = float(ssim(images[name], clear))
            if self.perceptual is not None:
                distance = self.perceptual(image, clear)
                scores[f"{name}_lpips"] = float(distance.mean())
                scores[f"{name}_ln_lpips"] = float(log_perceptual(distance))
                scores[f"{name}_l1"] = float((image - clear).abs().mean())
        return scores

    def _row(self, images: dict[str, Tensor]) -> Tensor:
        """Return the images of `columns` side by side, (C, H, k*W) in [0, 1]."""
        row = torch.cat([images[name] for name in self.columns], dim=-1)[0]
        return (row.float().cpu() + 1) / 2

    def _score_of(self, scores: dict[str, float]) -> float:
        if "noise_loss" in scores:
            return -scores["noise_loss"]
        main = self.stage.scored_by
        if self.perceptual is None:
            return scores[f"{main}_psnr"]
        s = self.settings
        perceptual = s.perceptual_weight * scores[f"{main}_lpips"]
        perceptual += s.log_perceptual_weight * scores[f"{main}_ln_lpips"]
        return -scores[f"{main}_l1"] - perceptual

    @property
    def measured_by(self) -> dict[str, Any]:
        """The fields of the recipe that `score` depends on: by other values of theirs it is another measure."""
        fields: tuple[str, ...] = ()
        if self.stage.scored_by == "noise":
            fields = ("max_t", "patch_px", "downscale")
        elif self.perceptual is not None:
            fields = ("perceptual_weight", "log_perceptual_weight")
        return {field: getattr(self.settings, field) for field in fields}

    def _restorer(self) -> Callable[[Tensor, int], dict[str, Tensor]] | None:
        if self.stage.scored_by == "noise":
            return None  # a denoiser alone restores nothing yet
        if self.stage.scored_by == "reference":
            return lambda cloudy, seed: {"reference": self.kept("reference")(cloudy)}
        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)

        def restore(cloudy: Tensor, seed: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            result = pipeline((cloudy + 1) / 2, generator=generator, output_type="pt")
            return {
                "reference": result.reference * 2 - 1,
                "restored": result.images * 2 - 1,
                "w": result.weights.clamp(0, 1) * 2 - 1,
            }

        return restore

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row of the stage's pictures shows, from left to right."""
        return COLUMNS if self.stage.scored_by == "restored" else ("cloudy", "reference", "clear")

    def _check_whole_images(self, data: TrainingData) -> None:
        """Raise DataError if whole images are too small for scores or losses: now, not in the middle of a run."""
        least = len(GAUSSIAN) if self.perceptual is None else LPIPS_SMALLEST_PX
        _check_sizes(data.held_out_sizes(), least, "the scores of held-out images need")
        if self.settings.patch_px is not None:
            return
        seen = {
            "LPIPS in the loss": LPIPS_LOSS_PX if self.perceptual is not None else 0,
            "SSIM in the loss": SSIM_LOSS_PX if self.settings.ssim_weight > 0 else 0,
            "choice_weight": CHOICE_PX if self.settings.choice_weight > 0 else 0,
        }
        what, least = max(seen.items(), key=lambda item: item[1])
        _check_sizes(self.samples.sizes(), least, f"{what} needs", smaller_by=self.settings.downscale)

    def _x0_diffusion(self, cloudy: Tensor, reference: Tensor, seed: int) -> Tensor:
        """Return what the denoiser alone makes of the reference image, noised to step `PICTURED_T`."""
        alpha_bar = self.alphas_cumprod[PICTURED_T]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(reference.shape, generator=generator, device="cpu").to(reference)
        x_t = add_noise(reference, noise, alpha_bar)
        t = torch.full((cloudy.shape[0],), PICTURED_T, device=cloudy.device)
        eps = self.kept("denoiser")(torch.cat([x_t, cloudy], dim=1), t)
        return x0_from_eps(x_t, eps.float(), alpha_bar)

    def _held_out_noise_loss(self, cloudy: Tensor, clear: Tensor, seed: int) -> float:
        """Mean noise loss over ten fixed steps of [0, max_t), at the size that the stage trains on."""
        factor = self.settings.downscale
        cut = self.settings.patch_px and self.settings.patch_px * factor
        clear, cloudy = (_shrunk(image[..., :cut, :cut], factor) for image in (clear, cloudy))
        generator = torch.Generator(device=clear.device).manual_seed(seed)
        noise = torch.randn((10, *clear.shape[1:]), generator=generator, device=clear.device)
        # Of those that are learnt; 50, 150, ... of a thousand.
        t = (2 * torch.arange(10, device=clear.device) + 1) * self.settings.max_t // 20
        x_t = add_noise(clear, noise, self.alphas_cumprod[t].view(-1, 1, 1, 1))
        eps = self.kept("denoiser")(torch.cat([x_t, cloudy.expand(10, -1, -1, -1)], dim=1), t)
        return float(noise_loss(eps.float(), noise).mean())


def _check_tensors(found: Mapping[str, Any], wanted: Mapping[str, Tensor], path: object) -> None:
    """Raise DataError if a checkpoint's tensors are not, by name and shape, those of its stage."""
    for name in [*wanted, *found]:
        there, here = (
            f"{name} of shape {[*value.shape]}" if isinstance(value, Tensor) else f"no {name}"
            for value in (found.get(name), wanted.get(name))
        )
        if there != here:
            raise DataError(
                f"{path} has {there}, and this stage {here}; put its own back, or remove it to begin the stage anew"
            )


def _check_sizes(
    sizes: Iterable[tuple[str, tuple[int, int]]], least: int, whose: str, *, smaller_by: int = 1
) -> None:
    for name, (height, width) in sizes:
        if min(height, width) // smaller_by < least:
            smaller = "" if smaller_by == 1 else f" after being made smaller by {smaller_by} (downscale)"
            raise DataError(f"{name} is {width} x {height}, and {whose} {least} px{smaller}; leave it out")


def _freeze_all_but(networks: nn.ModuleDict, parts: list[str], *, stage: StageName) -> None:
    """Leave only those parameters to learn whose names, within their network, begin with one of `parts`, if any.

    Raises:
        ConfigError: if there is no such parameter.
    """
    names = [name for network in networks.values() for name, _ in network.named_parameters()]
    for part in parts:
        if not any(_is_of(name, part) for name in names):
            known = sorted({name.split(".")[0] for name in names})
            raise ConfigError(
                f"stages.{stage}.only: no network of this stage has a part {part!r}; there are {', '.join(known)}"
            )
    if parts:
        for network in networks.values():
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(any(_is_of(name, part) for part in parts))


def _is_of(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _shrunk(images: Tensor, factor: int) -> Tensor:
    """Return (B, C, H / factor, W / factor)."""
    if factor == 1:
        return images
    size = (images.shape[-2] // factor, images.shape[-1] // factor)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


def _ramped_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Return an exponential moving average whose decay ramps up, so that short runs forget their start.

    By the ramp of diffusers' `EMAModel`: (1 + n) / (10 + n) after n steps, until it reaches `decay`.
    """

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


def _lr_factor(step: int, settings: StageConfig) -> float:
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "constant":
        return warm
    progress = min(1.0, step / settings.steps)
    return warm * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * progress))))


def _stage_seed(seed: int, name: StageName) -> int:
    return seed * len(STAGE_NAMES) + STAGE_NAMES.index(name)
