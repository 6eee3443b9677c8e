"""`declouder remove`: clouds removed from images and scenes."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from declouder.cli.app import (
    FAST_LEAST_PAINTED,
    FAST_STEPS,
    OUTPUT_NAMES,
    DebugOption,
    DeviceOption,
    EnlargeOption,
    FastOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    SamplerOption,
    SeedOption,
    StepsOption,
    app,
    check_device_name,
    loaded_pipeline,
    parsed_ends,
    tell_trained_range,
)
from declouder.cli.bars import Bars, shown_progress
from declouder.errors import BusyError, DeclouderError, ModelError, OptionError, OutputError, RasterError

if TYPE_CHECKING:
    from declouder.cli.jobs import Job, Jobs
    from declouder.scaling import Scaling
    from declouder.scene import SceneOptions, SceneReport
    from declouder.stac import SourceItem

log = logging.getLogger(__name__)


@app.command()
def remove(
    output: Annotated[
        Path, typer.Option(*OUTPUT_NAMES, help="A file, or a folder where there are several inputs.")
    ],
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="[INPUT...]", help="Images, or folders of them.")
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
    best: Annotated[bool, typer.Option("--best", help="Twice the steps that the model takes by itself.")] = False,
    sampler: SamplerOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
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
        typer.Option(help="The DN that holds no data, where the file does not say so.", metavar="DN"),
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
        int, typer.Option(help="The mask grows by so much, and fades out over the outer half of it.", metavar="PX")
    ] = 8,
    provenance: Annotated[
        Path | None,
        typer.Option(help="Raster to write that says what was made up: changed, w, spread.", metavar="FILE"),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="Draws of the noise whose spread goes into the provenance: no error bar.", metavar="N"),
    ] = 1,
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

    if sum((fast, best, steps is not None)) > 1:
        raise OptionError("--fast, --best and --steps each set the steps; give one of them")
    options = SceneOptions(
        steps=FAST_STEPS if fast else steps,
        least_painted=FAST_LEAST_PAINTED if fast else 0,
        enlarge=enlarge,
        seed=seed,
        bands=None if bands is None else tuple(bands.split(",")),
        scale=_parsed_scale(scale),
        nodata=nodata,
        window_px=SceneOptions.window_px // max(enlarge, 1) if window is None else window,
        overlap_px=overlap,
        batch=batch,
        threads=threads,
        overwrite=overwrite,
        mask=MaskChoice(
            source=mask if mask in ("auto", "none") else Path(mask),
            kind=mask_kind,
            values=_parsed_numbers("--mask-values", mask_values),
            feather_px=feather,
        ),
        provenance=provenance,
        samples=samples,
        cog=cog,
        max_pixels=MOST_PIXELS if max_pixels is None else max_pixels,
        allow_outside=allow_outside,
    )
    check_device_name(device)
    if cluster is not None:
        _extra("cluster", "--cluster", "dask.distributed").check_cluster_name(cluster)
    with contextlib.ExitStack() as stack:
        item = None
        if stac is not None:
            if inputs or input_list:
                raise OptionError("--stac names the input; give no INPUT and no --list beside it")
            item = _extra("stac", "--stac", "pystac").read_item(stac, allow_outside=allow_outside)
            inputs = [stack.enter_context(_scene_of(item, output, options, skip_existing=skip_existing))]
            options = replace(options, allow_outside=True)  # the item's files were looked at
        jobs = planned_jobs(inputs or [], input_list, output, options, skip_existing=skip_existing)
        if not quiet:
            for error in jobs.unusable.values():
                typer.echo(f"passed over: {error}", err=True)
        stack.enter_context(jobs_folder(jobs))
        reports: list[SceneReport] = []
        run: _Run | None = None
        if jobs.todo:
            # Workers have devices of their own; what the client needs of the model are its settings and digest.
            pipeline = loaded_pipeline(model, sampler, device if cluster is None else "cpu")
            given = None if options.scale is None else (options.scale.low, options.scale.high)
            tell_trained_range(model, given, option="--scale")
            if best:
                options = replace(options, steps=2 * max(1, pipeline.config.num_inference_steps))
            with shown_progress(quiet=quiet, scenes=len(jobs.todo)) as bars:
                run = _Run(jobs, pipeline, options, bars, skip_existing=skip_existing)
                found = run.here() if cluster is None else run.on_cluster(cluster, device)
                reports = [report for report in found if report is not None]
        if item is not None and output.is_file() and (reports or not output.with_suffix(".json").exists()):
            _extra("stac", "--stac", "pystac").write_derived(
                item, output, max_pixels=options.max_pixels, overwrite=options.overwrite
            )
        if not quiet:
            typer.echo(_summary(jobs, reports, passed=run.passed if run else []))
            hint = _hint(reports, enlarge)
            if hint is not None:
                typer.echo(hint)
        failed = run.failed if run else dict(jobs.unusable)
        if failed:
            raise _failure(failed, others=len(reports))


@contextlib.contextmanager
def _scene_of(item: SourceItem, output: Path, options: SceneOptions, *, skip_existing: bool) -> Iterator[Path]:
    """Yield the scene of a STAC item, once it is sure that nothing of the item is written over."""
    from declouder import raster, stac

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
    if not output.exists():
        raster.check_folder(output.parent)
        stac.derived_path(output, overwrite=options.overwrite)
    with stac.scene_of(item) as scene:
        yield scene


class _Run:
    """The scenes of one command, one after the other or several at once.

    Attributes:
        failed: what went wrong with scenes of several, by source: the others are finished all the same.
        passed: scenes that another run has finished, or is at, since this one began.
    """

    def __init__(
        self, jobs: Jobs, pipeline: Any, options: SceneOptions, bars: Bars, *, skip_existing: bool
    ) -> None:
        self._jobs, self._pipeline, self._options, self._bars = jobs, pipeline, options, bars
        self._skip_existing = skip_existing
        self.failed: dict[Path, DeclouderError] = dict(jobs.unusable)
        self.passed: list[Path] = []

    def here(self) -> list[SceneReport | None]:
        """Finish scene after scene in this process; None stands for one without a report."""
        return [self._finished(job, None) for job in self._jobs.todo]

    def on_cluster(self, name: str, device: str) -> list[SceneReport | None]:
        """Finish the scenes on a cluster, several at once where they are small."""
        from declouder.cli.jobs import window_count

        todo, options = self._jobs.todo, self._options
        package = _extra("cluster", "--cluster", "dask.distributed")
        with package.open_cluster(name, self._pipeline, device=device) as cluster:

            def work(job: Job) -> SceneReport | None:
                return self._finished(job, cluster.engine)

            def groups(job: Job) -> int:
                return -(-window_count(job, options) // options.batch)

            # One scene stays in the main thread, where Ctrl-C is heard at once.
            found: list[SceneReport | None] = (
                [work(todo[0])] if len(todo) == 1 else package.finish_scenes(cluster, todo, work, groups)
            )
            return found

    def _finished(self, job: Job, engine: Any) -> SceneReport | None:
        from declouder.cli.jobs import is_done
        from declouder.scene import remove_from_scene

        try:
            with self._bars.scene(job.source) as progress:
                if is_done(job, skip_existing=self._skip_existing):
                    self.passed.append(job.source)
                    return None
                return remove_from_scene(
                    job.source, job.output, self._pipeline, self._options, progress=progress, engine=engine
                )
        except RasterError as error:
            # It is the scene's: it does not stand in the way of the others.
            if not self._jobs.many:
                raise
            log.warning("%s", error)
            self.failed[job.source] = error
        except ModelError as error:
            raise ModelError(f"{job.source}: {error}") from error
        except OutputError as error:
            # Another run has finished it since, or is about to.
            elsewhere = isinstance(error, BusyError) or job.output.is_file()
            if not (self._skip_existing and elsewhere):
                raise
            log.warning("%s is passed over: %s", job.source, error)
            self.passed.append(job.source)
        return None


def _extra(name: str, option: str, needed: str) -> Any:
    """Return declouder's package `name`, which needs an extra.

    Raises:
        OptionError: if that is not installed.
    """
    try:
        return importlib.import_module(f"declouder.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("declouder"):
            raise
        raise OptionError(
            f"{option} needs {needed} ({error}); install it: pip install 'declouder[{name}]'"
        ) from error


def _failure(failed: Mapping[Path, DeclouderError], *, others: int) -> DeclouderError:
    """Return the first error, which says how many there are."""
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return first
    rest = "the others are finished" if others else "no other was left to do"
    return type(first)(f"{first}; {len(failed)} scenes failed in all, {rest}")


def _summary(jobs: Jobs, reports: Sequence[SceneReport], *, passed: Sequence[Path]) -> str:
    existed = f", {jobs.existing} existed already" if jobs.existing else ""
    existed += f", {len(passed)} left to another run" if passed else ""
    if not reports:
        return f"wrote nothing{existed}"
    pixels = sum(report.megapixels for report in reports)
    # From the first's beginning to the last's end: scenes on a cluster overlap.
    seconds = max(report.ended for report in reports) - min(report.ended - report.seconds for report in reports)
    what = f"{len(reports)} images to {jobs.folder}" if jobs.many else str(reports[0].output)
    return f"wrote {what}{existed}: {pixels:.2f} megapixels in {seconds:.1f} s, {pixels / seconds:.3g} MP/s"


def _hint(reports: Sequence[SceneReport], enlarge: int) -> str | None:
    """Return what a user may do about small clouds that seem to be left; None if there is nothing to do."""
    from declouder.mosaic import MOST_ENLARGED

    left = [report for report in reports if report.small_clouds_left]
    if not left or enlarge >= MOST_ENLARGED:
        return None
    where = str(left[0].output)
    if len(left) > 1:
        where += f" and {len(left) - 1} more"
    return f"small clouds seem to be left in {where}: look at it, and try --enlarge {enlarge + 1}"


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
