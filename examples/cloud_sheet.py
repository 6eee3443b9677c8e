"""A sheet of synthetic clouds beside real ones: docs/synthetic_clouds.png.

    python examples/cloud_sheet.py --clear CLEAR_DIR --real CLOUDY_DIR -o docs/synthetic_clouds.png

From top to bottom: real cloudy patches, then haze, broken and mixed clouds over clear images, the latter two
with the transmission that they were made with. Every picture is a thumbnail of 96 px.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from declouder.data.clouds import KINDS, simulate_clouds
from declouder.data.images import read_image
from declouder.data.pairs import find_images
from declouder.data.resize import resize_bicubic

THUMB_PX = 96
COLUMNS = 6
GAP_PX = 4
TITLE_PX = 16

Thumb = NDArray[np.float32]
"""(3, THUMB_PX, THUMB_PX) in [0, 1]."""


def main() -> None:
    """Make the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clear", type=Path, required=True, help="folder of clear 8-bit RGB images")
    parser.add_argument("--real", type=Path, required=True, help="folder of real cloudy 8-bit RGB images")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    real = [thumb(unit(path)) for path in spread(find_images(options.real), 2 * COLUMNS)]
    synthetic, transmission = [], []
    for number, path in enumerate(spread(find_images(options.clear), 3 * COLUMNS)):
        kind = KINDS[number // COLUMNS]
        made = simulate_clouds(unit(path), np.random.default_rng([options.seed, number]), kind=kind)
        synthetic.append(thumb(made.cloudy))
        transmission.append(thumb(np.repeat(made.transmission.mean(0, keepdims=True), 3, axis=0)))
    blocks = [("real clouds", real)]
    for row, kind in enumerate(KINDS):
        here = slice(row * COLUMNS, (row + 1) * COLUMNS)
        blocks.append((f"synthetic: {kind}", synthetic[here]))
        if kind != "haze":  # whose transmission is one even grey
            blocks.append(("their transmission, white: all light passes", transmission[here]))
    draw(blocks).save(options.output, optimize=True)


def spread(paths: list[Path], count: int) -> list[Path]:
    """Return `count` paths from all over the list."""
    return [paths[number * len(paths) // count] for number in range(count)]


def unit(path: Path) -> NDArray[np.float32]:
    """Return an 8-bit RGB image as (3, H, W) in [0, 1]."""
    return np.ascontiguousarray(read_image(path).transpose(2, 0, 1), dtype=np.float32) / np.float32(255)


def thumb(image: NDArray[np.float32]) -> Thumb:
    """Return a thumbnail of (3, H, W)."""
    return np.clip(resize_bicubic(image, THUMB_PX, THUMB_PX), 0, 1)


def draw(blocks: list[tuple[str, list[Thumb]]]) -> Image.Image:
    """Return titled blocks of thumbnails, one below the other."""
    pitch = THUMB_PX + GAP_PX
    heights = [TITLE_PX + pitch * -(-len(thumbs) // COLUMNS) for _, thumbs in blocks]
    sheet = Image.new("RGB", (pitch * COLUMNS + GAP_PX, sum(heights)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (title, thumbs), height in zip(blocks, heights, strict=True):
        pen.text((GAP_PX, top + 2), title, fill="black")
        for number, image in enumerate(thumbs):
            row, column = divmod(number, COLUMNS)
            dn = np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0)
            sheet.paste(Image.fromarray(dn), (GAP_PX + pitch * column, top + TITLE_PX + pitch * row))
        top += height
    return sheet


if __name__ == "__main__":
    main()
