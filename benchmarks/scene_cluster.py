"""A scene on a cluster of processes: the same bytes as here, also when a worker is killed; and how long it took.

    python benchmarks/scene_cluster.py [--model DIR] [--px 1200] [--steps N] [--workers 2] > cluster.json

Three runs of one scene: in this process, on local:N, and on local:N with one worker killed (SIGKILL) when a third
of the windows are finished. It ends with 1 if their outputs are not equal byte for byte. `seconds` of the first run
on the cluster hold the loading of the model; `window_s` is the mean time from one finished window to the next.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from scene_share import make_scene

from declouder.cluster import Cluster, open_cluster
from declouder.pipeline import CloudRemovalPipeline
from declouder.scene import SceneOptions, remove_from_scene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--px", type=int, default=1200)
    parser.add_argument("--steps", type=int, help="of the diffusion; without it the model's own")
    parser.add_argument("--window", type=int, default=256, metavar="PX")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    pipeline = CloudRemovalPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    options = SceneOptions(steps=arguments.steps, window_px=arguments.window)
    name = f"local:{arguments.workers}"
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        scene, _ = make_scene(Path(folder) / "scene", arguments.px)
        runs["here"] = measured(scene, pipeline, options, cluster=None, kill=False)
        started = time.perf_counter()
        with open_cluster(name, pipeline) as cluster:
            start_s = time.perf_counter() - started
            runs[name] = measured(scene, pipeline, options, cluster=cluster, kill=False)
            runs[f"{name}, one killed"] = measured(scene, pipeline, options, cluster=cluster, kill=True)
    digests = {run.pop("sha256") for run in runs.values()}
    found = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPUs used",
        "threads_each": torch.get_num_threads(),
        "px": arguments.px,
        "start_of_cluster_s": round(start_s, 1),
        "runs": runs,
        "equal": len(digests) == 1,
    }
    print(json.dumps(found, indent=2))
    return 0 if found["equal"] else 1


def measured(
    scene: Path, pipeline: CloudRemovalPipeline, options: SceneOptions, *, cluster: Cluster | None, kill: bool
) -> dict[str, object]:
    """Restore the scene; return a digest of the output and the times."""
    output = scene.with_name("clear.tif")
    shown: list[float] = []
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        shown.append(time.perf_counter())
        if kill and not killed and done >= total // 3:
            killed.append(kill_one_child())

    engine = None if cluster is None else cluster.engine
    report = remove_from_scene(scene, output, pipeline, options, engine=engine, progress=progress)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    output.unlink()
    return {
        "sha256": digest,
        "seconds": round(report.seconds, 1),
        "window_s": round((shown[-1] - shown[0]) / max(1, len(shown) - 1), 3),
        "killed": len(killed),
    }


def kill_one_child() -> int:
    """Kill the worker process that has computed most."""
    import psutil

    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "spawn_main" in " ".join(process.cmdline())
    ]
    busiest = max(workers, key=lambda process: sum(process.cpu_times()[:2]))
    busiest.send_signal(signal.SIGKILL)
    return int(busiest.pid)


if __name__ == "__main__":
    sys.exit(main())
