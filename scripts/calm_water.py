"""What a model paints on calm water under thick cloud: held-out clouds, hardened, over held-out ground made calm.

    python scripts/calm_water.py CONFIG MODEL --base DATA [--set RICE2] [--steps N]

Sea under cloud is to come back as flat as it is around. Clear images of the set's held-out pairs become flat and
dark (`data.augment.make_calm`), and clouds of its held-out pairs, made white and hard, go over them. *Texture* is
the standard deviation, in 8-bit steps, of what differs from a Gaussian mean of 2 px where the cloud hides nearly
all; of the water itself, the reference network's image, and the restored one: mean over the images, and most.
Prints a Markdown table with PSNR beside. Test folders are never touched.
"""

from __future__ import annotations

import numpy as np
from held_out import FloatArray, data_of, held_pairs, parser_of, pipeline_of, restore, to_uint8
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from declouder.data.augment import make_calm
from declouder.data.training import Sample
from declouder.data.transplant import move_hard_cloud
from declouder.metrics import psnr

THICK = 0.9
"""Share of the water that thick cloud hides, or more."""
LEAST_SHARE = 0.01
"""Of the image, under thick cloud."""
MEAN_PX = 2.0


def main() -> None:
    """Score and print the table."""
    parser = parser_of("What is painted on calm water under thick cloud, on held-out pairs.")
    parser.add_argument("--images", type=int, default=39, help="tried; some have no thick cloud")
    arguments = parser.parse_args()

    pairs = held_pairs(data_of(arguments), arguments)
    pipeline = pipeline_of(arguments)
    rows = []
    for number in range(arguments.images):
        generator = np.random.default_rng(number)
        cloudy, clear = pairs[number % len(pairs)]
        water = make_calm(pairs[generator.integers(len(pairs))][1], generator)
        covered, hidden = move_hard_cloud(cloudy, clear, water, generator)
        thick = hidden[0] > THICK
        if thick.mean() < LEAST_SHARE:
            continue
        sample = Sample(cloudy=2 * covered - 1, clear=2 * water - 1, seed=number, ambiguous=False)
        target = to_uint8(2 * water - 1)
        images = [restore(pipeline, sample, {"num_inference_steps": steps}) for steps in (0, arguments.steps)]
        rows.append(
            [
                texture(target, thick),
                *(score for image in images for score in (psnr(image, target), texture(image, thick))),
            ]
        )
    mean, most = np.mean(rows, axis=0), np.max(rows, axis=0)
    print(f"{len(rows)} images")
    print("| water: texture, most | reference: psnr | texture, most | restored: psnr | texture, most |")
    print("|---|---|---|---|---|")
    cells = [f"{mean[place]:.2f}, {most[place]:.2f}" for place in (0, 2, 4)]
    print(f"| {cells[0]} | {mean[1]:.2f} | {cells[1]} | {mean[3]:.2f} | {cells[2]} |")


def texture(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Return the standard deviation of fine detail of (H, W, C) where (H, W) is True, mean over bands."""
    x: FloatArray = np.asarray(image, np.float32)
    fine = x - gaussian_filter(x, (MEAN_PX, MEAN_PX, 0))
    return float(fine[where].std(axis=0).mean())


if __name__ == "__main__":
    main()
