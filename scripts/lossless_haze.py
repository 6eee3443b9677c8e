"""How a model fares under an even haze that no lossy codec has touched: held-out hazes, by their law alone.

    python scripts/lossless_haze.py CONFIG MODEL --base DATA [--set RICE1] [--grounds 2] [--backbone FILE]

Where train images are compressed with loss, what the codec left in the haze becomes two or three times as strong
when the haze is taken away; it is most of what a model restores them with, and lossless images have none of it. So
the haze of each held-out pair is laid anew over its own ground and over that of other held-out pairs, in steps of
8-bit images. Prints a Markdown table: PSNR, SSIM and LPIPS of the cloudy images, of the reference network's and of
the restored ones, and how many of these have a lower LPIPS than the reference. Test folders are never touched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from choose_sampling import restore, to_uint8
from held_out import FloatArray, Images, data_of, held_pairs, parser_of, pipeline_of
from numpy.typing import NDArray

from declouder.data.training import Sample
from declouder.data.transplant import EvenHaze
from declouder.metrics import load_lpips, psnr, ssim
from declouder.metrics import lpips as lpips_of


def main() -> None:
    """Score the hazes and print the table."""
    parser = parser_of("Scores under an even haze without a codec's noise, on held-out pairs.")
    parser.set_defaults(set="RICE1")
    parser.add_argument("--grounds", type=int, default=2, help="other grounds for each haze, beside its own")
    parser.add_argument("--backbone", type=Path, help="AlexNet for LPIPS")
    arguments = parser.parse_args()
    samples = hazy(held_pairs(data_of(arguments), arguments), arguments.grounds)
    if not samples:
        raise SystemExit(f"no held-out pair of {arguments.set} lies under an even haze")
    pipeline = pipeline_of(arguments)
    lpips, _ = load_lpips(arguments.backbone)

    def scores(image: NDArray[np.uint8], clear: FloatArray) -> tuple[float, float, float]:
        target = to_uint8(2 * clear - 1)
        distance = np.nan if lpips is None else lpips_of(image, target, lpips)
        return psnr(image, target), ssim(image, target), distance

    rows = []
    for cloudy, clear in samples:
        sample = Sample(cloudy=2 * cloudy - 1, clear=2 * clear - 1, seed=0)
        made = [restore(pipeline, sample, {"num_inference_steps": steps}) for steps in (0, arguments.steps)]
        rows.append([scores(image, clear) for image in (to_uint8(2 * cloudy - 1), *made)])
    found = np.array(rows)
    print(f"{len(found)} images\n\n| image | psnr | ssim | lpips |\n|---|---|---|---|")
    for name, mean in zip(("cloudy", "reference", "restored"), found.mean(axis=0), strict=True):
        print(f"| {name} | {mean[0]:.2f} | {mean[1]:.4f} | {mean[2]:.4f} |")
    lower = int((found[:, 2, 2] < found[:, 1, 2]).sum())
    print(f"\nLPIPS lower than the reference's: {lower} of {len(found)} images")


def hazy(pairs: list[Images], grounds: int) -> list[Images]:
    """Return each even haze over its own ground and over that of the next pairs, cloudy and clear."""
    samples = []
    for number, pair in enumerate(pairs):
        haze = EvenHaze.of_pair(*pair)
        if haze is not None:
            chosen = [pairs[(number + step) % len(pairs)][1] for step in range(1 + grounds)]
            samples += [(haze.clean_over(clear), clear) for clear in chosen]
    return samples


if __name__ == "__main__":
    main()
