"""How far a model carries to pairs in another light: darker, brighter, warmer, bluer, of another gamma.

    python scripts/other_light.py CONFIG MODEL --base DATA [--set RICE2] [--steps 0]

Held-out pairs of a few scenes have nearly the colors of those learnt from; elsewhere the sun, the season and the
sensor differ. Both images of each pair are changed alike. Prints a Markdown table, one row a light: the mean PSNR
of the cloudy image and of what is made of it, over the held-out pairs of one set; the same of the clear image as
input, mean and least, counted up to 60 dB; and of the training pairs whose thin cloud darkens dry ground, of which
none may be held out: in another light they too are new. Test folders are never touched.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from choose_sampling import restore, to_uint8
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.config import load_config
from declouder.data.samples import Sample, TrainingData
from declouder.metrics import psnr

FloatArray = NDArray[np.float32]
Images = tuple[FloatArray, FloatArray]
"""Cloudy and clear, (C, H, W) in [0, 1]."""


def gains(red: float, green: float, blue: float) -> Callable[[FloatArray], FloatArray]:
    """Return what multiplies the bands of an image."""
    return lambda image: image * np.array([red, green, blue], np.float32)[:, None, None]


MOST_DB = 60
"""A clear image that comes back nearly unchanged counts as this, or a few such would be the mean."""
LIGHTS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "as it is": lambda image: image,
    "times 0.8": gains(0.8, 0.8, 0.8),
    "times 1.2": gains(1.2, 1.2, 1.2),
    "warmer": gains(1.08, 1.0, 0.92),
    "bluer": gains(0.92, 1.0, 1.08),
    "greener": gains(0.95, 1.06, 0.97),
    "gamma 0.8": lambda image: image ** np.float32(0.8),
    "gamma 1.25": lambda image: image ** np.float32(1.25),
}


def main() -> None:
    """Score every light and print the table."""
    parser = argparse.ArgumentParser(description="Scores of pairs in another light, on held-out pairs.")
    parser.add_argument("config", type=Path)
    parser.add_argument("model", help="a model folder, or shipped")
    parser.add_argument("--base", type=Path, required=True, help="the recipe's data.base")
    parser.add_argument("--set", default="RICE2", help="the set whose held-out pairs are taken")
    parser.add_argument("--steps", type=int, help="of sampling; the model's own if not given")
    arguments = parser.parse_args()

    config = load_config(arguments.config, [f"data.base={arguments.base}"])
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    held = [
        (data.held_cloudy.unit(number), data.held_clear.unit(number))
        for number, pair in enumerate(data.held_pairs)
        if pair.cloudy_path.relative_to(arguments.base).parts[0] == arguments.set
    ]
    if not held:
        raise SystemExit(f"no pair of {arguments.set} is held out; set data.hold_out above 0 in the recipe")
    once = {data.pairs[number].cloudy_path: number for number in data.dimmed}  # a set may be named twice
    dry = [data.real(number) for number in once.values()]
    pipeline = CloudRemovalPipeline.from_pretrained(None if arguments.model == "shipped" else arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": arguments.steps}

    def scores(pairs: Sequence[Images], *, without_cloud: bool = False) -> NDArray[np.float64]:
        return np.array([score(pipeline, settings, (b if without_cloud else a, b)) for a, b in pairs])

    print("| light | cloudy | restored | clear, least | dry ground: cloudy | restored |")
    print("|---|---|---|---|---|---|")
    for name, light in LIGHTS.items():
        lit, lit_dry = ([tuple(np.clip(light(x), 0, 1) for x in pair) for pair in pairs] for pairs in (held, dry))
        clear = scores(lit, without_cloud=True)[:, 1].clip(max=MOST_DB)
        row = "| {} | {:.2f} | {:.2f} |".format(name, *scores(lit).mean(axis=0))
        row += f" {clear.mean():.1f}, {clear.min():.1f} |"
        row += " {:.2f} | {:.2f} |".format(*scores(lit_dry).mean(axis=0)) if dry else " - | - |"
        print(row, flush=True)


def score(pipeline: CloudRemovalPipeline, settings: dict[str, int | None], pair: Images) -> tuple[float, float]:
    """Return the PSNR of a cloudy image and of what is made of it."""
    cloudy, clear = pair
    made = restore(pipeline, Sample(cloudy=2 * cloudy - 1, clear=2 * clear - 1, seed=0), settings)
    target = to_uint8(2 * clear - 1)
    return psnr(to_uint8(2 * cloudy - 1), target), psnr(made, target)


if __name__ == "__main__":
    main()
