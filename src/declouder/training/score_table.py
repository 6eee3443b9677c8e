"""A stage's scores.csv: a row for each step that was scored, with `step` and the scores' names above."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from declouder.errors import DataError, reason_of
from declouder.training.surroundings import MAKE_ROOM
from declouder.whole_files import whole_file

SCORES = "scores.csv"


def append_row(path: Path, row: dict[str, float]) -> None:
    """Write a row below those of earlier steps; those of this and of later ones are dropped.

    Raises:
        DataError: if the file that is there is not as training wrote it.
        OutputError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that was killed after its last checkpoint comes by some steps a second time.
    earlier = [old for old in _rows(path) if int(old["step"]) < row["step"]]
    if earlier and (foreign := [name for name in earlier[0] if name not in row]):
        raise _spoilt(path, f"no score is called {foreign[0]!r}")
    with whole_file(path, mend=MAKE_ROOM) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerows(earlier)
        writer.writerow({key: value if key == "step" else f"{value:.5f}" for key, value in row.items()})


def check_scores(path: Path, columns: Sequence[str]) -> None:
    """Raise DataError if a file, where there is one, is not as training wrote it.

    Args:
        path: the file.
        columns: what it had at the last checkpoint; none where that is not known.
    """
    rows = _rows(path)
    if rows and columns and set(rows[0]) != set(columns):
        raise _spoilt(path, f"its columns are {', '.join(rows[0])}, and were {', '.join(columns)}")


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file by column, none where there is no file; DataError if it cannot be one of ours."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if "step" not in columns:
                raise _spoilt(path, "it has no column 'step'")
            if len(set(columns)) < len(columns):
                raise _spoilt(path, "two of its columns have one name")
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise _spoilt(path, f"line {reader.line_num} has not {len(columns)} fields, as the first has")
                if not (row["step"].isascii() and row["step"].isdigit()):
                    raise _spoilt(path, f"the step in line {reader.line_num} is {row['step'][:40]!r}")
                rows.append(row)
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise _spoilt(path, "it is not UTF-8") from None
    except (OSError, csv.Error) as error:
        raise _spoilt(path, reason_of(error)) from None
    return rows


def _spoilt(path: Path, how: str) -> DataError:
    return DataError(f"{path} is not as training wrote it ({how}); put it back, or move it away")
