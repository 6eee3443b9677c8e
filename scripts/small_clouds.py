"""What `--enlarge` is worth where clouds are small: held-out pairs made smaller, restored as they are and enlarged.

    python scripts/small_clouds.py CONFIG MODEL --base DATA [--set RICE2] [--steps 0]

Clouds of pairs are of one size in pixels; a scene of lower resolution has the same clouds in fewer. Prints a
Markdown table, one row for each size that the pairs are brought to: the mean PSNR of the cloudy image and of what
is made of it, seen as it is and up to four times as large. Test folders are never touched.
"""

from __future__ import annotations

import numpy as np
from held_out import FloatArray, data_of, held_pairs, parser_of, pipeline_of, restore, to_uint8

from declouder import CloudRemovalPipeline
from declouder.arguments import MOST_ENLARGED
from declouder.data.resize import resize_bicubic
from declouder.data.training import Sample
from declouder.metrics import psnr


def main() -> None:
    """Score every size and print the table."""
    arguments = parser_of("Scores of pairs made smaller, seen as they are and enlarged.").parse_args()
    held = held_pairs(data_of(arguments), arguments)
    pipeline = pipeline_of(arguments)
    factors = range(1, MOST_ENLARGED + 1)
    print("| size | cloudy | " + " | ".join("as it is" if f == 1 else f"`--enlarge {f}`" for f in factors) + " |")
    print("|---" * (len(factors) + 2) + "|")
    for part in (1, 2, 3, 4):
        pairs = [tuple(smaller(image, part) for image in pair) for pair in held]
        cells = [np.mean([psnr(to_uint8(2 * a - 1), to_uint8(2 * b - 1)) for a, b in pairs])]
        for factor in factors:
            settings: dict[str, object] = {"num_inference_steps": arguments.steps, "enlarge": factor}
            cells.append(np.mean([score(pipeline, settings, a, b) for a, b in pairs]))
        print(f"| 1/{part} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


def smaller(image: FloatArray, part: int) -> FloatArray:
    """Return an image, (C, H, W) in [0, 1], at a `part`-th of its size."""
    height, width = (side // part for side in image.shape[-2:])
    return np.clip(resize_bicubic(image, height, width), 0, 1)


def score(
    pipeline: CloudRemovalPipeline,
    settings: dict[str, object],
    cloudy: FloatArray,
    clear: FloatArray,
) -> float:
    """Return the PSNR of what is made of a cloudy image."""
    sample = Sample(cloudy=2 * cloudy - 1, clear=2 * clear - 1, seed=0)
    return psnr(restore(pipeline, sample, settings), to_uint8(2 * clear - 1))


if __name__ == "__main__":
    main()
