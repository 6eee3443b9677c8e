"""Seams, batches and crops: three ways in which windows could show, measured on one scene.

    python benchmarks/scene_seams.py SCENE [--model DIR] [--steps N] [--window PX] [--enlarge N] [--mirrored]

SCENE is a file, or a scene without noise that is made here, float32, two and three quarters of a window wide:
`smooth` (a slope under a haze that changes slowly: any seam would stand alone on it) or `terrain` (simulated ground
under simulated clouds). `--mirrored` sets three times three of a file's image side by side, each the mirror image
of its neighbours: for windows that are larger than the file.

- seam score: mean gradient across the lines of the overlaps over that across all other lines, divided by the same
  of a run whose windows lie elsewhere, as the ground is not equally rough everywhere; 1 where nothing shows. At
  most 2 % from 1 is wanted.
- batch: largest difference in DN between batches of 1 and of 4.
- crop: largest and mean difference in DN between a crop restored alone, with its place on Earth, and the same place
  in the whole, a window away from the crop's border. The crop begins at an odd row and column.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from declouder.data.clouds import simulate_clouds
from declouder.data.terrain import make_terrain
from declouder.mosaic import Origin, Window, plan_windows
from declouder.pipeline import CloudRemovalPipeline
from declouder.raster import open_raster
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, inference, remove_from_scene
from declouder.scene.inputs import grid_origin
from declouder.scene.options import WINDOW_PX


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", help="a file, smooth or terrain")
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--window", type=int, default=WINDOW_PX, metavar="PX")
    parser.add_argument("--mirrored", action="store_true", help="set mirror images of a file around it")
    parser.add_argument("--overlap", type=int, metavar="PX")
    parser.add_argument("--enlarge", type=int, default=1, metavar="N")
    parser.add_argument("--unkeyed", action="store_true", help="each window has noise of its own, to compare with")
    arguments = parser.parse_args()
    if arguments.unkeyed:
        vars(inference)["scene_noise"] = own_noise
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    options = SceneOptions(
        window_px=arguments.window,
        overlap_px=arguments.overlap,
        steps=arguments.steps,
        enlarge=arguments.enlarge,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = MADE_SCENES.get(arguments.scene)
        if made is not None:
            scene = written(made(arguments.window * 11 // 4), folder / "scene.tif")
        elif arguments.mirrored:
            scene = mirrored(Path(arguments.scene), folder / "scene.tif")
        else:
            scene = Path(arguments.scene)
        report = remove_from_scene(scene, folder / "whole.tif", pipeline, options)
        options = replace(options, scale=report.scale, bands=report.bands.numbers)
        bands = [number - 1 for number in report.bands.numbers]
        whole = read(folder / "whole.tif")[bands]
        remove_from_scene(scene, folder / "batch.tif", pipeline, replace(options, batch=4))
        batch = np.abs(read(folder / "batch.tif")[bands] - whole)
        crop = crop_difference(scene, whole, bands, pipeline, options, folder)
        # One window where the scene is small enough, else larger ones.
        elsewhere = max(whole.shape) if max(whole.shape) <= 1024 else arguments.window * 3 // 2
        other = replace(options, window_px=elsewhere, overlap_px=elsewhere // 8)
        remove_from_scene(scene, folder / "other.tif", pipeline, other)
        other_image = read(folder / "other.tif")[bands]
        with open_raster(scene) as reader:
            origin = grid_origin(reader.info)
    score = seam_score(whole, options, origin) / seam_score(other_image, options, origin)
    found = {
        "command": " ".join(["python", *sys.argv]),
        "windows": report.windows,
        "scale_dn": [report.scale.low, report.scale.high],
        "seam_score": round(score, 4),
        "batch_largest_dn": float(batch.max()),
        **crop,
    }
    print(json.dumps(found, indent=2))
    return 0 if abs(score - 1) <= 0.02 else 1


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return np.asarray(dataset.read(), np.float64)


def seam_score(image: np.ndarray, options: SceneOptions, origin: Origin) -> float:
    """Return the mean gradient within the overlaps of neighbouring windows over that elsewhere, both axes."""
    inside, outside = [], []
    for axis, first in zip((1, 2), origin, strict=True):
        length = image.shape[axis]
        steps = np.abs(np.diff(image, axis=axis)).mean(axis=(0, 3 - axis))  # one value a line
        windows = plan_windows(
            length, 1, options.window, options.overlap, (first, 0), least_cut_px=options.least_cut_px
        )
        is_seam = np.zeros(length - 1, bool)
        for window, following in itertools.pairwise(windows):
            is_seam[following.row : window.row + window.height] = True
        inside.append(steps[is_seam])
        outside.append(steps[~is_seam])
    return float(np.concatenate(inside).mean() / np.concatenate(outside).mean())


def own_noise(seed: int, window: Window, bands: int, *, sample: int = 0) -> np.ndarray:
    """Return noise that follows from the window's corner, in place of `scene_noise`'s, which its pixels share."""
    generator = np.random.default_rng([seed, sample, window.row % 2**32, window.col % 2**32])
    return generator.standard_normal((bands, window.height, window.width), dtype=np.float32)


def smooth(side: int) -> np.ndarray:
    """Return a slope under a slowly changing haze: (3, side, side) in [0, 1]."""
    y, x = np.mgrid[:side, :side] / side
    ground = np.stack([0.15 + 0.2 * x, 0.2 + 0.15 * y, 0.3 - 0.1 * x * y])
    haze = 0.35 + 0.25 * np.sin(2 * np.pi * (x + 0.3 * y)) * np.cos(2 * np.pi * y)
    return np.asarray(ground * (1 - haze) + 0.85 * haze, np.float32)


def terrain(side: int) -> np.ndarray:
    """Return simulated ground under simulated clouds: (3, side, side) in [0, 1]."""
    generator = np.random.default_rng(0)
    ground = make_terrain(generator, side, side)
    return simulate_clouds(ground, generator, band_names=("red", "green", "blue")).cloudy


MADE_SCENES: dict[str, Callable[[int], np.ndarray]] = {"smooth": smooth, "terrain": terrain}


def written(unit: np.ndarray, path: Path) -> Path:
    """Write a (3, H, W) image as float32, on a map, and return its path."""
    profile = {
        "driver": "GTiff",
        "count": len(unit),
        "height": unit.shape[1],
        "width": unit.shape[2],
        "dtype": "float32",
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 500_130, 0, -10, 4_000_070),
    }
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(unit)
    return path


def mirrored(source: Path, path: Path) -> Path:
    """Write a raster with its mirror images on all sides, and return its path."""
    with rasterio.open(source) as dataset:
        dn, tags = dataset.read(), dataset.tags()
        height, width = dn.shape[1:]
        profile = {**dataset.profile, "height": 3 * height, "width": 3 * width}
        profile["transform"] = dataset.transform @ Affine.translation(-width, -height)
        colors = dataset.colorinterp
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(np.pad(dn, ((0, 0), (height, height), (width, width)), mode="symmetric"))
        dataset.update_tags(**tags)
        dataset.colorinterp = colors
    return path


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
        top, left = dataset.height // 10 | 1, dataset.width // 10 | 1
        profile = {**dataset.profile, "height": dataset.height - top, "width": dataset.width - left}
        profile["transform"] = dataset.transform @ Affine.translation(left, top)
        dn = dataset.read(window=((top, dataset.height), (left, dataset.width)))
    with rasterio.open(folder / "crop.tif", "w", **profile) as dataset:
        dataset.write(dn)
    assert isinstance(options.scale, Scaling)
    remove_from_scene(folder / "crop.tif", folder / "crop_clear.tif", pipeline, options)
    margin = options.window
    if min(dn.shape[1:]) <= 2 * margin:
        return {}
    apart = np.abs(read(folder / "crop_clear.tif")[bands] - whole[:, top:, left:])[
        :, margin:-margin, margin:-margin
    ]
    return {"crop_largest_dn": float(apart.max()), "crop_mean_dn": round(float(apart.mean()), 3)}


if __name__ == "__main__":
    sys.exit(main())
