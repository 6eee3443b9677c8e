"""How much of cloud shadows a model leaves, on clear images under simulated clouds.

    python scripts/left_shadow.py FOLDER... [--model DIR] [--every 1] [--cover 0.25]

Each image, by its place in its folder, gets broken clouds and their shadows (`data.clouds.simulate_clouds`, seeded
by that place). Prints a Markdown table, a row a folder, of the images in which the reference network relights
shadows (`networks.relighting`): root mean square errors of 255 in shadow and on clear ground, and PSNR, of its
images before and after. Images from train folders tell most of a model that did not learn from them.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from declouder import CloudRemovalPipeline
from declouder.data.clouds import simulate_clouds
from declouder.metrics import psnr

CLEAR, DARK = 0.97, 0.85
"""Share of the light that passes where there is no cloud, or no shadow, to speak of; and in shadow at most."""
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}


def main() -> None:
    """Restore every image, without and with relighting, and print the table."""
    parser = argparse.ArgumentParser(description="Shadows that stay, on clear images under simulated clouds.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="clear images, 8-bit RGB")
    parser.add_argument("--model", help="model folder; the shipped model without it")
    parser.add_argument("--every", type=int, default=1, help="takes each N-th image of a folder")
    parser.add_argument("--cover", type=float, default=0.25, help="share of an image under cloud")
    arguments = parser.parse_args()
    network = CloudRemovalPipeline.from_pretrained(arguments.model).reference

    print("| folder | images | relit | shadow: cloudy | not relit | relit | clear ground | relit | psnr | relit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder in arguments.folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        found = [
            errors(network, rgb(path), place, arguments.cover)
            for place, path in islice(enumerate(paths), 0, None, arguments.every)
        ]
        rows = [row for row in found if row is not None]
        cells = [f"{value:.1f}" for value in np.nanmean(rows, axis=0)] if rows else ["–"] * 7
        print(f"| {folder.name} | {len(found)} | {len(rows)} | {' | '.join(cells)} |", flush=True)


def rgb(path: Path) -> NDArray[np.float32]:
    """Return an image, (3, H, W) in [0, 1]."""
    with Image.open(path) as image:
        unit: NDArray[np.float32] = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    return unit.transpose(2, 0, 1)


@torch.inference_mode()
def errors(network: torch.nn.Module, clear: NDArray[np.float32], seed: int, cover: float) -> list[float] | None:
    """Return what a row has the means of; None where nothing is relit."""
    made = simulate_clouds(clear, np.random.default_rng(seed), kind="broken", cover=cover)
    images = []
    for relight in (0, 1):
        network.relight_shadows = relight  # type: ignore[assignment]
        images.append(((network(torch.from_numpy(2 * made.cloudy[None] - 1))[0] + 1) / 2).numpy())
    before, after = images
    if np.array_equal(before, after):
        return None
    free = made.transmission.min(axis=0) > CLEAR
    shadow, lit = free & (made.shadow.max(axis=0) < DARK), free & (made.shadow.min(axis=0) > CLEAR)

    def off(image: NDArray[np.float32], where: NDArray[np.bool_]) -> float:
        difference = 255 * (image - clear)[:, where]
        return float(np.sqrt(np.square(difference).mean())) if where.any() else float("nan")

    whole = [psnr(to_uint8(image), to_uint8(clear)) for image in images]
    in_shadow = [off(image, shadow) for image in (made.cloudy, before, after)]
    return [*in_shadow, off(before, lit), off(after, lit), *whole]


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image as it is written, (H, W, C)."""
    steps: NDArray[np.uint8] = np.rint(255 * image.transpose(1, 2, 0).clip(0, 1)).astype(np.uint8)
    return steps


if __name__ == "__main__":
    main()
