"""What goes on beside the steps: scores and pictures, reports, checkpoints that no kill can spoil."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from declouder.errors import DataError, reason_of
from declouder.rgb import rgb_places
from declouder.scaling import Scaling
from declouder.training.layout import CHECKPOINT
from declouder.training.module import StageModule
from declouder.training.score_table import SCORES, append_row
from declouder.training.surroundings import MAKE_ROOM
from declouder.whole_files import remove_stale_parts, whole_file

log = logging.getLogger(__name__)

OnStep = Callable[[str, int, int, "float | None"], None]
"""Called with a stage, its steps done, its steps in all, and the loss."""


class ScoreLog(Callback):  # type: ignore[misc]
    """Scores and pictures on held-out pairs: a row of scores.csv and a PNG each time; remembers the best.

    Args:
        folder: the stage's.
        begins_learnt: whether the stage begins with weights that have learnt: they are scored too, as step 0, so
            that a stage that makes them worse keeps them.
        deadline: when the call's time is up, on the clock of `time.monotonic`; None for never. Where scoring would
            take longer than is left, by how long it took in this call, the run stops before it: scoring is what it
            then goes on with.
    """

    def __init__(self, folder: Path, *, begins_learnt: bool = False, deadline: float | None = None) -> None:
        self.folder = folder
        self._begins_learnt = begins_learnt
        self._deadline = deadline
        self._took_s: float | None = None
        self.best: dict[str, float] = {}
        self.stopped = False
        """Whether the stage's patience has run out."""
        self._best_weights: dict[str, dict[str, Tensor]] = {}
        self._to_beat: float | None = None
        """The best score; None where there is none that the next can be compared with."""
        self._measured_by: dict[str, Any] | None = None
        self._columns: list[str] = []
        self._scored_step = -1
        self._without_better = 0
        self._earlier_s = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the stage has run, in this call and up to the checkpoints that earlier ones left."""
        return self._earlier_s + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "best": self.best,
            "to_beat": self._to_beat,
            "measured_by": self._measured_by,
            "columns": self._columns,
            "weights": self._best_weights,
            "scored_step": self._scored_step,
            "without_better": self._without_better,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.best, self._best_weights = state_dict["best"], state_dict["weights"]
        self._scored_step = state_dict["scored_step"]
        # Checkpoints of older versions lack these.
        self._to_beat = state_dict.get("to_beat", self.best.get("score"))
        self._measured_by = state_dict.get("measured_by")
        self._columns = state_dict.get("columns", list(self.best))
        self._without_better = state_dict.get("without_better", 0)
        self.stopped = state_dict.get("stopped", False)
        self._earlier_s = state_dict.get("seconds", 0.0)

    def on_train_start(self, trainer: L.Trainer, module: StageModule) -> None:
        """Score what the stage begins with; where patience had run out in a killed run, nothing is left to do."""
        if self._measured_by not in (None, module.measured_by):
            log.warning("scores are by other fields now (%s): the next is the best", ", ".join(module.measured_by))
            self._to_beat, self._without_better = None, 0
        self._measured_by = module.measured_by
        # Where all pairs are learnt from the last weights are kept, whatever their scores.
        step = trainer.global_step
        if self._begins_learnt and step == 0 and not module.learns_all_pairs:
            self._score_at(trainer, module, 0)
        if self._is_due(step, module):  # it was stopped before, or while it scored
            self._score_at(trainer, module, step)
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_train_batch_end(self, trainer: L.Trainer, module: StageModule, *_: Any) -> None:
        """Score every `validate_every` steps, and at the last one."""
        step = trainer.global_step
        if not self._is_due(step, module):
            return
        if step < module.settings.steps:  # after the last one a run that goes on would not come by here again
            # Scoring can take minutes, and Lightning saves after it.
            trainer.save_checkpoint(self.folder / CHECKPOINT)
            if trainer.strategy.broadcast(self._has_no_time()):
                trainer.should_stop = True
                return
        self._score_at(trainer, module, step)
        trainer.should_stop = trainer.should_stop or self.stopped

    def _is_due(self, step: int, module: StageModule) -> bool:
        """Return whether a step, the last one taken, is to be scored and was not yet."""
        # Batches that are summed end before the first step.
        due = step > 0 and (step % module.settings.validate_every == 0 or step == module.settings.steps)
        return due and step != self._scored_step

    def _has_no_time(self) -> bool:
        if self._deadline is None or self._took_s is None:
            return False
        return time.monotonic() + self._took_s > self._deadline

    def _score_at(self, trainer: L.Trainer, module: StageModule, step: int) -> None:
        began, patience = time.monotonic(), module.settings.patience
        self._scored_step = step
        if trainer.is_global_zero:
            self._score(trainer, module)
            self.stopped = patience is not None and self._without_better >= patience
        self.stopped = trainer.strategy.broadcast(self.stopped)
        self._took_s = time.monotonic() - began

    def finish(self, module: StageModule) -> dict[str, nn.Module]:
        """Return the learnt networks with the weights that scored best; the last, where nothing is held out.

        A run that was resumed for fewer steps than it had taken may have no score yet: then the last too.

        Raises:
            DataError: if no score was a number.
        """
        networks = {name: module.kept(name) for name in module.stage.learns}
        if self._scored_step > 0 and not self._best_weights:
            raise DataError(
                f"no score of this stage was a number, so there is nothing to keep; lower its lr or set clip_norm,"
                f" and remove {self.folder} to begin it anew"
            )
        if self.best.get("step") == 0:
            log.warning(
                "%s: no score was better than that of the weights it began with, so these are kept", self.folder
            )
        for name, weights in self._best_weights.items():
            networks[name].load_state_dict(weights)
        return networks

    def _score(self, trainer: L.Trainer, module: StageModule) -> None:
        scores, rows = module.score()
        self._without_better += 1
        # Scores on pairs that are learnt from cannot tell the best weights: the last are kept.
        score = scores["score"]
        if not math.isfinite(score):  # nothing is ever better than NaN
            log.warning("the score at step %d is %g: these weights are not kept", trainer.global_step, score)
        elif self._to_beat is None or score > self._to_beat or module.learns_all_pairs:
            self.best, self._to_beat = {"step": trainer.global_step, **scores}, score
            self._without_better = 0
            self._best_weights = {
                name: {key: value.detach().cpu().clone() for key, value in module.kept(name).state_dict().items()}
                for name in module.stage.learns
            }
        if trainer.logger is not None:  # at its own step; what a module logs, Lightning writes at every so many
            told = {f"held_out/{name}": value for name, value in scores.items() if name != "score"}
            trainer.logger.log_metrics(told, step=trainer.global_step)
        row = {"step": trainer.global_step, **scores}
        self._columns = list(row)
        append_row(self.folder / SCORES, row)
        if rows and math.isfinite(score):
            sheet = _sheet_of(rows, columns=len(module.columns), names=module.config.model.bands)
            path = self.folder / "pictures" / f"{trainer.global_step:07d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet).save(path)
            if trainer.logger is not None:
                tag = "held_out/" + "-".join(module.columns)
                trainer.logger.experiment.add_image(tag, sheet, trainer.global_step, dataformats="HWC")


class LossLog(Callback):  # type: ignore[misc]
    """Gives the logger the loss at every `log_every_n_steps`-th step, counted as the scores are.

    Lightning itself counts from 0 here, and has the loss of the last of 50 steps at step 49.
    """

    def on_train_batch_end(self, trainer: L.Trainer, module: StageModule, *arguments: Any) -> None:
        """Log the loss of a whole step."""
        step, batch_index = trainer.global_step, arguments[-1]
        if trainer.logger is None or step % trainer.log_every_n_steps or not _ends_step(trainer, batch_index):
            return
        trainer.logger.log_metrics({"loss": float(trainer.progress_bar_metrics["loss"])}, step=step)


class StepReport(Callback):  # type: ignore[misc]
    """Tells `on_step` of each step: stage, steps done, steps of all, and the loss, None before the first."""

    def __init__(self, stage: str, on_step: OnStep) -> None:
        self._stage = stage
        self._on_step = on_step

    def on_train_start(self, trainer: L.Trainer, module: StageModule) -> None:
        """Tell where a resumed run goes on."""
        self._tell(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: StageModule, *_: Any) -> None:
        """Tell of the step."""
        self._tell(trainer, module)

    def _tell(self, trainer: L.Trainer, module: StageModule) -> None:
        if trainer.is_global_zero:
            loss = trainer.progress_bar_metrics.get("loss")
            steps = module.settings.steps
            self._on_step(self._stage, trainer.global_step, steps, None if loss is None else float(loss))


class StepKeeper(ModelCheckpoint):  # type: ignore[misc]
    """Lightning's checkpoints at whole steps alone: from between the batches of one step a run could not go on.

    A resumed one has forgotten at which step it was saved, and would save again after its first batch.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after the last batch of a step, where one is due."""
        if _ends_step(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class RunTimer(Timer):  # type: ignore[misc]
    """Lightning's timer without its memory: a resumed run has all of its time, not what earlier ones left.

    It stops at whole steps, since between the batches of one step a resumed run would repeat them; the first step
    is always taken.
    """

    def on_fit_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Do not look at the clock yet."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the clock after the last batch of a step."""
        if _ends_step(trainer, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to go on with."""
        return {}


class AtomicCheckpointIO(TorchCheckpointIO):  # type: ignore[misc]
    """Writes a checkpoint beside its name and renames it: a kill while writing leaves the previous one whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`; where that cannot be, the previous one stays as it was.

        Raises:
            OutputError: if it cannot be written.
            DataError: if its weights are no numbers: from there no run could go on.
        """
        for key, value in checkpoint.get("state_dict", {}).items():
            if not torch.isfinite(value).all():
                raise DataError(
                    f"at step {checkpoint['global_step']} the weights are no numbers ({key}); lower the stage's lr"
                    " or set clip_norm, and go on from the checkpoint before with --resume"
                )
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_parts(target)
        with whole_file(target, mend=MAKE_ROOM) as part:
            try:
                torch.save(checkpoint, part)
            except RuntimeError as error:  # as which PyTorch tells that less was written than it gave
                raise OSError(f"the disk may be full: {reason_of(error)}") from error


def _ends_step(trainer: L.Trainer, batch_index: int) -> bool:
    return bool((batch_index + 1) % trainer.accumulate_grad_batches == 0)


def _sheet_of(rows: Sequence[Tensor], columns: int, names: Sequence[str]) -> NDArray[np.uint8]:
    """Return rows of images, (C, H, columns * W) in [0, 1], as one image (H, W, 3).

    It shows red, green and blue, or the first three bands where `names`, those of the bands, lack one of these.
    Images that are narrower than others have black beside them.
    """
    places = rgb_places(names) or list(range(min(3, len(names))))
    width = max(row.shape[-1] for row in rows) // columns
    aligned = [_widened(row[places], columns, width) for row in rows]
    sheet = torch.cat(aligned, dim=1).permute(1, 2, 0).numpy()
    rgb = sheet if sheet.shape[2] == 3 else np.repeat(sheet[:, :, :1], 3, axis=2)
    return Scaling.of_dtype(np.uint8).unit_to_dn(rgb, np.uint8)


def _widened(row: Tensor, columns: int, width: int) -> Tensor:
    """Return a row of images, (C, H, columns * W), as one of images `width` wide."""
    images = row.view(*row.shape[:-1], columns, -1)
    return F.pad(images, (0, width - images.shape[-1])).flatten(-2)
