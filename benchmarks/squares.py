"""How quick the ways to a mean over squares are on this CPU, in turn, one beside the other.

    python benchmarks/squares.py [--threads N] [--repeats N]

Milliseconds, the least of the repeats, of pooling along lines, products with matrices, and sums of runs: alone, and
with the way back of their gradients. `declouder.networks.squares` takes the quickest by its two limits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from declouder.cli.process import keep_freed_memory
from declouder.networks.squares import _band_of_means, _means_along

SIZES_PX = (32, 64, 128, 256, 512, 1024)
SIDES = (3, 9, 31)
CHANNELS, OF = 9, 15
"""The first 9 of 15 channels, channels last, as the scores of the reference network's first choice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    ways: dict[str, Callable[[Tensor, int], Tensor]] = {"pooling": pooled, "matrices": by_matrices, "sums": by_sums}
    print("| px | side | " + " | ".join([*ways, *(f"{name}, and back" for name in ways)]) + " |")
    print("|---" * (2 + 2 * len(ways)) + "|")
    for px in SIZES_PX:
        for side in SIDES:
            x = torch.rand(1, OF, px, px).contiguous(memory_format=torch.channels_last)[:, :CHANNELS]
            least = [float("inf")] * (2 * len(ways))
            for _ in range(given.repeats):
                for i, way in enumerate(ways.values()):
                    least[i] = min(least[i], seconds(way, x, side))
                    least[i + len(ways)] = min(least[i + len(ways)], seconds(way, x.clone().requires_grad_(), side))
            print(f"| {px} | {side} | " + " | ".join(f"{1e3 * s:.2f}" for s in least) + " |")


def seconds(way: Callable[[Tensor, int], Tensor], x: Tensor, side: int) -> float:
    begin = time.perf_counter()
    means = way(x, side)
    if x.requires_grad:
        torch.autograd.backward(means.sum())
    return time.perf_counter() - begin


def pooled(x: Tensor, side: int) -> Tensor:
    x = F.avg_pool2d(x, (side, 1), stride=1, padding=(side // 2, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, side), stride=1, padding=(0, side // 2), count_include_pad=False)


def by_matrices(x: Tensor, side: int) -> Tensor:
    height, width = x.shape[-2:]
    return _band_of_means(height, side) @ x @ _band_of_means(width, side).T


def by_sums(x: Tensor, side: int) -> Tensor:
    return _means_along(_means_along(x, side, -2), side, -1)


if __name__ == "__main__":
    main()
