"""Checkpoint files -> named tensors; nothing in a file is ever run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from declouder.errors import ModelError

NAMES_IN_A_MESSAGE = 4


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
    if not _is_state_dict(content):
        found = f"a dict of {some(map(str, content))}" if isinstance(content, dict) else type(content).__name__
        parts = content if isinstance(content, dict) else {}
        within = [name for name, part in parts.items() if _is_state_dict(part) and part]
        mend = f"save what is under {within[0]!r}" if within else "save the network's state_dict()"
        raise ModelError(f"{path} holds {found}, not named tensors; {mend} alone")
    return content


def _is_state_dict(content: object) -> TypeGuard[dict[str, Tensor]]:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({_first_line(error)})") from error


def _read_torch(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # Of odd kinds of files and tensors: our errors say what matters of them.
            warnings.simplefilter("ignore")
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


def some(names: Iterable[str]) -> str:
    """Join the first few names, and say how many more there are."""
    names = list(names)
    more = len(names) - NAMES_IN_A_MESSAGE
    return ", ".join(names[:NAMES_IN_A_MESSAGE]) + (f" and {more} more" if more > 0 else "")
