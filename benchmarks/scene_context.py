"""How much ground around a cloud the model wants to see: what cutting a window to its cloud costs in quality.

    python benchmarks/scene_context.py configs/compact.yaml --base DATA [--model DIR] [--steps N]

Of each held-out pair of the recipe four squares of 64 px are restored, each from a cut of the image that shows so
much around it, and scored against the clear image; the whole image (256 px) comes last. Prints a Markdown table:
mean PSNR and mean absolute error of the squares, and the pixels computed for each pixel wanted. Test folders are
never touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from declouder import CloudRemovalPipeline
from declouder.config import load_config
from declouder.data.training import TrainingData

SQUARE_PX = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the recipe's data.base")
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--context", type=int, nargs="+", default=[32, 64, 96], metavar="PX")
    arguments = parser.parse_args()
    config = load_config(arguments.config, [f"data.base={arguments.base}"])
    held_out = TrainingData(config.data, band_names=config.model.bands, seed=config.seed).held_out(config.seed)
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    print(f"{len(held_out)} pairs, four squares each, {arguments.steps} steps\n")
    print("| context px | psnr | mae | pixels computed for one |\n|---|---|---|---|")
    for context in (*arguments.context, None):
        scores, computed = [], []
        for sample in held_out:
            cloudy, clear = ((sample[name] + 1) / 2 for name in ("cloudy", "clear"))
            for row, col in squares(cloudy.shape[1:]):
                rows, cols = (
                    around(start, length, context)
                    for start, length in zip((row, col), cloudy.shape[1:], strict=True)
                )
                cut = np.ascontiguousarray(cloudy[:, rows, cols].transpose(1, 2, 0))
                restored = pipeline(
                    cut,
                    num_inference_steps=arguments.steps,
                    generator=torch.Generator().manual_seed(0),
                    output_type="np",
                ).images[0]
                top, left = row - rows.start, col - cols.start
                ours = restored[top : top + SQUARE_PX, left : left + SQUARE_PX]
                theirs = clear[:, row : row + SQUARE_PX, col : col + SQUARE_PX].transpose(1, 2, 0)
                error = ours - theirs
                scores.append((-10 * np.log10(np.mean(error**2)), np.abs(error).mean()))
                computed.append(cut.shape[0] * cut.shape[1] / SQUARE_PX**2)
        psnr, mae = np.mean(scores, axis=0)
        print(f"| {context or 'all'} | {psnr:.3f} | {mae:.4f} | {np.mean(computed):.1f} |", flush=True)


def squares(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return upper left corners of four squares, each a quarter of the way from the image's border."""
    rows, cols = ((length // 4 - SQUARE_PX // 2, 3 * length // 4 - SQUARE_PX // 2) for length in shape)
    return [(row, col) for row in rows for col in cols]


def around(start: int, length: int, context: int | None) -> slice:
    """Return the part of a line that shows `context` to either side of a square, within the image."""
    if context is None:
        return slice(0, length)
    return slice(max(start - context, 0), min(start + SQUARE_PX + context, length))


if __name__ == "__main__":
    main()
