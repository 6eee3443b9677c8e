"""The recipes that ship: each builds, and those of the paper have its networks and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from declouder import CloudRemovalPipeline
from declouder.config import STAGE_NAMES, DataConfig, load_config
from declouder.data.catalog import CATALOG
from declouder.data.training import TrainingData
from declouder.model_folder import NETWORKS
from declouder.training import STAGES, StageModule
from declouder.training.networks import build_networks, make_pipeline
from toy import ROOT

RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))


PAPER_RECIPES = {
    f"{data}_{network}" for data in ("rice1", "rice2", "cuhk_cr1", "cuhk_cr2") for network in ("msda", "memorynet")
}


def test_there_is_a_recipe_for_every_benchmark_and_reference_network_of_the_paper():
    assert {path.stem for path in RECIPES} >= PAPER_RECIPES | {"toy", "compact", "one_gpu"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_its_networks(path):
    config = load_config(path)
    with torch.device("meta"):
        networks = build_networks(config)
    assert set(networks) == {"reference", "denoiser", "weight_net"}
    assert all(network.config["bands"] == len(config.model.bands) for network in networks.values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_paper_have_its_networks_and_settings(path):
    config = load_config(path)
    assert config.name == path.stem
    if path.stem not in PAPER_RECIPES:
        return
    assert set(config.stages) == set(STAGE_NAMES)
    with torch.device("meta"):
        networks = build_networks(config)
    four = "cuhk" in path.stem
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert sizes["denoiser"] == (32_144_740 if four else 32_142_147)
    assert sizes["weight_net"] == (4_660_484 if four else 4_658_179)
    assert CATALOG[config.data.pairs[0].set].size_px == 512
    assert config.data.size == 256
    assert (config.model.num_inference_steps, config.model.w_bounds) == (10, (0.3, 1.0))
    assert config.stages["denoiser"].downscale == 4
    assert (config.stages["joint"].steps, config.stages["joint"].noise_weight) == (10_000, 1.0)


ONE_STEP = [
    f"stages.{stage}.{field}"
    for stage in STAGE_NAMES
    for field in (
        "batch=1",
        "patch_px=16",
        "fused_px=null",
        "downscale=1",
        "ssim_weight=0",
        "perceptual_weight=0",
        "log_perceptual_weight=0",
    )
]


def test_every_config_builds_and_takes_one_step_in_every_stage(monkeypatch):
    """Recipes that share a network share its step: what differs between them is the data's name and a length."""
    found, built = 0, {}
    ours = "declouder.training.module.build_networks"
    monkeypatch.setattr(ours, lambda config: built[config.model.model_dump_json()])
    taken = set()
    for path in RECIPES:
        present = load_config(path).stages
        changes = [change for change in ONE_STEP if change.split(".")[1] in present]
        changes += [f"stages.{name}.augment.dim=0" for name in present]  # generated ground has no such pairs
        config = load_config(path, ["data.workers=0", *changes])
        found += 1
        key = config.model.model_dump_json()
        if key not in built:
            built[key] = build_networks(config)
        config = config.model_copy(update={"data": DataConfig(procedural=2, synthetic_share=1)})
        data = TrainingData(config.data, band_names=config.model.bands, seed=0)
        for name in config.stages:
            parts = (*STAGES[name].learns, *STAGES[name].takes_over)
            step = (name, str([config.model.model_dump()[p] for p in parts]), len(config.model.bands))
            if step in taken:
                continue
            taken.add(step)
            module = StageModule(name, config, data)
            batch = torch.utils.data.default_collate([module.samples[0]])
            module.learning.requires_grad_(True)  # an earlier stage may have frozen the shared network
            module.stage.loss(module, batch).backward()
            # DDP waits for the gradient of every parameter: one that gets none would stop it.
            lonely = [key for key, p in module.learning.named_parameters() if p.grad is None]
            assert not lonely, f"{path.stem}, {name}: no gradient for {lonely[:3]}"
            learner = module.configure_optimizers()
            learner["optimizer"].step()
            assert all(torch.isfinite(p).all() for p in module.learning.parameters())
            module.learning.zero_grad(set_to_none=True)
    assert found == len(RECIPES) >= 11


def test_the_recipe_that_trains_the_shipped_model_further_builds_it():
    """Options without tensors too: with another, the same weights make another image from the first step on."""
    config = load_config(ROOT / "configs" / "finetune.yaml")
    built, shipped = make_pipeline(config, build_networks(config)), CloudRemovalPipeline.from_pretrained()
    for part in NETWORKS:
        ours, theirs = (settings_of(getattr(pipeline, part)) for pipeline in (built, shipped))
        assert ours == theirs, part
    for name in ("bands", "num_inference_steps", "strength", "w_bounds", "consistency"):
        assert list(np.ravel(built.config[name])) == list(np.ravel(shipped.config[name]))
    assert settings_of(built.scheduler) == settings_of(shipped.scheduler)


def settings_of(part: Any) -> dict[str, Any]:
    return {key: value for key, value in part.config.items() if not key.startswith("_")}
