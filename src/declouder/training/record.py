"""How a model came to be, written beside its weights."""

from __future__ import annotations

import functools
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

from declouder.config import StageName, TrainConfig
from declouder.data.training import TrainingData
from declouder.errors import reason_of
from declouder.model_folder import RECORD
from declouder.packages import package_versions
from declouder.training.layout import is_finished
from declouder.training.surroundings import MAKE_ROOM
from declouder.whole_files import write_text

log = logging.getLogger(__name__)

RECORDED_PACKAGES = ("declouder", "torch", "lightning", "diffusers", "numpy", "scipy", "pillow", "rasterio")


def write_record(
    config: TrainConfig, data: TrainingData, folder: Path, stage: StageName, about: dict[str, Any]
) -> None:
    """Write beside the weights how they came to be: recipe, data, versions, commit, and each stage's scores."""
    path = folder / RECORD
    earlier = _stages_recorded(path)
    # Of each stage too: one that goes on another day may be of another commit.
    made_by = {"versions": package_versions(RECORDED_PACKAGES), "commit": commit_of_source()}
    recipe = config.model_dump(mode="json")
    del recipe["data"]["base"]  # where the data lay on this machine says nothing on another
    record = {
        "recipe": recipe,
        "data": {
            "sha256": data.fingerprint(),
            "pairs": len(data.pairs),
            "held_out_pairs": len(data.held_pairs),
            "clear_images": len(data.cloudless),
            "procedural_images": len(data.terrain),
        },
        **made_by,
        "stages": {**_still_there(earlier, folder.parent), stage: about | made_by},
    }
    write_text(path, json.dumps(record, indent=1) + "\n", mend=MAKE_ROOM)


def _stages_recorded(path: Path) -> dict[StageName, Any]:
    """Return what is written of earlier stages; none if there is nothing, or nothing that can be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["stages"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is no record of a training (%s), and begun anew", path, reason_of(error))
        return {}


def _still_there(stages: dict[StageName, Any], run: Path) -> dict[StageName, Any]:
    """Return those of the earlier stages whose folders are there: to repeat one, later ones are removed."""
    return {name: about for name, about in stages.items() if is_finished(run, name)}


@functools.cache
def commit_of_source() -> str | None:
    """Return the git commit of declouder's own source, "+changes" if it was edited; None if it is installed.

    Asked for when training begins, it stays the answer: the checkout may move on while the code that runs does not.
    """
    here = Path(__file__).parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None  # a folder inside some other repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.SubprocessError):
        return None
