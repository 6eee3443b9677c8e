"""How long all scores of one image of 256 px take on one core.

    python benchmarks/metrics.py --lpips-backbone alexnet.pth

Prints CPU time, not wall time, so that a busy machine hardly matters; without a backbone LPIPS is left out.
The aim is 60 ms, so that an evaluation waits for the model and not for the scores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from declouder import breakdown, metrics


def cpu_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return median and least CPU time of `work`, ms."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - begin))
    return statistics.median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--size", type=int, default=256, help="side in px")
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lpips, where = metrics.load_lpips(given.lpips_backbone)
    rng = np.random.default_rng(0)
    shape = (given.size, given.size, given.bands)
    clear = rng.integers(0, 256, shape, dtype=np.uint8)
    restored = np.clip(clear + rng.normal(0, 9, shape), 0, 255).astype(np.uint8)
    works: dict[str, Callable[[], object]] = {
        "all scores of the table": lambda: metrics.score(restored, clear, lpips=lpips),
        "all but LPIPS": lambda: metrics.score(restored, clear, lpips=None),
        "where cloud is": lambda: breakdown.regions(restored, clear, 255),
    }
    print(f"{given.size} px, {given.bands} bands, LPIPS: {where if lpips is None else 'yes'}")
    for name, work in works.items():
        median, least = cpu_ms(work, given.repeats)
        print(f"{name:24} {median:6.1f} ms (least {least:.1f})")


if __name__ == "__main__":
    main()
