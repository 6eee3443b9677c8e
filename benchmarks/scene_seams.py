"""Seams, batches and crops: three ways in which windows could show, measured on one scene.

    python benchmarks/scene_seams.py SCENE [--model DIR] [--steps N] [--window PX] > seams.json

- seam score: mean gradient across the lines of the overlaps over that across all other lines, divided by the same
  of a run whose windows lie elsewhere, as the ground is not equally rough everywhere; 1 where nothing shows. At
  most 2 % from 1 is wanted.
- batch: largest difference in DN between batches of 1 and of 4.
- crop: largest and mean difference in DN between a crop restored alone and the same place in the whole, a window
  away from the crop's border; of the crop's own window grid, so it holds what networks with statistics over the
  window make of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio

from declouder.mosaic import plan_windows
from declouder.pipeline import CloudRemovalPipeline
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--window", type=int, default=128, metavar="PX")
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    options = SceneOptions(window_px=arguments.window, steps=arguments.steps, provenance=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = remove_from_scene(arguments.scene, folder / "whole.tif", pipeline, options)
        options = replace(options, scale=report.scale, bands=report.bands.numbers)
        bands = [number - 1 for number in report.bands.numbers]
        whole = read(folder / "whole.tif")[bands]
        remove_from_scene(arguments.scene, folder / "batch.tif", pipeline, replace(options, batch=4))
        batch = np.abs(read(folder / "batch.tif")[bands] - whole)
        crop = crop_difference(arguments.scene, whole, bands, pipeline, options, folder)
        # One window where the scene is small enough, else larger ones.
        elsewhere = max(whole.shape) if max(whole.shape) <= 1024 else arguments.window * 3 // 2
        other = replace(options, window_px=elsewhere, overlap_px=elsewhere // 8)
        remove_from_scene(arguments.scene, folder / "other.tif", pipeline, other)
        other_image = read(folder / "other.tif")[bands]
    found = {
        "command": " ".join(["python", *sys.argv]),
        "windows": report.windows,
        "scale_dn": [report.scale.low, report.scale.high],
        "seam_score": round(seam_score(whole, options) / seam_score(other_image, options), 4),
        "batch_largest_dn": float(batch.max()),
        **crop,
    }
    print(json.dumps(found, indent=2))
    return 0 if abs(found["seam_score"] - 1) <= 0.02 else 1


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read().astype(np.float64)


def seam_score(image: np.ndarray, options: SceneOptions) -> float:
    """Return the mean gradient within the overlaps of neighbouring windows over that elsewhere, both axes."""
    inside, outside = [], []
    for axis in (1, 2):
        length = image.shape[axis]
        steps = np.abs(np.diff(image, axis=axis)).mean(axis=(0, 3 - axis))  # one value a line
        windows = plan_windows(length, 1, options.window_px, options.overlap)
        is_seam = np.zeros(length - 1, bool)
        for window in windows[1:]:
            is_seam[window.row : window.row + options.overlap] = True
        inside.append(steps[is_seam])
        outside.append(steps[~is_seam])
    return float(np.concatenate(inside).mean() / np.concatenate(outside).mean())


def crop_difference(
    scene: Path,
    whole: np.ndarray,
    bands: list[int],
    pipeline: CloudRemovalPipeline,
    options: SceneOptions,
    folder: Path,
) -> dict[str, float]:
    """Restore the lower right part of a scene alone and compare it with the whole, a window from its border."""
    with rasterio.open(scene) as dataset:
        top, left = dataset.height // 5 // 64 * 64, dataset.width // 5 // 64 * 64
        profile = {**dataset.profile, "height": dataset.height - top, "width": dataset.width - left}
        dn = dataset.read(window=((top, dataset.height), (left, dataset.width)))
    with rasterio.open(folder / "crop.tif", "w", **profile) as dataset:
        dataset.write(dn)
    assert isinstance(options.scale, Scaling)
    remove_from_scene(folder / "crop.tif", folder / "crop_clear.tif", pipeline, options)
    margin = options.window_px
    if min(dn.shape[1:]) <= 2 * margin:
        return {}
    apart = np.abs(read(folder / "crop_clear.tif")[bands] - whole[:, top:, left:])[
        :, margin:-margin, margin:-margin
    ]
    return {"crop_largest_dn": float(apart.max()), "crop_mean_dn": round(float(apart.mean()), 3)}


if __name__ == "__main__":
    sys.exit(main())
