"""`declouder evaluate`: scores of a model, or of any method's finished images, on a set of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from declouder.cli.app import app
from declouder.cli.bars import image_bar
from declouder.cli.loading import loaded_pipeline, tell_trained_range
from declouder.cli.options import (
    FAST_LEAST_PAINTED,
    FAST_STEPS,
    OUTPUT_NAMES,
    BackboneOption,
    BandNamesOption,
    BandsOption,
    BestOption,
    DataRangeOption,
    DebugOption,
    DeviceOption,
    DownloadOption,
    EnlargeOption,
    ExcludeOption,
    FastOption,
    LimitOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    SamplerOption,
    SeedOption,
    SetOption,
    SizeOption,
    SplitListOption,
    SplitOption,
    StepsOption,
    check_device_name,
    check_sampling,
    chosen_precision,
    parsed_range,
    samples_of,
    selection,
)
from declouder.cli.process import keep_freed_memory
from declouder.errors import OptionError


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The data set's folder: SPLIT/{cloud,label}.")],
    out: Annotated[
        Path,
        typer.Option(*OUTPUT_NAMES, help="Scores as JSON; .csv and .md go beside it.", metavar="FILE"),
    ],
    model: ModelOption = None,
    outputs: Annotated[
        Path | None, typer.Option(help="Score these finished images in place of a model.", metavar="DIR")
    ] = None,
    cloudy: Annotated[bool, typer.Option("--cloudy", help="Score the cloudy images themselves.")] = False,
    name: Annotated[str | None, typer.Option(help="How tables call the method.", metavar="NAME")] = None,
    split: SplitOption = "test",
    set_name: SetOption = None,
    bands: BandsOption = None,
    band_names: BandNamesOption = None,
    exclude: ExcludeOption = None,
    split_list: SplitListOption = None,
    limit: LimitOption = None,
    size: SizeOption = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Cloud masks named as the images, above 0 where cloud.", metavar="DIR"),
    ] = None,
    data_range: DataRangeOption = None,
    steps: StepsOption = None,
    fast: FastOption = False,
    best: BestOption = False,
    sampler: SamplerOption = None,
    enlarge: EnlargeOption = 1,
    samples: Annotated[
        int | None,
        typer.Option(help="Draws an image; from 2 on their spread is held against the error.", metavar="N"),
    ] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    keep_images: Annotated[
        Path | None, typer.Option(help="Keep the images that `declouder report` shows.", metavar="DIR")
    ] = None,
    lpips_backbone: BackboneOption = None,
    lpips_download: DownloadOption = False,
    lpips_per_band: Annotated[
        bool, typer.Option("--lpips-per-band", help="LPIPS of each band too, as a grey image; takes longer.")
    ] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Score a model, or finished images, on pairs.

    PSNR, SSIM, LPIPS, MAE, SAM and the paper's variants of them, as JSON, CSV and a table.
    """
    if sum((model is not None, outputs is not None, cloudy)) > 1:
        raise OptionError("--model, --outputs and --cloudy exclude each other; give one")
    if steps is not None and steps < 0:
        raise OptionError(f"--steps is {steps}; give 0 or more")
    check_sampling(steps=steps, fast=fast, best=best, samples=samples, sampler=sampler, precision=precision)
    if outputs is not None or cloudy:
        _refuse_sampling(
            {
                "--steps": steps is not None,
                "--sampler": sampler is not None,
                "--fast": fast,
                "--best": best,
                "--precision": precision is not None,
                "--samples": samples is not None,
                "--seed": seed != 0,
                "--enlarge": enlarge != 1,
            }
        )
    check_device_name(device)
    precision = chosen_precision(precision, fast=fast)
    ends = parsed_range(data_range)

    from declouder import evaluation

    keep_freed_memory()  # the scores' temporaries recur with every image, whatever made the outputs
    method: Any
    if outputs is not None:
        method = evaluation.OutputsMethod(outputs, name=name or outputs.resolve().name)
    elif cloudy:
        method = evaluation.CloudyMethod(name=name or evaluation.CloudyMethod.name)
    else:
        pipeline = loaded_pipeline(model, sampler, device, precision)
        tell_trained_range(model, ends, option="--data-range")
        method = evaluation.ModelMethod(
            pipeline,
            num_inference_steps=FAST_STEPS if fast else steps,
            least_painted=FAST_LEAST_PAINTED if fast else 0,
            enlarge=enlarge,
            seed=seed,
            samples=samples_of(samples, best=best),
            average=best,
            name=name or model_name(model),
        )
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
        result = evaluation.evaluate(
            selected,
            method,
            out=out,
            masks=masks,
            keep=keep_images,
            band_names=None if band_names is None else [name.strip() for name in band_names.split(",")],
            data_range=ends,
            lpips_backbone=lpips_backbone,
            download_backbone=lpips_download,
            band_lpips=lpips_per_band,
            overwrite=overwrite,
            on_image=show,
        )
    if not quiet:
        typer.echo(evaluation.to_markdown([result]))
        if not result["lpips"]["available"]:
            typer.echo(f"no LPIPS: {result['lpips']['reason']}", err=True)
        typer.echo(f"wrote {out}")


def _refuse_sampling(given: Mapping[str, bool]) -> None:
    """Raise OptionError if one of the options is given that say how a model samples."""
    for option, is_given in given.items():
        if is_given:
            raise OptionError(f"{option} is of a model, and none is scored; leave it out")


def model_name(model: str | None) -> str:
    """Return how tables call a --model option: never a path, which means nothing elsewhere."""
    return "shipped model" if model is None else Path(model).resolve().name if Path(model).exists() else model
