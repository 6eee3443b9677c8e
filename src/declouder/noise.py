"""The diffusion's starting noise, keyed to places in the scene: windows agree where they overlap.

    noise = scene_noise(seed, window, bands)     # (bands, height, width), standard normal

numpy only, no state: a place has the same noise however the scene is cut, batched, resumed or spread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.mosaic import Window

NOISE_TILE_PX = 64
_NOISE_STREAM = 0x6465636C6F756472  # keeps our numbers apart from other uses of the same seed


def scene_noise(seed: int, window: Window, bands: int, *, sample: int = 0) -> NDArray[np.float32]:
    """Return standard normal noise for a window, (bands, height, width), cut out of one endless field.

    The field is made of tiles of 64 px, each drawn by the counter-based generator Philox from (seed, sample,
    tile row, tile column). So the noise at a place depends neither on how the scene is cut into windows nor
    on the batch.

    Args:
        seed: 0 <= seed < 2^64.
        window: where in the scene, or on a grid that goes on beyond it; rows and columns may be negative.
        bands: of the model.
        sample: which of several independent draws of the same seed, from 0.
    """
    size = NOISE_TILE_PX
    first_row, first_col = window.row // size, window.col // size
    rows = range(first_row, (window.row + window.height - 1) // size + 1)
    cols = range(first_col, (window.col + window.width - 1) // size + 1)
    field = np.empty((bands, len(rows) * size, len(cols) * size), np.float32)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            # Places left of and above the origin have numbers too, at the far end of the counter.
            # An array of its own: a list of numbers below and above 2^63 would become floating point.
            counter = np.array([0, sample, row % 2**64, col % 2**64], np.uint64)
            bits = np.random.Philox(key=np.array([seed, _NOISE_STREAM], np.uint64), counter=counter)
            tile = np.random.Generator(bits).standard_normal((bands, size, size), dtype=np.float32)
            field[:, i * size : (i + 1) * size, j * size : (j + 1) * size] = tile
    top, left = window.row - first_row * size, window.col - first_col * size
    return field[:, top : top + window.height, left : left + window.width]


def draws(draw: Callable[[int, Any], Any], samples: int, *, enlarge: int) -> Iterator[Any]:
    """Yield several draws of one image or batch, which lean on one reference image.

    Args:
        draw: makes one of its number, from 0, and the reference image to lean on, None for the network's; what it
            returns has a `reference`.
        samples: how many.
        enlarge: how many times as large the networks see the image.
    """
    first = draw(0, None)
    yield first
    # Of an enlarged image the reference comes back smaller than the steps saw it: each draw makes its own.
    reference = first.reference if enlarge == 1 else None
    for sample in range(1, samples):
        yield draw(sample, reference)
