"""What flows in from one model, how clear ground keeps its texture from another: a reference network of two.

    python scripts/graft_filling.py MODEL OTHER -o NEW [--less 1.5]

NEW is MODEL with the filling (declouder.networks.filling) of OTHER, but for the last image, the texture of clear
ground: its scores stay those of MODEL, less `--less`, and so does the tolerance. For a filling that paints thick
cloud well and has learnt nothing of texture, and one that is the other way round.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from declouder import CloudRemovalPipeline
from declouder.networks.filling import SCORES


def main() -> None:
    """Graft and save."""
    parser = argparse.ArgumentParser(description="Join the fillings of two models.")
    parser.add_argument("model", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--less", type=float, default=0.0, help="taken from the score of the last image")
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    fill = pipeline.reference.fill
    # Read as a file: an earlier model has no tolerance, and diffusers would leave that empty.
    (path,) = (arguments.other / "reference").glob("*.safetensors")
    other = {name: value.float() for name, value in load_file(path).items() if name.startswith("fill.")}
    own = {f"fill.{name}": value.clone() for name, value in fill.state_dict().items()}
    pixels = fill.decide.weight.shape[0] // len(SCORES)
    for name, last in (("decide", pixels), ("decide_wide", 1)):
        for kind in ("weight", "bias"):
            other[f"fill.{name}.{kind}"][-last:] = own[f"fill.{name}.{kind}"][-last:]
    other["fill.log_tolerance"] = own["fill.log_tolerance"]
    fill.load_state_dict({name.removeprefix("fill."): value for name, value in other.items()})
    with torch.no_grad():
        fill.decide.bias[-pixels:] -= arguments.less
    pipeline.save_pretrained(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
