"""The shipped model does what it did when it was scored: its networks, its weights and how they are fused.

A changed line that is no mistake to a new network, such as a sign in a sum of features, is one to a trained one.
What its networks made of images that formulas give lies in parity/shipped.json. With other weights, or after a
change that is meant: `python tests/test_shipped.py` writes it anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from declouder.model_identity import model_digest
from declouder.mosaic import Window
from declouder.noise import scene_noise
from declouder.pipeline import CloudRemovalPipeline

RECORDED = Path(__file__).parent / "parity" / "shipped.json"
SIDE, BLOCK = 192, 32
"""Of the images and of the squares whose means and deviations are kept, px."""
TOLERANCE = 5e-4
"""Of [0, 1]: an eighth of an 8-bit step. Kinds of processors and numbers of threads differ by less than 1e-4."""


def images() -> dict[str, np.ndarray]:
    """Return cloudy images by name, (3, SIDE, SIDE) in [0, 1]."""
    y, x = np.mgrid[:SIDE, :SIDE]
    hills = np.sin(x / 17) * np.cos(y / 23) + 0.5 * np.sin((x + 2 * y) / 9)
    grain = ((7 * x * x + 13 * y * y + 5 * x * y) % 97) / 97 - 0.5
    land = np.stack([level + 0.04 * hills + 0.05 * grain for level in (0.24, 0.26, 0.18)])
    sea = np.stack([level + 0.002 * hills + 0.002 * grain for level in (0.05, 0.09, 0.13)])
    through = 0.5 + 0.1 * np.sin(x / 60) * np.sin(y / 80)
    distance = np.hypot(x - 80, y - 70) / 30
    hidden = np.clip(1.6 - distance, 0, 1)
    shade = 1 - 0.5 * np.clip(1.4 - np.hypot(x - 120, y - 110) / 22, 0, 1)
    return {
        "even haze": 0.752 - through * (1 - land),
        "thick cloud over land": (1 - hidden) * shade * land + 0.93 * hidden,
        "thick cloud over sea": (1 - hidden) * sea + 0.93 * hidden,
        "clear land": land,
    }


def squares(image: torch.Tensor) -> dict[str, list[Any]]:
    """Return mean and deviation of each square of each band of (3, SIDE, SIDE)."""
    parts = image.numpy().reshape(3, SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK)
    return {"mean": parts.mean((2, 4)).round(4).tolist(), "deviation": parts.std((2, 4)).round(4).tolist()}


def made(pipeline: CloudRemovalPipeline, cloudy: np.ndarray) -> dict[str, dict[str, list[Any]]]:
    """Return what the reference network makes of an image, and what is fused."""
    latents = torch.from_numpy(scene_noise(0, Window(0, 0, SIDE, SIDE), 3)[None])
    found = pipeline(torch.from_numpy(np.float32(cloudy)[None]), latents=latents, output_type="pt")
    return {"reference": squares(found.reference[0]), "fused": squares(found.images[0])}


@pytest.fixture(scope="module")
def shipped() -> CloudRemovalPipeline:
    pipeline = CloudRemovalPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("name", images())
@pytest.mark.parametrize("quick", [True, False])
def test_the_shipped_model_makes_what_it_made(name: str, quick: bool, shipped: CloudRemovalPipeline) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert model_digest(shipped) == recorded["model"], (
        "other weights: `python tests/test_shipped.py`, and look at them"
    )
    shipped.quick = quick
    for image, kinds in made(shipped, images()[name]).items():
        for kind, values in kinds.items():
            wanted = recorded["images"][name][image][kind]
            np.testing.assert_allclose(values, wanted, atol=TOLERANCE, err_msg=f"{kind} of the {image} image")


def test_an_image_is_restored_alike_in_any_company(shipped: CloudRemovalPipeline) -> None:
    cloudy = torch.from_numpy(np.float32(list(images().values())))
    with torch.inference_mode():
        together = shipped.reference(2 * cloudy - 1)
        alone = torch.cat([shipped.reference(2 * image[None] - 1) for image in cloudy])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


if __name__ == "__main__":
    model = CloudRemovalPipeline.from_pretrained()
    made_of = {name: made(model, cloudy) for name, cloudy in images().items()}
    text = json.dumps({"model": model_digest(model), "images": made_of}, separators=(",", ":"))
    RECORDED.write_text(text + "\n", encoding="utf-8")
