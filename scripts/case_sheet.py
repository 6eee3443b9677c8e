"""Where a model does well and where it does not: pairs of cloudy and restored images without a clear twin.

    python scripts/case_sheet.py -o docs/cases.png --better A.webp B.tif --worse C.webp D.tif [--model DIR]

Each image goes through `declouder remove` as it is; both halves of a pair are shown on the stretch of the cloudy
one (2 % and 98 % percentiles of its first three bands where it is not 8 bit).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declouder import CloudRemovalPipeline
from declouder.raster import open_raster
from declouder.scene import SceneOptions, remove_from_scene


def main() -> None:
    """Restore all images and draw the sheet."""
    parser = argparse.ArgumentParser(description="A sheet of better and worse cases.")
    parser.add_argument("--better", type=Path, nargs="+", required=True)
    parser.add_argument("--worse", type=Path, nargs="+", required=True)
    parser.add_argument("--model")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)

    columns = max(len(arguments.better), len(arguments.worse))
    figure, axes = plt.subplots(4, columns, figsize=(2.6 * columns, 11), layout="constrained", squeeze=False)
    for row, (kind, paths) in enumerate((("better", arguments.better), ("worse", arguments.worse))):
        for column in range(columns):
            upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
            upper.axis("off")
            lower.axis("off")
            if column >= len(paths):
                continue
            cloudy, restored = before_and_after(paths[column], pipeline)
            upper.imshow(cloudy)
            lower.imshow(restored)
            upper.set_title(f"{kind}: {paths[column].stem[:24]}", fontsize=8)
    figure.savefig(arguments.output, dpi=80)
    with Image.open(arguments.output) as sheet:
        small = sheet.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
    small.save(arguments.output, optimize=True)


def before_and_after(path: Path, pipeline: CloudRemovalPipeline) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the first three bands of an image and of its restoration, (H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "restored.tif"
        remove_from_scene(path, output, pipeline, SceneOptions())
        cloudy, restored = first_bands(path), first_bands(output)
    low, high = (0, 255) if cloudy.dtype == np.uint8 else np.percentile(cloudy[cloudy > 0], (2, 98))
    stretch = [np.clip((image - low) / (high - low) * 255, 0, 255).astype(np.uint8) for image in (cloudy, restored)]
    return stretch[0], stretch[1]


def first_bands(path: Path) -> NDArray[Any]:
    """Return (H, W, 3)."""
    with open_raster(path) as reader:
        whole = slice(0, reader.info.height), slice(0, reader.info.width)
        return reader.read(*whole, (1, 2, 3)).transpose(1, 2, 0)


if __name__ == "__main__":
    main()
