"""Whether another engine would be faster on this CPU: the shipped model's networks in PyTorch and ONNX Runtime.

    pip install onnx onnxscript onnxruntime
    python benchmarks/engines.py [--model DIR] [--px 256] [--threads 1] > engines.json

Both engines run in turn, the least time of `--repeats` calls counts. Sums are of an image: the reference network
once, and the denoiser and the weight network once a step. An engine is worth its weight from a gain of 1.3 on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from speed import machine

from declouder.cli.app import keep_freed_memory
from declouder.pipeline import CloudRemovalPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as the commands do
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    pipeline: Any = CloudRemovalPipeline.from_pretrained(given.model)
    image = torch.rand(1, 3, given.px, given.px) * 2 - 1
    t = torch.tensor([100])
    inputs = {
        "reference": (image,),
        "denoiser": (torch.cat([image] * 2, 1), t),  # x_t, cloudy
        "weight_net": (torch.cat([image] * 3, 1), t),
    }
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "threads": given.threads,
        "clock": given.clock,
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name, arguments in inputs.items():
            engine = exported(getattr(pipeline, name), arguments, Path(folder) / f"{name}.onnx", given.threads)
            quick = pipeline._network(name, image)
            ours, theirs = quick(*arguments), torch.from_numpy(engine(arguments))
            times = least_in_turn([partial(quick, *arguments), partial(engine, arguments)], given.repeats, clock)
            report["networks"][name] = {
                "torch_ms": round(1e3 * times[0], 1),
                "onnxruntime_ms": round(1e3 * times[1], 1),
                "gain": round(times[0] / times[1], 2),
                "largest_difference": float((ours - theirs).abs().max()),
            }
    steps = pipeline.config.num_inference_steps
    for engine_name in ("torch", "onnxruntime"):
        ms = {name: row[f"{engine_name}_ms"] for name, row in report["networks"].items()}
        report[f"{engine_name}_image_ms"] = round(ms["reference"] + steps * (ms["denoiser"] + ms["weight_net"]), 1)
    report["gain_of_an_image"] = round(report["torch_image_ms"] / report["onnxruntime_image_ms"], 2)
    print(json.dumps(report, indent=2))


def exported(network: Any, arguments: tuple[torch.Tensor, ...], path: Path, threads: int) -> Callable[..., Any]:
    """Export a network and return a call that runs it in ONNX Runtime on a tuple of tensors."""
    torch.onnx.export(network, arguments, str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda tensors: session.run(None, {n: x.numpy() for n, x in zip(names, tensors, strict=True)})[0]


def least_in_turn(works: list[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Return the least time of each, s; they take turns, so that a busy machine strikes all alike."""
    found = [float("inf")] * len(works)
    for _ in range(repeats + 1):
        for number, work in enumerate(works):
            begin = clock()
            work()
            found[number] = min(found[number], clock() - begin)
    return found


if __name__ == "__main__":
    main()
