"""What lies in a model's folder, without torch: names that diffusers gives, and what training writes beside."""

from __future__ import annotations

import json
from pathlib import Path

from declouder.errors import reason_of

INDEX = "model_index.json"
"""The file by which diffusers knows a pipeline's folder."""
RECORD = "training.json"
"""The file that says how the model was trained."""
WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file of a network's weights in its folder, as diffusers names it."""
NETWORKS = ("reference", "denoiser", "weight_net")
COMPONENTS = (*NETWORKS, "scheduler")
"""The parts of a pipeline, a folder each."""


def trained_range(folder: Path) -> tuple[float, float] | None:
    """Return the numbers that were black and white to a model when it learnt, None for those of the data type.

    Raises:
        LookupError: if its folder does not say.
    """
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))["recipe"]["data"].get("range")
        return None if found is None else (float(found[0]), float(found[1]))
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise LookupError(f"{folder} does not say: {reason_of(error)}") from None
