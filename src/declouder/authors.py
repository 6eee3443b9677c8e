"""The authors' released checkpoints -> a pipeline of ours.

The code of Sui et al., "Diffusion Enhancement for Cloud Removal in Ultra-Resolution Remote Sensing
Imagery", IEEE TGRS 62, 2024, doi 10.1109/TGRS.2024.3411671, keeps a trained model in two files, both plain
state dicts:

    denoiser    the U-Net that predicts the noise, and the weight network under `wc.` (`sjlnet.` in files from
                before October 2024)
    reference   the network that makes the reference image: MSDA-CR or MemoryNet

Which bands, which of the two U-Nets and which reference network they hold is read from the tensors. Each
network is filled by a list of links, theirs -> ours, that must cover both sides: a tensor that is missing,
left over or of another shape is an error.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from declouder.errors import ModelError
from declouder.networks.memorynet import BLOCKS_PER_LEVEL, MemoryNet
from declouder.networks.msda import BOTTLENECK_DILATIONS, MSDA
from declouder.networks.unet import Denoiser, WeightNet

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

logger = logging.getLogger(__name__)

# The authors' U-Nets, told apart by how many blocks lead down: the "64" and the "256" network.
DENOISER_WIDTHS = {15: (96, 96, 192, 192, 288), 18: (96, 96, 192, 192, 384, 384)}
BAND_NAMES = {3: ("red", "green", "blue"), 4: ("red", "green", "blue", "nir")}
# What the authors' sampler bounds w to.
W_BOUNDS = (0.3, 1.0)

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
NAMES_IN_A_MESSAGE = 4
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
        w_bounds=W_BOUNDS,
    )


def networks_from_denoiser_checkpoint(
    state_dict: Mapping[str, Tensor], *, source: str = "the denoiser checkpoint"
) -> tuple[Denoiser, WeightNet]:
    """Return the two U-Nets that a denoiser checkpoint holds.

    Args:
        state_dict: the authors' tensors by name, with or without `module.` before every name.
        source: what error messages call the checkpoint.
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
    """
    weights = _with_current_names(state_dict, source)
    kind = _kind(weights, source)
    if kind == "denoiser":
        raise ModelError(
            f"{source} holds a denoiser, not a reference network (MSDA-CR or MemoryNet); give it as the "
            "denoiser (are the two files swapped?)"
        )
    if kind == "MSDA-CR":
        bands = _size(weights, "conv_out.weight", 0, source)
        with WITHOUT_VALUES:
            msda: MSDA = MSDA(bands=bands)
        used = {name: tensor for name, tensor in weights.items() if not UNUSED_IN_MSDA.fullmatch(name)}
        _fill(msda, used, _links(_msda_pairs(msda), msda), source)
        return msda
    bands = _size(weights, "tail.weight", 0, source)
    with WITHOUT_VALUES:
        memorynet: MemoryNet = MemoryNet(bands=bands)
    _fill(memorynet, weights, _memorynet_links(memorynet), source)
    return memorynet


def band_names(bands: int) -> list[str]:
    """Return the names of the bands that the authors' data sets have."""
    return list(BAND_NAMES.get(bands, [f"band{number}" for number in range(1, bands + 1)]))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name; nothing in the file is ever run.

    Raises:
        ModelError: the file is missing or unreadable, or holds anything but named tensors.
    """
    if not path.is_file():
        raise ModelError(f"{path} is not there or not a file; give a checkpoint (.pt, .pth or .safetensors)")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(content, dict) and {"state", "param_groups"} <= set(content):
        raise ModelError(f"{path} is the state of an optimizer; give the network's weights (model*.pt, ema_*.pt)")
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        found = f"a dict of {_some(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{path} holds {found}, not named tensors; save the network's state_dict() alone")
    return content


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({_first_line(error)})") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is not a checkpoint of plain tensors, so it was not loaded: it is no PyTorch file, or "
            "holds Python objects that could run code; save the network's state_dict() alone"
        ) from error
    # A damaged file fails in as many ways as there are parts of a reader: EOFError, KeyError, RuntimeError...
    except Exception as error:
        raise ModelError(
            f"{path} cannot be read as a PyTorch checkpoint ({_first_line(error)}); is the download complete?"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _with_current_names(state_dict: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Undo what wrapping and the authors' renaming did to the names: `module.`, and `sjlnet.` for `wc.`."""
    weights = {}
    for name, tensor in state_dict.items():
        current = re.sub(r"^sjlnet\.", "wc.", name.removeprefix("module."))
        if current in weights:
            raise ModelError(f"{source} has two tensors for {current}; only one of them can be meant")
        weights[current] = tensor
    return weights


def _kind(weights: Mapping[str, Tensor], source: str) -> str:
    for kind, beginnings in KINDS.items():
        if any(name.startswith(beginnings) for name in weights):
            return kind
    raise ModelError(
        f"{source} holds none of the authors' networks (denoiser, MSDA-CR, MemoryNet): "
        f"its tensors are {_some(weights) or 'none at all'}"
    )


def _denoiser(weights: Mapping[str, Tensor], source: str) -> Denoiser:
    blocks = {name.split(".")[1] for name in weights if name.startswith("input_blocks.")}
    if len(blocks) not in DENOISER_WIDTHS:
        raise ModelError(
            f"{source} has {len(blocks)} input blocks, the authors' denoisers have "
            f"{' or '.join(map(str, DENOISER_WIDTHS))}"
        )
    widths = DENOISER_WIDTHS[len(blocks)]
    bands = _size(weights, "out.2.weight", 0, source)
    attention_levels = _attention_levels(weights, len(widths))
    with WITHOUT_VALUES:
        denoiser: Denoiser = Denoiser(bands=bands, widths=widths, attention_levels=attention_levels)
    _fill(denoiser, weights, _links(_unet_pairs(denoiser), denoiser, heads=denoiser.config.heads), source)
    return denoiser


def _weight_net(weights: Mapping[str, Tensor], bands: int, source: str) -> WeightNet:
    widths = (64, 64, 128)
    attention_levels = _attention_levels(weights, len(widths), prefix="wc.")
    with WITHOUT_VALUES:
        weight_net: WeightNet = WeightNet(bands=bands, widths=widths, attention_levels=attention_levels)
    pairs = _unet_pairs(weight_net, prefix="wc.")
    _fill(weight_net, weights, _links(pairs, weight_net, heads=weight_net.config.heads), source)
    return weight_net


def _attention_levels(weights: Mapping[str, Tensor], levels: int, prefix: str = "") -> tuple[int, ...]:
    """Return the levels whose blocks attend: those where a residual block is followed by something else."""
    return tuple(
        level
        for level in range(levels)
        if any(name.startswith(f"{prefix}input_blocks.{3 * level + 1}.1.") for name in weights)
        or any(name.startswith(f"{prefix}input_blocks.{3 * level + 2}.1.") for name in weights)
    )


def _size(weights: Mapping[str, Tensor], name: str, axis: int, source: str) -> int:
    """Return the size of a tensor that tells something about the network."""
    if name not in weights:
        raise ModelError(f"{source} is incomplete: {name} is missing")
    if weights[name].ndim <= axis or weights[name].shape[axis] == 0:
        raise ModelError(f"{source} is damaged: {name} has shape {tuple(weights[name].shape)}")
    return weights[name].shape[axis]


@dataclass(frozen=True)
class Link:
    """One tensor of theirs, and the tensor or tensors of ours that get its values.

    Their query, key and value projections are one tensor, laid out (heads, 3, channels of a head, ...): with
    three tensors of ours, each gets its part of every head.
    """

    theirs: str
    ours: tuple[str, ...]
    shape: tuple[int, ...]  # of theirs
    heads: int = 1

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of ours, each in rows of all heads."""
        by_head = tensor.reshape(self.heads, len(self.ours), -1, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in by_head.unbind(1)]


# Module of theirs, then the module or modules of ours.
Pair = tuple[str, ...]


def _links(pairs: Iterable[Pair], network: nn.Module, *, heads: int = 1) -> list[Link]:
    """Return the links between the tensors of paired modules; modules that the network lacks have none."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    links = []
    for theirs, *ours in pairs:
        # A bare parameter has no leaf below it.
        for leaf in ("", ".weight", ".bias"):
            names = tuple(f"{module}{leaf}" for module in ours)
            if names[0] in shapes:
                rows, *rest = shapes[names[0]]
                # Theirs projects a sequence by a convolution of size 1, ours by a linear layer.
                of_sequence = leaf == ".weight" and theirs.endswith((".qkv", ".proj_out"))
                shape = (len(names) * rows, *rest, *([1] if of_sequence else []))
                links.append(Link(f"{theirs}{leaf}", names, shape, heads if len(names) > 1 else 1))
    return links


def _fill(network: nn.Module, weights: Mapping[str, Tensor], links: list[Link], source: str) -> None:
    """Give the network copies of `weights` along the links; each tensor of both sides must take part.

    Where several links lead to one tensor of ours, the last one counts.
    """
    _check(weights, links, source)
    ours = network.state_dict()
    filled: dict[str, Tensor] = {}
    disputed: dict[str, str] = {}
    for link in links:
        for name, part in zip(link.ours, link.split(weights[link.theirs]), strict=True):
            value = part.reshape(ours[name].shape).to(torch.float32, copy=True)
            if name in filled and not torch.equal(filled[name], value):
                disputed[name] = link.theirs
            filled[name] = value
    for counts in disputed.values():
        logger.warning("%s: the copies of a shared tensor disagree; %s counts, as in PyTorch", source, counts)
    network.load_state_dict(filled, strict=True, assign=True)
    network.eval()


def _check(weights: Mapping[str, Tensor], links: list[Link], source: str) -> None:
    wanted = {link.theirs: link.shape for link in links}
    missing = [name for name in wanted if name not in weights]
    left_over = [name for name in weights if name not in wanted]
    reshaped = [
        f"{name} (shape {tuple(weights[name].shape)}, wanted {shape})"
        for name, shape in wanted.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    present = [name for name in wanted if name in weights]
    not_float = [name for name in present if not weights[name].is_floating_point()]
    not_finite = [
        name for name in present if name not in not_float and not bool(torch.isfinite(weights[name]).all())
    ]
    problems = {
        "missing": missing,
        "not part of the network": left_over,
        "of another shape": reshaped,
        "not floating-point": not_float,
        "holding values that are not finite": not_finite,
    }
    found = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    if found:
        raise ModelError(f"{source} does not fit the authors' network; {found}; give the file as they released it")


def _some(names: Iterable[str]) -> str:
    """Join the first few names, and say how many more there are."""
    names = list(names)
    more = len(names) - NAMES_IN_A_MESSAGE
    return ", ".join(names[:NAMES_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")


def _unet_pairs(network: Denoiser | WeightNet, prefix: str = "") -> Iterator[Pair]:
    """Pair the modules of their U-Net, which counts blocks through, with those of ours, which has levels."""
    levels, layers = len(network.config.widths), network.config.layers
    attention_levels = set(network.config.attention_levels)

    def pairs() -> Iterator[Pair]:
        yield "time_embed.0", "time_embedding.linear_1"
        yield "time_embed.2", "time_embedding.linear_2"
        yield "input_blocks.0.0", "conv_in"
        for level in range(levels):
            first = 1 + level * (layers + 1)
            for layer in range(layers):
                yield from _residual_pairs(
                    f"input_blocks.{first + layer}.0", f"down_blocks.{level}.resnets.{layer}"
                )
                yield from _attention_pairs(
                    f"input_blocks.{first + layer}.1", f"down_blocks.{level}.attentions.{layer}"
                )
            yield f"input_blocks.{first + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        yield from _residual_pairs("middle_block.0", "mid_block.resnets.0")
        yield from _attention_pairs("middle_block.1", "mid_block.attentions.0")
        yield from _residual_pairs("middle_block.2", "mid_block.resnets.1")
        for climbed in range(levels):
            first = climbed * (layers + 1)
            for layer in range(layers + 1):
                yield from _residual_pairs(
                    f"output_blocks.{first + layer}.0", f"up_blocks.{climbed}.resnets.{layer}"
                )
                yield from _attention_pairs(
                    f"output_blocks.{first + layer}.1", f"up_blocks.{climbed}.attentions.{layer}"
                )
            # The upsampling comes after the attention, where there is one.
            place = 2 if levels - 1 - climbed in attention_levels else 1
            yield f"output_blocks.{first + layers}.{place}.conv", f"up_blocks.{climbed}.upsamplers.0.conv"
        yield "out.0", "conv_norm_out"
        yield "out.2", "conv_out"

    for theirs, *ours in pairs():
        yield (prefix + theirs, *(f"unet.{module}" for module in ours))


def _residual_pairs(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}.in_layers.0", f"{ours}.norm1"
    yield f"{theirs}.in_layers.2", f"{ours}.conv1"
    yield f"{theirs}.emb_layers.1", f"{ours}.time_emb_proj"
    yield f"{theirs}.out_layers.0", f"{ours}.norm2"
    yield f"{theirs}.out_layers.3", f"{ours}.conv2"
    yield f"{theirs}.skip_connection", f"{ours}.conv_shortcut"


def _attention_pairs(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    yield f"{theirs}.qkv", f"{ours}.to_q", f"{ours}.to_k", f"{ours}.to_v"
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def _msda_pairs(network: MSDA) -> Iterator[Pair]:
    height, width, columns_down = network.config.height, network.config.width, network.columns_down
    dense_layers = network.config.dense_layers
    yield "coefficient", "factors"
    yield "conv_in", "stem"
    yield "conv_out", "head"
    yield from _distortion_pairs("rdb_in", "entry", dense_layers)
    yield from _distortion_pairs("rdb_out", "exit", dense_layers)
    for row in range(height):
        for step in range(width - 1):
            yield from _distortion_pairs(f"rdb_module.{row}_{step}", f"along.{row}.{step}", dense_layers)
    for row in range(height - 1):
        for column in range(columns_down):
            theirs, ours = f"downsample_module.{row}_{column}", f"down.{row}.{column}"
            yield f"{theirs}.conv1", f"{ours}.shrink"
            yield f"{theirs}.conv2", f"{ours}.widen"
        for column in range(columns_down, width):
            yield from _double_size_pairs(f"upsample_module.{row}_{column}", f"up.{row}.{column - columns_down}")
    for place, dilation in enumerate(BOTTLENECK_DILATIONS):
        yield f"conv{place + 1}" + ("_atrous" if dilation > 1 else ""), f"bottleneck.{place}"
    # Theirs are numbered in the order of the climb, and spelt so.
    yield from _double_size_pairs("upsamle1", "climb.1")
    yield from _distortion_pairs("rdb_2_1", "refine.1", dense_layers)
    yield from _double_size_pairs("upsamle2", "climb.0")
    yield from _distortion_pairs("rdb_1_1", "refine.0", dense_layers)


def _double_size_pairs(theirs: str, ours: str) -> Iterator[Pair]:
    yield f"{theirs}.deconv", f"{ours}.grow"
    yield f"{theirs}.conv", f"{ours}.narrow"


def _distortion_pairs(theirs: str, ours: str, dense_layers: int) -> Iterator[Pair]:
    for layer in range(dense_layers):
        yield f"{theirs}.residual_dense_layers.{layer}.conv", f"{ours}.plain.chain.{layer}"
        yield f"{theirs}.residual_dense_layers_no_style.{layer}.conv", f"{ours}.content.chain.{layer}"
    yield f"{theirs}.conv_1x1_a", f"{ours}.plain.join"
    yield f"{theirs}.conv_1x1_b", f"{ours}.content.join"
    yield f"{theirs}.conv_1x1_style", f"{ours}.reflected.style"
    yield f"{theirs}.conv_gamma_r", f"{ours}.reflected.scale"
    yield f"{theirs}.conv_beta_r", f"{ours}.reflected.shift"
    yield f"{theirs}.conv_1x1_style_rt", f"{ours}.transmitted.style"
    yield f"{theirs}.conv_gamma_t", f"{ours}.transmitted.scale"
    yield f"{theirs}.conv_beta_t", f"{ours}.transmitted.shift"
    yield f"{theirs}.style", f"{ours}.spread"
    yield f"{theirs}.conv_att_A", f"{ours}.choose_reflected"
    yield f"{theirs}.conv_att_B", f"{ours}.choose_spread"
    yield f"{theirs}.conv_1x1_final", f"{ours}.join"
    yield f"{theirs}.ca.ca.0", f"{ours}.attention.squeeze"
    yield f"{theirs}.ca.ca.2", f"{ours}.attention.excite"


def _memorynet_links(network: MemoryNet) -> list[Link]:
    blocks = list(_memorynet_blocks(network.config.cab_blocks))
    links = _links([*_memorynet_pairs(network.config.cab_blocks), *_cab_pairs(blocks)], network)
    # Their one PReLU is part of every block, so its slope is stored once for each. PyTorch fills a shared
    # parameter from each copy in turn and the last one stays, that of the last block of stage 3.
    return [*links, *_links(((f"{theirs}.body.1.weight", "slope") for theirs, _ in blocks), network)]


def _memorynet_blocks(cab_blocks: int) -> Iterator[tuple[str, str]]:
    """Pair the channel attention blocks, in the order of their network."""
    for stage in (1, 2, 3):
        yield f"shallow_feat{stage}.1", f"stems.{stage - 1}.block"
    for stage in (1, 2):
        for part in ("encoder", "decoder"):
            for level in (1, 2, 3):
                for block in range(BLOCKS_PER_LEVEL):
                    theirs = f"stage{stage}_{part}.{part}_level{level}.{block}"
                    yield theirs, f"{part}{stage}.levels.{level - 1}.{block}"
        for level in (1, 2):
            yield f"stage{stage}_decoder.skip_attn{level}", f"decoder{stage}.skips.{level - 1}"
    for group in (1, 2, 3):
        for block in range(cab_blocks):
            yield f"stage3_orsnet.orb{group}.body.{block}", f"full_size.groups.{group - 1}.{block}"


def _cab_pairs(blocks: Iterable[tuple[str, str]]) -> Iterator[Pair]:
    for theirs, ours in blocks:
        yield f"{theirs}.body.0", f"{ours}.first"
        yield f"{theirs}.body.2", f"{ours}.second"
        yield f"{theirs}.CA.conv_du.0", f"{ours}.squeeze"
        yield f"{theirs}.CA.conv_du.2", f"{ours}.excite"


def _memorynet_pairs(cab_blocks: int) -> Iterator[Pair]:
    """Pair the modules outside of the channel attention blocks."""
    for stage in (1, 2, 3):
        yield f"shallow_feat{stage}.0", f"stems.{stage - 1}.convolution"
    for stage in (1, 2):
        for finer in (1, 2):
            coarser = finer + 1
            down, up = f"encoder{stage}.down.{finer - 1}", f"decoder{stage}.up.{finer - 1}"
            yield f"stage{stage}_encoder.down{finer}{coarser}.down.1", f"{down}.convolution"
            yield f"stage{stage}_decoder.up{coarser}{finer}.up.1", f"{up}.convolution"
        supervision = f"sam{stage}{stage + 1}"
        yield f"{supervision}.conv1", f"supervision{stage}.features"
        yield f"{supervision}.conv2", f"supervision{stage}.to_image"
        yield f"{supervision}.conv3", f"supervision{stage}.from_image"
        yield f"concat{stage}{stage + 1}", f"join{stage + 1}"
    for short, ours in (("enc", "from_encoded"), ("dec", "from_decoded")):
        for level in (1, 2, 3):
            yield f"stage2_encoder.csff_{short}{level}", f"encoder2.{ours}.{level - 1}"
            # The last step of ours, after one doubling of the size for each level above the first.
            yield f"stage3_orsnet.conv_{short}{level}", f"full_size.{ours}.{level - 1}.{level - 1}"
        yield f"stage3_orsnet.up_{short}1.up.1", f"full_size.{ours}.1.0.convolution"
        for doubling in (0, 1):
            theirs = f"stage3_orsnet.up_{short}2.{doubling}.up.1"
            yield theirs, f"full_size.{ours}.2.{doubling}.convolution"
    for group in (1, 2, 3):
        yield f"stage3_orsnet.orb{group}.body.{cab_blocks}", f"full_size.ends.{group - 1}"
    yield "tail", "head"
