"""The `declouder` command: the only module that parses arguments or prints.

What a script can rely on: results and their summary on stdout, progress and log on stderr; exit 0 when all is
done; exit 2 and one line `error: ...` for anything the user can mend; 130 after Ctrl-C or SIGTERM; 1 for a
bug of ours. Nothing heavy is imported before it is needed, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from declouder import __version__
from declouder.errors import DeclouderError, OptionError, OutputError, RasterError

if TYPE_CHECKING:
    from declouder.scaling import Scaling
    from declouder.scene import SceneOptions

app = typer.Typer(
    name="declouder",
    help="Removes clouds from high-resolution optical satellite and aerial images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take a third of the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEVICES = ("auto", "cpu", "cuda", "mps")

# Click's base of usage errors; newer typers bring click along under a name of their own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

# Options that several commands share.
DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", metavar="NAME")]
SeedOption = Annotated[
    int, typer.Option(help="Of the noise; the same seed gives the same image.", metavar="N")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments`, by default the program's own, and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    with reporting_errors(debug="--debug" in arguments):
        exit_code = app(args=arguments, prog_name="declouder", standalone_mode=False)
        sys.exit(exit_code if isinstance(exit_code, int) else 0)


@contextlib.contextmanager
def reporting_errors(*, debug: bool = False) -> Iterator[None]:
    """Turn every exception into one line on stderr and an exit code; with `debug` a traceback comes first."""
    try:
        yield
    except (DeclouderError, _UsageError) as error:
        _report(error, debug)
        sys.exit(getattr(error, "exit_code", 2))
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about that once more as it exits.
        sys.stdout = None
        sys.exit(1)
    except Exception as error:
        _report(error, debug, " (this is a bug in declouder; --debug shows where)")
        sys.exit(1)


def _report(error: Exception, debug: bool, remark: str = "") -> None:
    if debug:
        traceback.print_exception(error)
    # typer's errors put the option's name into format_message() only.
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    line = " ".join(text.split()) or type(error).__name__
    if remark:
        line = f"{type(error).__name__}: {line}"
    print(f"error: {line}{remark}", file=sys.stderr)


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"declouder {__version__}")
        raise typer.Exit


@app.callback()
def _declouder(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Removes clouds from high-resolution optical satellite and aerial images."""


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
        typer.Option(
            help="Bands in the model's order, such as 3,2,1; without it found by name.", metavar="LIST"
        ),
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
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Remove the clouds from images and scenes.

    A GeoTIFF comes back with its CRS, data type, nodata, tags and other bands; of several inputs each goes to
    the output folder under its own name (JPEG as PNG).
    """
    from declouder.scene import SceneOptions, remove_from_scene

    options = SceneOptions(
        steps=steps,
        seed=seed,
        bands=_parsed_bands(bands),
        scale=_parsed_scale(scale),
        window_px=window,
        overlap_px=overlap,
        batch=batch,
        overwrite=overwrite,
    )
    _check_device_name(device)
    jobs, made_folder = _planned(inputs, output, options)
    try:
        pipeline = _loaded_pipeline(model, sampler, device)
        with _progress(quiet=quiet) as bars:
            reports = []
            for job in jobs:
                with bars.scene(job.source) as progress:
                    report = remove_from_scene(job.source, job.output, pipeline, options, progress=progress)
                reports.append(report)
        if not quiet:
            pixels, seconds = sum(r.megapixels for r in reports), sum(r.seconds for r in reports)
            what = str(jobs[0].output) if len(jobs) == 1 else f"{len(jobs)} images to {output}"
            typer.echo(
                f"wrote {what}: {pixels:.2f} megapixels in {seconds:.1f} s, {pixels / seconds:.3g} MP/s"
            )
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

    many = len(inputs) > 1 or inputs[0].is_dir()
    sources = _images_in(inputs[0]) if many and len(inputs) == 1 else list(inputs)
    made_folder = many and not output.exists()
    if made_folder:
        if output.suffix.lower() in raster.OUTPUT_DRIVERS:
            raise OutputError(
                f"{len(sources)} images do not go into one file {output}; give a folder with -o"
            )
        raster.check_folder(output.parent)
    elif many:
        raster.check_folder(output)
    jobs = [_Job(source, output / raster.output_name(source) if many else output) for source in sources]
    taken: dict[Path, Path] = {}
    for job in jobs:
        if job.output in taken:
            raise OutputError(
                f"{taken[job.output]} and {job.source} would both become {job.output}; rename one"
            )
        taken[job.output] = job.source
        if not made_folder:
            raster.check_output(job.output, sources=sources, overwrite=options.overwrite)
        with raster.open_raster(job.source) as reader:
            raster.check_fits(job.output, reader.info)
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
    from declouder.raster import INPUT_SUFFIXES

    found = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in INPUT_SUFFIXES
    )
    if not found:
        raise RasterError(f"{folder} holds no image; wanted files with one of {', '.join(INPUT_SUFFIXES)}")
    return found


def _parsed_bands(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--bands is {text!r}; give band numbers with commas, such as 3,2,1") from None


def _parsed_scale(text: str) -> Scaling | None:
    from declouder.scaling import Scaling

    if text == "auto":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--scale is {text!r}; give auto, or LOW,HIGH such as 0,10000") from None
    return Scaling(low, high)


def _check_device_name(name: str) -> None:
    if name not in DEVICES:
        raise OptionError(f"--device is {name!r}; give one of {', '.join(DEVICES)}")


def _resolved_device(name: str) -> str:
    import torch

    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if usable[device])
    if not usable[name]:
        raise OptionError(f"--device {name} cannot be used on this machine; give --device cpu")
    return name


def _loaded_pipeline(model: str | None, sampler: str | None, device: str) -> Any:
    from diffusers.utils.logging import disable_progress_bar

    from declouder.pipeline import SAMPLERS, CloudRemovalPipeline, make_scheduler

    if sampler is not None and sampler not in SAMPLERS:
        raise OptionError(f"--sampler is {sampler!r}; give one of {', '.join(SAMPLERS)}")
    resolved = _resolved_device(device)
    disable_progress_bar()
    pipeline = CloudRemovalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)  # our bar counts windows, not steps
    if sampler is not None:
        pipeline.scheduler = make_scheduler(sampler)
    return pipeline.to(resolved)


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
    with _logging_to(lambda line: console.print(line, markup=False, soft_wrap=True)), progress:
        yield _Bars(progress)


@contextlib.contextmanager
def _logging_to(show: Callable[[str], None]) -> Iterator[None]:
    """Show what the package logs, at level INFO."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    logger, handler = logging.getLogger("declouder"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


if __name__ == "__main__":
    main()
