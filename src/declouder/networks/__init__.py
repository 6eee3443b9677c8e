"""The networks of Diffusion Enhancement: reference networks, denoiser and weight network.

`REFERENCES` names the reference networks. Each is a diffusers model with

    network(cloudy) -> clear                     (B, C, H, W) in [-1, 1], any height and width
    network.supervised_outputs(cloudy) -> list   what its loss compares with the clear image

and one that chooses between images has `supervised_choices(cloudy)` besides, for the loss of its choices.
"""

from __future__ import annotations

from typing import Any

from declouder.networks.compact import CompactNet
from declouder.networks.memorynet import MemoryNet
from declouder.networks.msda import MSDA
from declouder.networks.unet import Denoiser, WeightNet

REFERENCES: dict[str, Any] = {"compact": CompactNet, "memorynet": MemoryNet, "msda": MSDA}

__all__ = ["MSDA", "REFERENCES", "CompactNet", "Denoiser", "MemoryNet", "WeightNet"]
