"""How much thick cloud a model leaves in images without a clear twin, by the distance from the image's edge.

    python scripts/left_cloud.py IMAGE... [--model DIR] [--steps 0] [--look-again 0] [--look-closer 0]

*Bright* are pixels above 120 of 255 in all bands: on images chosen for it mostly thick cloud. Prints a Markdown
table, a row an image and one of their means: the share of bright pixels within 4 px of the edge that are bright in
the result too, then of those from 4 to 16 px inside, and from 16 px on; a dash where there were none.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from declouder import CloudRemovalPipeline

BRIGHT = 120
"""Of 255."""
BOUNDS_PX = (0, 4, 16, 2**31)


def main() -> None:
    """Restore every image and print the table."""
    parser = argparse.ArgumentParser(description="Thick cloud that stays, by the distance from the image's edge.")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="8-bit red, green and blue")
    parser.add_argument("--model", help="model folder; the shipped model without it")
    parser.add_argument("--steps", type=int, help="of the sampler; the model's without it")
    parser.add_argument("--look-again", type=int, help="of the reference network; the model's without it")
    parser.add_argument("--look-closer", type=int, help="of the reference network; the model's without it")
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    for option in ("look_again", "look_closer"):
        if (value := getattr(arguments, option)) is not None:
            setattr(pipeline.reference, option, value)

    print("| image | within 4 px | 4 to 16 px | from 16 px on | all |\n|---|---|---|---|---|")
    rows = []
    for path in arguments.images:
        with Image.open(path) as image:
            cloudy = np.asarray(image.convert("RGB"))
        found = pipeline(
            cloudy / 255,
            num_inference_steps=arguments.steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        rows.append(shares_left(cloudy, np.rint(found.images[0] * 255).astype(np.uint8)))
        print(line(path.stem[:24], rows[-1]), flush=True)
    known = np.ma.masked_invalid(rows).mean(axis=0).filled(np.nan)
    print(line(f"mean of {len(rows)}", known.tolist()))


def shares_left(cloudy: NDArray[np.uint8], restored: NDArray[np.uint8]) -> list[float]:
    """Return the share of bright pixels that stay bright, by distance from the edge, and of all; NaN of none."""
    bright = np.all(cloudy > BRIGHT, axis=2)
    left = bright & np.all(restored > BRIGHT, axis=2)
    rows, columns = (np.minimum(np.arange(side), np.arange(side)[::-1]) for side in bright.shape)
    distance = np.minimum(rows[:, None], columns)
    zones = [(distance >= near) & (distance < far) for near, far in pairwise(BOUNDS_PX)]
    zones.append(np.full(bright.shape, True))
    counts = [(np.count_nonzero(left & zone), np.count_nonzero(bright & zone)) for zone in zones]
    return [stay / there if there else np.nan for stay, there in counts]


def line(name: str, shares: list[float]) -> str:
    """Return a row of the table."""
    return f"| {name} | " + " | ".join("–" if np.isnan(share) else f"{share:.2f}" for share in shares) + " |"


if __name__ == "__main__":
    main()
