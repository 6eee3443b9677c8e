"""`declouder train`: the four stages of a recipe."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from declouder.cli.app import app
from declouder.cli.bars import stage_bars
from declouder.cli.options import OUTPUT_NAMES, DebugOption, DeviceOption, QuietOption, check_device_name
from declouder.devices import resolved_device
from declouder.errors import OptionError
from declouder.model_folder import INDEX

if TYPE_CHECKING:
    from declouder.config import StageName


@app.command()
def train(
    recipe: Annotated[
        list[str],
        typer.Argument(metavar="[STAGE] CONFIG", help="A recipe, and one of its stages; all without one."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(*OUTPUT_NAMES, help="The run's folder; runs/NAME without it.", metavar="DIR"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoints.")] = False,
    max_time: Annotated[
        str | None,
        typer.Option(help="Stop by then, ready to resume: 90s, 45m, 1h30m or H:M:S.", metavar="TIME"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a field of the recipe: stages.joint.lr=1e-4.", metavar="KEY=VALUE"),
    ] = None,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option(help="How many devices of each machine train together.", metavar="N")] = 1,
    nodes: Annotated[
        int,
        typer.Option(help="How many machines train together: run the same command on each.", metavar="N"),
    ] = 1,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train the stages of a recipe.

    Leaves checkpoints, scores and pictures in the run's folder, and in its folder model/ a pipeline for
    --model. Stages: reference, denoiser, weights, joint, or all.
    """
    from declouder.config import STAGE_NAMES, load_config

    config_path, stages = _parsed_recipe(recipe)
    seconds = None if max_time is None else _parsed_seconds(max_time)
    check_device_name(device)
    for option, count in (("--devices", devices), ("--nodes", nodes)):
        if count < 1:
            raise OptionError(f"{option} is {count}; give 1 or more")
    config = load_config(config_path, overrides or [])
    folder = Path("runs") / config.name if out is None else out

    from declouder.training import train as run
    from declouder.training.layout import is_finished
    from declouder.training.surroundings import is_first_process

    if device != "auto":
        resolved_device(device)
    chosen = stages or [name for name in STAGE_NAMES if name in config.stages]
    with stage_bars(quiet=quiet, first=is_first_process()) as show:
        reports = run(
            config,
            folder,
            stages=chosen,
            resume=resume,
            max_time_s=seconds,
            device=device,
            devices=devices,
            nodes=nodes,
            on_step=show,
        )
    if quiet:
        return
    for report in reports:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in report.scores.items() if name != "score")
        if scores and not report.held_out:
            scores += "; of images that were learnt from, as none is held out"
        state = f"{'finished' if report.finished else 'stopped'} at step {report.steps} in {report.seconds:.0f} s"
        mend = "" if report.finished else "; continue with --resume"
        typer.echo(f"{report.stage}: {state}{f' ({scores})' if scores else ''}{mend}")
    if reports and reports[-1].finished:  # time may be up between two stages
        for name in chosen[chosen.index(reports[-1].stage) + 1 :]:
            if not is_finished(folder, name):
                typer.echo(f"{name}: not begun; continue with --resume")
    if is_first_process() and (folder / "model" / INDEX).exists():
        typer.echo(f"model: {folder / 'model'}")


def _parsed_recipe(words: list[str]) -> tuple[Path, list[StageName]]:
    """Return the recipe's path and the stages asked for; no stage means all that it has."""
    from declouder.config import STAGE_NAMES

    if len(words) == 1:
        return Path(words[0]), []
    if len(words) > 2:
        raise OptionError(f"{len(words)} words given; give one recipe, and one stage or all before it")
    stage, config = words
    if stage == "all":
        return Path(config), []
    known = next((name for name in STAGE_NAMES if name == stage), None)
    if known is None:
        near = difflib.get_close_matches(stage, STAGE_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of all, {', '.join(STAGE_NAMES)}"
        raise OptionError(f"there is no stage {stage!r}; {hint}")
    return Path(config), [known]


def _parsed_seconds(text: str) -> float:
    clock = re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text)
    spoken = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?|(\d+)", text)
    match = clock or spoken
    if not text or match is None:
        raise OptionError(f"--max-time is {text!r}; give a time such as 90s, 45m, 1h30m or 1:30:00")
    hours, minutes, seconds, *bare = (int(part or 0) for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds + sum(bare)
    if not 0 < total < 10**9:
        raise OptionError(f"--max-time is {text[:40]!r}; give more than nothing, and less than 30 years")
    return float(total)
