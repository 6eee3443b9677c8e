"""Where the package's log goes while a command runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

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
