"""Samplers: any diffusers scheduler that goes on from a predicted x0, and a table of those to be had by name."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from declouder.errors import ModelError, OptionError

_NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "sample",
}
# x0 is fused from images in [-1, 1] already: the samplers must not clip it a second time.
_DDIM: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": True}

SAMPLERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: DDIMScheduler(timestep_spacing="leading", **_DDIM, **_NOISE_SCHEDULE),
    "ddim-trailing": lambda: DDIMScheduler(timestep_spacing="trailing", **_DDIM, **_NOISE_SCHEDULE),
    "dpmsolver++": lambda: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", timestep_spacing="trailing", **_NOISE_SCHEDULE
    ),
    "unipc": lambda: UniPCMultistepScheduler(timestep_spacing="trailing", **_NOISE_SCHEDULE),
    "euler": lambda: EulerDiscreteScheduler(timestep_spacing="trailing", **_NOISE_SCHEDULE),
}
"""The samplers to be had by name. "ddim" is the paper's."""

_FROM_NOISE_ALONE = (
    "PNDMScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
)
"""Of diffusers, those that know no prediction_type="sample" and say so only in the midst of sampling."""
_GOOD_ONES = "DDIM, DPM-Solver, UniPC, Euler or Heun"


def make_scheduler(name: str) -> Any:
    """Return a new diffusers scheduler of `SAMPLERS`, on the paper's noise schedule.

    Raises:
        OptionError: if there is no sampler of that name.
    """
    if name not in SAMPLERS:
        raise OptionError(f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]()


def check_scheduler(scheduler: Any) -> None:
    """Raise ModelError unless a scheduler has all that the method asks for, and goes on from x0."""
    missing = [name for name in ("alphas_cumprod", "add_noise", "set_timesteps") if not hasattr(scheduler, name)]
    if missing:
        raise ModelError(
            f"{type(scheduler).__name__} has no {missing[0]}, which the method asks for; give a scheduler such as"
            f" {_GOOD_ONES}"
        )
    if type(scheduler).__name__ in _FROM_NOISE_ALONE:
        raise ModelError(
            f"{type(scheduler).__name__} cannot go on from a predicted x0, which is what fusion gives; give a"
            f" scheduler such as {_GOOD_ONES}"
        )
    if scheduler.config.prediction_type != "sample":
        raise ModelError(
            f"the scheduler expects {scheduler.config.prediction_type!r} predictions, fusion gives x0; make"
            f' it with prediction_type="sample"'
        )


def lead_to_next(scheduler: Any, stride: int) -> None:
    """Let DDIM's next step go `stride` steps down, to where the networks look next; others do so by themselves.

    By itself it goes 1000 // steps down, and "trailing" steps may lie further apart: noise would be left.
    """
    if isinstance(scheduler, DDIMScheduler):
        # The number of steps of which 1000 // steps is the stride.
        scheduler.num_inference_steps = Fraction(2 * scheduler.config.num_train_timesteps, 2 * stride + 1)
