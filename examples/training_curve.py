"""The scores on held-out pairs over the steps of one or more runs, as a figure: one panel a stage.

python examples/training_curve.py runs/compact_detail runs/compact_varied -o docs/training_curve.png
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from declouder.config import STAGE_NAMES

SHOWN = {
    "noise_loss": "noise loss",
    "reference_psnr": "reference, PSNR in dB",
    "restored_psnr": "restored, PSNR in dB",
}


def main() -> None:
    """Draw every stage that has scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    scores = {(run.name, name): run / name / "scores.csv" for run in options.runs for name in STAGE_NAMES}
    stages = {": ".join(names): read_scores(path) for names, path in scores.items()}
    stages = {name: rows for name, rows in stages.items() if rows}
    if not stages:
        raise SystemExit(f"{options.runs[0]} has no STAGE/scores.csv; give a run's folder")
    figure, panels = plt.subplots(1, len(stages), figsize=(3.1 * len(stages), 2.8), squeeze=False)
    for panel, (name, rows) in zip(panels[0], stages.items(), strict=True):
        for column, label in SHOWN.items():
            if column in rows[0]:
                panel.plot([row["step"] for row in rows], [row[column] for row in rows], marker=".", label=label)
        panel.set(title=name, xlabel="steps")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)


def read_scores(path: Path) -> list[dict[str, float]]:
    """Return the rows of a scores.csv; none where the stage has not been scored."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


if __name__ == "__main__":
    main()
