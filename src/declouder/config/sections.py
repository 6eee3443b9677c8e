"""The sections of a recipe, field by field: the model, the data, and how a stage learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from declouder.arguments import PAPER_W_BOUNDS

StageName = Literal["reference", "denoiser", "weights", "joint"]
STAGE_NAMES: tuple[StageName, ...] = ("reference", "denoiser", "weights", "joint")


class Section(BaseModel):
    """Part of a recipe: unknown fields are errors, and none changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse yes and no where a number is wanted: Python takes them for 1 and 0."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        entries = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(entry, bool) for entry in entries) and _wants_number(annotation):
            raise ValueError("yes and no are no numbers; give a number")
        return value


def _as_json(options: Any) -> Any:
    """Refuse what would not come back from the file beside a network's weights as it was."""
    try:
        same = json.loads(json.dumps(options, allow_nan=False)) == _with_lists(options)
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ValueError("give texts, numbers, yes or no, and lists or fields of these")
    return options


def _with_lists(value: Any) -> Any:
    """Return a value with lists for its tuples, which JSON does not tell apart."""
    if isinstance(value, dict):
        return {key: _with_lists(entry) for key, entry in value.items()}
    return [_with_lists(entry) for entry in value] if isinstance(value, list | tuple) else value


Options = Annotated[dict[str, Any], BeforeValidator(_as_json)]
"""Arguments of a network."""


def _wants_number(annotation: Any) -> bool:
    parts = get_args(annotation)
    return annotation in (int, float) or (bool not in parts and any(map(_wants_number, parts)))


class ReferenceConfig(Section):
    """The reference network."""

    network: str = Field(
        "compact", description="compact, msda or memorynet; the table declouder.networks.REFERENCES"
    )
    options: Options = Field(
        default_factory=dict, description="arguments of that network, such as widths; bands are set by model.bands"
    )


class ModelConfig(Section):
    """What is built, and how it samples by default."""

    bands: list[str] = Field(["red", "green", "blue"], min_length=1, description="names of the bands, in order")
    start_from: str | None = Field(
        None,
        description="a model folder, or `shipped`: learning begins with its weights, and they stand in for"
        " what no stage has learnt yet",
    )
    reference: ReferenceConfig = ReferenceConfig()
    denoiser: Options = Field(default_factory=dict, description="arguments of networks.Denoiser, without bands")
    weight_net: Options = Field(default_factory=dict, description="arguments of networks.WeightNet, without bands")
    sampler: str = Field("ddim", description="ddim, ddim-trailing, dpmsolver++, unipc or euler")
    num_inference_steps: int = Field(10, ge=0, le=1000, description="steps when sampling; 0: the reference alone")
    strength: float = Field(
        1.0,
        gt=0,
        le=1,
        description="where sampling starts: 1 from pure noise, s < 1 from the reference noised to t near 1000 s,"
        " coarsely with few steps (docs/method.md)",
    )
    w_bounds: tuple[float, float] = Field(
        PAPER_W_BOUNDS, description="bounds of w when sampling; the authors': [0.3, 1]"
    )
    consistency: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how much of the finest detail under even haze comes from the cloudy image when sampling; the"
        " paper: 0",
    )


class PairSource(Section):
    """One set of pairs. A recipe may give its root alone: `pairs: [RICE1]`."""

    root: Path = Field(description="folder of the set, or of the unpacked archive")
    set: str | None = Field(
        None, description="name in declouder.data.catalog.CATALOG; without it, found by the folder's name"
    )
    bands: Literal["rgb", "rgbn"] | None = Field(
        None, description="rgb or rgbn; rgbn joins the near infrared that lies in a tree of its own"
    )
    exclude: Path | None = Field(None, description="file of names to leave out, one a line")
    split: Path | None = Field(
        None, description="file of train/NAME and test/NAME; without it ROOT/split.txt, if there is one"
    )


def _as_source(value: object) -> object:
    return {"root": value} if isinstance(value, (str, Path)) else value


class DataConfig(Section):
    """What is learnt from. Paths are relative to `base`."""

    base: Path = Field(Path("data"), description="folder that the other paths start from")
    pairs: list[Annotated[PairSource, BeforeValidator(_as_source)]] = Field(
        default_factory=list,
        description="sets of pairs, each a folder or the fields below; their train parts are learnt from",
    )
    exclude: Path | None = Field(
        None, description="file of names to leave out, for a recipe with one set; with several, `exclude` of each"
    )
    size: int | None = Field(
        None, ge=8, description="width in px that whole images are resized to, height in proportion; the paper: 256"
    )
    range: tuple[float, float] | None = Field(
        None,
        description="DN that are black and white, such as [0, 10000]; without it the data type's range, of"
        " floats 0 to 1",
    )
    cache_gb: float = Field(
        8.0,
        ge=0,
        description="memory for decoded images, in GB and each process; further ones are read anew each time",
    )
    clear: list[Path] = Field(
        default_factory=list, description="folders of clear images, as ground for synthetic and moved clouds"
    )
    procedural: int = Field(
        0, ge=0, description="how many generated terrain images of 96 px are added to the clear ones"
    )
    synthetic_share: float = Field(
        0.0, ge=0, le=1, description="share of samples that are clear images under synthetic clouds"
    )
    hold_out: float = Field(
        0.12,
        ge=0,
        lt=1,
        description="share of the train pairs kept for validation, about, as whole blocks go; 0: none, and"
        " the last weights count",
    )
    hold_out_block: int = Field(
        25, ge=1, description="size of these blocks: so many neighbouring numbers are held out together"
    )
    workers: int = Field(1, ge=0, le=256, description="loader processes; 0 loads in the training process")


class AugmentConfig(Section):
    """How a training sample is varied. Cloudy and clear change alike, save for the cloud's strength."""

    flips: Literal["none", "horizontal", "dihedral"] = Field(
        "dihedral",
        description="none, horizontal, or dihedral: all eight ways to turn and mirror a square; the paper:"
        " horizontal",
    )
    color: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how far gain, gamma and band order vary, both images alike; 1: gains within about a"
        " factor of 1.6",
    )
    color_most: float | None = Field(
        None,
        ge=0,
        le=1,
        description="if given, each sample's `color` is drawn between `color` and this",
    )
    cloud_strength: tuple[float, float] = Field(
        (1.0, 1.0), description="the cloudy image becomes clear + a (cloudy - clear), a drawn from this range"
    )
    transplant: float = Field(
        0.0, ge=0, le=1, description="share of real pairs whose cloud is moved onto other clear ground"
    )
    cloudless: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of samples whose input is the clear image itself, which must stay as it is",
    )
    sensor: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples with moved, synthetic or no cloud that get the look of another sensor:"
        " saturated cloud, other colours, levels and sharpness",
    )
    even_haze: bool = Field(
        False,
        description="pairs under an even grey haze are varied by its law (docs/method.md): the ground changes"
        " below the haze, and its strength about its white",
    )
    zoom: tuple[float, float] = Field(
        (1.0, 1.0),
        description="both images are enlarged by a factor drawn from this range; below 1 they are made smaller and"
        " mirrored at the edges",
    )
    dim: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples of pairs that become dry ground under a thin cloud that darkens it; wants"
        " pairs with such a cloud in the data",
    )
    haze_color: float = Field(0.25, ge=0, le=1, description="`color` of the ground under an even haze")
    haze_strength: tuple[float, float] = Field(
        (0.85, 1.2), description="the even haze's transmission is divided by a number drawn from this range"
    )
    haze_clean: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples under an even haze that have it by its law alone, in steps of 8-bit"
        " images, without the noise that a lossy codec left in the pair",
    )
    haze_relight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples under an even haze whose ground is relit without losing its black;"
        " they learn the clear image even with keep_to",
    )
    calm: float = Field(
        0.0, ge=0, le=1, description="share of the cloudless samples that become flat and dark, like calm water"
    )
    calm_below: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the pairs' samples, except under even haze, whose cloud becomes white and hard and"
        " lies over calm water",
    )
    relight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the samples of pairs, except under even haze, whose ground takes any brightness"
        " and a sandy tint; cloudless samples are drawn once more",
    )
    relight_lifts: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the relit ground under broken cloud that loses contrast and black, as sand does; too"
        " much of it, and haze over bright ground is taken for sand",
    )
    cloudless_color: float | None = Field(
        None, ge=0, le=1, description="`color` of cloudless samples; without it, as of the others"
    )

    @model_validator(mode="after")
    def _ranges_go_up(self) -> AugmentConfig:
        for name, least in (("zoom", 0.01), ("cloud_strength", 0.0), ("haze_strength", 0.01)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(
                    f"{name} is [{low:g}, {high:g}], not [least, most] with {least:g} <= least <= most"
                )
        if self.color_most is not None and self.color_most < self.color:
            raise ValueError(
                f"color_most is {self.color_most:g}, below color, {self.color:g}; give as much or more"
            )
        return self


class StageConfig(Section):
    """How one stage learns."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch: int = Field(8, ge=1, description="samples in a batch, on each device")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are averaged before a step")
    lr: float = Field(1e-4, gt=0, le=1000, description="AdamW learning rate after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant or cosine, which falls to lr / 100"
    )
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; without it, no clipping")
    ema: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="decay of the averaged weights, after a ramp of (1 + n) / (10 + n) over steps n",
    )
    patch_px: int | None = Field(None, ge=8, description="side of a training patch in px; without it whole images")
    fused_px: int | None = Field(
        None,
        ge=8,
        multiple_of=8,
        description="side in px of the square on which denoiser and weight network learn, while the reference"
        " is made of the whole patch; without it all of the patch",
    )
    downscale: int = Field(
        1,
        ge=1,
        description="images are first made smaller by this factor; 4 for the denoiser in the paper's recipes",
    )
    max_t: int = Field(1000, ge=1, le=1000, description="time steps are drawn from [0, max_t)")
    noised: Literal["clear", "reference"] = Field(
        "clear",
        description="clear or reference: which image is noised to x_t; sampling with strength below 1 noises"
        " the reference",
    )
    noise_weight: float = Field(1.0, ge=0, description="λ of L_joint")
    through_denoiser: bool = Field(
        False,
        description="whether the fusion loss also trains the denoiser, through its guess of x0; the authors: no",
    )
    perceptual_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the restored image's LPIPS in the loss, for which DECLOUDER_LPIPS_BACKBONE must name"
        " torchvision's AlexNet weights; the paper: 0",
    )
    log_perceptual_weight: float = Field(
        0.0,
        ge=0,
        description="weight of ln LPIPS of each image, so that thin haze counts as much as thick cloud; needs the"
        " same",
    )
    edge_weight: float = Field(0.05, ge=0, description="weight of the edge loss")
    ssim_weight: float = Field(0.0, ge=0, description="weight of 1 - SSIM")
    psnr_weight: float = Field(0.0, ge=0, description="weight of each image's ln MSE")
    choice_weight: float = Field(
        0.0, ge=0, description="weight of L_choice; only for the compact network with `guided`"
    )
    only: list[str] = Field(
        [],
        description="what learns: beginnings of parameter names, such as `fill`; the rest stays as it is."
        " Empty: all",
    )
    keep_to: str | None = Field(
        None,
        description="a model folder, or `shipped`: where haze and bright ground look alike (an even haze over"
        " ground that is not relit, relit ground without cloud) the network learns what that model makes of"
        " the sample, not the clear image; needs augment.even_haze",
    )
    augment: AugmentConfig = AugmentConfig()
    validate_every: int = Field(500, ge=1, description="steps between scores and pictures on held-out pairs")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    patience: int | None = Field(None, ge=1, description="stop after this many scores without a better one")
