"""What the scripts share that score a model on held-out pairs of one set; test folders are never touched."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from declouder import CloudRemovalPipeline
from declouder.config import load_config
from declouder.data.training import Sample, TrainingData

FloatArray = NDArray[np.float32]
Images = tuple[FloatArray, FloatArray]
"""Cloudy and clear, (C, H, W) in [0, 1]."""


def parser_of(description: str) -> argparse.ArgumentParser:
    """Return a parser of what all of them ask for: CONFIG MODEL --base DATA [--set NAME] [--steps N] ..."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", type=Path)
    parser.add_argument("model", help="a model folder, or shipped")
    parser.add_argument("--base", type=Path, required=True, help="the recipe's data.base")
    parser.add_argument("--set", default="RICE2", help="the set whose held-out pairs are taken")
    parser.add_argument("--steps", type=int, help="of sampling; the model's own if not given")
    parser.add_argument("--consistency", type=float, help="of sampling; the model's own if not given")
    return parser


def data_of(arguments: argparse.Namespace) -> TrainingData:
    """Return what the recipe learns from and holds out."""
    config = load_config(arguments.config, [f"data.base={arguments.base}"])
    return TrainingData(config.data, band_names=config.model.bands, seed=config.seed)


def held_out_of(data: TrainingData) -> Sequence[Sample]:
    """Return the held-out samples; end the script where no pair is: others would be those that were learnt from."""
    if not data.held_pairs:
        raise SystemExit("no pair is held out; set data.hold_out above 0 in the recipe")
    return data.held_out(seed=0)  # of what is made up where no pair is held out


def sets_of(data: TrainingData, base: Path) -> list[str]:
    """Return the set of each held-out pair, the folder below the base that it lies in; end the script elsewhere."""
    try:
        return [pair.cloudy_path.relative_to(base).parts[0] for pair in data.held_pairs]
    except ValueError as error:
        raise SystemExit(f"{error}; the recipe's sets are to lie below --base") from None


def held_pairs(data: TrainingData, arguments: argparse.Namespace) -> list[Images]:
    """Return the held-out pairs of the set; end the script where there are none."""
    found = [
        (data.held_cloudy.unit(number), data.held_clear.unit(number))
        for number, name in enumerate(sets_of(data, arguments.base))
        if name == arguments.set
    ]
    if not found:
        raise SystemExit(f"no pair of {arguments.set} is held out; set data.hold_out above 0 in the recipe")
    return found


def pipeline_of(arguments: argparse.Namespace) -> CloudRemovalPipeline:
    """Return the model, without its progress bar."""
    pipeline = CloudRemovalPipeline.from_pretrained(None if arguments.model == "shipped" else arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.consistency is not None:
        pipeline.register_to_config(consistency=arguments.consistency)
    return pipeline


def restore(
    pipeline: CloudRemovalPipeline, sample: Sample, settings: Mapping[str, Any], samples: int = 1
) -> NDArray[np.uint8]:
    """Return the restored image, (H, W, C) uint8, the mean of so many draws of the noise."""
    cloudy = (torch.from_numpy(sample["cloudy"])[None] + 1) / 2
    generator = torch.Generator().manual_seed(sample["seed"])
    first = pipeline(cloudy, generator=generator, output_type="pt", **settings)
    images = [first.images[0]]
    for _ in range(1, samples):
        again = pipeline(cloudy, generator=generator, reference=first.reference, output_type="pt", **settings)
        images.append(again.images[0])
    return to_uint8(torch.stack(images).mean(0).cpu().numpy() * 2 - 1)


def to_uint8(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return (H, W, C) uint8 of (C, H, W) in [-1, 1]."""
    return np.asarray(np.rint((image.transpose(1, 2, 0) + 1) * 127.5).clip(0, 255), np.uint8)
