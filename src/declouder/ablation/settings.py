"""The rows of the table: the ways to sample that are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from declouder.arguments import PAPER_W_BOUNDS, digits
from declouder.errors import OptionError
from declouder.pipeline import SAMPLERS

GROUP_NAMES = ("reference", "diffusion", "weight", "consistency", "steps", "sampler", "start", "seed")
STEPS = (1, 2, 4, 10, 25, 50)
FIXED_W = (0.25, 0.5, 0.75)
W_BOUNDS = ((-1e3, 1e3), (0.0, 1.0), PAPER_W_BOUNDS, (0.0, 0.7))
"""The first is the learned w as it is; (0.3, 1) are the authors'."""
CONSISTENCIES = (0.0, 0.5, 1.0)
STRENGTHS = (1.0, 0.75, 0.5, 0.25)
SEEDS = (1, 2, 3)
MEAN_OF = 4
AS_SAVED = "learned w, as saved"
"""The row of the model's own setting."""


@dataclass(frozen=True)
class Row:
    """One way to sample; None is as the model was saved.

    Attributes:
        group: one of `GROUP_NAMES`.
        label: how the table calls it.
        steps, strength, w_bounds, consistency, sampler, seed, samples: what differs from the model's own setting.
    """

    group: str
    label: str
    steps: int | None = None
    strength: float | None = None
    w_bounds: tuple[float, float] | None = None
    consistency: float | None = None
    sampler: str | None = None
    seed: int = 0
    samples: int = 1

    def settings(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sampled with, given the model's `own` setting; equal settings give equal images."""
        steps = own["num_inference_steps"] if self.steps is None else self.steps
        if steps == 0:
            # The reference network draws no noise and has no w: all its rows are one.
            bounds = [1.0, 1.0]
            settings = {"steps": 0, "strength": 1.0, "w_bounds": bounds, "consistency": 0.0}
            return {**settings, "sampler": None, "seed": 0, "samples": 1}
        return {
            "steps": steps,
            "strength": own["strength"] if self.strength is None else self.strength,
            "w_bounds": [float(b) for b in (own["w_bounds"] if self.w_bounds is None else self.w_bounds)],
            "consistency": float(own["consistency"] if self.consistency is None else self.consistency),
            "sampler": self.sampler,
            "seed": self.seed,
            "samples": self.samples,
        }


def rows(only: Sequence[str] = ()) -> list[Row]:
    """Return the rows of the table, of all groups or of those named; the reference always comes along.

    Raises:
        OptionError: if there is no such group.
    """
    for name in only:
        if name not in GROUP_NAMES:
            raise OptionError(f"there is no ablation {name!r}; choose among {', '.join(GROUP_NAMES)}")
    found = [
        Row("reference", "reference alone", steps=0),
        Row("diffusion", "diffusion alone (w = 0)", w_bounds=(0.0, 0.0)),
        Row("weight", AS_SAVED),
        *(Row("weight", f"w fixed at {w:g}", w_bounds=(w, w)) for w in FIXED_W),
        Row("weight", "learned w without bounds", w_bounds=W_BOUNDS[0]),
        *(Row("weight", f"learned w in [{a:g}, {b:g}]", w_bounds=(a, b)) for a, b in W_BOUNDS[1:]),
        *(Row("consistency", f"data consistency {s:g}", consistency=s) for s in CONSISTENCIES),
        Row("consistency", "w fixed at 1: the reference, held as saved", w_bounds=(1.0, 1.0)),
        *(Row("steps", f"{n} step{'s' * (n > 1)}", steps=n) for n in STEPS),
        *(Row("sampler", name, sampler=name) for name in SAMPLERS),
        *(
            Row("start", "from noise" if s == 1 else f"from the reference, strength {s:g}", strength=s)
            for s in STRENGTHS
        ),
        *(Row("seed", f"seed {seed}", seed=seed) for seed in SEEDS),
        Row("seed", f"mean of {MEAN_OF} draws", samples=MEAN_OF),
    ]
    return [row for row in found if not only or row.group in (*only, "reference")]


def slug(settings: Mapping[str, Any]) -> str:
    """Return a name for settings, and for the file of their scores; equal settings have one."""
    if settings["steps"] == 0:
        return "reference"
    low, high = settings["w_bounds"]
    return (
        f"{settings['sampler'] or 'own'}-{settings['steps']}steps-w{digits(low)}_{digits(high)}"
        f"-start{digits(settings['strength'])}-held{digits(settings['consistency'])}"
        f"-seed{settings['seed']}-of{settings['samples']}"
    )
