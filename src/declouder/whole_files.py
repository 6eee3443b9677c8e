"""Files and folders that appear whole or not at all: written beside their name, then renamed.

A killed run, a full disk or a reader that comes too early never meets half a result.

    with whole_file(path) as part:
        image.save(part)
    write_text(path, text)
    with whole_folder(folder) as part:
        pipeline.save_pretrained(part)
    with whole_files_of(folder) as part:
        network.save_pretrained(part / "reference")
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from declouder.errors import OutputError

ELSEWHERE = "choose another place"
"""The mend, where the caller knows none that says more."""
_PART = re.compile(r"\..+\.\d+-\d+\.part")
"""What `_beside` calls a part, of any name."""
_LONGEST = 100
"""Bytes of a name that its part's name begins with; all of a long one would be too long for a file system."""


@contextmanager
def whole_file(path: Path, *, mend: str = ELSEWHERE) -> Iterator[Path]:
    """Yield a name beside `path`; what the block writes there is called `path` once the block has ended well.

    Of an existing file the permissions stay, a link goes on pointing where it does, and what is no regular file,
    such as a pipe, is written to as it is.

    Raises:
        OutputError: if it cannot be written (`mend` ends the message); `path` stays as it was.
    """
    # Looked at by its own name: /dev/stdout resolves to none where it is a pipe.
    if path.exists() and not path.is_file():
        with _told(path, mend):
            yield path
        return
    place = path.resolve()
    part = _beside(place)
    try:
        with _told(path, mend):
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            if place.exists():
                shutil.copymode(place, part)
            part.replace(place)
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

    It is not made yet. An existing `path` stays until then. All files get the permissions of new ones. One that
    a killed process had moved away, and not yet replaced, is brought back first.

    Raises:
        OutputError: if it cannot be written (`mend` ends the message).
    """
    place = path.resolve()  # "." has no name
    part = _beside(place)
    old = part.with_suffix(".old")
    try:
        with _told(path, mend):
            _bring_back(place)
            _remove_folders_of_the_dead(place)
            yield part
            _permit(part)
            if place.exists():
                place.rename(old)
            part.rename(place)
    finally:
        if old.exists() and not place.exists():  # also where Ctrl-C came between the two renames
            with contextlib.suppress(OSError):
                old.rename(place)
        shutil.rmtree(part, ignore_errors=True)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def whole_files_of(folder: Path, *, mend: str = ELSEWHERE) -> Iterator[Path]:
    """Yield an empty folder; the files that the block writes in it move to `folder` if the block ends well.

    One by one they take the place of those of the same names; all others in `folder` stay. All that move get the
    permissions of new ones.

    Raises:
        OutputError: if one cannot be written (`mend` ends the message).
    """
    place = folder.resolve()
    part = _beside(place)
    try:
        with _told(folder, mend):
            _remove_folders_of_the_dead(place)
            part.mkdir(parents=True)
            yield part
            _permit(part)
            for file in sorted(path for path in part.rglob("*") if path.is_file()):
                target = place / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_new(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError if something is at `path` already and is not to be replaced."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; give --overwrite or another name")


def remove_stale_parts(path: Path) -> None:
    """Delete what killed processes left of an unfinished `path`; the caller knows that no other writes it."""
    place = path.resolve()
    for left in _left_beside(place, "part"):
        if left.is_file():
            left.unlink(missing_ok=True)


def remove_all_stale_parts(folder: Path) -> None:
    """Delete the unfinished files that killed processes left in a folder, of whatever names.

    As for `remove_stale_parts`, the caller knows that no other writes there.
    """
    for left in folder.glob(".*.part"):
        if _PART.fullmatch(left.name) and left.is_file():
            with contextlib.suppress(OSError):  # another user's
                left.unlink()


def _remove_folders_of_the_dead(place: Path) -> None:
    """Delete what killed processes left of an unfinished folder, or of one replaced: that may be a data set."""
    replaced = _left_beside(place, "old") if place.exists() else []
    for left in [*_left_beside(place, "part"), *replaced]:
        if left.is_dir() and _is_of_the_dead(left, place):
            shutil.rmtree(left, ignore_errors=True)


def _is_of_the_dead(left: Path, place: Path) -> bool:
    """Return whether nobody is at work with what is called as `_beside` does; we ourselves are just beginning."""
    process = int(left.name.rsplit(".", 2)[1].split("-")[0])
    return left.with_suffix(".part") == _beside(place) or not lives(process)


def lives(process: int) -> bool:
    """Return whether a process of this machine lives, by its number."""
    try:
        os.kill(process, 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return process > 0


def _bring_back(place: Path) -> None:
    """Give a folder its name again where a process was killed between the two renames."""
    for old in _left_beside(place, "old"):
        if old.is_dir() and not place.exists() and _is_of_the_dead(old, place):
            old.rename(place)


def _beside(path: Path) -> Path:
    return path.with_name(f"{hidden_beginning(path)}{os.getpid()}-{threading.get_ident()}.part")


def _left_beside(path: Path, suffix: str) -> list[Path]:
    """Return what processes called as `_beside` does: of `model`, never of `model.v2`."""
    name = re.compile(rf"{re.escape(hidden_beginning(path))}\d+-\d+\.{suffix}")
    try:
        return [left for left in path.parent.iterdir() if name.fullmatch(left.name)]
    except (FileNotFoundError, PermissionError):  # not made yet; or it may let files in and not be listed
        return []


def hidden_beginning(path: Path) -> str:
    """Return what the names of all begin with that is written beside a path, for it: `.NAME.`, or shorter."""
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST:
        return f".{path.name}."
    # Long names may differ in their ends alone.
    return f".{name[:_LONGEST].decode(errors='ignore')}.{hashlib.sha256(name).hexdigest()[:12]}."


def _permit(folder: Path) -> None:
    """Give the files in a folder the permissions of a new one; those of safetensors are for their owner alone."""
    if not folder.is_dir():
        return
    new = folder / ".new"
    new.touch()
    mode = new.stat().st_mode
    new.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def _told(path: Path, mend: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Without the file's name that an OSError ends in: it is that of the part.
        raise OutputError(f"{path} cannot be written ({error.strerror or error}); {mend}") from error
    except SafetensorError as error:  # it writes by itself, and a full disk is no OSError to it
        raise OutputError(f"{path} cannot be written ({error}); {mend}") from error
