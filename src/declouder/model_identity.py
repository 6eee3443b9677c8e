"""Which model made a result, for tags, journals and scores: a digest of its weights, its sampler and precision."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections.abc import Container, Iterator, Mapping
from typing import Any

from declouder.errors import ModelError

_FIXED: dict[int, tuple[str, int]] = {}
"""Digests of pipelines whose weights stay, and in how many blocks, by `id`."""
_FIXING = threading.Lock()


@contextlib.contextmanager
def weights_stay(pipeline: Any) -> Iterator[None]:
    """Compute `model_digest` of a pipeline once for the block, within which nobody changes its weights.

    Blocks of one pipeline may lie within each other, and overlap in threads.
    """
    digest = model_digest(pipeline)
    with _FIXING:
        _FIXED[id(pipeline)] = digest, _FIXED.get(id(pipeline), ("", 0))[1] + 1
    try:
        yield
    finally:
        with _FIXING:
            blocks = _FIXED.pop(id(pipeline))[1] - 1
            if blocks:
                _FIXED[id(pipeline)] = digest, blocks


def model_digest(pipeline: Any) -> str:
    """Return a SHA-256 over the weights and settings of a pipeline, but for its sampler: 64 hexadecimal digits.

    Raises:
        ModelError: if weights are out of reach, as sequential offloading leaves them.
    """
    import torch

    if (known := _FIXED.get(id(pipeline))) is not None:
        return known[0]
    parts = pipeline.components
    found = hashlib.sha256(_settings(pipeline.config, without=parts).encode())
    for name, part in sorted(parts.items()):
        if not hasattr(part, "state_dict"):
            continue
        found.update(f"{name} {type(part).__name__} {_settings(part.config)}".encode())
        for key, tensor in sorted(part.state_dict().items()):
            if tensor.is_meta:
                raise ModelError(
                    f"the weights of the {name} are out of reach, as sequential offloading leaves them; use"
                    " enable_model_cpu_offload"
                )
            found.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def sampler_of(pipeline: Any) -> dict[str, Any]:
    """Return a pipeline's sampler as JSON knows it: its name and settings."""
    scheduler = pipeline.scheduler
    return {"name": type(scheduler).__name__, "settings": json.loads(_settings(scheduler.config))}


def precision_of(pipeline: Any) -> str:
    """Return in which numbers a pipeline computes its steps, as PyTorch calls them: `float32`."""
    return str(pipeline.steps_dtype).removeprefix("torch.")


def _settings(config: Mapping[str, Any], *, without: Container[str] = ()) -> str:
    # Private keys hold the folder it came from and the version of the library.
    public = {key: value for key, value in config.items() if not str(key).startswith("_") and key not in without}
    # JSON knows no infinity, which DPM-Solver's settings hold.
    finite = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in public.items()}
    return json.dumps(finite, sort_keys=True, default=str, allow_nan=False)
