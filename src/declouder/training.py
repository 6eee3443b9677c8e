"""Training in four stages, coarse to fine (Sui et al., IEEE TGRS 2024, section on training).

    stage       learns                  takes over, frozen        loss
    reference   reference network       -                         L_ref (the network's published kind)
    denoiser    denoiser                -                         L_DDPM, small patches or reduced size
    weights     weight network          reference, denoiser       L_WA, full size
    joint       denoiser + weights      reference                 lambda * L_DDPM + L_WA

`STAGES` is that table. A run is a folder: `config.yaml`, one folder a stage (checkpoints, scores.csv, pictures)
and `model/`, the pipeline folder that the stages fill. Every sample, time step and noise is a function of the
seed and the sample's number, so a resumed run ends where an uninterrupted one does.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import logging
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from declouder.config import STAGE_NAMES, StageConfig, StageName, TrainConfig, dump_config
from declouder.data.samples import BatchNumbers, Sample, StageSamples, TrainingData
from declouder.errors import ConfigError, DataError, ModelError, OutputError
from declouder.fusion import add_noise, predict_x0, x0_from_eps
from declouder.losses import fusion_loss, joint_loss, noise_loss, reference_loss, ssim
from declouder.networks import REFERENCES, Denoiser, WeightNet
from declouder.pipeline import CloudRemovalPipeline, make_scheduler
from declouder.scaling import Scaling

Batch = dict[str, Tensor]
"""cloudy, clear: (B, C, H, W) in [-1, 1]; seed: (B,) int64."""

PICTURED = 6
"""Held-out pairs that are shown in the pictures of a run."""
PICTURED_T = 200
"""The step whose x0 from the diffusion alone is shown: of the reference image, noised to this step."""
COLUMNS = ("cloudy", "reference", "x0_diffusion", "w", "restored", "clear")
"""What a row of the pictures shows in the stages that have all of it; w is the share of the reference."""

RECORD = "training.json"
"""The file in a model's folder that says how it was trained."""
RECORDED_PACKAGES = ("declouder", "torch", "lightning", "diffusers", "numpy", "scipy", "pillow", "rasterio")


@dataclass(frozen=True)
class Stage:
    """One row of the table above."""

    learns: tuple[str, ...]
    takes_over: tuple[str, ...]
    loss: Callable[[StageModule, Batch], Tensor]


@dataclass(frozen=True)
class TrainingReport:
    """How a call of `train` ended."""

    stage: StageName
    steps: int
    finished: bool
    """False if the time ran out first: continue with resume. True too if patience ended the stage early."""
    scores: dict[str, float]
    """On held-out pairs, of the weights that were kept."""
    seconds: float


def train(
    config: TrainConfig,
    out: Path,
    *,
    stages: Sequence[StageName] = STAGE_NAMES,
    resume: bool = False,
    max_time_s: float | None = None,
    device: str = "auto",
    devices: int = 1,
    quiet: bool = False,
) -> list[TrainingReport]:
    """Run stages one after the other, and leave a pipeline folder in `out/model`.

    Args:
        config: the recipe.
        out: the run's folder; made if need be.
        stages: which of `STAGE_NAMES`; those that the recipe does not have are an error.
        resume: continue from the last checkpoints; finished stages are passed over.
        max_time_s: stop cleanly after this many seconds, with a checkpoint.
        device: Lightning's accelerator: auto, cpu, cuda or mps.
        devices: how many of them.
        quiet: no progress bar.

    Returns:
        A report for each stage that was run; none in the further processes of several devices.

    Raises:
        ConfigError: if the recipe lacks a stage.
        DataError: if the data do not fit.
        OutputError: if `out` holds a run already and `resume` is not set.
        ModelError: if a stage needs a network that no earlier stage has left.
    """
    for name in stages:
        if name not in config.stages:
            raise ConfigError(f"the recipe has no stage {name!r}; it has {', '.join(config.stages)}")
    # Lightning runs the same command once more for each further device.
    first_process = getattr(rank_zero_only, "rank", 0) == 0
    if first_process:
        _open_run(out, config, stages, resume=resume)
    deadline = None if max_time_s is None else time.monotonic() + max_time_s
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    reports = []
    for name in stages:
        if resume and (out / name / "finished").exists():
            continue
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0 and devices == 1:
            break
        # Clocks of several processes differ a little; Lightning's timer stops them all at one step.
        remaining = None if remaining is None else max(remaining, 0.0)
        with _one_line_errors(out):
            report = _run_stage(
                config, data, out, name, resume, remaining, device=device, devices=devices, quiet=quiet
            )
        reports.append(report)
        if not report.finished:
            break
    return reports if first_process else []


def build_networks(config: TrainConfig) -> dict[str, nn.Module]:
    """Return new `reference`, `denoiser` and `weight_net` of a recipe; their weights follow from its seed.

    Raises:
        ConfigError: if the recipe names an unknown network or field.
    """
    model = config.model
    if model.reference.network not in REFERENCES:
        raise ConfigError(
            f"model.reference.network is {model.reference.network!r}; choose one of {', '.join(REFERENCES)}"
        )
    makers = {
        "reference": (REFERENCES[model.reference.network], model.reference.options),
        "denoiser": (Denoiser, model.denoiser),
        "weight_net": (WeightNet, model.weight_net),
    }
    networks = {}
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for name, (maker, options) in makers.items():
            try:
                networks[name] = maker(bands=len(model.bands), **options)
            except (TypeError, ValueError, ZeroDivisionError) as error:
                raise ConfigError(f"model.{name} cannot be built: {error}") from None
    return networks


class StageModule(L.LightningModule):  # type: ignore[misc]
    """The networks of one stage: those that learn, their running average, and those that are frozen."""

    def __init__(self, name: StageName, config: TrainConfig, data: TrainingData) -> None:
        super().__init__()
        self.stage, self.settings, self.config = STAGES[name], config.stages[name], config
        networks = build_networks(config)
        self.learning = nn.ModuleDict({key: networks[key] for key in self.stage.learns})
        self.frozen = nn.ModuleDict({key: networks[key] for key in self.stage.takes_over})
        self.frozen.requires_grad_(False)
        self.averaged = AveragedModel(self.learning, multi_avg_fn=_ramped_average(self.settings.ema))
        self.averaged.requires_grad_(False)
        self.samples = StageSamples(data, self.settings, seed=_stage_seed(config.seed, name))
        self.held_out = data.held_out(config.seed)
        self.scheduler = make_scheduler(config.model.sampler)
        self.register_buffer("alphas_cumprod", self.scheduler.alphas_cumprod.clone(), persistent=False)

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
                f"the loss is {float(loss)} at step {self.global_step}; lower the stage's lr or set clip_norm, and"
                f" check the images for NaN"
            )
        self.log("loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Take a step and move the running average, both before any callback scores or saves."""
        super().optimizer_step(*arguments, **options)
        self.averaged.update_parameters(self.learning)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and the learning rate's course over the stage's steps."""
        s = self.settings
        optimizer = torch.optim.AdamW(self.learning.parameters(), lr=s.lr, weight_decay=s.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, s))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

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

    def noisy(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw a step and noise for each sample: (x_t, noise, t (B,), alpha_bar (B, 1, 1, 1))."""
        clear = batch["clear"]
        drawn = [self._draw(int(seed), clear) for seed in batch["seed"]]
        t = torch.stack([step for step, _ in drawn]).to(clear.device)
        noise = torch.stack([eps for _, eps in drawn]).to(clear.device)
        alpha_bar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        return add_noise(clear, noise, alpha_bar), noise, t, alpha_bar

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

        `score` is what the best checkpoint is chosen by; larger is better.
        """
        rows: list[Tensor] = []
        sums: dict[str, list[float]] = {}
        restores = self._restorer()
        for sample in self.held_out:
            cloudy, clear = (torch.from_numpy(sample[key])[None].to(self.device) for key in ("cloudy", "clear"))
            if restores is None:
                sums.setdefault("noise_loss", []).append(self._held_out_noise_loss(cloudy, clear, sample["seed"]))
                continue
            images = restores(cloudy, sample["seed"])
            if len(rows) < PICTURED and "restored" in images:
                images["x0_diffusion"] = self._x0_diffusion(cloudy, images["reference"], sample["seed"])
            for name in ("reference", "restored"):
                if name not in images:
                    continue
                image = images[name]
                error = (image.float() - clear).square().mean() / 4  # [-1, 1] has twice the range of [0, 1]
                sums.setdefault(f"{name}_psnr", []).append(float(-10 * error.clamp_min(1e-10).log10()))
                sums.setdefault(f"{name}_ssim", []).append(float(ssim(image, clear)))
            if len(rows) < PICTURED:
                shown = {"cloudy": cloudy, **images, "clear": clear}
                row = torch.cat([shown[name] for name in self.columns], dim=-1)[0]
                rows.append((row.float().cpu() + 1) / 2)
        scores = {name: float(np.mean(values)) for name, values in sums.items()}
        main = "restored_psnr" if "restored_psnr" in scores else "reference_psnr"
        scores["score"] = -scores["noise_loss"] if restores is None else scores[main]
        return scores, rows

    def _restorer(self) -> Callable[[Tensor, int], dict[str, Tensor]] | None:
        if self.stage.learns == ("reference",):
            return lambda cloudy, seed: {"reference": self.kept("reference")(cloudy)}
        if not self.stage.takes_over:
            return None  # a denoiser alone restores nothing yet
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
        return COLUMNS if "weight_net" in self.stage.learns else ("cloudy", "reference", "clear")

    def _x0_diffusion(self, cloudy: Tensor, reference: Tensor, seed: int) -> Tensor:
        """Return what the denoiser alone makes of the reference image, noised to step `PICTURED_T`."""
        alpha_bar = self.alphas_cumprod[PICTURED_T]
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(reference.shape, generator=generator).to(reference)
        x_t = add_noise(reference, noise, alpha_bar)
        t = torch.full((cloudy.shape[0],), PICTURED_T, device=cloudy.device)
        eps = self.kept("denoiser")(torch.cat([x_t, cloudy], dim=1), t)
        return x0_from_eps(x_t, eps.float(), alpha_bar)

    def _held_out_noise_loss(self, cloudy: Tensor, clear: Tensor, seed: int) -> float:
        """Mean noise loss over ten fixed steps, at the size that the stage trains on."""
        factor = self.settings.downscale
        cut = self.settings.patch_px and self.settings.patch_px * factor
        clear, cloudy = (_shrunk(image[..., :cut, :cut], factor) for image in (clear, cloudy))
        generator = torch.Generator(device=clear.device).manual_seed(seed)
        noise = torch.randn((10, *clear.shape[1:]), generator=generator, device=clear.device)
        t = torch.arange(50, 1000, 100, device=clear.device)
        x_t = add_noise(clear, noise, self.alphas_cumprod[t].view(-1, 1, 1, 1))
        eps = self.kept("denoiser")(torch.cat([x_t, cloudy.expand(10, -1, -1, -1)], dim=1), t)
        return float(noise_loss(eps.float(), noise).mean())


def _shrunk(images: Tensor, factor: int) -> Tensor:
    """Return (B, C, H / factor, W / factor)."""
    if factor == 1:
        return images
    size = (images.shape[-2] // factor, images.shape[-1] // factor)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)


def reference_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_ref of the reference network's supervised outputs."""
    s = module.settings
    outputs = [y.float() for y in module.network("reference").supervised_outputs(batch["cloudy"])]
    return reference_loss(outputs, batch["clear"], edge_weight=s.edge_weight, ssim_weight=s.ssim_weight)


def denoiser_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_DDPM."""
    x_t, noise, t, _ = module.noisy(batch)
    eps = module.network("denoiser")(torch.cat([x_t, batch["cloudy"]], dim=1), t)
    return noise_loss(eps.float(), noise).mean()


def weights_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_WA; x0_diffusion comes from a frozen denoiser."""
    return _fused_stage_loss(module, batch, lambda eps, noise, fused, clear: fusion_loss(fused, clear))


def joint_stage_loss(module: StageModule, batch: Batch) -> Tensor:
    """L_joint; as in the authors' code, the fusion loss does not reach the denoiser through x0_diffusion."""
    weight = module.settings.noise_weight
    return _fused_stage_loss(
        module,
        batch,
        lambda eps, noise, fused, clear: joint_loss(eps, noise, fused, clear, noise_weight=weight),
    )


def _fused_stage_loss(
    module: StageModule, batch: Batch, loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    x_t, noise, t, alpha_bar = module.noisy(batch)
    with torch.no_grad():
        reference = module.network("reference")(batch["cloudy"]).float()
    prediction = predict_x0(
        module.network("denoiser"),
        module.network("weight_net"),
        x_t=x_t,
        cloudy=batch["cloudy"],
        reference=reference,
        t=t,
        alpha_bar=alpha_bar,
        w_bounds=None,
        detach_x0_diffusion=True,
    )
    return loss(prediction.eps.float(), noise, prediction.x0.float(), batch["clear"]).mean()


NETWORKS = ("reference", "denoiser", "weight_net")

STAGES: dict[StageName, Stage] = {
    "reference": Stage(("reference",), (), reference_stage_loss),
    "denoiser": Stage(("denoiser",), (), denoiser_stage_loss),
    "weights": Stage(("weight_net",), ("reference", "denoiser"), weights_stage_loss),
    "joint": Stage(("denoiser", "weight_net"), ("reference",), joint_stage_loss),
}


def make_pipeline(config: TrainConfig, networks: dict[str, Any]) -> CloudRemovalPipeline:
    """Return the pipeline of a recipe around its three networks."""
    model = config.model
    return CloudRemovalPipeline(
        **networks,
        scheduler=make_scheduler(model.sampler),
        bands=model.bands,
        w_bounds=model.w_bounds,
        num_inference_steps=model.num_inference_steps,
        strength=model.strength,
    )


def _run_stage(
    config: TrainConfig,
    data: TrainingData,
    out: Path,
    name: StageName,
    resume: bool,
    max_time_s: float | None,
    *,
    device: str,
    devices: int,
    quiet: bool,
) -> TrainingReport:
    module = StageModule(name, config, data)
    for part in (*module.stage.takes_over, *(module.stage.learns if name == "joint" else ())):
        _take_over(module.network(part), out / "model" / part, stage=name)
    if name == "joint":
        module.averaged.module.load_state_dict(module.learning.state_dict())
    # Convolutions run faster this way on GPUs and CPUs alike.
    module.to(memory_format=torch.channels_last)
    if config.compile:
        for part in module.stage.learns:
            network: Any = module.learning[part]
            network.compile()
            if part == "reference":  # this one is trained through another way in
                network.supervised_outputs = torch.compile(network.supervised_outputs)
    settings, folder = config.stages[name], out / name
    timer = Timer(duration=None if max_time_s is None else timedelta(seconds=max_time_s), interval="step")
    keeper = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        every_n_train_steps=min(settings.checkpoint_every, settings.steps),
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    scores = ScoreLog(folder)
    started = time.monotonic()
    last = folder / "last.ckpt"
    with _quiet_lightning():
        trainer = L.Trainer(
            accelerator=device,
            devices=devices,
            precision=_precision(config.precision, device),
            max_steps=settings.steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip_norm,
            use_distributed_sampler=False,
            callbacks=[timer, keeper, scores, *([] if quiet else [StepBar(name)])],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=_logger(folder),
            default_root_dir=folder,
            log_every_n_steps=20,
        )
        trainer.fit(module, ckpt_path=str(last) if resume and last.exists() else None, weights_only=False)
    finished = trainer.global_step >= settings.steps or scores.stopped
    if trainer.interrupted:
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    if not finished:
        trainer.save_checkpoint(last)  # by all processes: they wait for each other in it
    elif trainer.is_global_zero:
        best = scores.finish(trainer, module)
        _export(config, out, {part: best[part] for part in module.stage.learns})
        about = {"steps": trainer.global_step, "seconds": round(seconds, 1), "scores": scores.best}
        _record(config, data, out / "model", name, {**about, "precision": trainer.precision, "devices": devices})
        (folder / "finished").write_text(f"{trainer.global_step} steps\n", encoding="utf-8")
    trainer.strategy.barrier()
    return TrainingReport(name, trainer.global_step, finished, scores.best, seconds)


class ScoreLog(Callback):  # type: ignore[misc]
    """Scores and pictures on held-out pairs: a row of scores.csv and a PNG each time; remembers the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: dict[str, float] = {}
        self.stopped = False
        """Whether the stage's patience has run out."""
        self._best_weights: dict[str, dict[str, Tensor]] = {}
        self._scored_step = -1
        self._without_better = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "best": self.best,
            "weights": self._best_weights,
            "scored_step": self._scored_step,
            "without_better": self._without_better,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best, self._best_weights = state_dict["best"], state_dict["weights"]
        self._scored_step = state_dict["scored_step"]
        # Checkpoints of older versions lack these two.
        self._without_better = state_dict.get("without_better", 0)
        self.stopped = state_dict.get("stopped", False)

    def on_train_start(self, trainer: L.Trainer, module: StageModule) -> None:
        """A run that was killed after its patience had run out has nothing left to do."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_batch_end(self, trainer: L.Trainer, module: StageModule, *_: Any) -> None:
        """Score every `validate_every` steps, and at the last one."""
        step, settings = trainer.global_step, module.settings
        due = step % settings.validate_every == 0 or step == settings.steps
        if due and step != self._scored_step:
            self._scored_step = step
            if trainer.is_global_zero:
                self._score(trainer, module)
                self.stopped = settings.patience is not None and self._without_better >= settings.patience
            self.stopped = trainer.strategy.broadcast(self.stopped)
            trainer.should_stop = trainer.should_stop or self.stopped

    def finish(self, trainer: L.Trainer, module: StageModule) -> dict[str, nn.Module]:
        """Return the learnt networks with the weights that scored best."""
        networks = {}
        for name, weights in self._best_weights.items():
            network = module.kept(name)
            network.load_state_dict(weights)
            networks[name] = network
        return networks

    def _score(self, trainer: L.Trainer, module: StageModule) -> None:
        scores, rows = module.score()
        self._without_better += 1
        if not self.best or scores["score"] > self.best["score"]:
            self.best = {"step": trainer.global_step, **scores}
            self._without_better = 0
            self._best_weights = {
                name: {key: value.detach().cpu().clone() for key, value in module.kept(name).state_dict().items()}
                for name in module.stage.learns
            }
        for name, value in scores.items():
            if name != "score":
                module.log(f"held_out/{name}", value, rank_zero_only=True)
        _append_row(self.folder / "scores.csv", {"step": trainer.global_step, **scores})
        if rows:
            sheet = _sheet_of(rows)
            path = self.folder / "pictures" / f"{trainer.global_step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(path)
            if trainer.logger is not None:
                tag = "held_out/" + "-".join(module.columns)
                trainer.logger.experiment.add_image(tag, sheet, trainer.global_step, dataformats="HWC")


class StepBar(Callback):  # type: ignore[misc]
    """A bar on stderr: stage, steps done of all, loss, time gone and left."""

    def __init__(self, stage: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as TimeGoneColumn
        from rich.progress import TimeRemainingColumn as TimeLeftColumn

        self._stage = stage
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeGoneColumn(),
            TextColumn("gone,"),
            TimeLeftColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
        )
        self._task: Any = None

    def on_train_start(self, trainer: L.Trainer, module: StageModule) -> None:
        """Show the bar, of a resumed run from where it goes on."""
        if trainer.is_global_zero:
            # Done steps of an earlier run must not count as fast ones.
            self._task = self._bar.add_task(self._stage, total=module.settings.steps, loss="-")
            self._bar.update(self._task, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: StageModule, *_: Any) -> None:
        """Move it on."""
        if self._task is not None:
            loss = trainer.progress_bar_metrics.get("loss")
            shown = "-" if loss is None else f"{float(loss):.4g}"
            self._bar.update(self._task, completed=trainer.global_step, loss=shown)

    def on_train_end(self, trainer: L.Trainer, module: StageModule) -> None:
        """Leave it as it is."""
        self._bar.stop()

    def on_exception(self, trainer: L.Trainer, module: StageModule, exception: BaseException) -> None:
        """Leave it as it is; the error is told below it."""
        self._bar.stop()


class AtomicCheckpointIO(TorchCheckpointIO):  # type: ignore[misc]
    """Writes a checkpoint beside its name and renames it: a kill while writing leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            OutputError: if it cannot be written; the previous checkpoint stays as it was.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(".unfinished")
        try:
            with unfinished.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except (OSError, RuntimeError) as error:  # torch.save tells a full disk by a RuntimeError
            unfinished.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise OutputError(f"checkpoint {target} cannot be written ({reason}); free some room") from error


def _open_run(out: Path, config: TrainConfig, stages: Sequence[StageName], *, resume: bool) -> None:
    """Make the run's folder; refuse to mix two runs in one."""
    begun = [name for name in stages if (out / name).exists()]
    if begun and not resume:
        raise OutputError(f"{out / begun[0]} exists; continue it with --resume, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error}); choose another --out") from None


def _take_over(network: nn.Module, folder: Path, *, stage: str) -> None:
    """Load what an earlier stage has left into `network`."""
    if not folder.is_dir():
        raise ModelError(f"stage {stage!r} takes over {folder}, which does not exist; run the earlier stages first")
    try:
        earlier = type(network).from_pretrained(folder, use_safetensors=True)  # type: ignore[attr-defined]
        network.load_state_dict(earlier.state_dict())
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder} is not the network of this recipe: {reason}") from None


def _export(config: TrainConfig, out: Path, learnt: dict[str, nn.Module]) -> None:
    """Save learnt networks into `out/model`; with all three there, it becomes a pipeline folder."""
    folder = out / "model"
    for name, network in learnt.items():
        cast(Any, network).save_pretrained(folder / name)
    if all((folder / name).is_dir() for name in NETWORKS):
        networks = build_networks(config)
        for name, network in networks.items():
            _take_over(network, folder / name, stage="export")
        make_pipeline(config, networks).save_pretrained(folder)


def _record(config: TrainConfig, data: TrainingData, folder: Path, stage: StageName, about: dict[str, Any]) -> None:
    """Write beside the weights how they came to be: recipe, data, versions, commit, and each stage's scores."""
    path = folder / RECORD
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    recipe = config.model_dump(mode="json")
    del recipe["data"]["base"]  # where the data lay on this machine says nothing on another
    record = {
        "recipe": recipe,
        "data": {
            "sha256": data.fingerprint(),
            "pairs": len(data.pairs),
            "held_out_pairs": len(data.held_pairs),
            "clear_images": len(data.cloudless),
            "procedural_images": len(data.terrain),
        },
        "versions": _versions(),
        "commit": _commit(),
        "stages": {**earlier.get("stages", {}), stage: about},
    }
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _commit() -> str | None:
    """Return the git commit of declouder's own source, "+changes" if it was edited; None if it is installed."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # a folder inside some other repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints to itself; its errors come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # An endless loader without a length, and one that resumes by sample number, are meant.
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _one_line_errors(out: Path) -> Iterator[None]:
    """Turn what a loader process or a full disk says into one line."""
    try:
        yield
    except DataError as error:
        # A loader process sends its whole traceback as the message; the last line is what was raised.
        lines = str(error).strip().splitlines()
        if len(lines) < 2:
            raise
        raise DataError(lines[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OutputError(f"{out}: no space is left; free some room and go on with --resume") from error


def _ramped_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Return an exponential moving average whose decay ramps up, so that short runs forget their start."""

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


def _precision(wanted: str, device: str) -> str:
    """Return Lightning's word for a precision; "auto" takes bfloat16 only where the hardware has it."""
    if device in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        capable = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device in ("auto", "cpu"):
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        capable = False
    if wanted == "bf16" and not capable:
        raise ConfigError("precision is bf16, which this device only emulates, slowly; set precision to auto or 32")
    return "bf16-mixed" if capable and wanted != "32" else "32-true"


def _logger(folder: Path) -> Any:
    """TensorBoard where it is installed."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


def _append_row(path: Path, row: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    earlier: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            # A run that was killed after its last checkpoint comes by some steps a second time.
            earlier = [old for old in csv.DictReader(file) if int(old["step"]) < row["step"]]
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerows(earlier)
        writer.writerow({key: value if key == "step" else f"{value:.5f}" for key, value in row.items()})
    unfinished.replace(path)


def _sheet_of(rows: Sequence[Tensor]) -> NDArray[np.uint8]:
    """Return rows of images, (C, H, k*W) in [0, 1], as one image (H, W, 3) of the first three bands."""
    width = min(row.shape[-1] for row in rows)
    sheet = torch.cat([row[:3, :, :width] for row in rows], dim=1).permute(1, 2, 0).numpy()
    rgb = sheet if sheet.shape[2] == 3 else np.repeat(sheet[:, :, :1], 3, axis=2)
    return Scaling.of_dtype(np.uint8).to_dn(rgb * 2 - 1, np.uint8)
