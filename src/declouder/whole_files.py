"""Files and folders that appear whole or not at all: written beside their name, then renamed.

A killed run, a full disk or a reader that comes too early never meets half a result.

    with whole_file(path) as part:
        image.save(part)
    write_text(path, text)
    with whole_folder(folder) as part:
        pipeline.save_pretrained(part)
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from declouder.errors import OutputError

ELSEWHERE = "choose another place"
"""The mend, where the caller knows none that says more."""


@contextmanager
def whole_file(path: Path, *, mend: str = ELSEWHERE) -> Iterator[Path]:
    """Yield a name beside `path`; what the block writes there is called `path` once the block has ended well.

    Raises:
        OutputError: if it cannot be written (`mend` ends the message); `path` stays as it was.
    """
    part = _beside(path)
    try:
        with _told(path, mend):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, mend: str = ELSEWHERE) -> None:
    """Write a text file in UTF-8, whole or not at all; arguments and errors as for `whole_file`."""
    with whole_file(path, mend=mend) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def whole_folder(path: Path, *, mend: str = ELSEWHERE) -> Iterator[Path]:
    """Yield a folder to fill that takes the place of `path`, and of what lies there, if the block ends well.

    It is not made yet. An existing `path` stays until then.

    Raises:
        OutputError: if it cannot be written (`mend` ends the message).
    """
    place = path.resolve()  # "." has no name
    part = _beside(place)
    try:
        with _told(path, mend):
            yield part
            if place.exists():
                shutil.rmtree(place)
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


@contextmanager
def _told(path: Path, mend: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Without the file's name that an OSError ends in: it is that of the part.
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); {mend}") from error
