"""`declouder convert` and `declouder info`: model folders made of the authors' checkpoints, and looked into."""

from __future__ import annotations

import contextlib
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from declouder.cli.app import app
from declouder.cli.options import OUTPUT_NAMES, DebugOption, OverwriteOption
from declouder.errors import ModelError, OutputError, reason_of
from declouder.model_folder import INDEX, NETWORKS, RECORD
from declouder.whole_files import check_new, whole_folder


@app.command()
def convert(
    denoiser: Annotated[
        Path, typer.Option(help="The authors' DE checkpoint: denoiser and weight network.", metavar="FILE")
    ],
    reference: Annotated[
        Path, typer.Option(help="The authors' checkpoint of MSDA-CR or MemoryNet.", metavar="FILE")
    ],
    output: Annotated[Path, typer.Option(*OUTPUT_NAMES, help="The model folder to make.", metavar="DIR")],
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert the paper's authors' checkpoints.

    Bands, size of the network and kind of reference are recognised from the tensors.
    """
    check_new(output, overwrite=overwrite)
    if output.exists() and not (output / INDEX).exists():
        raise OutputError(f"{output} is no model folder, so it is not replaced; give another name")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"folder {output.parent} does not exist; make it first")
    for source in (denoiser, reference):
        if source.resolve().is_relative_to(output.resolve()):
            raise OutputError(f"{source} lies in {output}, which would be replaced; give another name")

    from declouder.authors import convert_checkpoints

    pipeline = convert_checkpoints(denoiser, reference)
    with whole_folder(output) as part:
        pipeline.save_pretrained(part)
    kind = type(pipeline.reference).__name__
    typer.echo(f"wrote {output}: {kind}, {len(pipeline.config.bands)} bands ({', '.join(pipeline.config.bands)})")


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[DIR]", help="A model's folder; the model that declouder brings without it."),
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Print the recipe that it was trained by instead, as YAML.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Tell what a model folder holds.

    Its bands, networks and their sizes, how it samples and how it was trained: data, versions, scores, and what the
    recipe sets.
    """
    from declouder.pipeline import SHIPPED_MODEL

    record = Path(model or SHIPPED_MODEL) / RECORD
    if recipe:
        if not record.exists():
            raise ModelError(
                f"{record} does not exist, so nothing tells its recipe; give a model that was trained here"
            )
        _tell_recipe(record)
        return
    from declouder.pipeline import CloudRemovalPipeline
    from declouder.pipeline.folder import no_loading_bar

    with no_loading_bar():
        pipeline = CloudRemovalPipeline.from_pretrained(model)
    settings = pipeline.config
    typer.echo(f"model       {model or SHIPPED_MODEL}")
    typer.echo(f"bands       {', '.join(settings.bands)}")
    for name in NETWORKS:
        network = getattr(pipeline, name)
        count = sum(parameter.numel() for parameter in network.parameters())
        fields = ", ".join(f"{key} {value}" for key, value in network.config.items() if not key.startswith("_"))
        typer.echo(f"{name:<11} {type(network).__name__}, {count / 1e6:.2f} M parameters ({fields})")
    typer.echo(
        f"sampling    {type(pipeline.scheduler).__name__}, {settings.num_inference_steps} steps, strength"
        f" {settings.strength:g}, w in [{settings.w_bounds[0]:g}, {settings.w_bounds[1]:g}],"
        f" data consistency {settings.consistency:g}"
    )
    _tell_training(record)


def _tell_recipe(path: Path) -> None:
    with _reading_record(path):
        typer.echo(
            yaml.safe_dump(json.loads(path.read_text(encoding="utf-8"))["recipe"], sort_keys=False), nl=False
        )


def _tell_training(path: Path) -> None:
    """Print what training has written beside the weights; nothing where it has not."""
    if not path.exists():
        return
    from declouder.config import told_fields

    with _reading_record(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        recipe, data, versions = record["recipe"], record["data"], record["versions"]
        typer.echo(f"recipe      {recipe['name']}, seed {recipe['seed']}; commit {record['commit'] or 'unknown'}")
        settings = told_fields(recipe)
        typer.echo(
            f"data        {data['pairs']} pairs and {data['held_out_pairs']} held out, {data['clear_images']} clear"
            f" images, sha256 {data['sha256']}"
        )
        _tell_settings(
            {k: v for k, v in settings.items() if k.startswith(("data.", "model.start_from", "precision"))}
        )
        typer.echo(f"versions    {', '.join(f'{name} {number}' for name, number in versions.items())}")
        for other in record.get("averaged_with", []):
            typer.echo(
                f"averaged    with a model of recipe {other['recipe']['name']}, seed {other['recipe']['seed']}"
            )
        learnt = "" if data["held_out_pairs"] else " (of images that were learnt from)"
        for name, stage in record["stages"].items():
            scores = ", ".join(f"{k} {v:.4g}" for k, v in stage["scores"].items() if k not in ("step", "score"))
            # Of a stage that was trained on another day than the last one.
            commit = stage.get("commit", record["commit"])
            of = f"; commit {commit or 'unknown'}" if commit != record["commit"] else ""
            typer.echo(
                f"{name:<11} {stage['steps']} steps in {stage['seconds']:.0f} s, {stage['precision']}; kept that of"
                f" step {stage['scores'].get('step', '-')}: {scores}{learnt if scores else ''}{of}"
            )
            others = stage.get("versions", versions).items() - versions.items()
            if others:
                typer.echo(
                    f"{'':<11} with {', '.join(f'{package} {number}' for package, number in sorted(others))}"
                )
            place = f"stages.{name}."
            _tell_settings({k.removeprefix(place): v for k, v in settings.items() if k.startswith(place)})


def _tell_settings(settings: Mapping[str, Any]) -> None:
    """Print fields as --set takes them."""
    words = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    indent = " " * 12
    wrapped = textwrap.fill(
        "; ".join(words), 110, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
    typer.echo(wrapped)


@contextlib.contextmanager
def _reading_record(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # stdout: a full device, or a reader that has gone
        raise ModelError(
            f"{path} is no record of a training ({reason_of(error)}); remove it, or train again"
        ) from None
