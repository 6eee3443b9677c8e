"""An ablation as Markdown, as CSV and as a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declouder.ablation.settings import GROUP_NAMES
from declouder.ablation.verdict import plus, signed
from declouder.evaluation import SCORES
from declouder.whole_files import whole_file


def to_markdown(found: Mapping[str, Any]) -> str:
    """Return the table, above it the answer and below it where the answer holds."""
    data = found["data"]
    lines = [f"{data['name']}/{data['split']}, {data['images']} images, seed 0 where no other is named.", ""]
    if found["answer"] is not None:
        lines += [found["answer"]["sentence"], ""]
    if found["best"] is not None:
        lines += [found["best"]["sentence"], ""]
    lines += [
        "| what | setting | network evaluations | " + " | ".join(SCORES) + " |",
        "|---" * (len(SCORES) + 3) + "|",
    ]
    for row in found["rows"]:
        cells = ["–" if row["mean"][name] is None else f"{row['mean'][name]:.4f}" for name in SCORES]
        lines.append(f"| {row['group']} | {row['label']} | {row['evaluations']} | " + " | ".join(cells) + " |")
    if found["answer"] is not None:
        lines += ["", *_where_lines(found["answer"])]
    return "\n".join(lines) + "\n"


def _where_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return two tables: fused less reference by kind of image, and by place in the image."""
    lines = ["The learned w less the reference, by kind of image:", "", "| images with | images | lpips | psnr |"]
    lines.append("|---|---|---|---|")
    for name, each in answer["where"].items():
        cells = [
            signed(each[score], digits) if each[score] else "–" for score, digits in (("lpips", 4), ("psnr", 2))
        ]
        lines.append(f"| {name} | {each['images']} | {' | '.join(cells)} |")
    regions = {name: value for name, value in answer["regions"].items() if value is not None}
    lines += [
        "",
        "And by place in the image, PSNR in dB:",
        "",
        "| " + " | ".join(regions) + " |",
        "|---" * len(regions) + "|",
    ]
    lines.append("| " + " | ".join(plus(value, 2) for value in regions.values()) + " |")
    return lines


def to_csv(table: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a row: its settings and mean scores."""
    text = io.StringIO()
    settings = ["evaluations", "steps", "strength", "w_low", "w_high", "consistency", "sampler", "seed", "samples"]
    writer = csv.DictWriter(
        text, ["group", "label", *settings, *SCORES], lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for row in table:
        low, high = row["w_bounds"]
        writer.writerow({**row, "w_low": low, "w_high": high, **row["mean"]})
    return text.getvalue()


def plot(found: Mapping[str, Any], out: Path) -> None:
    """Draw quality against network evaluations as ablation.png and ablation.svg in `out`."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [name for name in ("psnr", "ssim", "lpips") if found["rows"][0]["mean"][name] is not None]
    figure = Figure(figsize=(4.2 * len(names), 3.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names)))
    for axes, name in zip(panels, names, strict=True):
        base = found["rows"][0]["mean"][name]
        axes.axhline(base, color="0.5", linestyle="--", linewidth=1, label="reference alone")
        for group, marker in zip(GROUP_NAMES[1:], "ox*^sDv", strict=True):
            members = [row for row in found["rows"] if row["group"] == group and row["mean"][name] is not None]
            members.sort(key=lambda row: row["evaluations"])
            if members:
                line = "-" if group == "steps" else "none"
                x = [row["evaluations"] for row in members]
                y = [row["mean"][name] for row in members]
                axes.plot(x, y, linestyle=line, marker=marker, label=group, alpha=0.85)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("denoiser evaluations an image")
        axes.set_ylabel({"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS (lower is better)"}[name])
        axes.set_xticks([1, 2, 4, 10, 25, 50], ["1", "2", "4", "10", "25", "50"])
    drawn = {  # in some panel: rows may lack a score
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend([*drawn.values()], [*drawn], loc="outside lower center", ncols=7, fontsize=8)
    for suffix in ("png", "svg"):
        target = out / f"ablation.{suffix}"
        # Without a date, and with names that follow from what they name, the same table gives the same file.
        same_names = matplotlib.rc_context({"svg.hashsalt": "declouder"})
        with same_names, whole_file(target, mend="choose another -o") as part:
            figure.savefig(part, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else None)
