"""A sheet of test images: cloudy, restored by the shipped model, clear; evenly chosen by place in the folder.

python scripts/before_after.py DATA/RICE1 DATA/RICE2 -o docs/before_after.png [--count 10] [--model DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from declouder import CloudRemovalPipeline
from declouder.data.catalog import set_pairs
from declouder.data.images import read_image
from declouder.data.pairs import Pair

TILE_PX = 168
GAP_PX = 6
HEAD_PX = 16


def main() -> None:
    """Restore the chosen images and paste the sheet: two trios a row."""
    parser = argparse.ArgumentParser(description="A before and after sheet.")
    parser.add_argument("data", type=Path, nargs="+", help="folders that hold test/{cloud,label}")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="images in all")
    parser.add_argument("--model", type=Path, help="model folder; the shipped one without it")
    arguments = parser.parse_args()

    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    share = arguments.count // len(arguments.data)
    chosen = [pair for root in arguments.data for pair in spread(set_pairs(root, "test"), share)]
    rows = (len(chosen) + 1) // 2
    size = (6 * TILE_PX + 7 * GAP_PX, HEAD_PX + rows * (TILE_PX + GAP_PX) + GAP_PX)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("cloudy", "declouder", "clear") * 2):
        draw.text((GAP_PX + column * (TILE_PX + GAP_PX), 2), title, fill="black")
    for number, pair in enumerate(chosen):
        for column, picture in enumerate(trio(pipeline, pair)):
            left = GAP_PX + (3 * (number % 2) + column) * (TILE_PX + GAP_PX)
            top = HEAD_PX + GAP_PX + (number // 2) * (TILE_PX + GAP_PX)
            sheet.paste(picture.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS), (left, top))
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(arguments.output, optimize=True)
    print(f"wrote {arguments.output}: {', '.join(pair.name for pair in chosen)}")


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """Return `count` pairs at even distances."""
    return [pairs[int(place)] for place in np.linspace(0, len(pairs) - 1, count).round()]


def trio(pipeline: CloudRemovalPipeline, pair: Pair) -> list[Image.Image]:
    """Return the cloudy, the restored and the clear image."""
    cloudy, clear = (Image.fromarray(read_image(path)) for path in (pair.cloudy_path, pair.clear_path))
    restored = pipeline(cloudy, generator=torch.Generator().manual_seed(0)).images[0]
    return [cloudy, restored, clear]


if __name__ == "__main__":
    main()
