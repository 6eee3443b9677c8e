"""The report's plots as inline SVG: colours come from the page, so that they follow light and dark.

Every value is a number of ours and every label goes through `escape`, so the result is safe to embed as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, LEFT, ROW = 420, 16, 50
MOST_LETTERS = 48
"""That fit into the width."""


def distribution(name: str, values: Mapping[str, Sequence[float]]) -> Markup:
    """Return one strip a method: each image a dot, the quartiles a box, the median a line.

    Args:
        name: of the score.
        values: by method; a method without values has an empty strip.
    """
    known = [v for each in values.values() for v in each]
    low, high = min(known), max(known)
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - 2 * LEFT)

    height = ROW * len(values) + 24
    parts = [_open(height, f"distribution of {name} over images")]
    for tick in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{height - 20}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle">{tick:g}</text>')
    for index, (method, each) in enumerate(values.items()):
        top = index * ROW
        title = f"<title>{escape(method)}</title>"
        parts.append(f'<text x="{LEFT}" y="{top + 14}">{escape(_shortened(method))}{title}</text>')
        if not each:
            continue
        first, middle, third = (x(float(q)) for q in np.percentile(each, (25, 50, 75)))
        colour = index % 6
        parts.append(
            f'<rect class="box c{colour}" x="{first:.1f}" y="{top + 20}" width="{third - first:.1f}" height="20"/>'
        )
        for position, value in enumerate(each):
            # Spread over the strip in a fixed pattern, so that equal values stay apart.
            y = top + 23 + (position * 7) % 15
            parts.append(f'<circle class="c{colour}" cx="{x(value):.1f}" cy="{y}" r="2.6"/>')
        parts.append(f'<line class="median" x1="{middle:.1f}" x2="{middle:.1f}" y1="{top + 18}" y2="{top + 42}"/>')
    return Markup("".join(parts) + "</svg>")


def reliability(found: Mapping[str, Any]) -> Markup:
    """Return error found against spread foretold, with the line where the samples would tell the truth.

    Args:
        found: from `breakdown.pooled_spread`.
    """
    rows = found["reliability"]
    high = max(max(row["spread"] * found["calibrated"], row["error"]) for row in rows) * 1.08 or 1.0
    spread_high = max(row["spread"] for row in rows) * 1.08 or 1.0
    height, bottom, left = 280, 240, 52

    def x(spread: float) -> float:
        return left + spread / spread_high * (WIDTH - left - LEFT)

    def y(error: float) -> float:
        return bottom - error / high * (bottom - 12)

    parts = [_open(height, "error found against spread foretold")]
    for tick in _ticks(0, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - LEFT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, spread_high):
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    end = spread_high / 1.08
    x_end, y_end = x(end), y(end * found["calibrated"])
    parts.append(f'<line class="ideal" x1="{x(0)}" y1="{y(0)}" x2="{x_end:.1f}" y2="{y_end:.1f}"/>')
    points = " ".join(f"{x(row['spread']):.1f},{y(row['error']):.1f}" for row in rows)
    parts.append(f'<polyline class="line c0" points="{points}"/>')
    most = max(row["pixels"] for row in rows)
    for row in rows:
        radius = 3 + 6 * (row["pixels"] / most) ** 0.5
        parts.append(
            f'<circle class="c0" cx="{x(row["spread"]):.1f}" cy="{y(row["error"]):.1f}" r="{radius:.1f}">'
            f"<title>{row['pixels']} pixels, spread {row['spread']:.4f}, error {row['error']:.4f}</title></circle>"
        )
    parts.append(
        f'<text x="{WIDTH / 2}" y="{height - 6}" text-anchor="middle">spread foretold (share of range)</text>'
    )
    parts.append(f'<text x="{left + 6}" y="14">error found; dashed: of all pixels, as it should be</text>')
    return Markup("".join(parts) + "</svg>")


def _shortened(name: str) -> str:
    """Return a name that fits into the width of a plot; both ends stay, as variants differ there."""
    half = MOST_LETTERS // 2
    return name if len(name) <= MOST_LETTERS else f"{name[:half]}…{name[-half:]}"


def _open(height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers within [low, high]."""
    power = 10.0 ** np.floor(np.log10(high - low))
    # A step is at most twice the next smaller one: the largest that gives three gives no more than six.
    for step in (float(power * share) for share in (5, 2.5, 2, 1, 0.5, 0.25)):
        first, last = int(np.ceil(low / step)), int(np.floor(high / step))
        if last - first >= 2:
            break
    return [round(step * n, 12) for n in range(first, last + 1)]
