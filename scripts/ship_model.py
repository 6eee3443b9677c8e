"""A trained pipeline folder to the one that the package brings: float16 weights, at most 16 MB.

    python scripts/ship_model.py runs/compact/model src/declouder/weights/compact [--steps N --strength S ...]

The sampling defaults can be set on the way (chosen with scripts/choose_sampling.py). Says what rounding to
float16 changes in a restored image.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from declouder import CloudRemovalPipeline
from declouder.model_folder import INDEX, RECORD
from declouder.whole_files import whole_folder

LARGEST_BYTES = 16_000_000


def main() -> None:
    """Convert, check the size and the change, and write."""
    parser = argparse.ArgumentParser(description="Make the model that the package brings.")
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, help="default num_inference_steps")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--w-bounds", type=float, nargs=2)
    parser.add_argument("--consistency", type=float)
    arguments = parser.parse_args()

    if arguments.output.exists() and not (arguments.output / INDEX).exists():
        parser.error(f"{arguments.output} is no model folder, so it is not replaced; give another name")
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    chosen = {
        "num_inference_steps": arguments.steps,
        "strength": arguments.strength,
        "w_bounds": arguments.w_bounds,
        "consistency": arguments.consistency,
    }
    pipeline.register_to_config(**{name: value for name, value in chosen.items() if value is not None})
    before = restored(pipeline)
    with whole_folder(arguments.output) as part:
        pipeline.to(torch.float16).save_pretrained(part)
        if (arguments.model / RECORD).exists():
            shutil.copyfile(arguments.model / RECORD, part / RECORD)
        forget_origin(part)
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        if size > LARGEST_BYTES:
            raise SystemExit(f"the model has {size / 1e6:.1f} MB, more than {LARGEST_BYTES / 1e6:.0f} MB")
    shipped = CloudRemovalPipeline.from_pretrained(arguments.output)
    shipped.set_progress_bar_config(disable=True)
    change = float((restored(shipped) - before).abs().max())
    print(f"{arguments.output}: {size / 1e6:.2f} MB; float16 changes a pixel by up to {change * 255:.2f} / 255")


def forget_origin(folder: Path) -> None:
    """Drop from the configs where the model lay before: diffusers keeps the path it was loaded from."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("_name_or_path", None)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def restored(pipeline: CloudRemovalPipeline) -> torch.Tensor:
    """Return what the pipeline makes of a fixed image, (1, C, 128, 128) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(1, len(pipeline.config.bands), 16, 16, generator=generator)
    cloudy = torch.nn.functional.interpolate(rough, size=128, mode="bicubic").clamp(0, 1)
    images: torch.Tensor = pipeline(cloudy, generator=generator, output_type="pt").images
    return images


if __name__ == "__main__":
    main()
