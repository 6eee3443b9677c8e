"""A run's folder: whether a recipe goes on with the run that is there, or would make another one of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from declouder.config import STAGE_NAMES, StageName, TrainConfig, dump_config, load_config
from declouder.data.training import TrainingData
from declouder.errors import ConfigError, DataError, ModelError, OutputError, reason_of
from declouder.locks import locked
from declouder.training.layout import CHECKPOINT, FINISHED, checkpoint_of, is_finished
from declouder.training.networks import earlier_folder
from declouder.training.score_table import SCORES, check_scores
from declouder.training.stages import STAGES
from declouder.training.surroundings import MAKE_ROOM
from declouder.whole_files import remove_all_stale_parts, write_text

log = logging.getLogger(__name__)

_DATA = "data.json"
_LOCK = ".lock"
_MAY_CHANGE = ("data.base", "data.workers", "data.cache_gb")
_CHECKPOINT_HOLDS = (
    *("pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers"),
    *("epoch", "global_step"),
)
"""What is taken from a checkpoint, by Lightning or by us."""


@contextlib.contextmanager
def one_run_in(out: Path) -> Iterator[None]:
    """Make the run's folder if need be, and keep other runs out of it; one that stays empty is removed again.

    The lock is this process's alone, not its loaders': they live on for a moment where it is killed, and a run that
    goes on at once would find itself shut out.

    Raises:
        OutputError: if the folder cannot be made or written, or another run is at work in it.
    """
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = locked(out / _LOCK, doubt="see that no other run trains there", with_children=False)
    except BlockingIOError:
        raise OutputError(
            f"another run is training in {out} at this moment; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        _remove_empty(out, is_new)
        raise OutputError(
            f"{out} cannot be made or written ({error.strerror or error}); choose another --out"
        ) from None
    try:
        yield
    finally:
        (out / _LOCK).unlink(missing_ok=True)
        os.close(file)
        _remove_empty(out, is_new)


def _remove_empty(folder: Path, is_new: bool) -> None:
    """Remove a folder that was made for a run which left nothing in it."""
    if is_new:
        with contextlib.suppress(OSError):  # it holds the run
            folder.rmdir()


def check_order(config: TrainConfig, out: Path, stages: Sequence[StageName]) -> None:
    """Raise ModelError if a stage takes over a network that no stage before it leaves, or has left."""
    learnt: set[str] = set()
    for name in stages:
        stage = STAGES[name]
        for part in stage.needs:
            folder = earlier_folder(config, out, part, stage=name)
            if part in learnt or folder.is_dir():
                continue
            by = next(other for other in STAGE_NAMES if part in STAGES[other].learns)
            mend = "run the earlier stages first" if by in config.stages else f"the recipe has no stage {by}"
            if config.model.start_from is not None:
                mend += f", and model.start_from ({config.model.start_from}) has no {part}"
            raise ModelError(f"stage {name!r} takes over {folder}, which does not exist; {mend}")
        learnt.update(stage.learns)


def check_later(out: Path, stages: Sequence[StageName]) -> None:
    """Raise ModelError if one of the stages that begin anew would change what a later one has learnt from."""
    for name in stages:
        if checkpoint_of(out, name).exists():
            continue
        for later in STAGE_NAMES[STAGE_NAMES.index(name) + 1 :]:
            if (out / later).exists() and set(STAGES[later].needs) & set(STAGES[name].learns):
                raise ModelError(
                    f"stage {name!r} is to learn what stage {later!r} has learnt from; remove {out / later} first,"
                    " or choose another --out"
                )


def check_run(out: Path, config: TrainConfig, stages: Sequence[StageName], *, resume: bool) -> None:
    """Refuse to mix two runs in one folder.

    Raises:
        OutputError: if one of the stages was begun there and `resume` is not set.
        ConfigError: if stages have begun there, these or others, with a recipe that does not fit this one.
    """
    begun = [name for name in STAGE_NAMES if (out / name).exists()]
    again = [name for name in begun if name in stages]
    if again and not resume:
        raise OutputError(f"{out / again[0]} exists; continue it with --resume, or choose another --out")
    if begun:
        _check_recipe(out, config, begun)


def check_kept(out: Path, stages: Sequence[StageName], left: Sequence[StageName]) -> None:
    """Raise ModelError if a stage has finished here, and what it learnt is gone."""
    for name in stages:
        for part in STAGES[name].learns if name not in left else ():
            if not (out / "model" / part).is_dir():
                files = [str(out / other / FINISHED) for other in stages if part in STAGES[other].learns]
                raise ModelError(
                    f"stage {name!r} has finished, but {out / 'model' / part} is gone; put it back, or remove"
                    f" {' and '.join(files)} to make it of the last checkpoints"
                )


def begin_run(out: Path, config: TrainConfig) -> None:
    """Write the recipe into the run's folder, rid of what killed runs left; OutputError if that cannot be."""
    for folder in (out, out / "model", *(out / name for name in STAGE_NAMES)):
        remove_all_stale_parts(folder)
    write_text(out / "config.yaml", dump_config(config), mend="choose another --out")


def check_begun(out: Path, data: TrainingData, stages: Sequence[StageName]) -> None:
    """See that a run goes on with the data that its stages learnt from, and that its files are as it left them.

    Args:
        out: the run's folder.
        data: what is learnt from now.
        stages: those that are to go on.

    Raises:
        DataError: if a stage, finished or not, has learnt from other data, or a checkpoint, note or table of scores
            is damaged.
    """
    now = None
    for name in STAGE_NAMES:
        path = out / name / _DATA
        if not path.exists():  # not begun, or by a version that did not note it
            continue
        now = now or _noted(data)
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            count = int(earlier["pairs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}); remove it if the data are the same as before") from None
        if earlier != now:
            raise DataError(
                f"the data ({now['pairs']} pairs) are not those that {out / name} was begun with ({count} pairs);"
                f" put them back, or choose another --out"
            )
    for name in stages:
        scored: dict[str, Any] = {}
        if (path := checkpoint_of(out, name)).exists():
            scored = _checked_checkpoint(path)["callbacks"].get("ScoreLog", {})
        # Checkpoints of older versions know the columns by the best scores alone.
        check_scores(out / name / SCORES, scored.get("columns", list(scored.get("best", {}))))


def begin_stage(folder: Path, data: TrainingData) -> None:
    """Note what a stage learns from, for `check_begun`; OutputError if that cannot be written."""
    folder.mkdir(exist_ok=True)
    if not (folder / CHECKPOINT).exists():
        write_text(folder / _DATA, json.dumps(_noted(data)) + "\n", mend=MAKE_ROOM)


def _noted(data: TrainingData) -> dict[str, Any]:
    return {"sha256": data.fingerprint(), "pairs": len(data.pairs) + len(data.held_pairs)}


def _checked_checkpoint(path: Path) -> dict[str, Any]:
    """Return a stage's checkpoint, its tensors unread; DataError if a run cannot go on from it."""
    anew = "remove it to begin the stage anew"
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason_of(error)}); {anew}") from None
    except Exception:  # torch and pickle know many, and speak of themselves
        raise DataError(f"{path} is damaged or no checkpoint; {anew}") from None
    missing = [key for key in _CHECKPOINT_HOLDS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise DataError(f"{path} is no checkpoint of a training, as it holds no {missing[0]}; {anew}")
    return cast(dict[str, Any], checkpoint)


def _check_recipe(out: Path, config: TrainConfig, begun: Sequence[StageName]) -> None:
    """Refuse a recipe that would make another run of one that has begun.

    What a stage that is not finished does next may change: its steps, learning rate and samples.

    Args:
        out: the run's folder.
        config: the recipe that is to go on.
        begun: the stages that have begun there.

    Raises:
        ConfigError: naming the first field that differs and may not, or if the earlier recipe is gone or damaged.
    """
    path = out / "config.yaml"
    if not path.exists():
        trained = [name for name in begun if checkpoint_of(out, name).exists() or is_finished(out, name)]
        if not trained:
            return
        raise ConfigError(
            f"{path} is missing, so the recipe cannot be compared with that of {out / trained[0]}; put it back, or"
            " choose another --out"
        )
    try:
        earlier = load_config(path).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(
            f"{error}, so the recipe cannot be compared with it; mend it, or choose another --out"
        ) from None
    now = config.model_dump(mode="json")
    fixed: list[tuple[str, ...]] = [("seed",), ("model",), ("data",)]
    fixed += [("stages", name) for name in begun if is_finished(out, name)]
    # What learns, and the frozen network that a checkpoint holds besides.
    fixed += [("stages", name, field) for name in begun for field in ("only", "keep_to")]
    for place in fixed:
        changed = _changed(_at(earlier, place), _at(now, place), ".".join(place))
        changed = [field for field in changed if field not in _MAY_CHANGE]
        if changed:
            was, is_now = (_at(values, changed[0].split(".")) for values in (earlier, now))
            raise ConfigError(
                f"{changed[0]} was {was} when {out} was begun, and is {is_now} now; put it back, or choose another"
                f" --out"
            )
    for name in begun:
        with_lpips = [_sees_lpips(values["stages"].get(name, {})) for values in (earlier, now)]
        if with_lpips[0] != with_lpips[1]:
            raise ConfigError(
                f"stages.{name} was begun {'with' if with_lpips[0] else 'without'} LPIPS in its loss, by which its"
                f" scores are compared; put its weight back, or choose another --out"
            )


def _changed(earlier: Any, now: Any, place: str) -> list[str]:
    """Return the names of the fields that differ, as --set calls them."""
    if not (isinstance(earlier, dict) and isinstance(now, dict)):
        return [] if earlier == now else [place]
    return [
        field for key in {**earlier, **now} for field in _changed(earlier.get(key), now.get(key), f"{place}.{key}")
    ]


def _at(values: Any, place: Sequence[str]) -> Any:
    for key in place:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def _sees_lpips(stage: Mapping[str, Any]) -> bool:
    return bool(stage.get("perceptual_weight") or stage.get("log_perceptual_weight"))
