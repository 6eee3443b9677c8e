"""Signals that end a run, held back where they would strike at a bad moment."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, and a terminal that is closed."""


@contextlib.contextmanager
def children_heed_no_interrupt() -> Iterator[None]:
    """Processes that are begun within the block, and by threads begun within it, never see SIGINT.

    Ctrl-C goes to all processes of a terminal: who began them ends them, and they have nothing to say to it.
    """
    resource_tracker.ensure_running()  # begun later, it would unblock SIGINT in the thread that begins it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Signals of `ENDING` that Python handles act at the end of the block; outside the main thread none come."""
    came: list[int] = []
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                handler = signal.getsignal(number)
                if not callable(handler):  # ignored, the system's own, or one that Python could not put back
                    continue
                before[number] = handler
                signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
