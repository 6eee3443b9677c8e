"""How many training pairs a second one core prepares.

    python benchmarks/loader.py [--px 256] [--pairs 64] [--seconds 10] [--json OUT]

Writes PNG pairs of generated ground under simulated cloud into a temporary folder and draws samples of them in
one thread, as one loader process of a training does: from memory (what fits is decoded once), read anew each
time, and with synthetic clouds put on as they are drawn. A loader of N processes on N free cores gives N times
as many; the time that is counted is this process's own (CPU time), so a busy machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from declouder.config import AugmentConfig, DataConfig, StageConfig
from declouder.data.clouds import simulate_clouds
from declouder.data.samples import StageSamples
from declouder.data.terrain import make_terrain
from declouder.data.training import TrainingData


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--px", type=int, default=256, help="side of the images and samples")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10, help="CPU time for each row")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), options.pairs, options.px)
        rows = {name: rate(Path(folder), options.seconds, **fields) for name, fields in CASES.items()}
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
    print(f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}; one core, {options.px} px, PNG")
    for name, pairs_per_s in rows.items():
        print(f"{name:<50} {pairs_per_s:8.1f} pairs/s")
    if options.json is not None:
        figures = {"machine": machine, "px": options.px, "pairs_per_s_per_core": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


PAPER = AugmentConfig(flips="horizontal")
STRONG = AugmentConfig(flips="dihedral", color=0.4, cloud_strength=(0.6, 1.1))
CASES: dict[str, dict[str, Any]] = {
    "from memory, flipped as in the paper": {"augment": PAPER},
    "from memory, all augmentation": {"augment": STRONG},
    "read anew, flipped as in the paper": {"augment": PAPER, "cache_gb": 0.0},
    "from memory, every second one a synthetic cloud": {"augment": STRONG, "synthetic_share": 0.5},
}


def rate(folder: Path, seconds: float, *, augment: AugmentConfig, **fields: float) -> float:
    config = DataConfig(base=folder, pairs=["set"], clear=["set/train/label"], hold_out_block=4, **fields)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    samples = StageSamples(data, StageConfig(steps=1, augment=augment), seed=0)
    for number in range(5):
        samples[number]
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        samples[done]
        done += 1
    return done / (time.process_time() - start)


def write_pairs(folder: Path, count: int, px: int) -> None:
    for kind in ("cloud", "label"):
        (folder / "set" / "train" / kind).mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        clear = make_terrain(generator, px // 2, px // 2).repeat(2, axis=1).repeat(2, axis=2)
        cloudy = simulate_clouds(clear, generator).cloudy
        for kind, image in (("cloud", cloudy), ("label", clear)):
            dn = np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(dn).save(folder / "set" / "train" / kind / f"{number}.png")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
