"""Which pairs lie under an even grey haze, and how well the darkest pixel tells how thick it is.

    python benchmarks/haze_law.py DATA/RICE1 DATA/RICE2

Of each set's train pairs: how many obey cloudy = white - T (1 - clear) (declouder.data.transplant.EvenHaze), their
white, and the standard deviation that the law leaves, all in [0, 1]; beside it what a lossy codec alone leaves,
taken from hazes laid by the law and compressed as the train images here are, as WebP of quality 96. And, of those
whose ground has shade, how far T = (white - darkest) / (1 - dark) is from the right one: `darkest` is the least
mean of 4 x 4 px of cloudy, `dark` what its ground is taken for.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declouder.data.catalog import set_pairs
from declouder.data.transplant import EvenHaze
from declouder.scaling import Scaling

WEBP_QUALITY = 96
SIDE_PX = 4
SHADE = 0.25
"""Ground has shade where its darkest pixel is below this."""


def main() -> None:
    """Print two lines and a small table for each set."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("sets", nargs="+", type=Path, metavar="DATA/SET", help="folders of data sets")
    for root in parser.parse_args().sets:
        pairs = set_pairs(root, "train")
        found = [EvenHaze.of_pair(unit(pair.read_cloudy()), unit(pair.read_clear())) for pair in pairs]
        hazes = [haze for haze in found if haze is not None]
        print(f"{root.name}: {len(hazes)} of {len(pairs)} pairs under an even haze")
        if not hazes:
            continue
        whites = [haze.white for haze in hazes]
        lawful = [haze.white - haze.transmission * (1 - haze.clear) for haze in hazes]
        left = [float((haze.cloudy - image).std()) for haze, image in zip(hazes, lawful, strict=True)]
        codec = [float((compressed(image) - image).std()) for image in lawful]
        print(f"white {min(whites):.3f} to {max(whites):.3f}, median {np.median(whites):.3f}")
        print(f"left {min(left):.4f} to {max(left):.4f}, rms {rms_of(left):.4f}; by a codec {rms_of(codec):.4f}")
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


def compressed(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a lossy codec makes of an image, (C, H, W) in [0, 1]."""
    memory = io.BytesIO()
    pixels = np.rint(255 * image.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(pixels).save(memory, "WEBP", quality=WEBP_QUALITY)
    return unit(np.asarray(Image.open(memory).convert("RGB")))


def rms_of(values: list[float]) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.square(values).mean()))


def unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (C, H, W) in [0, 1] of an (H, W, C) image."""
    return np.ascontiguousarray(Scaling.of_dtype(image.dtype).to_unit(image)).transpose(2, 0, 1)


if __name__ == "__main__":
    main()
