"""Whether a model takes bright ground for haze: held-out clouds over held-out ground, as bright as elsewhere.

    python scripts/other_ground.py CONFIG MODEL --base DATA [--set RICE2] [--steps 0]

Few pairs have bright ground with structure and the held-out ones have none, so it is made: the clear images of one
set keep their shape and black, and their mean becomes what the rows say; clouds of held-out pairs of that set go
over them. Prints a Markdown table, one row a brightness: PSNR of the cloudy image and of what is made of it, mean
and least, and the same of what becomes of the ground without a cloud. *Texture* is how much of the ground's own is
left between the clouds: the slope of the restored image's fine detail on the ground's, 1 where all is kept, 0 where
it is wiped out; mean and least. Test folders are never touched.
"""

from __future__ import annotations

import numpy as np
from held_out import FloatArray, data_of, held_pairs, parser_of, pipeline_of, restore, to_uint8
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, uniform_filter

from declouder.data.training import Sample
from declouder.data.transplant import move_cloud
from declouder.metrics import psnr

TOP = 0.92
"""Ground is cut off here: nothing but cloud is white."""
SATURATION = 0.3
"""Share of its color that ground keeps: green sand would be no test."""
WARMTH = (-0.06, 0.17)
"""ln red - ln green, and ln green - ln blue, are drawn from this range."""
BETWEEN, MARGIN_PX = 0.02, 4
"""Pixels that cloud changes by less, and that lie so far from others, are between the clouds."""
DETAIL_PX = 9
"""Side of the square whose mean fine detail differs from."""


def main() -> None:
    """Score every brightness and print the table."""
    parser = parser_of("Scores over ground of other brightness, on held-out pairs.")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.15, 0.3, 0.45, 0.6, 0.75])
    parser.add_argument("--images", type=int, default=12, help="for each brightness")
    arguments = parser.parse_args()

    pairs = held_pairs(data_of(arguments), arguments)
    grounds = [clear for _, clear in pairs if float(clear.mean(axis=0).std()) > 0.02]
    if not grounds:
        raise SystemExit(f"no pair of {arguments.set} with more than flat ground is held out")
    pipeline = pipeline_of(arguments)
    settings = {"num_inference_steps": arguments.steps}
    print("| mean of the ground | cloudy | restored, least | texture, least | without cloud, least |")
    print("|---|---|---|---|---|")
    for level in arguments.levels:
        generator = np.random.default_rng(0)
        rows = []
        for number in range(arguments.images):
            cloudy, clear = pairs[number % len(pairs)]
            ground = of_brightness(grounds[generator.integers(len(grounds))], level, generator)
            covered = move_cloud(cloudy, clear, ground)
            target = to_uint8(2 * ground - 1)
            made = [
                restore(pipeline, Sample(cloudy=2 * image - 1, clear=2 * ground - 1, seed=0), settings)
                for image in (covered, ground)
            ]
            scores = [psnr(image, target) for image in (to_uint8(2 * covered - 1), *made)]
            rows.append([*scores, texture_kept(made[0], ground, covered)])
        (cloudy_db, restored, kept, texture), least = np.nanmean(rows, axis=0), np.nanmin(rows, axis=0)
        print(
            f"| {level:g} | {cloudy_db:.1f} | {restored:.1f}, {least[1]:.1f} | {texture:.2f}, {least[3]:.2f} |"
            f" {kept:.1f}, {least[2]:.1f} |",
            flush=True,
        )


def of_brightness(ground: FloatArray, level: float, generator: np.random.Generator) -> FloatArray:
    """Return ground, (C, H, W) in [0, 1], greyer, mostly warmer, of mean `level` before the cut at `TOP`."""
    grey = ground.mean(axis=0, keepdims=True)
    ground = grey + np.float32(SATURATION) * (ground - grey)
    hue = np.exp(generator.uniform(*WARMTH) * np.linspace(1, -1, ground.shape[0]))
    gain = level * hue / ground.mean(axis=(1, 2))
    return np.asarray(np.clip(np.asarray(gain, np.float32)[:, None, None] * ground, 0, TOP))


def texture_kept(restored: NDArray[np.uint8], ground: FloatArray, covered: FloatArray) -> float:
    """Return the slope of fine detail of `restored` (H, W, C) on that of `ground` (C, H, W) between the clouds.

    NaN where the clouds leave less than a hundredth of the image.
    """
    between = np.abs(covered - ground).max(axis=0) < BETWEEN
    between = binary_erosion(between, iterations=MARGIN_PX, border_value=1)
    if between.mean() < 0.01:
        return float("nan")
    made = np.asarray(restored, np.float32).transpose(2, 0, 1) / 255
    ours, theirs = (x - uniform_filter(x, (0, DETAIL_PX, DETAIL_PX)) for x in (made, ground))
    return float((ours * theirs)[:, between].sum() / np.square(theirs)[:, between].sum())


if __name__ == "__main__":
    main()
