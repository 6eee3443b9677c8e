"""The file of scores, its journal while it grows, and what it says of where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from declouder.errors import DataError, OutputError
from declouder.evaluation.layout import PARTS, flaw_of_file, flaw_of_row
from declouder.locks import locked
from declouder.whole_files import write_text

log = logging.getLogger(__name__)

FORMAT = "declouder scores"
FORMAT_VERSION = 1
SCORING_PACKAGES = ("declouder", "torch", "diffusers", "numpy", "scipy", "pillow")


def read_scores(path: Path) -> dict[str, Any]:
    """Read a file that `evaluate` wrote.

    Raises:
        DataError: if it is missing, no file of scores, one of another version, or one that was changed since.
    """
    try:
        found = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; `declouder evaluate` makes it") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; give the files of scores in it, such as {path}/*.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no file of scores ({error}); `declouder evaluate` makes one") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path} is no file of scores; `declouder evaluate` makes one")
    if found.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path} is of version {found.get('version')}, this declouder reads {FORMAT_VERSION}; evaluate again"
        )
    missing = [key for key in PARTS if key not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; evaluate again")
    if (flaw := flaw_of_file(found)) is not None:
        raise DataError(f"{path} is not as `declouder evaluate` writes it ({flaw}); evaluate again")
    return found


@contextlib.contextmanager
def alone_at(out: Path) -> Iterator[None]:
    """Keep other runs from scoring to the same file for as long as the block lasts.

    Raises:
        OutputError: if another run is at it.
    """
    lock = out.with_name(f".{out.name}.lock")
    try:
        file = locked(lock, doubt="see that no other run scores to the same file")
    except BlockingIOError:
        raise OutputError(
            f"another run is scoring to {out} at this moment; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}); choose another --out") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)


def begin_journal(
    partial: Path, head: Mapping[str, Any], *, anew_if_other: bool = False
) -> dict[str, dict[str, Any]]:
    """Return the rows of an interrupted run by name, or begin a new journal whose first line is `head`.

    Args:
        partial: the journal.
        head: all that the rows depend on.
        anew_if_other: begin a new one in place of that of another run. So it is without that too where nothing but
            images has changed, as when one that could not be read was replaced.

    Raises:
        OutputError: if the journal is of another run, or damaged.
    """
    if not partial.exists():
        write_text(partial, json.dumps(head) + "\n", mend="make room, or choose another --out")
        return {}
    text = partial.read_text(encoding="utf-8", errors="replace")
    # A killed run may have left half a line at the end.
    whole = text[: text.rfind("\n") + 1]
    lines = whole.splitlines()
    try:
        found = [_parsed(line) for line in lines]
    except ValueError as error:
        raise OutputError(f"{partial} is damaged ({error}); remove it to begin anew") from None
    for number, row in enumerate(found[1:], 2):
        if (flaw := flaw_of_row(row)) is not None:
            raise OutputError(f"{partial} is damaged (line {number}, {flaw}); remove it to begin anew")
    rows = {row["name"]: row for row in found[1:]}
    if len(rows) < len(found) - 1:
        raise OutputError(f"{partial} is damaged (an image is there twice); remove it to begin anew")
    if found and found[0] != head and (anew_if_other or _but_for_images(found[0]) == _but_for_images(head)):
        log.warning("%s was of a run with other data, model or settings; begun anew", partial)
        found = []
    if found and found[0] != head:
        before = found[0] if isinstance(found[0], dict) else {}
        other = ", ".join(sorted(key for key in {*before, *head} if before.get(key) != head.get(key)))
        raise OutputError(
            f"{partial} is from a run with other data, model or settings ({other}); give --overwrite to begin"
            f" anew, or another --out"
        )
    if not found:
        partial.unlink()
        return begin_journal(partial, head)
    if whole != text:
        write_text(partial, whole)
    return rows


def _parsed(text: str) -> Any:
    """Return what a JSON text holds; ValueError if it is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets within brackets without end") from None


def _but_for_images(head: Any) -> Any:
    """Return the first line of a journal without what says which bytes images, masks and finished outputs have."""
    if not isinstance(head, dict):
        return head
    data, method = head.get("data"), head.get("method")
    bare = dict(head)
    if isinstance(data, dict):
        bare["data"] = {key: value for key, value in data.items() if key not in ("sha256", "masks")}
    if isinstance(method, dict) and method.get("kind") == "outputs":
        bare["method"] = {key: value for key, value in method.items() if key != "sha256"}
    return bare


def files_fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """Return the sha256 of names and bytes."""
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder that results go to.

    Raises:
        OutputError: if that cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} cannot be made ({error}); choose another place") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {folder} may not be written; choose another place")
