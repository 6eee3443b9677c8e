"""Trainings of the toy recipe, for the tests that train."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from declouder.config import TrainConfig, load_config
from declouder.data.training import TrainingData
from declouder.training import StageModule, train

ROOT = Path(__file__).parent.parent
TOY = ROOT / "configs" / "toy.yaml"


def toy(*overrides: str) -> TrainConfig:
    return load_config(TOY, overrides)


def train_quietly(config: TrainConfig, out: Path, **options):
    return train(config, out, device="cpu", **options)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def stage_module(stage: str, *overrides: str) -> StageModule:
    config = toy(*overrides)
    return StageModule(stage, config, TrainingData(config.data, band_names=config.model.bands, seed=0))


def write_four_pairs(root: Path) -> None:
    for kind in ("cloud", "label"):
        folder = root / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (number, 90, 90)).save(folder / f"{number}.png")
