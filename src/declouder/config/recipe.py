"""A whole recipe: its sections, and what they must be to fit each other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from declouder.config.sections import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    Section,
    StageConfig,
    StageName,
)

SSIM_LOSS_PX = 11
"""Side of SSIM's window."""
LPIPS_LOSS_PX = 34
"""Side of the least image that LPIPS in the loss can compare: AlexNet needs 31, a batch is shifted by up to 3."""


def _as_text(value: object) -> object:
    """YAML reads 32 as a number."""
    return str(value) if isinstance(value, int) else value


class TrainConfig(Section):
    """A whole recipe; frozen. `stages` has at least one of `STAGE_NAMES`, and is trained in their order."""

    name: str = Field(min_length=1, description="of the recipe; the run goes to runs/NAME")
    seed: int = Field(0, ge=0, lt=2**60, description="all random numbers follow from it")
    precision: Annotated[Literal["auto", "32", "bf16"], BeforeValidator(_as_text)] = Field(
        "auto", description="auto, 32 or bf16; auto is bf16 where the hardware has it"
    )
    compile: bool = Field(False, description="whether torch.compile compiles the networks that learn")
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    stages: dict[StageName, StageConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _name_is_of_one_folder(self) -> TrainConfig:
        if self.name.strip(".") == "" or "/" in self.name or "\\" in self.name:
            raise ValueError(f"name is {self.name!r}; the run goes to runs/NAME: give a name without folders")
        return self

    @model_validator(mode="after")
    def _bands_differ(self) -> TrainConfig:
        bands = self.model.bands
        if len(set(bands)) < len(bands):
            raise ValueError(f"model.bands is [{', '.join(bands)}]; name each band once")
        return self

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> TrainConfig:
        if not (self.data.pairs or self.data.clear or self.data.procedural):
            raise ValueError("data names no pairs, no clear images and no procedural ones: nothing to learn from")
        if not self.data.pairs and self.data.synthetic_share < 1:
            raise ValueError("data.synthetic_share is below 1 but data.pairs is empty; set it to 1")
        if self.data.synthetic_share > 0 and not (self.data.clear or self.data.procedural):
            raise ValueError("data.synthetic_share is above 0 but data names no clear images")
        if "synthetic_share" not in self.data.model_fields_set:  # whoever sets 0 knows what that switches off
            idle = "does nothing where data.synthetic_share is left at 0"
            if self.data.procedural:
                raise ValueError(f"data.procedural {idle}; set that to a share, or to 0")
            if self.data.clear and not any(stage.augment.transplant for stage in self.stages.values()):
                raise ValueError(
                    f"data.clear {idle} and no stage has augment.transplant; set that to a share, or to 0"
                )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> TrainConfig:
        for name, stage in self.stages.items():
            _check_of_use(name, stage)
            if stage.patience is not None and self.data.pairs and self.data.hold_out == 0:
                raise ValueError(
                    f"stages.{name}.patience does nothing where data.hold_out is 0; hold pairs out, or leave it out"
                )
            if stage.fused_px is not None and stage.patch_px is not None and stage.fused_px > stage.patch_px:
                raise ValueError(
                    f"stages.{name}.fused_px is {stage.fused_px}, above its patch_px, {stage.patch_px}; give less"
                )
        for name, stage in self.stages.items():
            _check_patch(name, stage)
        return self

    @model_validator(mode="after")
    def _reference_stage_has_what_it_wants(self) -> TrainConfig:
        stage = self.stages.get("reference")
        if stage is None:
            return self
        if stage.choice_weight > 0 and not self.model.reference.options.get("guided"):
            raise ValueError(
                "stages.reference.choice_weight wants a network that chooses: model.reference.network compact, with"
                " guided among its options"
            )
        if stage.keep_to is not None and not stage.augment.even_haze:
            raise ValueError("stages.reference.keep_to wants augment.even_haze, which finds the samples")
        return self

    @model_validator(mode="after")
    def _exclude_is_of_one_set(self) -> TrainConfig:
        if self.data.exclude is not None and len(self.data.pairs) != 1:
            raise ValueError(
                "data.exclude is meant for one set of pairs; with several, give exclude in the entry of each"
            )
        return self

    @model_validator(mode="after")
    def _bounds_go_up(self) -> TrainConfig:
        if self.model.w_bounds[0] > self.model.w_bounds[1]:
            raise ValueError("model.w_bounds is not [w_min, w_max] with w_min up to w_max")
        if self.data.range is not None and not self.data.range[0] < self.data.range[1]:
            raise ValueError("data.range is not [black, white] with black below white")
        return self


OF_STAGES: dict[str, tuple[StageName, ...]] = {
    "fused_px": ("weights", "joint"),
    "max_t": ("denoiser", "weights", "joint"),
    "noised": ("weights", "joint"),
    "noise_weight": ("joint",),
    "through_denoiser": ("joint",),
    "perceptual_weight": ("reference", "weights", "joint"),
    "log_perceptual_weight": ("reference", "weights", "joint"),
    "ssim_weight": ("reference", "weights", "joint"),
    "psnr_weight": ("reference", "weights", "joint"),
    "edge_weight": ("reference",),
    "choice_weight": ("reference",),
    "keep_to": ("reference",),
}
"""Fields that not all stages heed, and those that do."""
NEEDS = {
    "haze_clean": "even_haze",
    "haze_color": "even_haze",
    "haze_strength": "even_haze",
    "haze_relight": "even_haze",
    "calm": "cloudless",
    "cloudless_color": "cloudless",
    "relight_lifts": "relight",
}
"""Fields of `augment` that do nothing without another."""


def _check_of_use(name: StageName, stage: StageConfig) -> None:
    """Refuse what the stage would not heed: whoever sets it expects something of it."""
    for field, stages in OF_STAGES.items():
        if name not in stages and getattr(stage, field) != StageConfig.model_fields[field].default:
            raise ValueError(
                f"stages.{name}.{field} does nothing: it is of {' and '.join(stages)} alone; leave it out"
            )
    for field, needed in NEEDS.items():
        given = getattr(stage.augment, field) != AugmentConfig.model_fields[field].default
        if given and not getattr(stage.augment, needed):
            raise ValueError(
                f"stages.{name}.augment.{field} does nothing without augment.{needed}; set that too, or leave it"
                " out"
            )


def _check_patch(name: str, stage: StageConfig) -> None:
    """Refuse a patch too small for what the loss looks at, which would fail in the middle of a run."""
    sides = [px for px in (stage.patch_px, stage.fused_px) if px is not None]
    if not sides or name == "denoiser":
        return
    side = min(sides)
    sees_lpips = stage.perceptual_weight > 0 or stage.log_perceptual_weight > 0
    needs = {
        f"the {SSIM_LOSS_PX} px of SSIM's window": SSIM_LOSS_PX if stage.ssim_weight > 0 else 0,
        f"the {LPIPS_LOSS_PX} px that LPIPS sees": LPIPS_LOSS_PX if sees_lpips else 0,
    }
    for what, px in needs.items():
        if side < px:
            field = "patch_px" if side == stage.patch_px else "fused_px"
            raise ValueError(f"stages.{name}.{field} is {side}, below {what}; give more")
