"""Progress on stderr: a bar for each scene at work and, of several, one for them all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from declouder.cli.app import logging_to, stop_if_interrupted


class Bars:
    """Progress bars; those of several scenes may be moved from several threads. `None` shows nothing.

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
        task = progress.add_task(source.name, total=None, unit="windows")

        def show(done: int, total: int) -> None:
            stop_if_interrupted()
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
    """Show bars and declouder's log on stderr, unless `quiet`."""
    if quiet:
        yield Bars(None, scenes)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.progress import TimeRemainingColumn as TimeLeftColumn

    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]},"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeLeftColumn(),
        TextColumn("left"),
        console=console,
    )
    with logging_to(lambda line: console.print(line, markup=False, soft_wrap=True)), progress:
        yield Bars(progress, scenes)
