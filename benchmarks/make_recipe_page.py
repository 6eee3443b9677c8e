"""docs/recipe.md from the fields of `declouder.config`: no name or default is typed in by hand.

python benchmarks/make_recipe_page.py            writes docs/recipe.md
python benchmarks/make_recipe_page.py --check    exits with 1 if the page is not what the fields say
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from declouder import config
from declouder.config.recipe import NEEDS, OF_STAGES

PAGE = Path(__file__).parent.parent / "docs" / "recipe.md"

HEAD = """\
# The fields of a recipe

<!-- Made by benchmarks/make_recipe_page.py from src/declouder/config; do not edit. -->

For people who train: every field that a recipe (`configs/*.yaml`) can set, its default, and what it does. How to
train: [reproduce.md](reproduce.md). Why some of these fields exist: [method.md](method.md#what-a-recipe-can-add).

Any field can be set from the command line by its full name, such as `--set stages.joint.lr=1e-4`. A recipe must
give `name`, something to learn from (`data.pairs`, `data.clear` or `data.procedural`), and at least one stage with
its `steps`. An unknown field is refused with one line that says so, and so are most that would do
nothing where they stand.
"""

MODEL = """\
What is built, and how it samples when nothing else is asked for. The networks' own arguments, with their
defaults, are in their docstrings: in Python, `help(declouder.networks.CompactNet)`, and likewise `MSDA`,
`MemoryNet`, `Denoiser` and `WeightNet`."""

PARTS: tuple[tuple[str, str, type[BaseModel], str], ...] = (
    ("The recipe itself", "", config.TrainConfig, ""),
    ("`model`", "model.", config.ModelConfig, MODEL),
    ("`model.reference`", "model.reference.", config.ReferenceConfig, ""),
    ("`data`", "data.", config.DataConfig, "What is learnt from. Paths are relative to `data.base`."),
    (
        "An entry of `data.pairs`",
        "",
        config.PairSource,
        "Either a folder alone, `pairs: [RICE1]`, or these fields, `pairs: [{root: RICE1, exclude: bad.txt}]`.",
    ),
    (
        "`stages.STAGE`",
        "",
        config.StageConfig,
        "STAGE is `reference`, `denoiser`, `weights` or `joint`. Fields of some stages only name them in brackets.",
    ),
    (
        "`stages.STAGE.augment`",
        "",
        config.AugmentConfig,
        "How a training sample is varied. Cloudy and clear image change alike, save for the cloud's strength. A"
        " share is a number from 0 to 1.",
    ),
)
"""Heading, prefix of the names, fields, and what stands above the table."""


def page() -> str:
    """Return the page."""
    return HEAD + "".join(_part(*part) for part in PARTS)


def _part(heading: str, prefix: str, fields: type[BaseModel], above: str) -> str:
    rows = [
        f"| `{name}` | {_default(field)} | {_meaning(name, field)} |\n"
        for name, field in fields.model_fields.items()
        if field.description
    ]
    text = f"\n## {heading}\n\n" + (f"{above}\n\n" if above else "")
    return text + "| field | default | meaning |\n|---|---|---|\n" + "".join(rows)


def _default(field: Any) -> str:
    if field.is_required():
        return "none, must be given"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(str(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(name: str, field: Any) -> str:
    of_stages = OF_STAGES.get(name)
    needs = NEEDS.get(name)
    meaning = str(field.description).replace("|", r"\|")
    meaning += f" ({', '.join(of_stages)})" if of_stages else ""
    return meaning + (f"; needs `{needs}`" if needs else "")


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description="docs/recipe.md from the fields of declouder.config.")
    parser.add_argument("--check", action="store_true", help="only look whether the page is what the fields say")
    if parser.parse_args().check:
        same = PAGE.read_text(encoding="utf-8") == page()
        sys.exit(0 if same else f"{PAGE} is not what the fields say; make it anew")
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
