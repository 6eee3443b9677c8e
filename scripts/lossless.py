"""How a model fares on held-out images that no lossy codec has touched, though it learnt from compressed ones.

    python scripts/lossless.py CONFIG MODEL --base DATA [--set RICE1] [--grounds 2] [--steps N] [--backbone FILE]

What a codec left in an image under haze becomes about twice as strong when the haze is taken away. Networks learn
to mend it, held-out pairs of the same codec reward them for it, and lossless images have none of it. Two kinds of
images are nearly lossless: pairs of half the size, and the haze of each pair of `--set` laid anew by its law, over
its own ground and over that of other held-out pairs, in steps of 8-bit images. Prints a Markdown table, a row a
kind: PSNR, SSIM and LPIPS of the reference network's and of the restored images, and how many of these have the
lower LPIPS. Test folders are never touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from held_out import FloatArray, Images, data_of, held_pairs, parser_of, pipeline_of, restore, sets_of, to_uint8
from numpy.typing import NDArray

from declouder.data.resize import resize_bicubic
from declouder.data.training import Sample
from declouder.data.transplant import EvenHaze
from declouder.metrics import load_lpips, psnr, ssim
from declouder.metrics import lpips as lpips_of


def main() -> None:
    """Score each kind of images and print the table."""
    parser = parser_of("Scores on held-out images without a codec's noise.")
    parser.set_defaults(set="RICE1")
    parser.add_argument("--grounds", type=int, default=2, help="other grounds for each haze, beside its own")
    parser.add_argument("--backbone", type=Path, help="AlexNet for LPIPS")
    arguments = parser.parse_args()
    data = data_of(arguments)
    kinds = {f"{arguments.set}, hazes by their law": hazy(held_pairs(data, arguments), arguments.grounds)}
    for name in dict.fromkeys(sets_of(data, arguments.base)):
        pairs = held_pairs(data, argparse.Namespace(base=arguments.base, set=name))
        kinds[f"{name}, half the size"] = [(halved(cloudy), halved(clear)) for cloudy, clear in pairs]
    pipeline = pipeline_of(arguments)
    lpips, _ = load_lpips(arguments.backbone)

    def scores(image: NDArray[np.uint8], clear: FloatArray) -> tuple[float, float, float]:
        target = to_uint8(2 * clear - 1)
        distance = np.nan if lpips is None else lpips_of(image, target, lpips)
        return psnr(image, target), ssim(image, target), distance

    print("| images | reference psnr | ssim | lpips | restored psnr | ssim | lpips | lower lpips |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, samples in kinds.items():
        rows = []
        for cloudy, clear in samples:
            sample = Sample(cloudy=2 * cloudy - 1, clear=2 * clear - 1, seed=0)
            made = [restore(pipeline, sample, {"num_inference_steps": steps}) for steps in (0, arguments.steps)]
            rows.append([scores(image, clear) for image in made])
        found = np.array(rows)  # (images, reference and restored, scores)
        cells = [f"{mean[0]:.2f} | {mean[1]:.4f} | {mean[2]:.4f}" for mean in found.mean(axis=0)]
        lower = "-" if lpips is None else f"{(found[:, 1, 2] < found[:, 0, 2]).sum()} of {len(found)}"
        print(f"| {kind} | {' | '.join(cells)} | {lower} |", flush=True)


def hazy(pairs: list[Images], grounds: int) -> list[Images]:
    """Return each even haze over its own ground and over that of the next pairs, cloudy and clear."""
    samples = []
    for number, pair in enumerate(pairs):
        haze = EvenHaze.of_pair(*pair)
        if haze is not None:
            chosen = [pairs[(number + step) % len(pairs)][1] for step in range(1 + grounds)]
            samples += [(haze.clean_over(clear), clear) for clear in chosen]
    if not samples:
        raise SystemExit("no held-out pair of the set lies under an even haze; name another with --set")
    return samples


def halved(image: FloatArray) -> FloatArray:
    """Return an image, (C, H, W) in [0, 1], of half the size, in steps of 8-bit images."""
    small = resize_bicubic(image, image.shape[-2] // 2, image.shape[-1] // 2)
    return np.asarray(np.rint(np.clip(small, 0, 1) * 255) / 255, np.float32)


if __name__ == "__main__":
    main()
