"""How a trained model should sample by default: scores on the held-out part of train, for a grid of settings.

    python scripts/choose_sampling.py configs/compact.yaml runs/compact/model --base DATA [--backbone FILE]

Prints a Markdown table: steps, strength, sampler, bounds of w; PSNR, SSIM, LPIPS and seconds an image, and the
PSNR (mean and least) of what becomes of the clear image when it is the input: a model should leave it alone. Test
folders are never touched. The choice goes into the recipe's `model` fields.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from held_out import data_of, held_out_of, restore, sets_of, to_uint8
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.cli.options import FAST_LEAST_PAINTED, FAST_STEPS
from declouder.metrics import load_lpips, psnr, ssim
from declouder.metrics import lpips as lpips_of
from declouder.pipeline import make_scheduler


def main() -> None:
    """Score every setting and print the table."""
    parser = argparse.ArgumentParser(description="Scores of sampling settings on held-out pairs.")
    parser.add_argument("config", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the recipe's data.base")
    parser.add_argument("--backbone", type=Path, help="AlexNet for LPIPS")
    parser.add_argument("--limit", type=int, help="pairs to score, spread over all held-out ones")
    parser.add_argument("--each-set", action="store_true", help="a row for each set of pairs beside all of them")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1, 0.2, 0.4, 1.0])
    parser.add_argument(
        "--samples", type=int, nargs="+", default=[1], help="draws of the noise to take the mean of"
    )
    parser.add_argument("--sampler", nargs="+", default=["ddim"])
    parser.add_argument("--w-bounds", nargs="+", default=["0,1"], help="w_min,w_max")
    parser.add_argument("--least-painted", type=float, nargs="+", default=[FAST_LEAST_PAINTED], help="of --fast")
    parser.add_argument("--device", default="cpu", help="where the networks run; CPU s are of the CPU alone")
    arguments = parser.parse_args()

    data = data_of(arguments)
    held_out, sets = held_out_of(data), sets_of(data, arguments.base)
    if arguments.limit:
        chosen = np.unique(np.linspace(0, len(held_out) - 1, arguments.limit).round().astype(int))
        held_out, sets = [held_out[i] for i in chosen], [sets[i] for i in chosen]
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model).to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    lpips, _ = load_lpips(arguments.backbone)

    def show(name: str, settings: Mapping[str, Any], samples: int = 1) -> None:
        rows = []
        for sample in held_out:
            started = time.process_time()
            restored = restore(pipeline, sample, settings, samples)
            seconds = time.process_time() - started
            clear = to_uint8(sample["clear"])
            kept = psnr(restore(pipeline, {**sample, "cloudy": sample["clear"]}, settings, samples), clear)
            distance = np.nan if lpips is None else lpips_of(restored, clear, lpips)
            rows.append((psnr(restored, clear), ssim(restored, clear), distance, seconds, kept))
        table = np.array(rows)
        print_row(name, table)
        for which in dict.fromkeys(sets) if arguments.each_set else ():
            print_row(f"{name}, {which}", table[np.array(sets) == which])

    print(f"{len(held_out)} held-out pairs\n")
    print("| setting | psnr | ssim | lpips | CPU s | clear in |\n|---|---|---|---|---|---|")
    show("reference alone", {"num_inference_steps": 0})
    for least in arguments.least_painted:
        show(f"`--fast` from {least:.0%} on", {"num_inference_steps": FAST_STEPS, "least_painted": least})
    grid = itertools.product(
        arguments.sampler, arguments.w_bounds, arguments.strength, arguments.steps, arguments.samples
    )
    for sampler, bounds, strength, steps, samples in grid:
        pipeline.scheduler = make_scheduler(sampler)
        low, high = (float(part) for part in bounds.split(","))
        show(
            f"{sampler}, w in [{low:g}, {high:g}], strength {strength:g}, {steps} steps, {samples} draws",
            {"num_inference_steps": steps, "strength": strength, "w_bounds": (low, high)},
            samples,
        )


def print_row(name: str, table: NDArray[np.float64]) -> None:
    """Print the means of a table whose rows are images: PSNR, SSIM, LPIPS, CPU seconds, PSNR of the clear image."""
    quality, similarity, distance, seconds, kept = table.mean(axis=0)
    cells = [f"{quality:.3f}", f"{similarity:.4f}", f"{distance:.4f}", f"{seconds:.2f}"]
    print(f"| {name} | {' | '.join(cells)} | {kept:.1f}, {table[:, 4].min():.1f} |", flush=True)


if __name__ == "__main__":
    main()
