"""Procedural ground: clear images made from a generator alone, for demos and tests that ship no data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree


def make_terrain(generator: np.random.Generator, height: int, width: int, *, bands: int = 3) -> NDArray[np.float32]:
    """Return fields and relief as (bands, height, width) float32 in [0, 1]."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    seeds = generator.uniform(0, [height, width], (max(6, height * width // 900), 2))
    _, field = KDTree(seeds).query(np.stack([rows, columns], axis=-1))  # (H, W): the nearest seed owns the pixel
    colors = generator.uniform(0.12, 0.5, (len(seeds), bands))
    angle = generator.uniform(0, np.pi, len(seeds))[field]
    furrows = 0.03 * np.sin((rows * np.cos(angle) + columns * np.sin(angle)) * 1.3)
    grain = 0.02 * generator.standard_normal((height, width))
    ground = colors[field] + (furrows + grain)[..., None]
    return np.ascontiguousarray(np.clip(ground, 0, 1).transpose(2, 0, 1), dtype=np.float32)
