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
from declouder.cli.process import keep_freed_memory


def cpu_ms(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return median and least CPU time of `work`, ms."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - begin))
    return statistics.median(times), min(times)


def convolved(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return what `WinogradConvolution` does, by torch's own convolution: (N, H, W, C) in and out."""
    weight = weight.contiguous(memory_format=torch.channels_last)
    padding = weight.shape[-1] // 2
    return torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=padding).permute(0, 2, 3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--size", type=int, default=256, help="side in px")
    parser.add_argument("--bands", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as `declouder evaluate` does
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
    if lpips is not None:
        sides = [given.size // 8 - 1, *[given.size // 16 - 1] * 3]  # of AlexNet's maps before each layer
        inputs = [
            torch.randn(4, side, side, weight.shape[1])  # (N, H, W, C)
            for side, (weight, _) in zip(sides, lpips.weights[1:], strict=True)
        ]
        works["AlexNet's stride-1 layers"] = lambda: [f(x) for f, x in zip(lpips.others, inputs, strict=True)]
        works["the same, torch's"] = lambda: [
            convolved(x, *weights) for weights, x in zip(lpips.weights[1:], inputs, strict=True)
        ]
    print(f"{given.size} px, {given.bands} bands, LPIPS: {where if lpips is None else 'yes'}")
    for name, work in works.items():
        median, least = cpu_ms(work, given.repeats)
        print(f"{name:26} {median:6.1f} ms (least {least:.1f})")


if __name__ == "__main__":
    main()
