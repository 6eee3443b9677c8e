"""The examples of docs/python.md: they run as they stand, and type checkers have nothing to say about them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import write_tif
from declouder.cli.options import BEST_SAMPLES, FAST_LEAST_PAINTED, FAST_STEPS

ROOT = Path(__file__).parent.parent
MODULE, PROGRAMS = "# mynet.py\n", []
PAGE = (ROOT / "docs" / "python.md").read_text()
for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
    if block.startswith("# mynet.py\n"):
        MODULE = block
    else:
        PROGRAMS.append(block)

APART = "httpx huggingface_hub lightning matplotlib pydantic rich scipy torch torchmetrics".split()  # noqa: SIM905
"""Packages that mypy does not look into: no type of ours hangs on them, and they are most of what it would read."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds what the page names."""
    rng = np.random.default_rng(0)
    write_tif(tmp_path / "scene.tif", rng.integers(0, 256, (3, 64, 80), dtype=np.uint8))
    write_tif(tmp_path / "mask.tif", (np.arange(80) < 40)[None, None].repeat(64, 1).astype(np.uint8))
    for part in ("train", "test"):
        for kind in ("cloud", "label"):
            place = tmp_path / "data" / "MINE" / part / kind
            place.mkdir(parents=True)
            for number in range(4):
                Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(place / f"{number}.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mynet.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_examples_run_as_they_stand(program, folder):
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_what_the_examples_use(folder):
    for number, program in enumerate(PROGRAMS):
        if "import mynet" not in program:  # diffusers' decorators have no types
            (folder / f"program_{number}.py").write_text(program, encoding="utf-8")
    config = folder / "mypy.ini"
    config.write_text(f"[mypy]\n[mypy-{','.join(f'{name}.*' for name in APART)}]\nfollow_imports = skip\n")
    words = [sys.executable, "-m", "mypy", "--strict", f"--config-file={config}", f"--cache-dir={folder / 'cache'}"]
    files = sorted(str(path) for path in folder.glob("program_*.py"))
    done = subprocess.run([*words, *files], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_fast_and_best_are_on_the_page_what_they_are_in_the_commands():
    assert f"| `steps={FAST_STEPS}, least_painted={FAST_LEAST_PAINTED}`" in PAGE
    assert f"`num_inference_steps={FAST_STEPS}, least_painted={FAST_LEAST_PAINTED}`" in PAGE
    assert f"`samples={BEST_SAMPLES}, average=True`" in PAGE
