"""The README's commands and code, run as they are written there."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import write_tif

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("bash") for line in block.splitlines() if line.startswith("declouder ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, request) -> Path:
    """A folder that holds what the README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    write_tif(folder / "scene.tif", rng.integers(0, 256, (3, 64, 80), dtype=np.uint8))
    write_tif(folder / "reflectance.tif", rng.integers(0, 9000, (4, 64, 80), dtype=np.uint16))
    (folder / "images").mkdir()
    for name in ("a.png", "b.jpg"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "images" / name)
    for kind in ("cloud", "label"):
        pairs = folder / "data" / "RICE1" / "test" / kind
        pairs.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(pairs / "0.png")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


def test_the_readme_names_commands():
    names = {shlex.split(line)[1] for line in commands()}
    assert names >= {"remove", "train", "evaluate", "info"}


@pytest.mark.parametrize("command", commands())
def test_the_readmes_commands_run_as_written(command, folder):
    words = shlex.split(command)
    program = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if "-o" in words:
        assert (folder / words[words.index("-o") + 1]).exists()


def scored(file: str) -> str:
    mean = json.loads((ROOT / "benchmarks" / "scores" / file).read_text(encoding="utf-8"))["mean"]
    return f"{mean['psnr']:.2f}, {mean['ssim']:.3f}, {mean['lpips']:.3f}"


@pytest.mark.parametrize(("row", "file"), [("the cloudy images", "cloudy"), ("declouder, 16 MB", "model")])
def test_the_readmes_scores_are_those_of_the_benchmark(row, file):
    cells = [scored(f"{name}-{file}.json") for name in ("RICE1", "RICE2")]
    assert f"| {row} | {' | '.join(cells)} |\n" in README


def test_the_readmes_scores_of_others_are_those_given():
    with (ROOT / "benchmarks" / "given.csv").open(encoding="utf-8", newline="") as lines:
        given = [row for row in csv.DictReader(lines) if row["method"].startswith("pix2pix")]
    cells = [f"{float(row['psnr']):.2f}, {float(row['ssim']):.3f}, {float(row['lpips']):.3f}" for row in given]
    assert len(cells) == 2 and f"| pix2pix | {' | '.join(cells)} |\n" in README


def test_the_readmes_python_runs_as_written(folder):
    code, scene = blocks("python")
    check = "\nassert clear.shape == cloudy.shape and clear.min() >= 0 and clear.max() <= 1\n"
    program = [sys.executable, "-c", code + check + scene]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "by_python.tif").exists()


def anchors(page: Path) -> set[str]:
    """Return the places in a page that a link can name, as GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem
)
def test_the_pages_link_only_to_what_exists(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("target", [*re.findall(r"^make (\w+)", README, flags=re.MULTILINE), "test"])
def test_the_readmes_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
