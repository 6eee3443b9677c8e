"""`declouder remove`: clouds removed from images and scenes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from declouder.cli.app import app
from declouder.cli.bars import shown_progress
from declouder.cli.loading import extra_package, loaded_pipeline, tell_trained_range
from declouder.cli.logs import logging_to
from declouder.cli.options import (
    FAST_LEAST_PAINTED,
    FAST_STEPS,
    OUTPUT_NAMES,
    BestOption,
    DebugOption,
    DeviceOption,
    EnlargeOption,
    FastOption,
    ModelOption,
    OverwriteOption,
    PrecisionOption,
    QuietOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    check_device_name,
    check_sampling,
    chosen_precision,
    parsed_ends,
    samples_of,
)
from declouder.cli.running import Outcome, Run, failure, hint, summary
from declouder.errors import DeclouderError, OptionError, OutputError

if TYPE_CHECKING:
    from declouder.cli.jobs import Jobs
    from declouder.scaling import Scaling
    from declouder.scene import SceneOptions
    from declouder.stac import SourceItem


@app.command()
def remove(
    output: Annotated[
        Path,
        typer.Option(*OUTPUT_NAMES, help="A file, or a folder where there are several inputs.", metavar="PATH"),
    ],
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT", help="Images, or folders of them.")
    ] = None,
    input_list: Annotated[
        Path | None,
        typer.Option("--list", help="A text file that names further images, one a line.", metavar="FILE"),
    ] = None,
    stac: Annotated[
        Path | None,
        typer.Option(help="A STAC item whose bands are the input; the output gets an item too.", metavar="ITEM"),
    ] = None,
    model: ModelOption = None,
    steps: StepsOption = None,
    fast: FastOption = False,
    enlarge: EnlargeOption = 1,
    best: BestOption = False,
    sampler: SamplerOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = None,
    bands: Annotated[
        str | None,
        typer.Option(
            help="Bands in the model's order, by number or name, such as 3,2,1; without it found by name.",
            metavar="LIST",
        ),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="auto, or the DN that are black and white to the model.", metavar="LOW,HIGH")
    ] = "auto",
    nodata: Annotated[
        float | None,
        typer.Option(help="A DN that holds no data, besides what the file says.", metavar="DN"),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Size of the windows a scene is cut into; 1024 / --enlarge without it.", metavar="PX"),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(help="What neighbouring windows share; an eighth of a window without it.", metavar="PX"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows that go through the model at once.", metavar="N")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of one model; without it as many as PyTorch takes here.", metavar="N"),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Spread the windows over N processes, or the workers of a dask scheduler.",
            metavar="local:N|tcp://HOST:PORT",
        ),
    ] = None,
    mask: Annotated[
        str,
        typer.Option(
            help="Where the cloud is, so that all else stays as it is: a raster, auto (an estimate), or none.",
            metavar="FILE|auto|none",
        ),
    ] = "none",
    mask_kind: Annotated[
        str,
        typer.Option(help="What FILE holds: values, landsat-qa or sentinel2-scl.", metavar="KIND"),
    ] = "values",
    mask_values: Annotated[
        str | None,
        typer.Option(help="Values of FILE that are cloud, such as 1,2; without it all but 0.", metavar="LIST"),
    ] = None,
    feather: Annotated[
        int | None,
        typer.Option(
            help="The mask grows by so much, 8 without it, and fades out over the outer half of it.", metavar="PX"
        ),
    ] = None,
    provenance: Annotated[
        Path | None,
        typer.Option(help="Raster to write that says what was made up: changed, w, spread.", metavar="FILE"),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Draws of the noise whose spread goes into the provenance: no error bar.", metavar="N"),
    ] = None,
    cog: Annotated[bool, typer.Option("--cog", help="Write a cloud-optimised GeoTIFF with overviews.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Refuse larger scenes; 10,000,000,000 without it.", metavar="N"),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="A VRT or STAC item may read files outside its folder.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Pass over inputs whose output exists.")
    ] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove the clouds from images and scenes.

    A GeoTIFF comes back with its CRS, data type, nodata, tags and other bands; of several inputs each goes to
    the output folder under its own name (JPEG as PNG, or as GeoTIFF where it says where it lies).
    """
    from declouder.cli.jobs import jobs_folder, planned_jobs
    from declouder.masks import MaskChoice
    from declouder.raster import MOST_PIXELS
    from declouder.scene import SceneOptions

    check_sampling(steps=steps, fast=fast, best=best, samples=samples, sampler=sampler, precision=precision)
    if feather is not None and mask == "none":
        raise OptionError("--feather is of a mask; give --mask too")
    options = SceneOptions(
        steps=FAST_STEPS if fast else steps,
        least_painted=FAST_LEAST_PAINTED if fast else 0,
        enlarge=enlarge,
        seed=seed,
        bands=None if bands is None else tuple(bands.split(",")),
        scale=_parsed_scale(scale),
        nodata=nodata,
        window_px=window,
        overlap_px=overlap,
        batch=batch,
        threads=threads,
        overwrite=overwrite,
        mask=MaskChoice(
            source=mask if mask in ("auto", "none") else Path(mask),
            kind=mask_kind,
            values=_parsed_numbers("--mask-values", mask_values),
            feather_px=MaskChoice.feather_px if feather is None else feather,
            allow_outside=allow_outside,
        ),
        provenance=provenance,
        samples=samples_of(samples, best=best),
        average=best,
        cog=cog,
        max_pixels=MOST_PIXELS if max_pixels is None else max_pixels,
        allow_outside=allow_outside,
    )
    check_device_name(device)
    precision = chosen_precision(precision, fast=fast)
    if cluster is not None:
        extra_package("cluster", "--cluster", "dask.distributed").check_cluster_name(cluster)
    with contextlib.ExitStack() as stack:
        item = None
        if stac is not None:
            if inputs or input_list:
                raise OptionError("--stac names the input; give no INPUT and no --list beside it")
            item = _read_item(stac, allow_outside=allow_outside, quiet=quiet)
            inputs = [stack.enter_context(_scene_of(item, output, options, skip_existing=skip_existing))]
            # The item was looked at; a mask of its own is not.
            further = options.nodata if options.nodata is not None else item.also_nodata
            options = replace(options, allow_outside=True, nodata=further)
        jobs = planned_jobs(inputs or [], input_list, output, options, skip_existing=skip_existing)
        if not quiet:
            for error in jobs.unusable.values():
                typer.echo(f"passed over: {error}", err=True)
        stack.enter_context(jobs_folder(jobs))
        outcome = _finished(
            jobs,
            options,
            model=model,
            sampler=sampler,
            device=device,
            precision=precision,
            cluster=cluster,
            quiet=quiet,
            skip_existing=skip_existing,
        )
        if item is not None and output.is_file():
            _write_item(item, output, options, outcome)
        if not quiet:
            typer.echo(summary(jobs, outcome))
            if (advice := hint(outcome.reports, enlarge)) is not None:
                typer.echo(advice)
        if outcome.failed:
            raise failure(outcome)


def _finished(
    jobs: Jobs,
    options: SceneOptions,
    *,
    model: str | None,
    sampler: str | None,
    device: str,
    precision: str,
    cluster: str | None,
    quiet: bool,
    skip_existing: bool,
) -> Outcome:
    """Load the model and finish all scenes that are to be done, here or on a cluster; return what came of them."""
    from declouder.cli.jobs import check_bands
    from declouder.model_identity import weights_stay

    outcome = Outcome(failed=dict(jobs.unusable))
    if not jobs.todo:
        return outcome
    if cluster is None:
        pipeline = loaded_pipeline(model, sampler, device, precision)
    else:
        pipeline = _pipeline_for_workers(model, sampler, precision)
    check_bands(jobs, tuple(pipeline.config.bands), options)
    given = None if options.scale is None else (options.scale.low, options.scale.high)
    tell_trained_range(model, given, option="--scale")
    with weights_stay(pipeline), shown_progress(quiet=quiet, scenes=len(jobs.todo)) as bars:
        run = Run(jobs, pipeline, options, bars, skip_existing=skip_existing, outcome=outcome)
        if cluster is None:
            run.here()
        else:
            run.on_cluster(cluster, device)
    return outcome


def _pipeline_for_workers(model: str | None, sampler: str | None, precision: str) -> Any:
    """Return what the client of a cluster needs of a model, its settings and digest: devices are the workers'."""
    pipeline = loaded_pipeline(model, sampler, "cpu")
    pipeline.steps_in_bfloat16 = precision == "bf16"  # not for auto: their devices may differ
    return pipeline


def _read_item(path: Path, *, allow_outside: bool, quiet: bool) -> SourceItem:
    """Return a STAC item, and tell what of it is left out, unless `quiet`."""
    read_item = extra_package("stac", "--stac", "pystac").read_item
    with logging_to(lambda line: None if quiet else typer.echo(line, err=True)):
        return cast("SourceItem", read_item(path, allow_outside=allow_outside))


@contextlib.contextmanager
def _scene_of(item: SourceItem, output: Path, options: SceneOptions, *, skip_existing: bool) -> Iterator[Path]:
    """Yield the scene of a STAC item, once it is sure that nothing of the item is written over."""
    from declouder import raster, stac

    if output.is_dir():
        raise OutputError(f"{output} is a folder; give a file name in it, such as {output / 'clear.tif'}")
    originals = [item.path, *(band.path for band in item.bands.values())]
    for path in (output, output.with_suffix(".json"), options.provenance):
        for original in originals:
            if path is not None and path.resolve() == original.resolve():
                raise OutputError(f"output {path} is the input {original} itself; give another name")
    left = output.is_file() and not output.with_suffix(".json").exists()
    if left and not (options.overwrite or skip_existing):
        raise OutputError(
            f"{output} exists already, and its item does not, as a run leaves it that was stopped between the two;"
            " give --skip-existing to have the item alone, or --overwrite"
        )
    if options.overwrite or not output.exists():
        raster.check_folder(output.parent)
        stac.derived_path(output, overwrite=options.overwrite)
    with stac.scene_of(item) as scene:
        try:
            yield scene
        except DeclouderError as error:  # the scene is a file of ours, and gone when this is read
            raise type(error)(str(error).replace(str(scene), str(item.path))) from error


def _write_item(item: SourceItem, output: Path, options: SceneOptions, outcome: Outcome) -> None:
    """Write the STAC item of an output that was made now, or that a run left without its own."""
    from declouder import stac

    path, made_now = output.with_suffix(".json"), bool(outcome.reports)
    outdated = not made_now and path.exists() and stac.is_outdated(path, output, max_pixels=options.max_pixels)
    if made_now or outdated or not path.exists():
        stac.write_derived(
            item,
            output,
            max_pixels=options.max_pixels,
            tags=outcome.reports[0].tags if made_now else None,
            provenance=options.provenance,
            overwrite=options.overwrite or outdated,
        )


def _parsed_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; give numbers with commas, such as 3,2,1") from None


def _parsed_scale(text: str) -> Scaling | None:
    from declouder.scaling import Scaling

    if text == "auto":
        return None
    return Scaling(*parsed_ends("--scale", text))
