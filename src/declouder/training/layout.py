"""The layout of a run's folder: what a stage leaves in its own, RUN/STAGE, besides the model in RUN/model."""

from __future__ import annotations

from pathlib import Path

from declouder.config import StageName

FINISHED = "finished"
"""The file that a stage writes last."""
CHECKPOINT = "last.ckpt"
"""What a stage that was stopped goes on from."""


def is_finished(run: Path, stage: StageName) -> bool:
    """Return whether a stage of a run has taken all of its steps, and kept what it learnt."""
    return (run / stage / FINISHED).exists()


def checkpoint_of(run: Path, stage: StageName) -> Path:
    """Return the checkpoint of a stage of a run, whether it is there or not."""
    return run / stage / CHECKPOINT
