"""Peak memory of `declouder remove` does not grow with the scene: two square scenes, one process each.

    python benchmarks/scene_memory.py [--model DIR] [--small 4096] [--large 32768] > memory.json

Each scene has 4 bands of uint16 and is clear but for a few clouds, named by a mask; `--steps 0`, on the CPU. The
scenes are written block by block, so that this script needs no memory of its own. It ends with 1 if the peak of the
large scene is over 1.1 times that of the small one, or over 3 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine
from rasterio.windows import Window

CLOUDS = 3
BLOCK_PX = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--small", type=int, default=4096, metavar="PX")
    parser.add_argument("--large", type=int, default=32768, metavar="PX")
    parser.add_argument("--folder", type=Path, help="where the scenes go; needs a few GB")
    parser.add_argument("remove", nargs="*", help="further options of declouder remove, after --")
    options = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in (options.small, options.large):
            scene, mask = make_scene(Path(folder), size)
            runs.append({"px": size, **measured(scene, mask, options.model, options.remove)})
            for path in Path(folder).iterdir():
                path.unlink()
    ratio = runs[1]["peak_mib"] / runs[0]["peak_mib"]
    report = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "runs": runs,
        "ratio": round(ratio, 3),
    }
    print(json.dumps(report, indent=2))
    return 0 if ratio < 1.1 and runs[1]["peak_mib"] < 3 * 1024 else 1


def make_scene(folder: Path, size: int) -> tuple[Path, Path]:
    """Write a scene of `size` x `size` px with a texture that compresses, and a mask of its clouds."""
    rng = np.random.default_rng(0)
    scene, mask = folder / "scene.tif", folder / "mask.tif"
    profile = {
        "driver": "GTiff",
        "width": size,
        "height": size,
        "crs": "EPSG:32633",
        "transform": Affine(10, 0, 5e5, 0, -10, 4e6),
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "DEFLATE",
        "zlevel": 1,
        "bigtiff": "YES",
    }
    tile = (2000 + 500 * rng.random((4, BLOCK_PX, BLOCK_PX))).astype(np.uint16) // 64 * 64
    # At the same places of every scene, so that the model has the same work; and one in the farthest corner.
    places = np.random.default_rng(1).integers(0, 4096 // BLOCK_PX, (CLOUDS, 2)).tolist()
    cloudy = {*map(tuple, places), (size // BLOCK_PX - 1, size // BLOCK_PX - 1)}
    with (
        rasterio.Env(GDAL_CACHEMAX=64 * 2**20),
        rasterio.open(scene, "w", count=4, dtype="uint16", predictor=2, **profile) as image,
        rasterio.open(mask, "w", count=1, dtype="uint8", sparse_ok=True, **profile) as clouds,
    ):
        image.descriptions = ("red", "green", "blue", "nir")
        for row in range(size // BLOCK_PX):
            for col in range(size // BLOCK_PX):
                window = Window(col * BLOCK_PX, row * BLOCK_PX, BLOCK_PX, BLOCK_PX)
                is_cloudy = (row, col) in cloudy
                image.write(tile + np.uint16(6000) if is_cloudy else tile, window=window)
                if is_cloudy:
                    clouds.write(np.ones((1, BLOCK_PX, BLOCK_PX), np.uint8), window=window)
    return scene, mask


def measured(scene: Path, mask: Path, model: str | None, further: list[str]) -> dict[str, float]:
    """Run the command in a process of its own; return its peak resident memory and its time."""
    output = scene.with_name("clear.tif")
    command = [sys.executable, "-m", "declouder.cli", "remove", str(scene), "-o", str(output), "--quiet"]
    command += ["--mask", str(mask), "--steps", "0", "--device", "cpu", *further]
    command += ["--model", model] if model else []
    started = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"declouder remove ended with status {status}")
    kib = usage.ru_maxrss if sys.platform != "darwin" else usage.ru_maxrss / 1024
    return {"peak_mib": round(kib / 1024, 1), "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
