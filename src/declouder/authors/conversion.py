"""The authors' tensors -> networks and a pipeline of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from declouder.arguments import PAPER_W_BOUNDS
from declouder.authors.files import read_state_dict, some
from declouder.authors.links import fill, links_between
from declouder.authors.modules import memorynet_links, msda_pairs, unet_pairs
from declouder.errors import ModelError
from declouder.networks.memorynet import MemoryNet
from declouder.networks.msda import MSDA
from declouder.networks.unet import Denoiser, WeightNet
from declouder.rgb import USUAL_BANDS

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

# The authors' U-Nets, told apart by how many blocks lead down: the "64" and the "256" network.
DENOISER_WIDTHS = {15: (96, 96, 192, 192, 288), 18: (96, 96, 192, 192, 384, 384)}

# Kind of network -> how names of its tensors begin.
KINDS = {
    "denoiser": ("time_embed.", "input_blocks.", "middle_block.", "output_blocks.", "wc."),
    "MSDA-CR": ("rdb_module.",),
    "MemoryNet": ("shallow_feat1.", "stage1_encoder."),
}
# Tensors of the released MSDA-CR that its forward pass never uses, or uses for nothing that is returned.
UNUSED_IN_MSDA = re.compile(
    r"(rdb_module\.\d_\d|rdb_in|rdb_out|rdb_2_1|rdb_1_1)"
    r"\.(rt_residual_dense_layers\..+|conv_1x1_c\..+|conv_a\..+|conv_r\..+|coefficient)"
    r"|offset_conv[12]\..+"
)
_MOST_BANDS = 1000
# Networks are built without numbers, as a checkpoint gives every one of them.
WITHOUT_VALUES = torch.device("meta")


def convert_checkpoints(denoiser_path: Path, reference_path: Path) -> CloudRemovalPipeline:
    """Return a pipeline that computes what the authors' code does with these two files.

    Args:
        denoiser_path: checkpoint of denoiser and weight network (.pt, .pth or .safetensors).
        reference_path: checkpoint of the reference network (.pt, .pth or .safetensors).

    Raises:
        ModelError: a file cannot be read, or its tensors are not those of the authors' networks.
    """
    from declouder.pipeline import CloudRemovalPipeline, make_scheduler

    denoiser_weights = read_state_dict(denoiser_path)
    reference_weights = read_state_dict(reference_path)
    denoiser, weight_net = networks_from_denoiser_checkpoint(denoiser_weights, source=str(denoiser_path))
    reference = reference_from_checkpoint(reference_weights, source=str(reference_path))

    bands = denoiser.config.bands
    if reference.config.bands != bands:
        raise ModelError(
            f"{denoiser_path} is for {bands} bands, {reference_path} for {reference.config.bands}; "
            "give two files that were trained on the same data set"
        )
    return CloudRemovalPipeline(
        reference=reference,
        denoiser=denoiser,
        weight_net=weight_net,
        scheduler=make_scheduler("ddim"),
        bands=band_names(bands),
        w_bounds=PAPER_W_BOUNDS,
    )


def networks_from_denoiser_checkpoint(
    state_dict: Mapping[str, Tensor], *, source: str = "the denoiser checkpoint"
) -> tuple[Denoiser, WeightNet]:
    """Return the two U-Nets that a denoiser checkpoint holds.

    Args:
        state_dict: the authors' tensors by name, with or without `module.` before every name.
        source: what error messages call the checkpoint.

    Raises:
        ModelError: if it holds no denoiser, or one without its weight network, or tensors do not fit.
    """
    weights = _with_current_names(state_dict, source)
    kind = _kind(weights, source)
    if kind != "denoiser":
        raise ModelError(
            f"{source} holds the reference network {kind}, not a denoiser; give it as the reference "
            "(are the two files swapped?)"
        )
    for_weight_net = {name: tensor for name, tensor in weights.items() if name.startswith("wc.")}
    for_denoiser = {name: tensor for name, tensor in weights.items() if name not in for_weight_net}
    if not for_weight_net:
        raise ModelError(
            f"{source} holds the denoiser alone (the authors' first training stage): the weight network, "
            "tensors `wc.*` or `sjlnet.*`, is missing; give a checkpoint of their second or third stage"
        )
    denoiser = _denoiser(for_denoiser, source)
    weight_net = _weight_net(for_weight_net, denoiser.config.bands, source)
    return denoiser, weight_net


def reference_from_checkpoint(
    state_dict: Mapping[str, Tensor], *, source: str = "the reference checkpoint"
) -> MSDA | MemoryNet:
    """Return the reference network that a checkpoint holds; its kind is told by the names of the tensors.

    Args:
        state_dict: the authors' tensors by name, with or without `module.` before every name.
        source: what error messages call the checkpoint.

    Raises:
        ModelError: if it holds no reference network of the authors', or tensors do not fit.
    """
    weights = _with_current_names(state_dict, source)
    kind = _kind(weights, source)
    if kind == "denoiser":
        raise ModelError(
            f"{source} holds a denoiser, not a reference network (MSDA-CR or MemoryNet); give it as the "
            "denoiser (are the two files swapped?)"
        )
    if kind == "MSDA-CR":
        bands = _bands_of(weights, "conv_out.weight", source)
        with WITHOUT_VALUES:
            msda: MSDA = MSDA(bands=bands)
        used = {name: tensor for name, tensor in weights.items() if not UNUSED_IN_MSDA.fullmatch(name)}
        fill(msda, used, links_between(msda_pairs(msda), msda), source)
        return msda
    bands = _bands_of(weights, "tail.weight", source)
    with WITHOUT_VALUES:
        memorynet: MemoryNet = MemoryNet(bands=bands)
    fill(memorynet, weights, memorynet_links(memorynet), source)
    return memorynet


def band_names(bands: int) -> list[str]:
    """Return the names of the bands that the authors' data sets have."""
    return list(USUAL_BANDS.get(bands, [f"band{number}" for number in range(1, bands + 1)]))


def _with_current_names(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Undo what wrapping and the authors' renaming did to the names: `module.`, and `sjlnet.` for `wc.`."""
    weights = {}
    for name, tensor in state_dict.items():
        current = re.sub(r"^sjlnet\.", "wc.", name.removeprefix("module."))
        if current in weights:
            raise ModelError(f"{source} has two tensors for {current}; give the file as it was released")
        weights[current] = tensor
    return weights


def _kind(weights: Mapping[str, Tensor], source: str) -> str:
    for kind, beginnings in KINDS.items():
        if any(name.startswith(beginnings) for name in weights):
            return kind
    raise ModelError(
        f"{source} holds none of the authors' networks (denoiser, MSDA-CR, MemoryNet): "
        f"its tensors are {some(weights) or 'none at all'}; give a checkpoint that they released"
    )


def _denoiser(weights: Mapping[str, Tensor], source: str) -> Denoiser:
    blocks = {name.split(".")[1] for name in weights if name.startswith("input_blocks.")}
    if len(blocks) not in DENOISER_WIDTHS:
        raise ModelError(
            f"{source} has {len(blocks)} input blocks, the authors' denoisers have "
            f"{' or '.join(map(str, DENOISER_WIDTHS))}; give one of theirs"
        )
    widths = DENOISER_WIDTHS[len(blocks)]
    bands = _bands_of(weights, "out.2.weight", source)
    attention_levels = _attention_levels(weights, len(widths))
    with WITHOUT_VALUES:
        denoiser: Denoiser = Denoiser(bands=bands, widths=widths, attention_levels=attention_levels)
    fill(denoiser, weights, links_between(unet_pairs(denoiser), denoiser, heads=denoiser.config.heads), source)
    return denoiser


def _weight_net(weights: Mapping[str, Tensor], bands: int, source: str) -> WeightNet:
    widths = (64, 64, 128)
    attention_levels = _attention_levels(weights, len(widths), prefix="wc.")
    with WITHOUT_VALUES:
        weight_net: WeightNet = WeightNet(bands=bands, widths=widths, attention_levels=attention_levels)
    pairs = unet_pairs(weight_net, prefix="wc.")
    fill(weight_net, weights, links_between(pairs, weight_net, heads=weight_net.config.heads), source)
    return weight_net


def _attention_levels(weights: Mapping[str, Tensor], levels: int, prefix: str = "") -> tuple[int, ...]:
    """Return the levels whose blocks attend: those where a residual block is followed by something else."""
    return tuple(
        level
        for level in range(levels)
        if any(name.startswith(f"{prefix}input_blocks.{3 * level + 1}.1.") for name in weights)
        or any(name.startswith(f"{prefix}input_blocks.{3 * level + 2}.1.") for name in weights)
    )


def _bands_of(weights: Mapping[str, Tensor], name: str, source: str) -> int:
    """Return how many bands a network restores: the size of its last layer."""
    if name not in weights:
        raise ModelError(f"{source} is incomplete: {name} is missing; load it anew")
    bands = weights[name].shape[0] if weights[name].ndim else 0
    # A damaged file may claim any number, and memory is taken for it.
    if not 1 <= bands <= _MOST_BANDS:
        raise ModelError(f"{source} is damaged: {name} has shape {tuple(weights[name].shape)}; load it anew")
    return bands
