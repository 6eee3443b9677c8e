"""The app, its entry point and the error contract.

What a script can rely on: results and their summary on stdout, progress and log on stderr; exit 0 when all is
done; exit 2 and one line `error: ...` for anything the user can mend; 130 after Ctrl-C, SIGTERM or SIGHUP; 141
where the reader of a pipe went before all was told; 1 for a bug of ours.

Nothing heavy is imported before it is needed, so `--help` and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from declouder.cli.process import wait_briefly
from declouder.devices import is_out_of_memory
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

# Click's base of all that it tells a user; newer typers bring click along under a name of their own.
_ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

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
    except (DeclouderError, _ClickException) as error:
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
