"""`declouder remove`: clouds removed from images and scenes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    logging_to,
)
from declouder.errors import OptionError, OutputError, RasterError

if TYPE_CHECKING:
    from declouder.scaling import Scaling
    from declouder.scene import SceneOptions


@app.command()
def remove(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT...", help="Images, or one folder of them.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A file, or a folder where there are several inputs.")
    ],
    model: Annotated[
        str | None,
        typer.Option(help="A model's folder; without it the model that declouder brings.", metavar="DIR"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of the diffusion; 0 is the quick way: the reference network's image.", metavar="N"
        ),
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Scheduler to sample with.", metavar="NAME")] = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    bands: Annotated[
        str | None,
        typer.Option(help="Bands in the model's order, such as 3,2,1; without it found by name.", metavar="LIST"),
    ] = None,
    scale: Annotated[
        str, typer.Option(help="auto, or the DN that are black and white to the model.", metavar="LOW,HIGH")
    ] = "auto",
    window: Annotated[int, typer.Option(help="Size of the windows a scene is cut into.", metavar="PX")] = 512,
    overlap: Annotated[
        int | None,
        typer.Option(help="Of neighbouring windows; an eighth of a window without it.", metavar="PX"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows that go through the model at once.", metavar="N")] = 1,
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
        int, typer.Option(help="The mask is grown by so much, and fades out there.", metavar="PX")
    ] = 8,
    provenance: Annotated[
        Path | None,
        typer.Option(help="Raster to write of what was made up: changed, w, spread.", metavar="FILE"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Draws whose spread goes into the provenance.", metavar="N")] = 1,
    cog: Annotated[bool, typer.Option("--cog", help="Write a cloud-optimised GeoTIFF with overviews.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Refuse larger scenes; 10,000,000,000 without it.", metavar="N"),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="A VRT may read files outside its own folder.")
    ] = False,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove the clouds from images and scenes.

    A GeoTIFF comes back with its CRS, data type, nodata, tags and other bands; of several inputs each goes to
    the output folder under its own name (JPEG as PNG).
    """
    from declouder.masks import MaskChoice
    from declouder.raster import MOST_PIXELS
    from declouder.scene import SceneOptions, remove_from_scene

    options = SceneOptions(
        steps=steps,
        seed=seed,
        bands=_parsed_numbers("--bands", bands),
        scale=_parsed_scale(scale),
        window_px=window,
        overlap_px=overlap,
        batch=batch,
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
    jobs, made_folder = _planned(inputs, output, options)
    try:
        pipeline = loaded_pipeline(model, sampler, device)
        with _progress(quiet=quiet) as bars:
            reports = []
            for job in jobs:
                with bars.scene(job.source) as progress:
                    report = remove_from_scene(job.source, job.output, pipeline, options, progress=progress)
                reports.append(report)
        if not quiet:
            pixels, seconds = sum(r.megapixels for r in reports), sum(r.seconds for r in reports)
            what = str(jobs[0].output) if len(jobs) == 1 else f"{len(jobs)} images to {output}"
            typer.echo(f"wrote {what}: {pixels:.2f} megapixels in {seconds:.1f} s, {pixels / seconds:.3g} MP/s")
    finally:
        if made_folder:
            # Removed again if nothing came into it.
            with contextlib.suppress(OSError):
                output.rmdir()


@dataclass(frozen=True)
class _Job:
    source: Path
    output: Path


def _planned(inputs: Sequence[Path], output: Path, options: SceneOptions) -> tuple[list[_Job], bool]:
    """Return what goes where, every input opened, every output checked; and whether a folder was made."""
    from declouder import raster

    is_folder = inputs[0].is_dir() and not raster.is_safe(inputs[0])
    many = len(inputs) > 1 or is_folder
    sources = _images_in(inputs[0]) if is_folder and len(inputs) == 1 else list(inputs)
    made_folder = many and not output.exists()
    if made_folder:
        if output.suffix.lower() in raster.OUTPUT_DRIVERS:
            raise OutputError(f"{len(sources)} images do not go into one file {output}; give a folder with -o")
        raster.check_folder(output.parent)
    elif many:
        raster.check_folder(output)
    jobs = [_Job(source, output / raster.output_name(source) if many else output) for source in sources]
    if many and options.provenance is not None:
        raise OptionError("--provenance names one file; give one input, or a run for each")
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.output in taken:
            raise OutputError(f"{taken[job.output]} and {job.source} would both become {job.output}; rename one")
        taken[job.output] = job.source
        if not made_folder:
            raster.check_output(job.output, sources=sources, overwrite=options.overwrite)
        with raster.open_raster(
            job.source, max_pixels=options.max_pixels, allow_outside=options.allow_outside
        ) as reader:
            raster.check_fits(job.output, reader.info, cog=options.cog)
            if isinstance(options.mask.source, Path):
                with raster.open_aligned(options.mask.source, reader.info):
                    pass
            if options.bands and max(options.bands) > reader.info.count:
                numbers = ",".join(map(str, options.bands))
                raise RasterError(
                    f"{job.source} has {reader.info.count} bands, --bands {numbers} asks for others; "
                    f"give numbers from 1 to {reader.info.count}"
                )
    if made_folder:
        output.mkdir()
    return jobs, made_folder


def _images_in(folder: Path) -> list[Path]:
    from declouder.raster import INPUT_SUFFIXES, is_safe

    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in INPUT_SUFFIXES and (path.is_file() or is_safe(path))
    )
    if not found:
        raise RasterError(f"{folder} holds no image; wanted files with one of {', '.join(INPUT_SUFFIXES)}")
    return found


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
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--scale is {text!r}; give auto, or LOW,HIGH such as 0,10000") from None
    return Scaling(low, high)


class _Bars:
    """Progress bars on stderr, one a scene; `None` shows nothing."""

    def __init__(self, progress: Any | None) -> None:
        self._progress = progress

    @contextlib.contextmanager
    def scene(self, source: Path) -> Iterator[Callable[[int, int], None]]:
        """Show a bar for one scene; yields what remove_from_scene reports its windows to."""
        if self._progress is None:
            yield lambda done, total: None
            return
        progress = self._progress
        task = progress.add_task(source.name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[_Bars]:
    """Show bars and declouder's log on stderr, unless `quiet`."""
    if quiet:
        yield _Bars(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn

    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("windows,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeLeftColumn(),
        TextColumn("left"),
        console=console,
    )
    with logging_to(lambda line: console.print(line, markup=False, soft_wrap=True)), progress:
        yield _Bars(progress)
