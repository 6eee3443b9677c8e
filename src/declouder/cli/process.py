"""What a command sets for its whole process; a library does not do that to its caller."""

from __future__ import annotations

import contextlib
import os


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc; elsewhere nothing happens.

    Every window needs the same large pieces. glibc gives them back to the system, which clears them anew for
    the next layer: nearly a tenth of the time.
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
    the user says of it stands.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
