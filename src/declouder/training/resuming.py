"""Whether a recipe goes on with the run that it is given, or would make another one of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from declouder.config import StageName, TrainConfig, load_config
from declouder.errors import ConfigError

_MAY_CHANGE = ("data.base", "data.workers", "data.cache_gb")


def check_resumed(out: Path, config: TrainConfig, begun: Sequence[StageName]) -> None:
    """Refuse a recipe that would make another run of one that has begun.

    What a stage that is not finished does next may change: its steps, learning rate and samples.

    Args:
        out: the run's folder.
        config: the recipe that is to go on.
        begun: the stages that have begun there.

    Raises:
        ConfigError: naming the first field that differs and may not, or if what it was cannot be read.
    """
    path = out / "config.yaml"
    if not path.exists():
        return
    try:
        earlier = load_config(path).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(
            f"{error}, so the recipe cannot be compared with it; mend it, or choose another --out"
        ) from None
    now = config.model_dump(mode="json")
    fixed: list[tuple[str, ...]] = [("seed",), ("model",), ("data",)]
    fixed += [("stages", name) for name in begun if (out / name / "finished").exists()]
    fixed += [("stages", name, "only") for name in begun]
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
