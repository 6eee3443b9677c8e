"""Locks on files, by which runs keep out of each other's way; they vanish with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems say that have no locks, as some of clusters."""


def locked(path: Path, *, doubt: str, with_children: bool = True) -> int:
    """Open a file, made if need be, and lock it; return its descriptor, to be closed by the caller.

    Args:
        path: the file; not a link.
        doubt: what to see to where the file system has no locks, for the warning.
        with_children: whether processes that this one begins hold the lock too, for as long as they live.

    Raises:
        BlockingIOError: if another process has it locked.
        OSError: if it cannot be opened or locked.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(file, path, doubt, with_children=with_children)
            # Who had it may have deleted it between our two calls; then we hold a file without a name.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat(follow_symlinks=False)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, path: Path, doubt: str, *, with_children: bool) -> None:
    import fcntl  # Windows has none, and imports this module as well

    lock = fcntl.flock if with_children else fcntl.lockf
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EACCES:  # which lockf may say in place of EAGAIN
            raise BlockingIOError(error.errno, error.strerror) from error
        if error.errno not in _UNKNOWN:
            raise
        log.warning("%s: this file system has no locks; %s", path, doubt)
