"""How a model fares over clear ground that it never saw: as it is, and under an even haze as RICE1 has it.

    python scripts/unseen_ground.py FOLDER [MODEL] [--every 23] [--haze 0.25 0.4] [--steps 0]

FOLDER has clear images, in folders of a kind of ground each (deserts, forests, ...) or together; one in `--every`
is taken. What a model is worth on images that resemble those it learnt from does not tell how it fares elsewhere:
with clear images of your own this does. Prints a Markdown table, one row a kind: the PSNR of the clear image as
input, mean and least, counted up to 60 dB, and how many come back below 35 dB; then for each haze, given as what
black ground becomes in [0, 1], the mean PSNR of the hazy image and of what is made of it.

    hazy = white - (white - haze) (1 - clear)        white: 0.752, the median of RICE1's train pairs
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from held_out import restore, to_uint8
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.data.images import read_image
from declouder.data.pairs import find_images
from declouder.data.training import Sample
from declouder.metrics import psnr

FloatArray = NDArray[np.float32]

WHITE = 0.752
"""What the haze makes of white ground, see benchmarks/haze_law.py."""
MOST_DB = 60
"""An image that comes back nearly unchanged counts as this, or a few such would be the mean."""
ENOUGH_DB = 35
"""A clear image should come back at least as near as this."""


def main() -> None:
    """Score every kind of ground and print the table."""
    parser = argparse.ArgumentParser(description="Scores over ground that a model never saw.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", nargs="?", help="a model folder; the shipped one if not given")
    parser.add_argument("--every", type=int, default=1, help="of the images of a kind, by name; all if not given")
    parser.add_argument("--haze", type=float, nargs="*", default=[0.25, 0.4], help="what black ground becomes")
    parser.add_argument("--steps", type=int, help="of sampling; the model's own if not given")
    arguments = parser.parse_args()
    kinds = images_of(arguments.folder, arguments.every)
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    settings: Mapping[str, Any] = {"num_inference_steps": arguments.steps}

    hazes = "".join(f" hazy, {haze:g} | restored |" for haze in arguments.haze)
    print(f"| ground | images | clear in, least | below {ENOUGH_DB} |{hazes}")
    print("|---" * (4 + 2 * len(arguments.haze)) + "|")
    rows = []
    for name, paths in kinds.items():
        of_kind = np.array([scores(pipeline, settings, read_unit(path), arguments.haze) for path in paths])
        rows.append(of_kind)
        print(row_of(name, of_kind), flush=True)
    if len(rows) > 1:
        print(row_of("all", np.concatenate(rows)))


def images_of(folder: Path, every: int) -> dict[str, list[Path]]:
    """Return every so-manieth image, by name, of each kind of ground."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    return {kind.name: find_images(kind)[::every] for kind in kinds or [folder]}


def read_unit(path: Path) -> FloatArray:
    """Return an 8-bit image, (C, H, W) in [0, 1]."""
    return np.moveaxis(np.asarray(read_image(path), np.float32) / np.float32(255), -1, 0)


def scores(
    pipeline: CloudRemovalPipeline, settings: Mapping[str, Any], clear: FloatArray, hazes: list[float]
) -> list[float]:
    """Return the PSNR of the clear image as input, then of each hazy image and of what is made of it."""
    target = to_uint8(2 * clear - 1)
    found = [min(psnr(restored(pipeline, settings, clear, clear), target), MOST_DB)]
    for haze in hazes:
        hazy = np.asarray(WHITE - (WHITE - haze) * (1 - clear), np.float32)
        found += [psnr(to_uint8(2 * hazy - 1), target), psnr(restored(pipeline, settings, hazy, clear), target)]
    return found


def restored(
    pipeline: CloudRemovalPipeline, settings: Mapping[str, Any], cloudy: FloatArray, clear: FloatArray
) -> NDArray[np.uint8]:
    """Return what is made of an image of bytes, (H, W, C)."""
    as_bytes = np.asarray(np.round(cloudy * 255) / 255, np.float32)
    return restore(pipeline, Sample(cloudy=2 * as_bytes - 1, clear=2 * clear - 1, seed=0), settings)


def row_of(name: str, found: NDArray[np.float64]) -> str:
    """Return a row of the table."""
    clear = found[:, 0]
    hazes = "".join(f" {mean:.1f} |" for mean in found[:, 1:].mean(axis=0))
    below = int((clear < ENOUGH_DB).sum())
    return f"| {name} | {len(found)} | {clear.mean():.1f}, {clear.min():.1f} | {below} |{hazes}"


if __name__ == "__main__":
    main()
