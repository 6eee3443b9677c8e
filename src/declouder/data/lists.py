"""Text lists of images: which to leave out, and which are train or test.

Two kinds, both with one entry a line and # before comments, so that they can be published beside a paper:

    exclude list:   12              the pair named 12 is left out
    split list:     test/12         the pair named 12 belongs to test

An entry that white space, # or a quote would make ambiguous stands between double quotes, as JSON has it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from declouder.errors import DataError
from declouder.whole_files import write_text

SPLITS = ("train", "test")


def split_list_of(root: Path) -> Path:
    """Return where a set's split list is looked for if nobody says."""
    return root / "split.txt"


def read_exclude_list(path: Path) -> set[str]:
    """Return the names that an exclude list holds.

    Raises:
        DataError: if the file is missing or cannot be read.
    """
    return {name for name, _ in _entries(path)}


def read_split_list(path: Path) -> dict[str, str]:
    """Return name -> "train" or "test" of a split list.

    Raises:
        DataError: if the file is missing, a line is not of the form train/NAME or test/NAME, or a name is in both.
    """
    split_of: dict[str, str] = {}
    for entry, number in _entries(path):
        split, slash, name = entry.partition("/")
        if not slash or split not in SPLITS:
            raise DataError(f"{path}, line {number} is {entry!r}; wanted train/NAME or test/NAME")
        if split_of.setdefault(name, split) != split:
            raise DataError(f"{path}, line {number}: {name} is in train and in test; keep one of the lines")
    return split_of


def write_exclude_list(path: Path, names: Mapping[str, str], *, heading: str) -> None:
    """Write name -> reason as an exclude list; the reasons become comments.

    Raises:
        OutputError: if the file cannot be written.
    """
    _write(path, heading, (f"{_quoted(name)}  # {reason}" for name, reason in names.items()))


def write_split_list(path: Path, split_of: Mapping[str, str], *, heading: str) -> None:
    """Write name -> "train" or "test" as a split list.

    Raises:
        OutputError: if the file cannot be written.
    """
    _write(path, heading, (_quoted(f"{split}/{name}") for name, split in split_of.items()))


# Names may hold the sign, so white space is before it, or nothing.
_COMMENT = re.compile(r"(?:^|\s)#")


def _entries(path: Path) -> list[tuple[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; give a text file with one name a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list ({error}); give a text file") from None
    stripped = ((_entry_of(line), number) for number, line in enumerate(lines, start=1))
    return [(entry, number) for entry, number in stripped if entry]


def _quoted(entry: str) -> str:
    plain = (
        entry.isprintable() and entry == entry.strip() and not entry.startswith('"') and not _COMMENT.search(entry)
    )
    return entry if plain else json.dumps(entry)


def _entry_of(line: str) -> str:
    if line.lstrip().startswith('"'):
        with contextlib.suppress(ValueError):  # a name that begins with a quote, written by hand
            entry, end = json.JSONDecoder().raw_decode(line.lstrip())
            if not _COMMENT.split(line.lstrip()[end:])[0].strip():
                return str(entry)
    return _COMMENT.split(line)[0].strip()


def _write(path: Path, heading: str, lines: Iterable[str]) -> None:
    text = "".join(f"# {line}\n" for line in heading.splitlines()) + "".join(f"{line}\n" for line in lines)
    write_text(path, text)
