"""`declouder ablate`: which part of a model brings what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from declouder.cli.app import app
from declouder.cli.bars import image_bar
from declouder.cli.loading import loaded_pipeline, tell_trained_range
from declouder.cli.options import (
    OUTPUT_NAMES,
    BackboneOption,
    BandsOption,
    DataRangeOption,
    DebugOption,
    DeviceOption,
    DownloadOption,
    ExcludeOption,
    LimitOption,
    ModelOption,
    QuietOption,
    SetOption,
    SizeOption,
    SplitListOption,
    SplitOption,
    check_device_name,
    parsed_range,
    selection,
)


@app.command()
def ablate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The data set's folder: SPLIT/{cloud,label}.")],
    out: Annotated[Path, typer.Option(*OUTPUT_NAMES, help="Folder for tables, plot and scores.", metavar="DIR")],
    model: ModelOption = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Some of reference,diffusion,weight,consistency,steps,sampler,start,seed; reference comes along.",
            metavar="A,B",
        ),
    ] = None,
    split: SplitOption = "test",
    set_name: SetOption = None,
    bands: BandsOption = None,
    exclude: ExcludeOption = None,
    split_list: SplitListOption = None,
    limit: LimitOption = None,
    size: SizeOption = None,
    data_range: DataRangeOption = None,
    device: DeviceOption = "auto",
    lpips_backbone: BackboneOption = None,
    lpips_download: DownloadOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Score a model sampled in many ways.

    Leaves a table, a plot, and whether the paper's claim holds. The same command goes on where it was stopped.
    """
    check_device_name(device)
    ends = parsed_range(data_range)

    from declouder import ablation

    groups = [name.strip() for name in only.split(",")] if only else []
    ablation.rows(groups)  # a misspelt name is told before the model is loaded
    pipeline = loaded_pipeline(model, None, device)
    tell_trained_range(model, ends, option="--data-range")
    selected = selection(
        data,
        split=split,
        set_name=set_name,
        bands=bands,
        exclude=exclude,
        limit=limit,
        size_px=size,
        split_list=split_list,
    )
    with image_bar(quiet=quiet) as show:
        found = ablation.ablate(
            selected,
            pipeline,
            out=out,
            only=groups,
            data_range=ends,
            lpips_backbone=lpips_backbone,
            download_backbone=lpips_download,
            on_row=lambda place, total, row: show.begin(f"{place + 1}/{total} {row.group}: {row.label}"),
            on_image=show,
        )
    if not quiet:
        typer.echo(ablation.to_markdown(found))
        if not found["lpips"]["available"]:
            typer.echo(f"no LPIPS: {found['lpips']['reason']}", err=True)
        typer.echo(f"wrote {out / 'ablation.md'}")
