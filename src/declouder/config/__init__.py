"""How a model is built and trained: typed fields <- YAML <- `--set a.b=value`.

    config = load_config(Path("configs/toy.yaml"), ["stages.joint.lr=1e-5"])      a TrainConfig
    config.stages["joint"].lr

A recipe is one YAML file: `model` (what is built), `data` (what it learns from) and `stages` (how each of the
four stages learns). A field that a recipe leaves out has the value written here; an unknown field is an error
that names the nearest right one. docs/recipe.md lists the fields; it is made from the descriptions here
(benchmarks/make_recipe_page.py). No torch is loaded here.
"""

from declouder.config.reading import dump_config, load_config, parse_config, told_fields
from declouder.config.recipe import LPIPS_LOSS_PX, SSIM_LOSS_PX, TrainConfig
from declouder.config.sections import (
    STAGE_NAMES,
    AugmentConfig,
    DataConfig,
    ModelConfig,
    PairSource,
    ReferenceConfig,
    StageConfig,
    StageName,
)

__all__ = [
    "LPIPS_LOSS_PX",
    "SSIM_LOSS_PX",
    "STAGE_NAMES",
    "AugmentConfig",
    "DataConfig",
    "ModelConfig",
    "PairSource",
    "ReferenceConfig",
    "StageConfig",
    "StageName",
    "TrainConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "told_fields",
]
