"""What a command sets for its whole process; a library does not do that to its caller."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc; elsewhere nothing happens.

    Every window needs the same large pieces. glibc gives them back to the system, which clears them anew for
    the next layer: nearly a tenth of the time, on some virtual machines half of it.
    """
    import ctypes

    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    most, most_of_old_glibc, kept = 256 * 2**20, 32 * 2**20, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        # The first alone would make it worse: setting either ends that glibc raises the second by itself.
        if mallopt(m_mmap_threshold, most) or mallopt(m_mmap_threshold, most_of_old_glibc):
            mallopt(m_trim_threshold, kept)


def wait_briefly() -> None:
    """Let threads that wait for each other give their core away soon, where GNU OpenMP runs them.

    By itself it lets them spin for many milliseconds. On a machine that is busy with other things they spin while
    the thread that they wait for has no core, at every operation. It reads this once, when torch is loaded. What
    the user says of it stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def import_pipeline() -> None:
    """Import `declouder.pipeline`, as a command does that is about to need it, in a quarter less time."""
    with _nobody_needs("scipy.stats"):  # of diffusers' schedulers, for noise that no command of ours asks for
        import_to_stay("declouder.pipeline")


def import_to_stay(name: str) -> None:
    """Import a large module that the garbage collector is never to look at, nor at what there was before.

    It would look through all that has been made so far, again and again, and none of it is garbage: a seventh of
    the time of the import.
    """
    if name in sys.modules:
        return
    was_on = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(name)
        gc.freeze()
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _nobody_needs(name: str) -> Iterator[None]:
    """Within it `import package.module` does not load a module that is not loaded yet.

    Who imports it gets a stand-in, which loads the module once something is taken from it. Afterwards it is
    imported as ever.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = stand_in = importlib.util.module_from_spec(spec)

    def leave() -> None:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]

    def taken(attribute: str) -> Any:
        if attribute.startswith("__"):  # `inspect` and `warnings` ask every module for some
            raise AttributeError(attribute)
        leave()
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = taken  # type: ignore[method-assign]
    try:
        yield
    finally:
        leave()
