"""A model's folder: looked through before anything of it is loaded, and after that for what was not there."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn

from declouder.errors import ModelError
from declouder.model_folder import COMPONENTS, INDEX, RECORD, WEIGHTS
from declouder.networks import REFERENCES, Denoiser, WeightNet

SHIPPED_MODEL = Path(__file__).parents[1] / "weights" / "compact"
DAMAGED = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What diffusers and the networks raise of fields that make no sense."""


def looks_like_hub_id(source: str) -> bool:
    """Return whether a name is that of a model on the hub, OWNER/NAME, and not of a place here."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).parent.exists()


def check_folder(folder: Path, *, kind: str) -> None:
    """Say what is wrong with a model folder before anything of it is loaded.

    Args:
        folder: what a user named.
        kind: the name of the pipeline's class.

    Raises:
        ModelError: if it does not exist, is of another kind, lacks a part, or names code that is not ours.
    """
    if not folder.is_dir():
        found = "is no folder" if folder.exists() else "does not exist"
        raise ModelError(f"model folder {folder} {found}; give a folder that `declouder train` wrote")
    if not (folder / INDEX).exists() and (folder / "model" / INDEX).exists():
        raise ModelError(f"{folder} is the folder of a training; give its model, {folder / 'model'}")
    index = _read_json(folder / INDEX, folder)
    if index.get("_class_name") != kind:
        raise ModelError(
            f"{folder} holds a {index.get('_class_name')}, not a {kind}; give a folder"
            f" that `declouder train` or `declouder convert` wrote"
        )
    known = (*REFERENCES.values(), Denoiser, WeightNet)
    for name in COMPONENTS:
        said = index.get(name)
        if not isinstance(said, list) or len(said) != 2:
            raise ModelError(f"{folder / INDEX} names no {name}; save the model anew")
        module, called = (str(word) for word in said)
        # Only our own classes, those that the caller has put among them, and diffusers' schedulers are loaded: a
        # folder cannot name other code to run.
        if name == "scheduler":
            if module.split(".")[0] != "diffusers":
                raise ModelError(f"{folder}: the scheduler is a {module}.{called}; give one of diffusers")
            _read_json(folder / name / "scheduler_config.json", folder)
            continue
        if not any(cls.__name__ == called and _holds(module, cls) for cls in known):
            raise ModelError(
                f"{folder}: the {name} is a {module}.{called}, which this version of declouder does not know; a"
                " network of your own is put into declouder.networks.REFERENCES first"
            )
        check_network_folder(folder / name)


def check_network_folder(folder: Path) -> None:
    """Say what is wrong with the folder of one network of a model before anything of it is loaded.

    diffusers takes what it cannot read for the name of a model elsewhere, and asks for it there.

    Raises:
        ModelError: if its settings or its weights are missing or are none.
    """
    _read_json(folder / "config.json", folder.parent)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} lacks its weights ({WEIGHTS}); copy the whole folder, or save it with"
            " safe_serialization=True"
        )


def _holds(module: str, cls: Any) -> bool:
    """Return whether a class is of a module, which within our own networks may have moved since."""
    ours = "declouder.networks."
    return module == cls.__module__ or (module.startswith(ours) and cls.__module__.startswith(ours))


def _read_json(path: Path, folder: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        mend = "copy the whole model folder"
        if path.parent == folder and (folder / RECORD).exists():
            mend = "not all of its networks have been trained yet: run the other stages"
        elif path.parent == folder and (folder / "config.yaml").exists():
            mend = "it is the folder of a training that has not finished a stage yet: continue it with --resume"
        raise ModelError(f"{folder} lacks {path.relative_to(folder)}; {mend}") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); copy the model folder anew") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no fields; copy the model folder anew")
    return values


def check_whole(pipeline: DiffusionPipeline, source: str) -> None:
    """Raise ModelError if weights of a network were nowhere in its files: diffusers takes that in silence."""
    for name in COMPONENTS:
        network = getattr(pipeline, name)
        if not isinstance(network, nn.Module):
            continue
        lacking = [key for key, parameter in network.named_parameters() if parameter.is_meta]
        if lacking:
            raise ModelError(
                f"{source} lacks {len(lacking)} tensors of its {name}, the first is {lacking[0]}; copy the whole"
                f" folder"
            )


_LOADING = threading.RLock()
"""Held while a model is loaded: diffusers and accelerate change, and put back, what is for the whole process."""


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep diffusers from showing a bar while it loads the parts of a pipeline; its setting is for the process."""
    with _LOADING:
        shown = diffusers_logging.is_progress_bar_enabled()
        diffusers_logging.disable_progress_bar()
        try:
            yield
        finally:
            if shown:
                diffusers_logging.enable_progress_bar()


@contextmanager
def one_loads_quietly() -> Iterator[None]:
    """Let one thread at a time load a model, without a warning about every class that is not diffusers' own.

    The folder was checked before.
    """
    logger = logging.getLogger("diffusers.pipelines.pipeline_utils")
    with _LOADING:
        before = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before)
