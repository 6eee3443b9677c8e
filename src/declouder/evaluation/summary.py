"""The rows of all images -> means, intervals and breakdowns, and these as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown, metrics

SCORES = tuple(metrics.DEFINITIONS)
BAND_SCORES = ("psnr", "ssim", "lpips", "mae")
"""Scores of a single band: an angle between spectra needs several."""
GROUPS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "flat label": lambda row: bool(row["flat"]),
    "structured label": lambda row: not row["flat"],
    "hardly any cloud (cover under 1 %)": lambda row: row["cover"] < 0.01,
    "thin cloud (thick on under 10 %)": lambda row: row["cover"] >= 0.01 and row["thick_cover"] < 0.1,
    "thick cloud on 10 % or more": lambda row: row["thick_cover"] >= 0.1,
    "cover under 30 %": lambda row: row["cover"] < 0.3,
    "cover 30 to 70 %": lambda row: 0.3 <= row["cover"] < 0.7,
    "cover from 70 %": lambda row: row["cover"] >= 0.7,
}
"""Sets of images that are told apart; a row is one of the file's "images"."""


def summary(rows: Sequence[Mapping[str, Any]], *, samples: int = 1, averaged: bool = False) -> dict[str, Any]:
    """Return mean, interval and the breakdowns by band, region and group of images, and the trust in them.

    Args:
        rows: one an image, as in the file's "images".
        samples: how many draws the method made of each image.
        averaged: whether their mean was scored, not the first of them: it decides what error a calibrated spread
            would have.
    """
    bands = {
        band: {key: _mean(row["bands"][band][key] for row in rows if band in row["bands"]) for key in scores}
        for band, scores in rows[0]["bands"].items()
    }
    parts = {}
    for region in breakdown.REGIONS:
        there = [row["regions"][region] for row in rows if row["regions"][region] is not None]
        parts[region] = {
            "images": len(there),
            **{key: _mean(found[key] for found in there) for key in ("psnr", "ssim", "mae")},
        }
    groups = {
        group: {"images": len(members), "mean": means(members)}
        for group, members in {name: [row for row in rows if test(row)] for name, test in GROUPS.items()}.items()
    }
    changed = [row["changed"] for row in rows if row["changed"] is not None]
    spreads = [row["spread"] for row in rows if row["spread"] is not None]
    return {
        "mean": means(rows),
        "interval": {name: bootstrap_interval(_values(rows, name)) for name in SCORES},
        "bands": bands,
        "regions": parts,
        "groups": groups,
        "changed": {"images": len(changed), **{key: _mean(c[key] for c in changed) for key in ("mean", "share")}},
        "spread": breakdown.pooled_spread(spreads, samples, averaged) if spreads else None,
    }


def bootstrap_interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the mean of (N,) values; one value tells of none."""
    if values.size < 2:
        return None
    generator = np.random.default_rng(0)
    # A hundred draws at a time: those of a set of thousands of images would fill gigabytes.
    means = [values[generator.integers(0, values.size, (100, values.size))].mean(1) for _ in range(100)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return [float(low), float(high)]


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one table, a row a result, with the interval under each mean, and of how many images, if not all."""
    lines = [
        "| data (images) | method | " + " | ".join(SCORES) + " |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for result in results:
        data, method = result["data"], result["method"]
        cells = [_cell_text(f"{data['name']}/{data['split']} ({data['images']})"), _cell_text(method["name"])]
        for name in SCORES:
            mean, interval = result["mean"][name], result["interval"][name]
            within = "" if interval is None else f"<br>({interval[0]:.4f} to {interval[1]:.4f})"
            known = sum(row[name] is not None for row in result["images"])
            of = f" (of {known})" if known < len(result["images"]) else ""
            cells.append("–" if mean is None else f"{mean:.4f}{of}{within}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def breakdown_markdown(result: Mapping[str, Any]) -> str:
    """Return three tables of one result: by band, by region, and by group of images."""

    def table(first: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
        head = f"| {first} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n"
        return head + "".join(
            f"| {_cell_text(name)} | " + " | ".join(_cell(row.get(column)) for column in columns) + " |\n"
            for name, row in rows.items()
        )

    groups = {name: {"images": group["images"], **group["mean"]} for name, group in result["groups"].items()}
    return "\n".join(
        [
            table("band", BAND_SCORES, result["bands"]),
            table("region", ("images", "psnr", "ssim", "mae"), result["regions"]),
            table("images with", ("images", *SCORES), groups),
        ]
    )


def _cell_text(text: str) -> str:
    """Return a name that a user gave, so that it stays within its cell."""
    return " ".join(text.split()).replace("|", r"\|")


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a line an image: its name, scores and kind."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["name", *SCORES, "cover", "thick_cover", "flat"], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each score over the rows that have it."""
    return {name: _mean(row[name] for row in rows) for name in SCORES}


class RunningMeans:
    """Means of each score over the rows so far, at the same cost for each row."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(SCORES, 0.0)
        self._known = dict.fromkeys(SCORES, 0)

    def add(self, row: Mapping[str, Any]) -> dict[str, float | None]:
        """Take one more row; return the means, None of a score that no row has."""
        for name in SCORES:
            if row[name] is not None:
                self._sums[name] += row[name]
                self._known[name] += 1
        return {name: self._sums[name] / known if known else None for name, known in self._known.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows if row[name] is not None], np.float64)
