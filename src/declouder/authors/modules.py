"""Which module of the authors' networks is which of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from declouder.authors.links import Link, Pair, links_between
from declouder.networks.memorynet import BLOCKS_PER_LEVEL, MemoryNet
from declouder.networks.msda import BOTTLENECK_DILATIONS, MSDA
from declouder.networks.unet import Denoiser, WeightNet


def unet_pairs(network: Denoiser | WeightNet, prefix: str = "") -> Iterator[Pair]:
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


def msda_pairs(network: MSDA) -> Iterator[Pair]:
    """Pair the modules of their MSDA-CR, a grid of blocks by row and step, with those of ours."""
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


def memorynet_links(network: MemoryNet) -> list[Link]:
    """Link the tensors of their MemoryNet with those of ours."""
    blocks = list(_memorynet_blocks(network.config.cab_blocks))
    links = links_between([*_memorynet_pairs(network.config.cab_blocks), *_cab_pairs(blocks)], network)
    # Their one PReLU is part of every block, so its slope is stored once for each. PyTorch fills a shared
    # parameter from each copy in turn and the last one stays, that of the last block of stage 3.
    return [*links, *links_between(((f"{theirs}.body.1.weight", "slope") for theirs, _ in blocks), network)]


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
