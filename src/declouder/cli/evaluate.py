"""`declouder evaluate`: scores of a model, or of any method's finished images, on a set of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from declouder.cli.app import (
    DebugOption,
    DeviceOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    app,
    check_device_name,
    loaded_pipeline,
)
from declouder.errors import OptionError

SHOWN = ("psnr", "ssim", "lpips")


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder that holds SPLIT/{cloud,label}.")],
    out: Annotated[Path, typer.Option(help="Scores as JSON; .csv and .md go beside it.", metavar="FILE")],
    model: Annotated[
        str | None,
        typer.Option(help="A model's folder; without it the one that declouder brings.", metavar="DIR"),
    ] = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Score these finished images in place of a model.", metavar="DIR")
    ] = None,
    cloudy: Annotated[bool, typer.Option("--cloudy", help="Score the cloudy images themselves.")] = False,
    split: Annotated[str, typer.Option(help="Part of the data.", metavar="NAME")] = "test",
    exclude: Annotated[
        Path | None, typer.Option(help="File of names to leave out, one a line.", metavar="LIST")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="As for remove.", metavar="N")] = None,
    sampler: Annotated[str | None, typer.Option(help="As for remove.", metavar="NAME")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    lpips_backbone: Annotated[
        Path | None,
        typer.Option(help="AlexNet's weights for LPIPS; else torch hub's cache is searched.", metavar="FILE"),
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Score a model on pairs of cloudy and clear images: PSNR, SSIM, LPIPS, MAE, SAM and the paper's variants."""
    if sum((model is not None, outputs is not None, cloudy)) > 1:
        raise OptionError("--model, --outputs and --cloudy exclude each other; give one")
    if steps is not None and steps < 0:
        raise OptionError(f"--steps is {steps}; give 0 or more")
    check_device_name(device)

    from declouder import evaluation

    method: Any
    if outputs is not None:
        method = evaluation.OutputsMethod(outputs, name=outputs.name)
    elif cloudy:
        method = evaluation.CloudyMethod()
    else:
        pipeline = loaded_pipeline(model, sampler, device)
        method = evaluation.ModelMethod(pipeline, num_inference_steps=steps, seed=seed, name=model or "shipped")
    with _progress(quiet) as show:
        result = evaluation.evaluate(
            data,
            method,
            out=out,
            split=split,
            exclude=exclude,
            lpips_backbone=lpips_backbone,
            overwrite=overwrite,
            on_image=show,
        )
    if not quiet:
        typer.echo(evaluation.to_markdown([result]))
        if not result["lpips"]["available"]:
            typer.echo(f"no LPIPS: {result['lpips']['reason']}", err=True)
        typer.echo(f"wrote {out}")


class _progress:
    """A bar with running means on stderr; inside, a function for `evaluation.evaluate`."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Any:
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, done: int, total: int, means: Mapping[str, float | None]) -> None:
        shown = [f"{name} {means[name]:.4g}" for name in SHOWN if means.get(name) is not None]
        self._bar.update(self._task, completed=done, total=total, description=" ".join(shown))
