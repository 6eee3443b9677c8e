"""The long fuzz run: spoilt GeoTIFFs, PNGs, JPEGs, WebPs, VRTs, masks, journals and model configs.

    python benchmarks/fuzz.py [--cases 500] [--seed 0] > fuzz.json

Every case must end in success or a clear error, within a time limit and without a leftover file; the first that
does not is printed, and the exit code is 1. The generator of cases is tests/fuzzing.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing import KINDS, TELLING, Case, outcome

LIMIT_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--model", type=Path, help="a pipeline folder whose configs are spoilt too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("declouder").addHandler(logging.NullHandler())
    kinds = [kind for kind in KINDS if kind != "model" or options.model]
    rng = random.Random(options.seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    signal.signal(signal.SIGALRM, _too_long)
    started = time.perf_counter()
    for number in range(options.cases):
        case = drawn(rng, kinds[number % len(kinds)])
        with tempfile.TemporaryDirectory() as folder:
            signal.alarm(LIMIT_S)
            try:
                found = outcome(case, Path(folder), options.model)
            except BaseException as error:
                traceback.print_exception(error)
                print(f"case {number}: {case!r}", file=sys.stderr)
                return 1
            finally:
                signal.alarm(0)
        counts[case.kind]["error" if found not in {"wrote", "loaded", "not tried"} else found] += 1
    seconds = round(time.perf_counter() - started, 1)
    print(json.dumps({"cases": options.cases, "seconds": seconds, "outcomes": counts}, indent=2))
    return 0


def drawn(rng: random.Random, kind: str) -> Case:
    """Return a random case; half of its edits lie in the first twentieth of the file."""
    edits = []
    for _ in range(rng.randint(1, 6)):
        place = rng.random() * (0.05 if rng.random() < 0.5 else 1)
        what = rng.choice(TELLING) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 8))
        edits.append((place, rng.choice(("replace", "replace", "replace", "insert", "delete", "truncate")), what))
    return Case(kind, rng.randrange(2**16), tuple(edits))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took over {LIMIT_S} s")


if __name__ == "__main__":
    sys.exit(main())
