"""Schedulers that draw noise on the way: the same seed must give the same image all the same."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    SASolverScheduler,
    TCDScheduler,
)

from conftest import write_tif
from declouder import CloudRemovalPipeline
from declouder.data.pairs import Pair
from declouder.errors import ModelError
from declouder.evaluation import ModelMethod
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene

SCHEDULERS = [
    DDPMScheduler(prediction_type="sample", clip_sample=False),
    DPMSolverMultistepScheduler(prediction_type="sample", algorithm_type="sde-dpmsolver++"),
]
ALL = [*SCHEDULERS, *(kind(prediction_type="sample") for kind in (LCMScheduler, SASolverScheduler, TCDScheduler))]


@pytest.fixture
def pipeline(model_folder) -> CloudRemovalPipeline:
    loaded = CloudRemovalPipeline.from_pretrained(model_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
def test_scores_with_noise_on_the_way_repeat_themselves(scheduler, pipeline, tmp_path, rng):
    pipeline.scheduler = scheduler
    cloudy = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pair = Pair("a", tmp_path / "a.png", tmp_path / "b.png")
    options = {"num_inference_steps": 4, "strength": 1.0, "w_bounds": (0.0, 0.0)}

    def restored(**more) -> np.ndarray:
        return ModelMethod(pipeline, **options, **more).restore(pair, cloudy, Scaling(0, 255)).image

    np.testing.assert_array_equal(restored(), restored())
    assert (restored() != restored(seed=1)).any()


@pytest.mark.parametrize("scheduler", ALL, ids=lambda scheduler: type(scheduler).__name__)
def test_a_scene_wants_a_sampler_whose_noise_has_a_place(scheduler, pipeline, tmp_path, rng):
    pipeline.scheduler = scheduler
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 32, 32), dtype=np.uint8))
    with pytest.raises(ModelError, match=r"draws noise in each step, .* give a sampler that does not"):
        remove_from_scene(source, tmp_path / "b.tif", pipeline, SceneOptions(steps=2))
    remove_from_scene(source, tmp_path / "b.tif", pipeline, SceneOptions(steps=0))
