"""The three networks of a recipe: built, begun with earlier weights, handed from stage to stage, and saved."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from declouder.config import STAGE_NAMES, StageName, TrainConfig
from declouder.errors import ConfigError, ModelError, reason_of
from declouder.model_folder import INDEX, NETWORKS, WEIGHTS, trained_range
from declouder.networks import REFERENCES, Denoiser, WeightNet
from declouder.pipeline import SHIPPED_MODEL, CloudRemovalPipeline, make_scheduler
from declouder.pipeline.folder import check_network_folder
from declouder.training.layout import is_finished
from declouder.training.stages import STAGES
from declouder.training.surroundings import MAKE_ROOM
from declouder.whole_files import whole_files_of, whole_folder

log = logging.getLogger(__name__)


MIDDLE_ATTENTION = ".mid_block.attentions."
_UNSUITED = (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError, AssertionError)
"""What PyTorch and diffusers raise for arguments that no network can be made of."""
_MEND = {
    "reference": "look at model.reference.options",
    "denoiser": "look at model.denoiser",
    "weight_net": "look at model.weight_net",
}


def build_networks(config: TrainConfig) -> dict[str, nn.Module]:
    """Return new `reference`, `denoiser` and `weight_net` of a recipe; their weights follow from its seed.

    Raises:
        ConfigError: if the recipe names an unknown network or field.
    """
    model = config.model
    if model.reference.network not in REFERENCES:
        raise ConfigError(
            f"model.reference.network is {model.reference.network!r}; choose one of {', '.join(REFERENCES)}"
        )
    makers = {
        "reference": (REFERENCES[model.reference.network], model.reference.options),
        "denoiser": (Denoiser, model.denoiser),
        "weight_net": (WeightNet, model.weight_net),
    }
    networks = {}
    with torch.random.fork_rng(devices=[]):  # else every GPU of the machine is woken, and by every process
        torch.default_generator.manual_seed(config.seed)
        for name, (maker, options) in makers.items():
            _check_names(name, maker, options)
            try:
                networks[name] = maker(bands=len(model.bands), **options)
            except _UNSUITED as error:
                raise ConfigError(f"model.{name} cannot be built: {reason_of(error)}; {_MEND[name]}") from None
    return networks


def _check_names(name: str, maker: Callable[..., Any], options: Mapping[str, Any]) -> None:
    known = [word for word in inspect.signature(maker).parameters if word != "bands"]
    for word in options:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"model.{name} cannot be built: {word} is no option of it; {hint}")


def check_networks(config: TrainConfig, out: Path, stages: Sequence[StageName]) -> None:
    """See, before anything is learnt, that the networks compute an image and can begin as the recipe says.

    PyTorch finds some fields out only when a network runs, such as heads that do not divide a width.

    Raises:
        ConfigError: if one does not run.
        ModelError: if what one of `stages` begins with, takes over or keeps to is damaged or of another network.
    """
    networks = build_networks(config)
    x, t = torch.zeros(1, len(config.model.bands), 32, 32), torch.zeros(1, dtype=torch.long)
    inputs = {"reference": (x,), "denoiser": (torch.cat([x] * 2, 1), t), "weight_net": (torch.cat([x] * 3, 1), t)}
    for name, network in networks.items():
        try:
            with torch.no_grad():
                network.eval()(*inputs[name])
        except _UNSUITED as error:
            raise ConfigError(f"model.{name} cannot run: {reason_of(error)}; {_MEND[name]}") from None
    if config.model.start_from is not None:
        folder = start_folder(config.model.start_from)
        _tell_other_data(config, folder)
        for part in {part for stage in stages if not STAGES[stage].goes_on for part in STAGES[stage].learns}:
            if (folder / part).is_dir():
                _fitting_weights(networks[part], folder / part, field="model.start_from")
    learnt: set[str] = set()
    for name in stages:
        stage = STAGES[name]
        for part in stage.needs:
            if part in learnt:
                continue
            folder = earlier_folder(config, out, part, stage=name)
            _weights_left(networks[part], folder, learns=part in stage.learns)
        learnt.update(stage.learns)
        if (keep_to := config.stages[name].keep_to) is not None:
            frozen_network(networks["reference"], keep_to, stage=name)


def _tell_other_data(config: TrainConfig, folder: Path) -> None:
    """Warn where the networks begin with what was learnt of other bands or numbers: no tensor's shape tells."""
    bands, ends = list(config.model.bands), config.data.range
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a folder need not say
        learnt = json.loads((folder / INDEX).read_text(encoding="utf-8"))["bands"]
        if learnt != bands:
            log.warning("model.start_from learnt %s; model.bands are %s", ", ".join(learnt), ", ".join(bands))
    with contextlib.suppress(LookupError):
        range_of = trained_range(folder)
        if range_of != (ends and tuple(ends)):
            words = ["none" if one is None else "{:g} to {:g}".format(*one) for one in (range_of, ends)]
            log.warning("model.start_from learnt with data.range %s; here it is %s", *words)


def make_pipeline(config: TrainConfig, networks: dict[str, Any]) -> CloudRemovalPipeline:
    """Return the pipeline of a recipe around its three networks."""
    model = config.model
    return CloudRemovalPipeline(
        **networks,
        scheduler=make_scheduler(model.sampler),
        bands=model.bands,
        w_bounds=model.w_bounds,
        num_inference_steps=model.num_inference_steps,
        strength=model.strength,
        consistency=model.consistency,
    )


def take_over(network: nn.Module, folder: Path, *, stage: str, learns: bool = False) -> None:
    """Load what an earlier stage has left into `network`.

    One that `learns` on may leave its attention in the middle behind (`middle_attention`); any other is whole.

    Raises:
        ModelError: if there is nothing, or a network of another recipe.
    """
    if not folder.is_dir():
        raise ModelError(f"stage {stage!r} takes over {folder}, which does not exist; run the earlier stages first")
    weights = _weights_left(network, folder, learns=learns)
    _tell_other_settings(network, json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
    network.load_state_dict(weights)


def _weights_left(network: nn.Module, folder: Path, *, learns: bool) -> dict[str, Tensor]:
    """Return the weights in a network's folder, which are those of `network`; ModelError if they are not.

    One that `learns` on may leave its attention in the middle behind.
    """
    check_network_folder(folder)
    try:
        earlier = type(network).from_pretrained(folder, use_safetensors=True)  # type: ignore[attr-defined]
        weights: dict[str, Tensor] = earlier.state_dict()
        if learns:
            weights = _without_left_behind(weights, network)
        own = network.state_dict()
        # PyTorch does not miss a module that is None, as a middle without attention has one.
        for verb, keys in (("has", set(weights) - set(own)), ("lacks", set(own) - set(weights))):
            if keys:
                raise ValueError(f"it {verb} {min(keys)}")
        other = [key for key, value in weights.items() if value.shape != own[key].shape]
        if other:
            shapes = [tuple(x[other[0]].shape) for x in (weights, own)]
            raise ValueError(f"{other[0]} is {shapes[0]} there, {shapes[1]} here")
    except (OSError, *_UNSUITED) as error:
        raise ModelError(
            f"{folder} is not the network of this recipe ({reason_of(error)}); give it the recipe's model section,"
            " or another folder"
        ) from None
    _check_finite(weights, folder)
    return weights


def _check_finite(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ModelError if weights are no numbers: the loss would be none, and images would be blamed for it."""
    damaged = [key for key, value in weights.items() if not bool(torch.isfinite(value).all())]
    if damaged:
        raise ModelError(f"{folder} holds NaN or infinity in {damaged[0]}; its weights are damaged, copy it anew")


def earlier_folder(config: TrainConfig, out: Path, part: str, *, stage: StageName | None = None) -> Path:
    """Return where a network comes from that a stage takes over: an earlier stage, else `model.start_from`.

    What an earlier stage has left is what itself has kept, not what a later one has made of it in the model.

    Args:
        config: the recipe.
        out: the run's folder.
        part: one of `NETWORKS`.
        stage: which takes it over; None: what the last stage of the run has left.
    """
    own = out / "model" / part
    earlier = STAGE_NAMES if stage is None else STAGE_NAMES[: STAGE_NAMES.index(stage)]
    for name in reversed(earlier):
        if part in STAGES[name].learns and is_finished(out, name):
            kept = kept_folder(out, name) / part
            return kept if kept.is_dir() else own
    if config.model.start_from is not None:
        start = start_folder(config.model.start_from) / part
        if start.is_dir():
            return start
    return own


def kept_folder(out: Path, stage: StageName) -> Path:
    """Return where a stage keeps the networks that it has learnt."""
    return out / stage / "networks"


def start_folder(name: str, *, field: str = "model.start_from") -> Path:
    """Return the model's folder that a field of the recipe names.

    Raises:
        ModelError: if it does not exist, or holds none of the networks.
    """
    folder = SHIPPED_MODEL if name == "shipped" else Path(name)
    if not folder.is_dir():
        raise ModelError(f"{field}: {folder} does not exist; give a model's folder, or shipped")
    if (folder / "model").is_dir():
        raise ModelError(f"{field}: {folder} is the folder of a training; give its model, {folder / 'model'}")
    if not any((folder / part).is_dir() for part in NETWORKS):
        raise ModelError(f"{field}: {folder} holds no {', '.join(NETWORKS)}; give a model's folder, or shipped")
    return folder


def begin_with(network: nn.Module, folder: Path) -> None:
    """Give `network` the weights of a trained one, as far as that goes; layers that it lacks stay as they are.

    Layers that are added later can begin at zero, so a network grows without forgetting. A U-Net's attention in the
    middle may be left behind (`middle_attention`).

    Raises:
        ModelError: if `folder` holds no weights, or those of another network.
    """
    trained = _fitting_weights(network, folder, field="model.start_from")
    own = network.state_dict()
    with contextlib.suppress(OSError, ValueError):  # the weights alone will do
        _tell_other_settings(network, json.loads((folder / "config.json").read_text(encoding="utf-8")), folder)
    new = [key for key in own if key not in trained]
    log.info("%s: weights of %s%s", folder.name, folder, f", {len(new)} new tensors" if new else "")
    network.load_state_dict({**own, **trained})


def frozen_network(like: nn.Module, keep_to: str, *, stage: StageName) -> nn.Module:
    """Return the trained reference network that a stage keeps to, as it is: one of the class of `like`.

    Args:
        like: the recipe's, whose settings may be others.
        keep_to: its model's folder, or "shipped".
        stage: which keeps to it.

    Raises:
        ModelError: if there is none, or one of another class or for other bands.
    """
    kind, field = cast(Any, type(like)), f"stages.{stage}.keep_to"
    folder = start_folder(keep_to, field=field) / "reference"
    check_network_folder(folder)
    called = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name", kind.__name__)
    if called != kind.__name__:
        raise ModelError(f"{field}: {folder} is a {called}, the recipe's reference network a {kind.__name__}")
    try:
        found = kind.from_pretrained(folder, use_safetensors=True)
        bands = [network.config["bands"] for network in (found, cast(Any, like))]
        if bands[0] != bands[1]:
            raise ValueError(f"it has {bands[0]} bands, here are {bands[1]}")
    except (OSError, *_UNSUITED) as error:
        raise ModelError(f"{field}: {folder} is no {kind.__name__} to keep to: {reason_of(error)}") from None
    _check_finite(found.state_dict(), folder)
    found.requires_grad_(False)
    return cast(nn.Module, found)


def _fitting_weights(network: nn.Module, folder: Path, *, field: str) -> dict[str, Tensor]:
    """Return the weights in a network's folder, all of which `network` has; ModelError if it has not."""
    path = folder / WEIGHTS
    try:
        trained = {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{field}: {path} cannot be read ({error}); copy the folder anew") from None
    own = network.state_dict()
    trained = _without_left_behind(trained, network)
    strange = [key for key in trained if key not in own or own[key].shape != trained[key].shape]
    if strange:
        raise ModelError(f"{field}: {path} is of another network: {strange[0]} does not fit this recipe's")
    _check_finite(trained, folder)
    return trained


def _tell_other_settings(network: nn.Module, earlier: Mapping[str, Any], folder: Path) -> None:
    """Warn of settings that change what a network does with the same weights, which no tensor's shape tells."""
    # As a file holds them: it knows no tuples.
    now = json.loads(json.dumps(dict(cast(Any, network).config), default=str))
    earlier = json.loads(json.dumps(dict(earlier), default=str))
    other = [key for key, value in now.items() if not key.startswith("_") and earlier.get(key, value) != value]
    if other:
        told = ", ".join(f"{key} {earlier[key]}, here {now[key]}" for key in other)
        log.warning("%s was trained with %s", folder, told)


def _without_left_behind(trained: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return trained weights without those of an attention in the middle that `network` has none for."""
    own = network.state_dict()
    left = [key for key in trained if MIDDLE_ATTENTION in key and key not in own]
    if left:
        log.info("the attention in the middle of %s is left behind", type(network).__name__)
    return {key: value for key, value in trained.items() if key not in left}


def export(config: TrainConfig, out: Path, stage: StageName, learnt: dict[str, nn.Module]) -> None:
    """Save what `stage` has learnt there and into `out/model`; with all three networks that is a pipeline folder.

    Those that no stage has learnt yet come from `model.start_from`, if they are the recipe's.
    """
    with whole_folder(kept_folder(out, stage), mend=MAKE_ROOM) as kept:
        for name, network in learnt.items():
            cast(Any, network).save_pretrained(kept / name)
    folder = out / "model"
    with whole_files_of(folder, mend=MAKE_ROOM) as part:
        for name, network in learnt.items():
            cast(Any, network).save_pretrained(part / name)
        networks = build_networks(config)
        for name, network in networks.items():
            earlier = part / name if name in learnt else earlier_folder(config, out, name)
            if not earlier.is_dir():
                return
            try:
                take_over(network, earlier, stage="export")
            except ModelError as error:
                if earlier.parent in (part, folder):
                    raise
                log.warning(
                    "%s is no whole model yet, as what model.start_from has is not the recipe's: %s", folder, error
                )
                return
        make_pipeline(config, networks).save_pretrained(part)
