"""Nothing that was finished is lost: a run killed over and over ends with the bytes of one that was left alone.

    python benchmarks/scene_resume.py [--model DIR] [--px 1500] [--kills 5] > resume.json

`declouder remove --steps 0` clears a generated scene once to its end, and once killed with SIGKILL `--kills` times
and started again. The moments are drawn between the start of its journal and the `--kills`th part of the time that
a whole run takes from there, as a run that goes on has less to do. It ends with 1 if it was killed less often, if
the pixels differ, or if a file of an unfinished run is left. `seconds` counts all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from scene_share import make_scene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder; without it the shipped model")
    parser.add_argument("--px", type=int, default=1500)
    parser.add_argument("--window", type=int, default=192, metavar="PX")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scene, _ = make_scene(folder / "scene", arguments.px)
        command = [sys.executable, "-m", "declouder.cli", "remove", str(scene), "--steps", "0", "--device", "cpu"]
        command += ["--window", str(arguments.window), "--quiet"]
        command += ["--model", arguments.model] if arguments.model else []
        alone, killed = folder / "alone" / "clear.tif", folder / "killed" / "clear.tif"
        for path in (alone, killed):
            path.parent.mkdir()
        whole_s, after_first_s = run_to_end([*command, "-o", str(alone)], alone)
        total_s, kills = 0.0, 0
        while kills < arguments.kills and not killed.exists():
            total_s += run_and_kill(
                [*command, "-o", str(killed)], killed, moments.uniform(0, after_first_s / arguments.kills)
            )
            kills += not killed.exists()
        last_s = 0.0 if killed.exists() else run_to_end([*command, "-o", str(killed)], killed)[0]
        left = sorted(path.name for path in killed.parent.iterdir())
        with rasterio.open(alone) as one, rasterio.open(killed) as other:
            equal = bool(np.array_equal(one.read(), other.read()))
    found = {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "px": arguments.px,
        "kills": kills,
        "seconds_alone": round(whole_s, 1),
        "seconds_of_the_last_run": round(last_s, 1),
        "seconds": round(total_s + last_s, 1),
        "equal": equal,
        "files_left": left,
    }
    print(json.dumps(found, indent=2))
    return 0 if equal and kills == arguments.kills and left == ["clear.tif"] else 1


def run_to_end(command: list[str], output: Path) -> tuple[float, float]:
    """Run the command; return its seconds, and those after its journal began."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    journal_s = wait_for_journal(process, output, begin)
    if process.wait():
        raise SystemExit(f"declouder remove ended with status {process.returncode}")
    whole_s = time.perf_counter() - begin
    return whole_s, whole_s - journal_s


def run_and_kill(command: list[str], output: Path, after_s: float) -> float:
    """Start the command, kill it `after_s` seconds after its journal began, and return how long it ran."""
    begin = time.perf_counter()
    process = subprocess.Popen(command)
    wait_for_journal(process, output, begin)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.perf_counter() - begin


def wait_for_journal(process: subprocess.Popen[bytes], output: Path, begin: float) -> float:
    """Wait until the journal lies beside `output`, or the process has ended; return the seconds since `begin`."""
    journal = output.with_name(f".{output.name}.journal")
    while not journal.exists() and process.poll() is None:
        time.sleep(0.02)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
