"""Links between the tensors of two state dicts, and a network filled along them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from declouder.authors.files import some
from declouder.errors import ModelError

logger = logging.getLogger(__name__)

Pair = tuple[str, ...]
"""A module of theirs, then the module or modules of ours."""


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


def links_between(pairs: Iterable[Pair], network: nn.Module, *, heads: int = 1) -> list[Link]:
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


def fill(network: nn.Module, weights: Mapping[str, Tensor], links: list[Link], source: str) -> None:
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
    not_float = [name for name in present if not _is_plain(weights[name])]
    # Only of the right shape: a file can claim any, and an expanded tensor takes its memory when it is looked at.
    fitting = [name for name in present if tuple(weights[name].shape) == wanted[name] and name not in not_float]
    # As float32, which it becomes: a float64 may be beyond that.
    not_finite = [name for name in fitting if not bool(torch.isfinite(weights[name].to(torch.float32)).all())]
    problems = {
        "missing": missing,
        "not part of the network": left_over,
        "of another shape": reshaped,
        "not plain floating-point of 16 to 64 bits": not_float,
        "holding values that are not finite in float32": not_finite,
    }
    found = "; ".join(f"{what}: {some(names)}" for what, names in problems.items() if names)
    if found:
        raise ModelError(f"{source} does not fit the authors' network; {found}; give the file as they released it")


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor has its numbers at hand: it is neither sparse nor quantised nor a mere shape."""
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return tensor.dtype in kinds and tensor.layout == torch.strided and not tensor.is_meta
