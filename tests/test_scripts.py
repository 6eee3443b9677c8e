"""The scripts behind the model card and the docs: each runs on small data and gives what its head says."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from declouder.config import load_config
from declouder.data.clouds import simulate_clouds
from declouder.data.terrain import make_terrain
from declouder.pipeline import CloudRemovalPipeline
from declouder.training.networks import build_networks, make_pipeline
from toy import TOY

ROOT = Path(__file__).parent.parent
SIDE = 64
NUMBERS = (1, 2, 30, 31, 60, 61, 90, 91)
"""Of the pairs, in four blocks of neighbours."""

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a script in this process; return what it printed."""
    monkeypatch.delenv("DECLOUDER_LPIPS_BACKBONE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    def script(name: str, *words: object) -> str:
        path = ROOT / name
        monkeypatch.syspath_prepend(str(path.parent))
        monkeypatch.setattr(sys, "argv", [path.name, *map(str, words)])
        capsys.readouterr()
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return script


def save(path: Path, unit: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * unit.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RICE1 under even haze and RICE2 under broken cloud, eight pairs each, in train and in test."""
    base = tmp_path_factory.mktemp("data")
    for number in NUMBERS:
        generator = np.random.default_rng(number)
        clear = make_terrain(generator, SIDE, SIDE)
        hazy = 0.752 - generator.uniform(0.4, 0.7) * (1 - clear)
        broken = simulate_clouds(clear, generator, kind="broken", cover=0.4, strength=4.0).cloudy
        for name, cloudy in (("RICE1", hazy), ("RICE2", broken)):
            for split in ("train", "test"):
                save(base / name / split / "cloud" / f"{number}.png", cloudy)
                save(base / name / split / "label" / f"{number}.png", clear)
    return base


@pytest.fixture(scope="module")
def recipe(data: Path) -> Path:
    """A recipe of these sets, of which a part is held out, with small networks that choose and fill."""
    values = yaml.safe_load(TOY.read_text(encoding="utf-8"))
    options = {"widths": [8, 16], "blocks": [1, 1], "stem": 2, "guided": [3, 5], "filling": 8, "keep_clear": 8.0}
    values["model"]["reference"]["options"] = options
    values["data"] = {"base": "elsewhere", "pairs": ["RICE1", "RICE2"], "hold_out": 0.3, "workers": 0}
    path = data / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(recipe: Path, data: Path) -> Path:
    """The recipe's model, untrained, with a record."""
    config = load_config(recipe, [f"data.base={data}"])
    folder = data / "model"
    make_pipeline(config, build_networks(config)).save_pretrained(folder)
    (folder / "training.json").write_text('{"of": "first"}', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def other(model: Path) -> Path:
    """A model of the same recipe whose weights are twice as large."""
    pipeline = CloudRemovalPipeline.from_pretrained(model)
    with torch.no_grad():
        for name in ("reference", "denoiser", "weight_net"):
            for parameter in getattr(pipeline, name).parameters():
                parameter.mul_(2)
    folder = model.with_name("other")
    pipeline.save_pretrained(folder)
    (folder / "training.json").write_text('{"of": "second"}', encoding="utf-8")
    return folder


def weights(model: Path, part: str = "reference") -> dict[str, torch.Tensor]:
    (path,) = (model / part).glob("*.safetensors")
    return load_file(path)


def rows(printed: str) -> list[list[str]]:
    """Return the cells of the rows of a Markdown table, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert set(lines[1]) <= set("|-"), lines
    assert len({line.count("|") for line in lines}) == 1
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_mean_of_models_is_that_of_their_weights_as_often_as_they_are_named(run, model, other, tmp_path):
    out = tmp_path / "mean"
    run("scripts/average_models.py", model, other, other, "-o", out, "--reference", "keep_clear=3", "look_again=2")
    for part in ("reference", "denoiser", "weight_net"):
        one = weights(model, part)
        for name, found in weights(out, part).items():
            torch.testing.assert_close(found, one[name] * 5 / 3)
    changed = CloudRemovalPipeline.from_pretrained(out).reference.config
    assert (changed.keep_clear, changed.look_again) == (3, 2) and type(changed.look_again) is int
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert record == {"of": "second", "averaged_with": [{"of": "first"}]}
    with pytest.raises(SystemExit, match="exists; choose another --output"):
        run("scripts/average_models.py", model, other, "-o", out)


@pytest.mark.parametrize("option", ["look_again=2.5", "keep_clear=much", "block=3", "unknown=1", "look_again"])
def test_only_numbers_of_the_reference_network_are_set_anew(option, run, model, tmp_path):
    with pytest.raises(SystemExit, match=f"--reference has '{option}'; give a number's option"):
        run("scripts/average_models.py", model, "-o", tmp_path / "mean", "--reference", option)
    assert not (tmp_path / "mean").exists()


def test_models_of_different_networks_have_no_mean(run, model, tmp_path, model_folder):
    with pytest.raises(SystemExit, match="is another network than that of"):
        run("scripts/average_models.py", model, model_folder, "-o", tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_a_sharpened_model_has_scores_so_many_times_as_large(run, recipe, model, data, tmp_path):
    words = (recipe, model, "--base", data, "--first", 1, 2, "--second", 1)
    printed = run("scripts/sharpen_choice.py", *words, "-o", tmp_path / "sharp", "--by", 2, 3)
    table = rows(printed)
    assert [row[:3] for row in table] == [[first, "1", s] for first in "12" for s in ("all", "RICE1", "RICE2")]
    assert all(float(row[3]) > 5 and 0 < float(row[4]) <= 1 and row[5] == "nan" for row in table)
    before, after = (weights(folder)["choice.decide.bias"] for folder in (model, tmp_path / "sharp"))
    ratio = (after / before)[before != 0]
    assert set(ratio.round(decimals=3).unique().tolist()) == {1.0, 2.0, 3.0}
    with pytest.raises(SystemExit, match="go together"):
        run("scripts/sharpen_choice.py", *words, "-o", tmp_path / "b")


def test_a_grafted_filling_is_that_of_the_other_but_for_the_texture_of_clear_ground(run, model, other, tmp_path):
    run("scripts/graft_filling.py", model, other, "-o", tmp_path / "new", "--less", 1.5)
    new, own, theirs = (weights(folder) for folder in (tmp_path / "new", model, other))
    for name, found in new.items():
        if not name.startswith("fill."):
            torch.testing.assert_close(found, own[name])
    pixels = len(own["fill.decide.bias"]) // 4
    torch.testing.assert_close(new["fill.decide.weight"][:-pixels], theirs["fill.decide.weight"][:-pixels])
    torch.testing.assert_close(new["fill.decide.weight"][-pixels:], own["fill.decide.weight"][-pixels:])
    torch.testing.assert_close(new["fill.decide.bias"][-pixels:], own["fill.decide.bias"][-pixels:] - 1.5)
    torch.testing.assert_close(new["fill.log_tolerance"], own["fill.log_tolerance"])


def test_the_package_is_a_command_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "declouder", "--version"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout[:10]) == (0, "declouder ")


def test_a_shipped_model_is_of_half_precision_and_says_not_where_it_was(run, model, tmp_path):
    out = tmp_path / "shipped"
    printed = run("scripts/ship_model.py", model, out, "--steps", 3, "--strength", 0.5, "--w-bounds", 0.25, 1)
    assert re.search(r"\d\.\d\d MB; float16 changes a pixel by up to \d\.\d\d / 255", printed)
    assert {tensor.dtype for tensor in weights(out, "denoiser").values()} == {torch.float16}
    config = CloudRemovalPipeline.from_pretrained(out).config
    assert (config.num_inference_steps, config.strength, config.w_bounds) == (3, 0.5, [0.25, 1])
    assert json.loads((out / "training.json").read_text(encoding="utf-8")) == {"of": "first"}
    assert not any(str(model.parent) in path.read_text(encoding="utf-8") for path in out.rglob("*.json"))
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit):
        run("scripts/ship_model.py", model, tmp_path / "mine")


def test_every_setting_of_sampling_has_a_row_of_all_pairs_and_of_each_set(run, recipe, model, data, backbone):
    words = ("--backbone", backbone, "--each-set", "--steps", 1, 2, "--strength", 0.1, "--sampler", "ddim", "euler")
    table = rows(run("scripts/choose_sampling.py", recipe, model, "--base", data, *words))
    names = [row[0] for row in table]
    assert len(names) == len(set(names)) == (1 + 1 + 2 * 2) * 3
    assert names[:3] == ["reference alone", "reference alone, RICE1", "reference alone, RICE2"]
    assert names[-3].startswith("euler, w in [0, 1], strength 0.1, 2 steps")
    assert all(np.isfinite([float(cell) for cell in row[1:5]]).all() for row in table)


@pytest.mark.parametrize(
    ("script", "words", "first"),
    [
        ("other_ground.py", ("--images", 2, "--levels", 0.2, 0.5), ["0.2", "0.5"]),
        ("other_light.py", (), ["as it is", "times 0.8"]),
        ("small_clouds.py", (), ["1/1", "1/2"]),
    ],
)
def test_scores_of_held_out_pairs_changed_in_some_way_are_a_table(script, words, first, run, recipe, model, data):
    table = rows(run(f"scripts/{script}", recipe, model, "--base", data, "--steps", 0, *words))
    assert [row[0] for row in table][:2] == first
    assert all(re.match(r"\d+\.\d", row[1]) for row in table)


def test_calm_water_under_cloud_is_scored(run, recipe, model, data):
    count, *_ = (printed := run("scripts/calm_water.py", recipe, model, "--base", data, "--images", 6)).splitlines()
    assert int(count.split()[0]) > 0 and len(rows(printed)) == 1


def test_lossless_images_are_hazes_by_their_law_and_pairs_made_smaller(run, recipe, model, data, backbone):
    words = ("--grounds", 1, "--backbone", backbone)
    table = rows(run("scripts/lossless.py", recipe, model, "--base", data, *words))
    assert [row[0] for row in table] == [
        "RICE1, hazes by their law",
        "RICE1, half the size",
        "RICE2, half the size",
    ]
    assert all(re.fullmatch(r"\d+ of \d+", row[-1]) for row in table)


def test_no_script_scores_pairs_that_were_learnt_from(run, recipe, model, data, tmp_path):
    everything = tmp_path / "all.yaml"
    everything.write_text(
        recipe.read_text(encoding="utf-8").replace("hold_out: 0.3", "hold_out: 0"), encoding="utf-8"
    )
    for script in (
        "choose_sampling",
        "sharpen_choice",
        "other_ground",
        "other_light",
        "small_clouds",
        "calm_water",
    ):
        with pytest.raises(SystemExit, match=r"held out; set data\.hold_out above 0"):
            run(f"scripts/{script}.py", everything, model, "--base", data)


def test_ground_of_each_kind_is_scored_clear_and_under_haze(run, model, data, tmp_path):
    for kind, number in (("forest", 1), ("desert", 30), ("desert", 31)):
        image = Image.open(data / "RICE1" / "train" / "label" / f"{number}.png")
        (tmp_path / "ground" / kind).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "ground" / kind / f"{number}.png")
    table = rows(run("scripts/unseen_ground.py", tmp_path / "ground", model, "--haze", 0.3, "--steps", 0))
    assert [row[:2] for row in table] == [["desert", "2"], ["forest", "1"], ["all", "3"]]
    clear, hazy, restored = (float(table[-1][place].split(",")[0]) for place in (2, 4, 5))
    assert clear > restored > 5 and hazy < 30


def test_sheets_of_images_are_drawn(run, model, data, tmp_path):
    out = tmp_path / "before_after.png"
    printed = run(
        "scripts/before_after.py", data / "RICE1", data / "RICE2", "-o", out, "--count", 4, "--model", model
    )
    assert printed.endswith(f"wrote {out}: 1, 91, 1, 91\n")
    assert Image.open(out).size[0] > 6 * 168
    cloudy = data / "RICE2" / "test" / "cloud"
    words = ("--better", cloudy / "1.png", cloudy / "2.png", "--worse", cloudy / "30.png", "--model", model)
    run("scripts/case_sheet.py", "-o", tmp_path / "cases.png", *words)
    assert len(np.unique(np.asarray(Image.open(tmp_path / "cases.png").convert("RGB")))) > 50
    folders = ("--clear", data / "RICE1" / "train" / "label", "--real", cloudy)
    run("examples/cloud_sheet.py", *folders, "-o", tmp_path / "clouds.png")
    assert len(np.unique(np.asarray(Image.open(tmp_path / "clouds.png").convert("RGB")))) > 50


def test_the_curve_of_a_run_is_drawn(run, toy_run, tmp_path):
    run("examples/training_curve.py", toy_run, "-o", tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size[0] > 500
    with pytest.raises(SystemExit, match="give a run's folder"):
        run("examples/training_curve.py", tmp_path, "-o", tmp_path / "none.png")


def test_pairs_under_an_even_haze_are_counted(run, data):
    printed = run("benchmarks/haze_law.py", data / "RICE1", data / "RICE2")
    assert f"RICE1: {len(NUMBERS)} of {len(NUMBERS)} pairs under an even haze" in printed
    assert f"RICE2: 0 of {len(NUMBERS)} pairs" in printed
    assert re.search(r"white 0\.7[45]\d to 0\.7[56]\d", printed)


def test_the_page_of_scores_is_what_the_files_of_scores_say(run):
    run("benchmarks/make_benchmark_table.py", "--check")


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "scripts"])
def test_all_that_the_docs_name_can_be_loaded(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))  # the fuzzing's own inputs
    monkeypatch.syspath_prepend(str(ROOT / folder))
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(rf"\b{folder}/(\w+\.py)\b", page.read_text())}
    assert len(named) > 1
    missing = []
    for path in sorted({ROOT / folder / name for name in named} | {*(ROOT / folder).glob("*.py")}):
        try:
            runpy.run_path(str(path), run_name="loaded")
        except ModuleNotFoundError as error:  # of an extra that is not installed
            assert error.name in ("onnxruntime", "psutil"), error
            missing.append(path.name)
    assert len(missing) < len(named)


def test_left_shadow_tells_of_the_images_that_are_relit(run, model, tmp_path):
    texture = gaussian_filter(np.random.default_rng(0).standard_normal((6, 3, 192, 192)), (0, 0, 1, 1))
    for folder in ("ground", "small"):
        (tmp_path / folder).mkdir()
    for place, image in enumerate(0.4 + 0.08 * texture):
        save(tmp_path / "ground" / f"{place}.png", image)
        save(tmp_path / "small" / f"{place}.png", image[:, :64, :64])
    told = run(
        *("scripts/left_shadow.py", tmp_path / "ground", tmp_path / "small", "--model", model),
        *("--every", 2, "--cover", 0.15),
    )
    ground, small = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in told.splitlines()[2:])
    assert ground[:2] == ["ground", "3"] and int(ground[2]) > 0
    cloudy, before, after, *_, worse, better = map(float, ground[3:])
    assert cloudy > 20 and after < 0.7 * before and better > worse
    assert small == ["small", "3", "0", *["–"] * 7]


def test_left_cloud_counts_bright_pixels_by_their_distance_from_the_edge(run, model, tmp_path):
    image = np.full((3, SIDE, SIDE), 0.2)
    image[:, :8, :] = 0.9
    save(tmp_path / "edge.png", image)
    save(tmp_path / "dark.png", np.full((3, SIDE, SIDE), 0.2))
    told = run(
        *("scripts/left_cloud.py", tmp_path / "edge.png", tmp_path / "dark.png", "--model", model),
        *("--steps", 0, "--look-again", 0),
    )
    rows = [line.split(" | ") for line in told.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| edge", "| dark", "| mean of 2"]
    assert rows[1][1:] == ["–", "–", "–", "– |"]
    assert rows[0] == ["| edge", "1.00", "1.00", "–", "1.00 |"]
    assert rows[2][1:] == rows[0][1:]
