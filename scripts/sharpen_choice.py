"""How sure a guided reference network should be of its fits: scores on the held-out part of train, and a model.

    python scripts/sharpen_choice.py CONFIG MODEL --base DATA [--backbone FILE] [--as-is 1] [--fill 1.5]
        [--texture 1 0.7] [-o OUT --by 2 2]

Prints a Markdown table: factors of the scores behind the first and the second choice's shares
(declouder.networks.guided); PSNR, SSIM and LPIPS of the reference alone, for each set, and the PSNR of what becomes
of the clear image. With `-o` it writes the model with its reference sharpened `--by` two factors. Test folders are
never touched.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from pathlib import Path

import numpy as np
import torch
from held_out import data_of, held_out_of, sets_of, to_uint8

from declouder import CloudRemovalPipeline
from declouder.metrics import load_lpips, psnr, ssim
from declouder.metrics import lpips as lpips_of
from declouder.networks import CompactNet


def main() -> None:
    """Score every pair of factors; write the model if that is asked for."""
    parser = argparse.ArgumentParser(description="Scores of sharper choices on held-out pairs.")
    parser.add_argument("config", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="the recipe's data.base")
    parser.add_argument("--backbone", type=Path, help="AlexNet for LPIPS")
    parser.add_argument("--first", type=float, nargs="*", default=[1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--second", type=float, nargs="*", default=[1.0, 2.0])
    parser.add_argument("--as-is", type=float, default=0.0, help="added to the score of the image as it is")
    parser.add_argument("--fill", type=float, default=1.0, help="factor for the shares of ground that flows in")
    parser.add_argument(
        "--texture",
        type=float,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("SCORE", "TOLERANCE"),
        help="added to the score of clear ground's own texture, and the factor for its tolerance",
    )
    parser.add_argument("-o", "--output", type=Path, help="where the sharpened model goes")
    parser.add_argument("--by", type=float, nargs=2, help="its factors")
    arguments = parser.parse_args()
    if (arguments.output is None) != (arguments.by is None):
        raise SystemExit("--output and --by go together")
    if arguments.output is not None and arguments.output.exists():
        raise SystemExit(f"{arguments.output} exists; choose another --output")

    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model).to(torch.float32)
    if getattr(pipeline.reference, "choice", None) is None:
        raise SystemExit(f"{arguments.model} has no guided reference network")
    data = data_of(arguments)
    sets = np.array(sets_of(data, arguments.base))
    lpips, _ = load_lpips(arguments.backbone)
    print("| first | second | set | psnr | ssim | lpips | clear in |\n|---|---|---|---|---|---|---|")
    for first, second in itertools.product(arguments.first, arguments.second):
        network = copy.deepcopy(pipeline.reference).eval()
        sharpen(network, arguments, first, second)
        rows = []
        for sample in held_out_of(data):
            clear = to_uint8(sample["clear"])
            restored, kept = (restore(network, sample[key]) for key in ("cloudy", "clear"))
            distance = np.nan if lpips is None else lpips_of(restored, clear, lpips)
            rows.append((psnr(restored, clear), ssim(restored, clear), distance, psnr(kept, clear)))
        for name in ("all", *dict.fromkeys(sets)):
            of_set = np.array(rows)[(sets == name) | (name == "all")]
            quality, similarity, distance, kept = of_set.mean(0)
            print(
                f"| {first:g} | {second:g} | {name} | {quality:.3f} | {similarity:.4f} | {distance:.4f} |"
                f" {kept:.1f}, {of_set[:, 3].min():.1f} |",
                flush=True,
            )
    if arguments.output is not None:
        sharpen(pipeline.reference, arguments, *arguments.by)
        pipeline.save_pretrained(arguments.output)
        print(f"wrote {arguments.output}")


def sharpen(network: CompactNet, arguments: argparse.Namespace, first: float, second: float) -> None:
    """Make the first two choices sharper by these factors, and all else as the arguments say."""
    if network.choice is None:
        raise SystemExit("the model's reference network has no choices to sharpen (options: guided)")
    network.choice.sharpen(first, second, arguments.as_is)
    if network.fill is not None:
        network.fill.sharpen(arguments.fill)
        network.fill.keep_texture(*arguments.texture)


@torch.no_grad()
def restore(network: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Return what the network makes of an image, (C, H, W) in [-1, 1]: (H, W, C) uint8."""
    return to_uint8(network(torch.from_numpy(image)[None])[0].numpy())


if __name__ == "__main__":
    main()
