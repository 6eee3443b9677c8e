"""What all commands share: the app, its entry point, the error contract, options and the loading of a model.

What a script can rely on: results and their summary on stdout, progress and log on stderr; exit 0 when all is
done; exit 2 and one line `error: ...` for anything the user can mend; 130 after Ctrl-C, SIGTERM or SIGHUP; 141
where the reader of a pipe went before all was told; 1 for a bug of ours.

Nothing heavy is imported before it is needed, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from declouder.devices import has_bfloat16, is_out_of_memory, resolved_device
from declouder.errors import DeclouderError, OptionError, reason_of
from declouder.interrupts import ENDING
from declouder.version import __version__

ORDER = ("remove", "evaluate", "report", "ablate", "train", "data", "info", "convert")
"""Commands as the help lists them: what most people come for first."""


class _Ordered(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        known = super().list_commands(ctx)
        return sorted(known, key=ORDER.index)


app = typer.Typer(
    name="declouder",
    cls=_Ordered,
    help="Removes clouds from high-resolution optical satellite and aerial images.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich would take a third of the time of --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

FAST_STEPS = 1
FAST_LEAST_PAINTED = 0.15
"""What `--fast` means: so many steps, in windows of which the reference network painted so large a share.

Wanted was that held-out pairs lose less than 0.1 dB and 0.005 LPIPS on either set; of RICE1, where nothing is
painted, they lose 0.03 dB with any share, those of another model 0.11 (docs/model-card.md, fusion settings).
"""

OUTPUT_NAMES = ("-o", "--output", "--out")
"""What every command calls the place of its result."""
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "bf16")

# Click's base of usage errors; newer typers bring click along under a name of their own.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]

# Options that several commands share.
DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ModelOption = Annotated[
    str | None, typer.Option(help="A model's folder; without it the one that declouder brings.", metavar="DIR")
]
SetOption = Annotated[
    str | None,
    typer.Option("--set", help="The set's name in the catalog; without it found by folder name.", metavar="NAME"),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", metavar="NAME")]
SeedOption = Annotated[
    int, typer.Option(help="Seed of the noise; the same seed gives the same image.", metavar="N")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        help="Steps of the diffusion; without it the model's own number, 1 for the one declouder brings. 0: the"
        " reference network's image, the quickest way.",
        metavar="N",
    ),
]
FastOption = Annotated[
    bool, typer.Option("--fast", help="One step, and none in windows with little to paint under thick cloud.")
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        help="ddim (the paper's), ddim-trailing, dpmsolver++, unipc or euler; without it the model's own.",
        metavar="NAME",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="32, bf16 (the steps in bfloat16) or auto (that where the device has it); 32 without it, with --fast"
        " auto on a CPU.",
        metavar="NAME",
    ),
]
EnlargeOption = Annotated[
    int,
    typer.Option(
        help="How many times as large the networks see an image, up to 4: for clouds of a few pixels.", metavar="N"
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]


_BUG = " (this is a bug in declouder; --debug shows where)"
_THEIRS = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""What a file system may say of a path that a user gave."""
INTERRUPTED = 130
"""The exit code of a run that SIGINT, SIGTERM or SIGHUP ended: 128 + 2, as shells have it."""
READER_GONE = 141
"""The exit code where nobody reads the output any more, as under `head -1`: 128 + 13, SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments`, by default the program's own, and exit."""
    wait_briefly()
    is_program = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _interrupts.clear()
    signal.signal(signal.SIGTERM, _interrupt)
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:  # ignored, it stays so
            signal.signal(number, _interrupt)
    if hasattr(sys.stdout, "reconfigure"):  # a name that it cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    with _nothing_breaks_off_the_end(is_program), reporting_errors(debug="--debug" in arguments):
        for before, word in zip(["", *arguments], arguments, strict=False):
            if word == "" and before not in ("--title", "--name"):  # it would be taken for the current folder
                after = f" after {before}" if before.startswith("-") else ""
                raise OptionError(f"an argument{after} is empty; is it a variable that was not set?")
        try:
            exit_code = app(args=arguments, prog_name="declouder", standalone_mode=False)
        except SystemExit as ended:
            if isinstance(ended.__context__, BrokenPipeError):  # click would make a bug's exit code of it
                raise ended.__context__ from None
            raise
        if exit_code == INTERRUPTED:  # typer has swallowed the exception
            raise KeyboardInterrupt
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
        _tell("interrupted")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain about that once more as it exits.
        sys.stdout = None
        sys.exit(READER_GONE)
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename is None:  # os.getcwd
            _report(OptionError("the working folder is gone; go to one that exists"), debug)
            sys.exit(2)
        if error.errno not in _THEIRS:
            _report(error, debug, _BUG)
            sys.exit(1)
        if debug:
            traceback.print_exception(error)
        where = f"{error.filename}: " if error.filename else ""
        _report(OptionError(f"{where}{error.strerror}; give another path, or mend that one"), debug=False)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if str(error).startswith("Symlink loop"):  # pathlib's word for ELOOP before Python 3.13
            _report(OptionError(f"{error}; give another path, or mend that one"), debug)
            sys.exit(2)
        if "torch" in sys.modules and is_out_of_memory(error):
            told = reason_of(error) if str(error) else "no memory is left"
            mend = "end other programs that use it, or give smaller images or --device cpu"
            _report(OptionError(f"memory does not suffice ({told}); {mend}"), debug)
            sys.exit(2)
        _report(error, debug, _BUG)
        sys.exit(1)
    except Exception as error:
        _report(error, debug, _BUG)
        sys.exit(1)


def _report(error: Exception, debug: bool, remark: str = "") -> None:
    if debug:
        traceback.print_exception(error)
    # typer's errors put the option's name into format_message() only.
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if type(error).__name__ == "NoArgsIsHelpError":  # of click, which typer has under names of its own
        _tell(text)
        return
    line = " ".join(text.split()) or type(error).__name__
    if remark:
        line = f"{type(error).__name__}: {line}"
    _tell(f"error: {line}{remark}")


def _tell(line: str) -> None:
    if sys.stderr is not None:  # where it is closed, print() would take stdout
        with contextlib.suppress(OSError):  # it may be a file on a full disk
            print(line, file=sys.stderr)


_interrupts: list[float] = []
"""When signals came that ended something, in seconds."""
_UNWINDING_S = 5.0
"""So long may it take to put away what is unfinished; a second Ctrl-C within that time does not break it off."""


def _interrupt(_number: int, _frame: object) -> None:
    now = time.monotonic()
    if not _interrupts or now - _interrupts[-1] > _UNWINDING_S:
        _interrupts.append(now)
        raise KeyboardInterrupt


@contextlib.contextmanager
def _nothing_breaks_off_the_end(is_program: bool) -> Iterator[None]:
    """Have a program that ends heed no signals: its exit code and last line are told, and it is about to go."""
    try:
        yield
    finally:
        if is_program:
            for number in ENDING:
                signal.signal(number, signal.SIG_IGN)


def stop_if_interrupted() -> None:
    """Raise KeyboardInterrupt if a signal came: what it raised may have been caught where it struck.

    Callbacks of compiled code and of the garbage collector report an exception and go on.
    """
    if _interrupts:
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


def extra_package(name: str, option: str, needed: str) -> Any:
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
            f"{option} needs {needed} ({error}); install it, in the clone of the repository:"
            f" pip install -c constraints.txt '.[{name}]'"
        ) from error


def check_device_name(name: str) -> None:
    """Raise OptionError for a device that no machine has; torch is not needed for that."""
    if name not in DEVICES:
        raise OptionError(f"--device is {name!r}; give one of {', '.join(DEVICES)}")


def chosen_precision(option: str | None, *, fast: bool) -> str:
    """Return what a --precision option means beside --fast: one of `PRECISIONS`, or "fast".

    Raises:
        OptionError: if it is none of `PRECISIONS`.
    """
    if option not in (None, *PRECISIONS):
        raise OptionError(f"--precision is {option!r}; give one of {', '.join(PRECISIONS)}")
    return option or ("fast" if fast else "32")


def loaded_pipeline(model: str | None, sampler: str | None, device: str, precision: str = "32") -> Any:
    """Return the pipeline of a --model option, on its device, with the --sampler and --precision asked for."""
    from declouder.pipeline import SAMPLERS, CloudRemovalPipeline, make_scheduler
    from declouder.pipeline.folder import no_loading_bar

    if sampler is not None and sampler not in SAMPLERS:
        raise OptionError(f"--sampler is {sampler!r}; give one of {', '.join(SAMPLERS)}")
    resolved = resolved_device(device)
    in_bfloat16 = _in_bfloat16(precision, resolved)
    if resolved == "cpu":
        keep_freed_memory()
    with no_loading_bar():
        pipeline = CloudRemovalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)  # our bar counts windows, not steps
    if sampler is not None:
        pipeline.scheduler = make_scheduler(sampler)
    pipeline.steps_in_bfloat16 = in_bfloat16
    return pipeline.to(resolved)


def _in_bfloat16(precision: str, device: str) -> bool:
    """Return whether steps are in bfloat16 on a device, by what `chosen_precision` returned."""
    can = precision != "32" and has_bfloat16(device)
    if precision == "bf16" and not can:
        raise OptionError(f"--precision is bf16, which this {device} would only emulate, slowly; give 32 or auto")
    # On GPUs nobody has measured yet what it gains: there it wants to be asked for.
    return can and (precision != "fast" or device == "cpu")


def tell_trained_range(model: str | None, given: tuple[float, float] | None, *, option: str) -> None:
    """Warn where a model learnt numbers between other ends than those that are given: its recipe's `data.range`."""
    if model is None:
        return
    try:
        record = json.loads((Path(model) / "training.json").read_text(encoding="utf-8"))
        low, high = record["recipe"]["data"]["range"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # it learnt images in their data type's range, or does not say
    if given != (low, high):
        logging.getLogger(__name__).warning(
            "%s learnt numbers from %g to %g (data.range); give %s %g,%g", model, low, high, option, low, high
        )


def parsed_ends(option: str, text: str) -> tuple[float, float]:
    """Return the two numbers of LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; give LOW,HIGH such as 0,10000") from None
    return low, high


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc; elsewhere nothing happens.

    Every window needs the same large pieces. glibc gives them back to the system, which clears them anew for
    the next layer: nearly a tenth of the time. For commands only: a library does not set this for its caller.
    """
    import ctypes

    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    most, most_of_old_glibc = 256 * 2**20, 32 * 2**20
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # The first alone would make it worse: setting either ends that glibc raises the second by itself.
        if mallopt(m_mmap_threshold, most) or mallopt(m_mmap_threshold, most_of_old_glibc):
            mallopt(m_trim_threshold, most)


def wait_briefly() -> None:
    """Let threads that wait for each other give their core away soon, where GNU OpenMP runs them.

    By itself it lets them spin for many milliseconds. On a machine that is busy with other things they spin while
    the thread that they wait for has no core, at every operation. It reads this once, when torch is loaded. What
    the user says of it stands. For commands only: a library does not set this for its caller.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


scene_at_work: ContextVar[Path | None] = ContextVar("scene_at_work", default=None)
"""The scene that lines of the log are about, where those of several mingle."""


@contextlib.contextmanager
def logging_to(show: Callable[[str], None], *, level: int = logging.INFO) -> Iterator[None]:
    """Show what the package logs, from a level on."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message, scene = record.getMessage(), scene_at_work.get()
            show(message if scene is None or str(scene) in message else f"{scene}: {message}")

    logger, handler = logging.getLogger("declouder"), Handler()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
