"""How a model is built and trained: typed fields <- YAML <- `--set a.b=value`.

    config = load_config(Path("configs/toy.yaml"), ["stages.joint.lr=1e-5"])      a TrainConfig
    config.stages["joint"].lr

A recipe is one YAML file: `model` (what is built), `data` (what it learns from) and `stages` (how each of the
four stages learns). A field that a recipe leaves out has the value written here; an unknown field is an error
that names the nearest right one. docs/recipe.md lists the fields; it is made from the descriptions here
(benchmarks/make_recipe_page.py). No torch is loaded here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from declouder.errors import ConfigError

StageName = Literal["reference", "denoiser", "weights", "joint"]
STAGE_NAMES: tuple[StageName, ...] = ("reference", "denoiser", "weights", "joint")

_SSIM_PX = 11
"""Side of SSIM's window."""
_LPIPS_PX = 34
"""AlexNet needs 31, and an image is shifted by up to 3."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReferenceConfig(_Strict):
    """The reference network."""

    network: str = Field("compact", description="name in declouder.networks.REFERENCES")
    options: dict[str, Any] = Field(
        default_factory=dict, description="arguments of that network, such as widths; bands are set by model.bands"
    )


class ModelConfig(_Strict):
    """What is built, and how it samples by default."""

    bands: list[str] = Field(["red", "green", "blue"], min_length=1, description="names of the bands, in order")
    start_from: str | None = Field(
        None,
        description="a model folder, or `shipped`: learning begins with its weights, and they stand in for"
        " what no stage has learnt yet",
    )
    reference: ReferenceConfig = ReferenceConfig()
    denoiser: dict[str, Any] = Field(
        default_factory=dict, description="arguments of networks.Denoiser, without bands"
    )
    weight_net: dict[str, Any] = Field(
        default_factory=dict, description="arguments of networks.WeightNet, without bands"
    )
    sampler: str = Field("ddim", description="name in declouder.pipeline.SAMPLERS")
    num_inference_steps: int = Field(10, ge=0, le=1000, description="steps when sampling; 0: the reference alone")
    strength: float = Field(
        1.0,
        gt=0,
        le=1,
        description="where sampling starts: 1 from pure noise, s < 1 from the reference noised to t near 1000 s",
    )
    w_bounds: tuple[float, float] = Field(
        (0.3, 1.0), description="bounds of w when sampling; the authors': [0.3, 1]"
    )


class PairSource(_Strict):
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


def _as_text(value: object) -> object:
    """YAML reads 32 as a number."""
    return str(value) if isinstance(value, int) else value


def _as_source(value: object) -> object:
    return {"root": value} if isinstance(value, (str, Path)) else value


class DataConfig(_Strict):
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
        description="share of the train pairs kept for validation, in whole blocks; 0: none, and the last"
        " weights count",
    )
    hold_out_block: int = Field(
        25, ge=1, description="size of these blocks: so many neighbouring numbers are held out together"
    )
    workers: int = Field(1, ge=0, description="loader processes; 0 loads in the training process")


class AugmentConfig(_Strict):
    """How a training sample is varied. Cloudy and clear image change alike, save for the cloud's strength."""

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


class StageConfig(_Strict):
    """How one stage learns."""

    steps: int = Field(ge=1, description="optimiser steps")
    batch: int = Field(8, ge=1, description="samples in a batch, on each device")
    accumulate: int = Field(1, ge=1, description="batches whose gradients are summed before a step")
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate after the warm-up")
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
        description="weight of the restored image's LPIPS in the loss; the paper: 0",
    )
    log_perceptual_weight: float = Field(
        0.0, ge=0, description="weight of ln LPIPS of each image, so that thin haze counts as much as thick cloud"
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
        " its own ground, relit ground without cloud) the network learns what that model makes of"
        " the sample, not the clear image; needs augment.even_haze",
    )
    augment: AugmentConfig = AugmentConfig()
    validate_every: int = Field(500, ge=1, description="steps between scores and pictures on held-out pairs")
    checkpoint_every: int = Field(200, ge=1, description="steps between checkpoints")
    patience: int | None = Field(None, ge=1, description="stop after this many scores without a better one")


class TrainConfig(_Strict):
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
    def _something_to_learn_from(self) -> TrainConfig:
        bands = self.model.bands
        if len(set(bands)) < len(bands):
            raise ValueError(f"model.bands is [{', '.join(bands)}]; name each band once")
        if not (self.data.pairs or self.data.clear or self.data.procedural):
            raise ValueError("data names no pairs, no clear images and no procedural ones: nothing to learn from")
        if not self.data.pairs and self.data.synthetic_share < 1:
            raise ValueError("data.synthetic_share is below 1 but data.pairs is empty; set it to 1")
        if self.data.synthetic_share > 0 and not (self.data.clear or self.data.procedural):
            raise ValueError("data.synthetic_share is above 0 but data names no clear images")
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
        reference = self.stages.get("reference")
        if reference is not None and reference.choice_weight > 0 and not self.model.reference.options.get("guided"):
            raise ValueError(
                "stages.reference.choice_weight wants a network that chooses: model.reference.network compact, with"
                " guided among its options"
            )
        if reference is not None and reference.keep_to is not None and not reference.augment.even_haze:
            raise ValueError("stages.reference.keep_to wants augment.even_haze, which finds the samples")
        if self.data.exclude is not None and len(self.data.pairs) != 1:
            raise ValueError(
                "data.exclude is meant for one set of pairs; with several, give exclude in the entry of each"
            )
        if self.model.w_bounds[0] > self.model.w_bounds[1]:
            raise ValueError("model.w_bounds is not [w_min, w_max] with w_min up to w_max")
        if self.data.range is not None and not self.data.range[0] < self.data.range[1]:
            raise ValueError("data.range is not [black, white] with black below white")
        return self


_OF_STAGES: dict[str, tuple[StageName, ...]] = {
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
_NEEDS = {
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
    for field, stages in _OF_STAGES.items():
        if name not in stages and getattr(stage, field) != StageConfig.model_fields[field].default:
            raise ValueError(
                f"stages.{name}.{field} does nothing: it is of {' and '.join(stages)} alone; leave it out"
            )
    for field, needed in _NEEDS.items():
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
        f"the {_SSIM_PX} px of SSIM's window": _SSIM_PX if stage.ssim_weight > 0 else 0,
        f"the {_LPIPS_PX} px that LPIPS sees": _LPIPS_PX if sees_lpips else 0,
    }
    for what, px in needs.items():
        if side < px:
            field = "patch_px" if side == stage.patch_px else "fused_px"
            raise ValueError(f"stages.{name}.{field} is {side}, below {what}; give more")


class _OnceEach(yaml.SafeLoader):
    """Reads plain YAML in which no field is named twice; PyYAML would take the last of them in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} is named twice", node.start_mark)
        return dict(super().construct_mapping(node, deep=deep))


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        path: YAML file.
        overrides: "a.b=value" strings, such as "stages.joint.lr=1e-4"; values are read as YAML, and they win over
            the file.

    Returns:
        The recipe, every field checked and filled in.

    Raises:
        ConfigError: if the file cannot be read, a field is unknown or of no use where it stands, or a value does
            not fit. The message names the file and the field.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceEach)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give a recipe such as configs/compact.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no fields; a recipe has name, model, data and stages")
    for override in overrides:
        _apply_override(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: Mapping[str, Any], *, source: str) -> TrainConfig:
    """Return the typed recipe of plain values; `source` is named in errors."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def dump_config(config: TrainConfig) -> str:
    """Return the resolved recipe as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def told_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe, as plain values, sets otherwise than it is by default, by the names for --set.

    Steps and names, which have no default, are always among it.
    """
    stages = {name: {"steps": 1} for name in recipe["stages"]}
    least = {"name": "least", "data": {"procedural": 1, "synthetic_share": 1}, "stages": stages}
    defaults = _flat(parse_config(least, source="defaults").model_dump(mode="json"))
    for given in ("name", "data.procedural", "data.synthetic_share", *(f"stages.{name}.steps" for name in stages)):
        del defaults[given]
    recipe = {**recipe, "data": {**recipe["data"], "pairs": [_given(entry) for entry in recipe["data"]["pairs"]]}}
    missing = object()
    return {name: value for name, value in _flat(recipe).items() if defaults.get(name, missing) != value}


def _given(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if value is not None}


def _flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return found


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override} is not of the form a.b=value, such as stages.joint.lr=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value; quote it") from None
    if isinstance(value, str) and text.lstrip()[:1] not in ("'", '"'):
        value = _number_or_text(value)
    *parents, last = key.split(".")
    node = values
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} holds a value, not fields")
        node = child
    node[last] = value


def _number_or_text(text: str) -> float | str:
    """YAML reads 1e-4 as text (it wants 1.0e-4); people write the former."""
    try:
        return float(text)
    except ValueError:
        return text


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields_at(first["loc"][:-1]), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(_fields_at(first['loc'][:-1]))}"
        return f"{where} is not a field; {hint}"
    if first["type"] == "missing":
        return f"{where} is missing; every recipe gives it"
    # What the whole recipe was found to be says nothing.
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}, found {_short(first['input'])}" if where else message


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(location: Iterable[int | str]) -> list[str]:
    """Return the names of the fields that stand where an unknown one was found."""
    parts = list(location)
    model: Any = TrainConfig
    if parts[:1] == ["stages"]:
        model, parts = StageConfig, parts[2:]
    for part in parts:
        # A number is a place in a list: the list's entries have the fields.
        model = _entry_of(model) if isinstance(part, int) else model.model_fields[part].annotation
    return list(model.model_fields)


def _entry_of(annotation: Any) -> Any:
    entry = get_args(annotation)[0]
    return get_args(entry)[0] if get_args(entry) else entry
