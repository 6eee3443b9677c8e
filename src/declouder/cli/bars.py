"""Progress on stderr, for every command: a bar for each scene, image set or stage at work."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from declouder.cli.app import stop_if_interrupted
from declouder.cli.logs import logging_to

SHOWN = ("psnr", "ssim", "lpips")
"""Scores whose running means a bar shows."""
# Characters of a scene's name that are shown at least, and what counts and times take beside it.
_LEAST_NAME, _BESIDE_NAME = 12, 56
_NARROW = 60
"""Characters of a terminal below which there is no room for a bar and for the time gone, but for numbers."""


class Bars:
    """Bars of scenes at work and, of several, one for them all. `None` shows nothing.

    They may be moved from several threads.

    Args:
        progress: of rich, or None.
        scenes: how many there are.
    """

    def __init__(self, progress: Any | None, scenes: int) -> None:
        self._progress = progress
        self._all = None
        if progress is not None and scenes > 1:
            self._all = progress.add_task("all", total=scenes, unit="scenes")

    @contextlib.contextmanager
    def scene(self, source: Path) -> Iterator[Callable[[int, int], None]]:
        """Show a bar for one scene; yields what remove_from_scene reports its windows to."""
        if self._progress is None:
            yield lambda done, total: stop_if_interrupted()
            return
        progress = self._progress
        name = _shortened(source.name, most=max(_LEAST_NAME, progress.console.width - _BESIDE_NAME))
        task = progress.add_task(name, total=None, unit="windows")

        def show(done: int, total: int) -> None:
            stop_if_interrupted()
            progress.start()
            progress.update(task, completed=done, total=total)

        try:
            yield show
        finally:
            if self._all is not None:
                # Thousands of finished bars would hide those that move.
                progress.remove_task(task)
                progress.advance(self._all)


@contextlib.contextmanager
def shown_progress(*, quiet: bool, scenes: int) -> Iterator[Bars]:
    """Show bars of scenes and declouder's log, unless `quiet`."""
    bar = _new_bar("{task.description}", after="{task.fields[unit]},", elapsed=True, quiet=quiet)
    with _shown(bar, level=logging.INFO):
        yield Bars(None if quiet else bar, scenes)


@contextlib.contextmanager
def counting_bar(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar, unless `quiet`; yields a function of what is done and of all."""
    with _shown(_new_bar(quiet=quiet)) as bar:
        task = bar.add_task("", total=None)

        def show(done: int, total: int) -> None:
            stop_if_interrupted()
            bar.start()
            bar.update(task, completed=done, total=total)

        yield show


class ImageBar:
    """A bar of images with the running means of their scores; it is called as `evaluation.evaluate`'s on_image."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None, means="")
        self._title = ""

    def begin(self, title: str) -> None:
        """Begin another run of images under a title."""
        self._title = f"{title} "
        self._bar.update(self._task, completed=0, total=None, means=title)

    def __call__(self, done: int, total: int, means: Mapping[str, float | None]) -> None:
        """Show how many images are done and their means so far."""
        stop_if_interrupted()
        self._bar.start()
        shown = [f"{name} {means[name]:.4g}" for name in SHOWN if means.get(name) is not None]
        self._bar.update(self._task, completed=done, total=total, means=self._title + " ".join(shown))


@contextlib.contextmanager
def image_bar(*, quiet: bool) -> Iterator[ImageBar]:
    """Show an `ImageBar`, unless `quiet`."""
    with _shown(_new_bar(after="{task.fields[means]}", quiet=quiet)) as bar:
        yield ImageBar(bar)


@contextlib.contextmanager
def stage_bars(*, quiet: bool, first: bool) -> Iterator[Callable[[str, int, int, float | None], None]]:
    """Show a bar for each stage of a training, unless `quiet`; yields what `training.train` takes as on_step.

    Of several processes the `first` alone shows declouder's log below warnings.
    """
    tasks: dict[str, Any] = {}
    bar = _new_bar("{task.description}", after="loss {task.fields[loss]}", elapsed=True, quiet=quiet)
    with _shown(bar, level=logging.INFO if first else logging.WARNING):

        def show(stage: str, done: int, total: int, loss: float | None) -> None:
            stop_if_interrupted()
            bar.start()
            if stage not in tasks:
                # Done steps of an earlier run must not count as fast ones.
                tasks[stage] = bar.add_task(stage, total=total, completed=done, loss="-")
            bar.update(tasks[stage], completed=done, loss="-" if loss is None else f"{loss:.4g}")

        yield show


@contextlib.contextmanager
def _shown(bar: Any, *, level: int = logging.WARNING) -> Iterator[Any]:
    """Show what is logged above a bar, and stop it at the end; nothing of either where it is disabled.

    It starts with the first thing that is done, so that an early error stands alone.
    """

    def tell(line: str) -> None:
        if not bar.disable:
            bar.console.print(line, markup=False, emoji=False, soft_wrap=True)

    with logging_to(tell, level=level):
        try:
            yield bar
        finally:
            if bar.live.is_started:  # else rich would print an empty line
                bar.stop()


class _Enduring:
    """A stream that loses what it cannot write: a log on a full disk ends no work."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _shortened(name: str, *, most: int) -> str:
    """Return a name without its middle where it is too long: rich would cut the numbers after it too."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _new_bar(before: str = "", *, after: str = "", elapsed: bool = False, quiet: bool = False) -> Any:
    """Return a rich Progress on stderr: text, bar, numbers, text, time gone if asked for, and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn

    enduring = None if sys.stderr is None else cast(IO[str], _Enduring(sys.stderr))
    console = Console(file=enduring, stderr=True, highlight=False)
    if console.width < 1:  # COLUMNS=0: rich would print nothing
        console.width = 80
    narrow = console.width < _NARROW
    columns: list[str | ProgressColumn] = [] if narrow else [BarColumn()]
    columns.append(MofNCompleteColumn())
    if before:
        columns.insert(0, TextColumn(before, markup=False))
    if after:
        columns.append(TextColumn(after, markup=False))
    if elapsed and not narrow:
        columns += [TimeElapsedColumn(), "gone,"]
    columns += [TimeLeftColumn(), "left"] if elapsed else [TimeLeftColumn()]
    return Progress(*columns, console=console, disable=quiet)
