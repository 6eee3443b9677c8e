"""docs/benchmark.md from files of scores: no number is typed in by hand.

    python benchmarks/make_benchmark_table.py            writes docs/benchmark.md
    python benchmarks/make_benchmark_table.py --check    exits with 1 if the page is not what the files say

Rows come from benchmarks/scores/*.json, which `declouder evaluate` wrote, and from benchmarks/given.csv: figures
that others measured on the same images with the same definitions, marked as given.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declouder.ablation import answer
from declouder.ablation.verdict import plus
from declouder.evaluation import SCORES, bootstrap_interval, read_scores

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmark.md"
GIVEN = ("psnr", "ssim", "lpips", "paper_psnr", "paper_ssim", "paper_lpips")
COUNTS = {"RICE1": 500, "RICE2": 736}
"""Pairs of the full sets."""

HEAD = """\
# Benchmark

<!-- Made by benchmarks/make_benchmark_table.py from benchmarks/scores and benchmarks/given.csv; do not edit. -->

For people who compare methods: the shipped model, its reference alone, and others, on the same test images by the
same code, at 256 x 256 px, uint8. What each score means: [evaluate.md](evaluate.md#what-the-scores-mean). A
`paper_` score follows the paper's evaluator, slips included, and is not comparable with a standard one.

**The images** are parts of the full sets, split from the training images by blocks of 50 numbers, because
neighbouring numbers show the same ground: {counts}. They are numbers 100 to 149 and 250 to 299 of the full RICE1,
and 50 to 99, 250 to 299 and 550 to 599 of RICE2; the rows of `benchmarks/scores/*-model.csv` name each. They are
lossless; the shipped model learnt from WebP of quality 96.

**The rows.** Means over images, below each the 95 % bootstrap interval. *Reference alone* is the model without
diffusion, `--fast` with a step only where much was painted, `--best` the mean of two draws. *Full-size DE* are
the paper's networks, trained for minutes ([model card](model-card.md#the-papers-own-networks)). Rows marked
*given* were measured on these images by others, with the same definitions, and carry no interval. pix2pix and
SpA-GAN were trained by their authors on the full sets and may have seen some of these images.
"""

COMMANDS = """
## The commands

    declouder evaluate DATA/RICE1 --cloudy --out benchmarks/scores/RICE1-cloudy.json
    declouder evaluate DATA/RICE1 --model MODEL --steps 0 --name "MODEL, reference alone" \\
        --out benchmarks/scores/RICE1-reference.json
    declouder evaluate DATA/RICE1 --model MODEL --fast --precision 32 --name "MODEL, --fast" \\
        --out benchmarks/scores/RICE1-fast.json
    declouder evaluate DATA/RICE1 --model MODEL --best --name "MODEL, --best" \\
        --out benchmarks/scores/RICE1-best.json
    declouder evaluate DATA/RICE1 --model MODEL --samples 4 --out benchmarks/scores/RICE1-model.json
    declouder evaluate DATA/RICE1 --outputs FOLDER --name "another method" \\
        --out benchmarks/scores/RICE1-another.json
    python benchmarks/make_benchmark_table.py

and the same with RICE2; each with `--lpips-backbone FILE`, or `--lpips-download` once. The files of scores
carry the fingerprints of data and model:

"""


def page(results: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, str]]) -> str:
    """Return the page: for each data set one table of scores and one by place and kind of image."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        sets.setdefault(f"{result['data']['name']}/{result['data']['split']}", []).append(result)
    counts = "; ".join(
        f"{name}: {members[0]['data']['images']} images"
        + (f" of the full set's {COUNTS[part]} pairs" if (part := name.split("/")[0]) in COUNTS else "")
        for name, members in sets.items()
    )
    text = [HEAD.format(counts=counts)]
    for name, members in sets.items():
        same = {(member["data"]["sha256"], member["data"].get("size_px")) for member in members}
        if len(same) > 1:
            sys.exit(f"the files of {name} were scored on different images; evaluate them again")
        members = sorted(members, key=lambda member: (_rank(member), member["method"]["name"]))
        text.append(_scores_table(name, members, [row for row in given if row["data"] == name]))
        text.append(_breakdown_table(members))
        text.append(_findings(members))
    lines = [
        f"- {result['data']['name']}, {_title(result)}: data `{result['data']['sha256'][:16]}`"
        + (f", model `{result['method']['sha256'][:16]}`" if "sha256" in result["method"] else "")
        + f", declouder {result['versions']['declouder']}, torch {result['versions']['torch']}"
        for members in sets.values()
        for result in members
    ]
    return "\n".join(text) + COMMANDS + "\n".join(lines) + "\n"


def _scores_table(name: str, members: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, str]]) -> str:
    lines = [f"## {name} ({members[0]['data']['images']} images)", ""]
    lines += ["| method | " + " | ".join(SCORES) + " |", "|---" * (len(SCORES) + 1) + "|"]
    for member in members:
        cells = []
        for score in SCORES:
            mean, interval = member["mean"][score], member["interval"][score]
            within = "" if interval is None else f"<br>({interval[0]:.4f} to {interval[1]:.4f})"
            cells.append("–" if mean is None else f"{mean:.4f}{within}")
        lines.append(f"| {_title(member)} | " + " | ".join(cells) + " |")
    for row in given:
        cells = [row[score] if score in GIVEN else "–" for score in SCORES]
        lines.append(f"| {row['method']} (*given*) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _breakdown_table(members: Sequence[Mapping[str, Any]]) -> str:
    """Return PSNR by region, and PSNR and LPIPS by flat and structured labels."""
    regions = list(members[0]["regions"])
    groups = [group for group in ("flat label", "structured label") if group in members[0]["groups"]]
    columns = [f"{region} psnr" for region in regions]
    columns += [f"{group} {score}" for group in groups for score in ("psnr", "lpips")]
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for member in members:
        values = [member["regions"][region]["psnr"] for region in regions]
        values += [member["groups"][group]["mean"][score] for group in groups for score in ("psnr", "lpips")]
        cells = ["–" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| {_title(member)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _findings(members: Sequence[Mapping[str, Any]]) -> str:
    """Return what the images say one by one: fused against reference, worst images, and what the spread tells."""
    cloudy = next((member for member in members if member["method"]["kind"] == "cloudy"), None)
    lines = []
    for member in members:
        method = member["method"]
        default = not (method.get("least_painted") or method.get("averaged"))
        if method["kind"] != "model" or method["num_inference_steps"] == 0 or not default:
            continue
        lines.append(f"{_title(member)}:\n")
        for other in members:
            same = other["method"].get("sha256") == method["sha256"]
            if same and other["method"].get("num_inference_steps") == 0:
                lines.append(f"- {answer(member, other)['sentence']} {_difference('ssim', member, other)}")
        if cloudy is not None:
            lines.append(f"- {_worse(member, cloudy)}")
        lowest = sorted(member["images"], key=lambda row: row["psnr"])[:3]
        told = [f"{row['name']} {row['psnr']:.1f} dB" for row in lowest]
        lines.append(f"- Lowest PSNR: {', '.join(told)}.")
        spread = member["spread"]
        if spread:
            lines.append(
                f"- The spread of {method['samples']} draws has a mean of {spread['mean']:.4f} of the range, the"
                f" error {member['mean']['mae']:.4f}; their correlation over pixels is {spread['correlation']:.2f}."
            )
        lines.append("")
    return "\n".join(lines)


def _difference(score: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    before = {row["name"]: row[score] for row in theirs["images"]}
    values = np.array([row[score] - before[row["name"]] for row in ours["images"]])
    low, high = bootstrap_interval(values) or (np.nan, np.nan)  # of no images
    return f"{score.upper()} changes by {plus(values.mean(), 4)} ({plus(low, 4)} to {plus(high, 4)})."


def _worse(ours: Mapping[str, Any], cloudy: Mapping[str, Any]) -> str:
    before = {row["name"]: row["psnr"] for row in cloudy["images"]}
    rows = [row for row in ours["images"] if row["psnr"] < before[row["name"]]]
    if not rows:
        return "No image has a lower PSNR than its cloudy one."
    told = [f"{row['name']} ({before[row['name']]:.1f} to {row['psnr']:.1f} dB)" for row in rows]
    return (
        f"{len(rows)} of {len(ours['images'])} images have a lower PSNR than their cloudy one: {', '.join(told)}."
    )


def _rank(result: Mapping[str, Any]) -> int:
    """Return the order of rows: the cloudy image, the reference alone, models, outputs of others."""
    method = result["method"]
    if method["kind"] == "model":
        return 1 if method["num_inference_steps"] == 0 else 2
    return 0 if method["kind"] == "cloudy" else 3


def _title(result: Mapping[str, Any]) -> str:
    method = result["method"]
    if method["kind"] != "model":
        return str(method["name"])
    steps = method["num_inference_steps"]
    draws = f", mean of {method['samples']} draws" if method.get("averaged") else ""
    return f"{method['name']} ({steps} step{'s' * (steps != 1)}{draws}, seed {method['seed']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="*", type=Path, help="without any: benchmarks/scores/*.json")
    parser.add_argument("-o", "--out", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true", help="write nothing, tell whether the page is up to date")
    arguments = parser.parse_args()
    paths = arguments.scores or sorted((HERE / "scores").glob("*.json"))
    with (HERE / "given.csv").open(encoding="utf-8", newline="") as file:
        given = list(csv.DictReader(file))
    text = page([read_scores(path) for path in paths], given)
    if arguments.check:
        if not arguments.out.exists() or arguments.out.read_text(encoding="utf-8") != text:
            sys.exit(f"{arguments.out} is not what the files of scores say; run this without --check")
    else:
        arguments.out.write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
