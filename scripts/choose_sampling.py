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
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.config import load_config
from declouder.data.samples import Sample, TrainingData
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
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--strength", type=float, nargs="+", default=[0.1, 0.2, 0.4, 1.0])
    parser.add_argument("--sampler", nargs="+", default=["ddim"])
    parser.add_argument("--w-bounds", nargs="+", default=["0,1"], help="w_min,w_max")
    arguments = parser.parse_args()

    config = load_config(arguments.config, [f"data.base={arguments.base}"])
    held_out = TrainingData(config.data, band_names=config.model.bands, seed=config.seed).held_out(config.seed)
    if arguments.limit:
        held_out = held_out[:: max(1, len(held_out) // arguments.limit)]
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    lpips, _ = load_lpips(arguments.backbone)

    def show(name: str, settings: dict[str, object]) -> None:
        started = time.process_time()
        restored = [restore(pipeline, sample, settings) for sample in held_out]
        seconds = (time.process_time() - started) / len(held_out)
        clear = [to_uint8(sample["clear"]) for sample in held_out]
        scores = [np.mean([metric(a, b) for a, b in zip(restored, clear, strict=True)]) for metric in (psnr, ssim)]
        if lpips is not None:
            scores.append(np.mean([lpips_of(a, b, lpips) for a, b in zip(restored, clear, strict=True)]))
        kept = [
            psnr(restore(pipeline, {**sample, "cloudy": sample["clear"]}, settings), to_uint8(sample["clear"]))
            for sample in held_out
        ]
        cells = [f"{scores[0]:.3f}", *(f"{score:.4f}" for score in scores[1:]), f"{seconds:.2f}"]
        cells += [f"{np.mean(kept):.1f}, {min(kept):.1f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)

    print(f"{len(held_out)} held-out pairs\n")
    print("| setting | psnr | ssim | lpips | CPU s | clear in |\n|---|---|---|---|---|---|")
    show("reference alone", {"num_inference_steps": 0})
    grid = itertools.product(arguments.sampler, arguments.w_bounds, arguments.strength, arguments.steps)
    for sampler, bounds, strength, steps in grid:
        pipeline.scheduler = make_scheduler(sampler)
        low, high = (float(part) for part in bounds.split(","))
        show(
            f"{sampler}, w in [{low:g}, {high:g}], strength {strength:g}, {steps} steps",
            {"num_inference_steps": steps, "strength": strength, "w_bounds": (low, high)},
        )


def restore(pipeline: CloudRemovalPipeline, sample: Sample, settings: dict[str, object]) -> NDArray[np.uint8]:
    """Return the restored image, (H, W, C) uint8."""
    cloudy = (torch.from_numpy(sample["cloudy"])[None] + 1) / 2
    generator = torch.Generator().manual_seed(sample["seed"])
    return to_uint8(pipeline(cloudy, generator=generator, output_type="pt", **settings).images[0].numpy() * 2 - 1)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (H, W, C) uint8 of (C, H, W) in [-1, 1]."""
    return np.rint((image.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
