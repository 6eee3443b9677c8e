"""Which pairs lie under an even grey haze, and how well the darkest pixel tells how thick it is.

    python benchmarks/haze_law.py DATA/RICE1 DATA/RICE2

Of each set's train pairs: how many obey cloudy = white - T (1 - clear) (declouder.data.transplant.EvenHaze), their
white, and the standard deviation that the law leaves, all in [0, 1]; and, of those whose ground has shade, how far
T = (white - darkest) / (1 - dark) is from the right one: `darkest` is the least mean of 4 x 4 px of cloudy, `dark`
what its ground is taken for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from declouder.data.catalog import set_pairs
from declouder.data.transplant import EvenHaze
from declouder.scaling import Scaling

SIDE_PX = 4
SHADE = 0.25
"""Ground has shade where its darkest pixel is below this."""


def main() -> None:
    """Print two lines and a small table for each set."""
    for root in map(Path, sys.argv[1:]):
        pairs = set_pairs(root, "train")
        found = [EvenHaze.of_pair(unit(pair.read_cloudy()), unit(pair.read_clear())) for pair in pairs]
        hazes = [haze for haze in found if haze is not None]
        print(f"{root.name}: {len(hazes)} of {len(pairs)} pairs under an even haze")
        if not hazes:
            continue
        whites = [haze.white for haze in hazes]
        left = [float((h.cloudy - h.white + h.transmission * (1 - h.clear)).std()) for h in hazes]
        print(f"white {min(whites):.3f} to {max(whites):.3f}, median {np.median(whites):.3f}")
        print(f"left {min(left):.4f} to {max(left):.4f}")
        shaded = [haze for haze in hazes if haze.clear.min() < SHADE]
        white = float(np.median(whites))
        for dark in (0.0, 0.02, 0.04, 0.06):
            errors = np.array([error_of_darkest(haze, white, dark) for haze in shaded])
            median, rms = np.median(np.abs(errors)), np.sqrt(np.square(errors).mean())
            print(f"dark {dark}: T of {len(shaded)} images off by {median:.1%} (median), {rms:.1%} (rms)")


def error_of_darkest(haze: EvenHaze, white: float, dark: float) -> float:
    """Return the relative error of the transmission that the darkest pixel gives; 0 where it is right."""
    under = 1 - haze.clear
    right = float(((white - haze.cloudy) * under).sum() / np.square(under).sum())
    bands, height, width = haze.cloudy.shape
    rows, columns = height // SIDE_PX, width // SIDE_PX
    whole = haze.cloudy[:, : rows * SIDE_PX, : columns * SIDE_PX]
    means = whole.reshape(bands, rows, SIDE_PX, columns, SIDE_PX).mean(axis=(2, 4))
    return (white - float(means.min())) / (1 - dark) / right - 1


def unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (C, H, W) in [0, 1] of an (H, W, C) image."""
    return np.ascontiguousarray(Scaling.of_dtype(image.dtype).to_unit(image)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
