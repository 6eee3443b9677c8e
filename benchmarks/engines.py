"""Whether another engine is faster on this CPU: the shipped model in PyTorch, ONNX Runtime and OpenVINO.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/engines.py [--model DIR] [--px 256] [--threads 2] > engines.json

Each engine runs in a process of its own, as idle threads of one would take time from another; processes take turns,
and the least time of all calls counts. An image takes the reference network once, and the denoiser and the weight
network once a step. An engine is worth its weight from a gain of 1.3 on, with outputs within 1e-3 of PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import least, machine

from declouder.cli.process import keep_freed_memory
from declouder.model_folder import NETWORKS
from declouder.pipeline import CloudRemovalPipeline

ENGINES = ("torch", "onnxruntime", "openvino", "openvino_bf16")
Arrays = tuple[np.ndarray, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--engine", action="append", choices=ENGINES[1:], help="beside torch; without it all")
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each engine, in turn")
    parser.add_argument("--repeats", type=int, default=7, help="calls of each network in a process")
    parser.add_argument("--alone", choices=ENGINES, help=argparse.SUPPRESS)  # one process of the rounds
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # where the exported networks are
    given = parser.parse_args()
    if given.alone:
        print(json.dumps(least_times(given)))
        return
    engines = ["torch", *(given.engine or ENGINES[1:])]
    packages = sorted({engine.split("_")[0] for engine in engines})
    report: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
        "threads": given.threads,
        "clock": given.clock,
    }
    with tempfile.TemporaryDirectory() as folder:
        pipeline: Any = CloudRemovalPipeline.from_pretrained(given.model)
        export(pipeline, inputs(given.px), Path(folder))
        found = [[in_a_process(engine, Path(folder)) for engine in engines] for _ in range(given.rounds)]
    times = {engine: least_of([row[i]["ms"] for row in found]) for i, engine in enumerate(engines)}
    steps = pipeline.config.num_inference_steps
    calls = {"reference": 1, "denoiser": steps, "weight_net": steps}
    image = {engine: sum(calls[name] * ms for name, ms in row.items()) for engine, row in times.items()}
    report["engines"] = {
        engine: {
            "ms": {name: round(ms, 1) for name, ms in times[engine].items()},
            "image_ms": round(image[engine], 1),
            "gain_of_an_image": round(image["torch"] / image[engine], 2),
            "largest_difference": found[0][i]["difference"],
        }
        for i, engine in enumerate(engines)
    }
    print(json.dumps(report, indent=2))


def inputs(px: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Return what each network is called with: the same random image wherever it takes one."""
    image = torch.rand(1, 3, px, px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    t = torch.tensor([100])
    return {
        "reference": (image,),
        "denoiser": (torch.cat([image] * 2, 1), t),  # x_t, cloudy
        "weight_net": (torch.cat([image] * 3, 1), t),
    }


def export(pipeline: Any, arguments: dict[str, tuple[torch.Tensor, ...]], folder: Path) -> None:
    """Write each network as ONNX, and as arrays what it makes of its arguments."""
    for name, given in arguments.items():
        network = getattr(pipeline, name)
        if name == "reference":
            # Whether it looks once more depends on the image, which a graph cannot ask.
            network.look_again = network.look_closer = 0
        with torch.inference_mode():
            np.save(folder / f"{name}.npy", network(*given).numpy())
        torch.onnx.export(network, given, str(folder / f"{name}.onnx"), dynamo=True, verbose=False)


def in_a_process(engine: str, folder: Path) -> dict[str, Any]:
    """Run this script anew for one engine, with the options of this run."""
    words = [*sys.argv[1:], "--alone", engine, "--folder", str(folder)]
    ended = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def least_times(given: argparse.Namespace) -> dict[str, Any]:
    """Return of one engine, for each network: the least time, ms, and the largest difference from plain PyTorch."""
    torch.set_num_threads(given.threads)
    keep_freed_memory()  # as the commands do
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    arguments = inputs(given.px)
    with torch.inference_mode():
        if given.alone == "torch":
            calls = in_torch(CloudRemovalPipeline.from_pretrained(given.model), arguments)
        else:
            load = onnxruntime_call if given.alone == "onnxruntime" else partial(openvino_call, engine=given.alone)
            calls = {
                name: partial(
                    load(given.folder / f"{name}.onnx", given.threads), tuple(x.numpy() for x in arguments[name])
                )
                for name in NETWORKS
            }
        differences = [np.abs(calls[name]() - np.load(given.folder / f"{name}.npy")).max() for name in NETWORKS]
        times = {name: 1e3 * least(calls[name], given.repeats, clock) for name in NETWORKS}
    return {"ms": times, "difference": float(f"{max(differences):.1e}")}


def in_torch(pipeline: Any, arguments: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, Callable[[], np.ndarray]]:
    """Return a call for each network, by the way that the pipeline goes."""
    return {name: partial(_as_array, pipeline._network(name, given[0]), given) for name, given in arguments.items()}


def _as_array(network: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...]) -> np.ndarray:
    return network(*given).numpy()


def onnxruntime_call(path: Path, threads: int) -> Callable[[Arrays], np.ndarray]:
    """Load an exported network in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda given: np.asarray(session.run(None, dict(zip(names, given, strict=True)))[0])


def openvino_call(path: Path, threads: int, engine: str) -> Callable[[Arrays], np.ndarray]:
    """Load an exported network in OpenVINO, in float32 or, where the engine's name says so, in bfloat16."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if engine.endswith("bf16") else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return lambda given: np.array(request.infer(list(given))[0])


def least_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the least of each name in the rows."""
    return {name: min(row[name] for row in rows) for name in rows[0]}


if __name__ == "__main__":
    main()
