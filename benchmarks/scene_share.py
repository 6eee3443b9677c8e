"""What a scene costs that is 5 % cloudy, as a share of one that is all cloud.

    python benchmarks/scene_share.py [--model DIR] [--px 2048] [--steps N] > share.json

Both runs are of one scene in one process, after a small one that warms up: first under a mask whose only cloud is a
disc of 5 % of its area, then without mask. It ends with 1 if the first takes a tenth of the second or more in CPU
seconds, so that what else the machine does at that time does not count. The last figure, megapixels for each of
those seconds in the second run, is the speed of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import Affine

from declouder.masks import MaskChoice
from declouder.pipeline import CloudRemovalPipeline
from declouder.scene import SceneOptions, SceneReport, remove_from_scene
from declouder.scene.options import WINDOW_PX

CLOUDY_SHARE = 0.05


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--px", type=int, default=2048)
    parser.add_argument("--steps", type=int, help="of the diffusion; without it the model's own")
    parser.add_argument("--window", type=int, default=WINDOW_PX, metavar="PX")
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    options = SceneOptions(steps=arguments.steps, window_px=arguments.window)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, _ = make_scene(folder / "small", 256)
        remove_from_scene(small, folder / "small.tif", pipeline, options)
        scene, mask = make_scene(folder / "large", arguments.px)
        partly = replace(options, mask=MaskChoice(mask))
        runs = {
            name: measured(lambda: remove_from_scene(scene, folder / f"{name}.tif", pipeline, chosen))  # noqa: B023
            for name, chosen in (("5 % cloudy", partly), ("all cloud", options))
        }
    (few, few_s), (all_, all_s) = runs.values()
    found = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads used",
        "px": arguments.px,
        "window_px": arguments.window,
        "steps": "the model's own" if arguments.steps is None else arguments.steps,
        "windows_restored": [few.windows - few.skipped, all_.windows - all_.skipped],
        "wall_s": [round(few.seconds, 2), round(all_.seconds, 2)],
        "cpu_s": [round(few_s, 2), round(all_s, 2)],
        "wall_ratio": round(few.seconds / all_.seconds, 4),
        "cpu_ratio": round(few_s / all_s, 4),
        "megapixels_per_cpu_s": round(all_.megapixels / all_s, 4),
    }
    print(json.dumps(found, indent=2))
    return 0 if few_s < 0.1 * all_s else 1


def measured(run: Callable[[], SceneReport]) -> tuple[SceneReport, float]:
    """Return what a run returns, and how many seconds of the CPU it took."""
    started = time.process_time()
    report = run()
    return report, time.process_time() - started


def make_scene(folder: Path, px: int) -> tuple[Path, Path]:
    """Write a uint16 scene of three bands and a mask with one disc of `CLOUDY_SHARE` of its area."""
    folder.mkdir()
    profile = {
        "driver": "GTiff",
        "width": px,
        "height": px,
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 5e5, 0, -10, 4e6),
        "tiled": True,
        "compress": "DEFLATE",
    }
    rng = np.random.default_rng(0)
    coarse = rng.integers(800, 3000, (3, -(-px // 8), -(-px // 8)), dtype=np.uint16)
    ground = coarse.repeat(8, 1).repeat(8, 2)[:, :px, :px]
    # Somewhere, not on a corner of the windows' grid.
    center, radius = 0.37 * px, px * np.sqrt(CLOUDY_SHARE / np.pi)
    rows, cols = np.ogrid[:px, :px]
    cloud = (rows - center) ** 2 + (cols - center) ** 2 < radius**2
    with rasterio.open(folder / "scene.tif", "w", count=3, dtype="uint16", **profile) as dataset:
        dataset.write(np.where(cloud, ground // 2 + 5000, ground).astype(np.uint16))
    with rasterio.open(folder / "mask.tif", "w", count=1, dtype="uint8", **profile) as dataset:
        dataset.write(cloud.astype(np.uint8)[None])
    return folder / "scene.tif", folder / "mask.tif"


if __name__ == "__main__":
    sys.exit(main())
