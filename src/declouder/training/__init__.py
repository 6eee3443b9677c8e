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
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch

from declouder.config import STAGE_NAMES, StageName, TrainConfig
from declouder.data.training import TrainingData
from declouder.errors import ConfigError
from declouder.training.callbacks import (
    AtomicCheckpointIO,
    LossLog,
    OnStep,
    RunTimer,
    ScoreLog,
    StepKeeper,
    StepReport,
)
from declouder.training.layout import FINISHED, checkpoint_of, is_finished
from declouder.training.module import StageModule
from declouder.training.networks import (
    begin_with,
    check_networks,
    earlier_folder,
    export,
    frozen_network,
    start_folder,
    take_over,
)
from declouder.training.record import commit_of_source, write_record
from declouder.training.resuming import (
    begin_run,
    begin_stage,
    check_begun,
    check_kept,
    check_later,
    check_order,
    check_run,
    one_run_in,
)
from declouder.training.stages import STAGES
from declouder.training.surroundings import (
    MAKE_ROOM,
    check_devices,
    check_nodes,
    is_first_process,
    lightning_precision,
    one_line_errors,
    quiet_lightning,
    tensorboard_logger,
)
from declouder.whole_files import write_text

__all__ = ["STAGES", "StageModule", "TrainingReport", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingReport:
    """How a call of `train` ended."""

    stage: StageName
    steps: int
    finished: bool
    """False if the time ran out first: continue with resume. True too if patience ended the stage early."""
    scores: dict[str, float]
    """Of the weights that were kept, on held-out pairs; on some that were learnt from where none is held out."""
    seconds: float
    held_out: bool
    """Whether the scores are on images that nothing was learnt from."""


def train(
    config: TrainConfig,
    out: Path,
    *,
    stages: Sequence[StageName] = STAGE_NAMES,
    resume: bool = False,
    max_time_s: float | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    on_step: OnStep | None = None,
) -> list[TrainingReport]:
    """Run stages one after the other, and leave a pipeline folder in `out/model`.

    Args:
        config: the recipe.
        out: the run's folder; made if need be.
        stages: which of `STAGE_NAMES`; those that the recipe does not have are an error.
        resume: continue from the last checkpoints; finished stages are passed over.
        max_time_s: stop cleanly after this many seconds of this call, with a checkpoint, but not without a step.
        device: Lightning's accelerator: auto, cpu, cuda or mps.
        devices: how many of them on each machine.
        nodes: how many machines train together, each of which runs this with the same arguments and sees `out`.
        on_step: called in the first process with the stage, its steps done, its steps in all, and the loss, which
            is None before the first step.

    Returns:
        A report for each stage that was run; none in the further processes of several devices.

    Raises:
        ConfigError: if the recipe lacks a stage.
        DataError: if the data do not fit, are others than when a stage was begun, or a checkpoint is damaged.
        OutputError: if `out` holds a run already and `resume` is not set, or another run is at work in it.
        ModelError: if a stage needs a network that no earlier stage leaves or has left, or is to learn what a later
            stage has learnt from already.
        OptionError: if there are several nodes and nothing tells this one about the others, or fewer devices than
            asked for; if several are asked for at a prompt; if the device's memory does not hold a step.
    """
    check_nodes(nodes, devices)
    check_devices(devices, device)
    lightning_precision(config.precision, device)
    for name in stages:
        if name not in config.stages:
            raise ConfigError(f"the recipe has no stage {name!r}; it has {', '.join(config.stages)}")
    check_order(config, out, stages)
    first_process = is_first_process()
    commit_of_source()
    deadline = None if max_time_s is None else time.monotonic() + max_time_s
    with one_run_in(out) if first_process else contextlib.nullcontext():
        data, left = _checked(config, out, stages, resume=resume)
        run = _Run(config, data, out, resume, device, devices, nodes, on_step)
        reports = _run_stages(run, left, deadline=deadline)
    return reports if first_process else []


def _checked(
    config: TrainConfig, out: Path, stages: Sequence[StageName], *, resume: bool
) -> tuple[TrainingData, list[StageName]]:
    """Return the data, and the stages that are not finished, once it is sure that they can run in `out`."""
    if is_first_process():
        check_run(out, config, stages, resume=resume)
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    left = [name for name in stages if not (resume and is_finished(out, name))]
    for name in left:
        StageModule(name, config, data)  # what a later stage lacks is found now, not after days
    check_kept(out, stages, left)
    if left:
        check_networks(config, out, left)
    if is_first_process():
        check_later(out, left)
        check_begun(out, data, left)
        begin_run(out, config)
    return data, left


@dataclass(frozen=True)
class _Run:
    """What all stages of a call of `train` share."""

    config: TrainConfig
    data: TrainingData
    out: Path
    resume: bool
    device: str
    devices: int
    nodes: int
    on_step: OnStep | None


def _run_stages(run: _Run, stages: Sequence[StageName], *, deadline: float | None) -> list[TrainingReport]:
    """Run stages one after the other, until the time is up: at `deadline`, on the clock of `time.monotonic`."""
    reports: list[TrainingReport] = []
    for name in stages:
        remaining = None if deadline is None else deadline - time.monotonic()
        # The first stage takes a step all the same: a call that does nothing would be repeated without an end.
        if remaining is not None and remaining <= 0 and run.devices * run.nodes == 1 and reports:
            break
        # Clocks of several processes differ a little; Lightning's timer stops them all at one step.
        remaining = None if remaining is None else max(remaining, 0.0)
        with one_line_errors(run.out, name):
            report = _run_stage(run, name, max_time_s=remaining)
        reports.append(report)
        if not report.finished:
            break
    return reports


def _run_stage(run: _Run, name: StageName, *, max_time_s: float | None) -> TrainingReport:
    """Train a stage to its end, or until the time is up, and keep what it has learnt."""
    config, folder = run.config, run.out / name
    module = _prepared_module(run, name)
    if is_first_process():
        begin_stage(folder, run.data)
    started = time.monotonic()
    deadline = None if max_time_s is None else started + max_time_s
    scores = ScoreLog(folder, begins_learnt=module.begins_learnt, deadline=deadline)
    last = checkpoint_of(run.out, name)
    with quiet_lightning():
        trainer = _trainer(run, name, scores, max_time_s=max_time_s)
        goes_on = run.resume and last.exists()
        try:
            trainer.fit(module, ckpt_path=str(last) if goes_on else None, weights_only=False)
        except SystemExit:  # Lightning ends the program where it was interrupted
            if not trainer.interrupted:
                raise
    finished = trainer.global_step >= config.stages[name].steps or scores.stopped
    if trainer.interrupted:
        if last.exists():
            log.warning("%s: all up to its last checkpoint is kept in %s; go on with --resume", name, folder)
        raise KeyboardInterrupt
    seconds = time.monotonic() - started
    if not finished:
        with quiet_lightning():
            trainer.save_checkpoint(last)  # by all processes: they wait for each other in it
    elif trainer.is_global_zero:
        best = scores.finish(module)
        export(config, run.out, name, {part: best[part] for part in module.stage.learns})
        about = {"steps": trainer.global_step, "seconds": round(scores.seconds, 1), "scores": scores.best}
        about |= {"precision": trainer.precision, "devices": run.devices, "nodes": run.nodes}
        write_record(config, run.data, run.out / "model", name, about)
        write_text(folder / FINISHED, f"{trainer.global_step} steps\n", mend=MAKE_ROOM)
    trainer.strategy.barrier()
    return TrainingReport(name, trainer.global_step, finished, scores.best, seconds, bool(run.data.held_pairs))


def _trainer(run: _Run, name: StageName, scores: ScoreLog, *, max_time_s: float | None) -> L.Trainer:
    """Return Lightning's trainer of a stage, as the recipe and the call want it."""
    settings, folder = run.config.stages[name], run.out / name
    timer = RunTimer(duration=None if max_time_s is None else timedelta(seconds=max_time_s), interval="step")
    keeper = StepKeeper(
        dirpath=folder,
        filename="last",
        every_n_train_steps=min(settings.checkpoint_every, settings.steps),
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    told = [] if run.on_step is None else [StepReport(name, run.on_step)]
    return L.Trainer(
        accelerator=run.device,
        devices=run.devices,
        num_nodes=run.nodes,
        strategy="ddp" if run.devices * run.nodes > 1 else "auto",
        precision=lightning_precision(run.config.precision, run.device),
        max_steps=settings.steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip_norm,
        use_distributed_sampler=False,
        # The step is told before it is scored, which can take minutes.
        callbacks=[timer, keeper, LossLog(), *told, scores],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=tensorboard_logger(folder),
        default_root_dir=folder,
        log_every_n_steps=min(20, settings.steps),
    )


def _prepared_module(run: _Run, name: StageName) -> StageModule:
    """Return what is to learn, with the weights that it begins with."""
    config = run.config
    module = StageModule(name, config, run.data)
    for part in module.stage.needs:
        learns = part in module.stage.learns
        folder = earlier_folder(config, run.out, part, stage=name)
        take_over(module.network(part), folder, stage=name, learns=learns)
    if not module.stage.goes_on and config.model.start_from is not None:
        folder = start_folder(config.model.start_from)
        for part in module.stage.learns:
            if (folder / part).is_dir():
                begin_with(module.network(part), folder / part)
                module.begins_learnt = True
    if (keep_to := config.stages[name].keep_to) is not None:
        module.teacher = frozen_network(module.network("reference"), keep_to, stage=name)
    module.averaged.module.load_state_dict(module.learning.state_dict())
    # Convolutions run faster this way on GPUs and CPUs alike.
    module.to(memory_format=torch.channels_last)
    if config.compile:
        # What an earlier stage taught the compiler of sizes would not hold in this one.
        torch._dynamo.reset()
        for part in module.stage.learns:
            network: Any = module.learning[part]
            network.compile()
            if part == "reference":  # this one is trained through other ways in
                for way in ("supervised_outputs", "supervised_choices"):
                    if hasattr(network, way):
                        setattr(network, way, torch.compile(getattr(network, way)))
    return module
