"""How far a model carries to pairs in another light: darker, brighter, warmer, bluer, of another gamma.

    python scripts/other_light.py CONFIG MODEL --base DATA [--set RICE2] [--steps 0]

Held-out pairs of a few scenes have nearly the colors of those learnt from; elsewhere the sun, the season and the
sensor differ. Both images of each pair are changed alike. Prints a Markdown table, one row a light: the mean PSNR
of the cloudy image and of what is made of it, over the held-out pairs of one set; the same of the clear image as
input, mean and least, counted up to 60 dB; and of the training pairs whose thin cloud darkens dry ground, of which
none may be held out: in another light they too are new. Test folders are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from held_out import FloatArray, Images, data_of, held_pairs, parser_of, pipeline_of, restore, to_uint8
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.data.training import Sample
from declouder.metrics import psnr


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
    arguments = parser_of("Scores of pairs in another light, on held-out pairs.").parse_args()
    data = data_of(arguments)
    held = held_pairs(data, arguments)
    once = {data.pairs[number].cloudy_path: number for number in data.dimmed}  # a set may be named twice
    dry = [data.real(number) for number in once.values()]
    pipeline = pipeline_of(arguments)
    settings = {"num_inference_steps": arguments.steps}

    def scores(pairs: Sequence[Images], *, without_cloud: bool = False) -> NDArray[np.float64]:
        return np.array([score(pipeline, settings, (b if without_cloud else a, b)) for a, b in pairs])

    print("| light | cloudy | restored | clear, least | dry ground: cloudy | restored |")
    print("|---|---|---|---|---|---|")
    for name, light in LIGHTS.items():
        lit, lit_dry = in_light(held, light), in_light(dry, light)
        clear = scores(lit, without_cloud=True)[:, 1].clip(max=MOST_DB)
        row = "| {} | {:.2f} | {:.2f} |".format(name, *scores(lit).mean(axis=0))
        row += f" {clear.mean():.1f}, {clear.min():.1f} |"
        row += " {:.2f} | {:.2f} |".format(*scores(lit_dry).mean(axis=0)) if dry else " - | - |"
        print(row, flush=True)


def in_light(pairs: Sequence[Images], light: Callable[[FloatArray], FloatArray]) -> list[Images]:
    """Return the pairs with both images put in this light."""
    return [(np.clip(light(cloudy), 0, 1), np.clip(light(clear), 0, 1)) for cloudy, clear in pairs]


def score(pipeline: CloudRemovalPipeline, settings: Mapping[str, Any], pair: Images) -> tuple[float, float]:
    """Return the PSNR of a cloudy image and of what is made of it."""
    cloudy, clear = pair
    made = restore(pipeline, Sample(cloudy=2 * cloudy - 1, clear=2 * clear - 1, seed=0), settings)
    target = to_uint8(2 * clear - 1)
    return psnr(to_uint8(2 * cloudy - 1), target), psnr(made, target)


if __name__ == "__main__":
    main()
