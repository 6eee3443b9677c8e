"""`declouder remove` as a user meets it: exit codes, the one line of an error, what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
import torch
from PIL import Image

from conftest import names_in, read_tif, write_tif
from declouder import CloudRemovalPipeline, cli
from declouder.cli.jobs import Jobs, jobs_folder, listed_in, planned_jobs
from declouder.cli.running import Outcome, hint, summary
from declouder.errors import OutputError, RasterError
from declouder.raster.gdal import check_name
from declouder.scene import SceneOptions, remove_from_scene
from declouder.small_clouds import SmallClouds


def run(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.fixture
def scene(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_tif(tmp_path / "scene.tif", rng.integers(1, 256, (3, 60, 70), dtype=np.uint8), nodata=0)


def test_a_scene_is_restored_and_the_last_line_says_what_was_written(scene, model_folder, tmp_path, capfd):
    output = tmp_path / "clear.tif"
    assert run("remove", scene, "-o", output, "--model", model_folder, "--steps", 2, "--window", 32) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 1
    assert out.startswith(f"wrote {output}: 0.0042 megapixels in ") and out.endswith(" MP/s\n")
    assert "bands: 1,2,3 = red, green, blue" in err and "scale: 0,255" in err
    assert read_tif(output).shape == (3, 60, 70)


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others(scene, model_folder, tmp_path):
    options = ("--model", model_folder, "--steps", 2, "--quiet")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("remove", scene, "-o", tmp_path / f"{name}.tif", "--seed", seed, *options) == 0
    a, b, c = (read_tif(tmp_path / f"{name}.tif") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_fast_steps_only_in_painted_windows_and_best_is_the_mean_of_two_draws(scene, model_folder, tmp_path):
    pipeline = CloudRemovalPipeline.from_pretrained(model_folder)
    for name, options in (
        ("fast", ["--fast"]),
        ("0", ["--steps", 0]),
        ("1", ["--steps", 1]),
        ("best", ["--best"]),
        ("own", []),
    ):
        assert (
            run("remove", scene, "-o", tmp_path / f"{name}.tif", "--model", model_folder, *options, "--quiet") == 0
        )
    remove_from_scene(scene, tmp_path / "mean.tif", pipeline, SceneOptions(samples=2, average=True))
    pixels = {name: read_tif(tmp_path / f"{name}.tif") for name in ("fast", "0", "1", "best", "mean", "own")}
    np.testing.assert_array_equal(pixels["best"], pixels["mean"])
    assert (pixels["best"] != pixels["own"]).any() and (pixels["1"] != pixels["0"]).any()
    stepped = {name: (pixels["fast"] == pixels[name]).all() for name in ("0", "1")}
    assert sum(stepped.values()) == 1  # the scene is one window: a step for all of it, or none


@pytest.mark.parametrize("best", [[], ["--best", "--samples", 3]])
def test_an_enlarged_scene_is_scored_as_the_image_that_was_written(best, model_folder, tmp_path, rng):
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "test" / kind).mkdir(parents=True)
        image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / "test" / kind / "1.png")
    options = ["--model", model_folder, "--steps", 2, "--enlarge", 2, *best, "--quiet"]
    out = tmp_path / "clear"
    assert run("remove", tmp_path / "set" / "test" / "cloud", "-o", out, *options) == 0
    assert run("evaluate", tmp_path / "set", "--out", tmp_path / "one.json", *options) == 0
    assert run("evaluate", tmp_path / "set", "--out", tmp_path / "two.json", "--outputs", out, "--quiet") == 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["mean"]["psnr"] == two["mean"]["psnr"]
    assert one["method"]["enlarge"] == 2 and one["method"]["samples"] == (3 if best else 1)
    assert (
        run("remove", tmp_path / "set" / "test" / "cloud", "-o", tmp_path / "as_is", *options[:4], "--quiet") == 0
    )
    assert (np.asarray(Image.open(out / "1.png")) != np.asarray(Image.open(tmp_path / "as_is" / "1.png"))).any()


def test_quiet_prints_nothing(scene, model_folder, tmp_path, capfd):
    options = ("--model", model_folder, "--steps", 1, "--sampler", "ddim-trailing", "--quiet")
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ((), "small clouds seem to be left in {}: look at it, and try --enlarge 2\n"),
        (("--enlarge", 2), "small clouds seem to be left in {}: look at it, and try --enlarge 3\n"),
        (("--enlarge", 4), ""),
        (("--quiet",), None),
    ],
)
def test_where_small_clouds_are_left_a_last_line_says_what_to_try(
    options, hint, scene, model_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(SmallClouds, "are_left", True)
    output = tmp_path / "clear.tif"
    assert run("remove", scene, "-o", output, "--model", model_folder, "--steps", 0, *options) == 0
    out = capfd.readouterr().out
    if hint is None:
        assert out == ""
    else:
        assert out.startswith("wrote ") and out[out.index("\n") + 1 :] == hint.format(output)


def test_a_folder_goes_to_an_output_folder_under_the_same_names_with_jpeg_as_png(model_folder, tmp_path, rng):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    assert run("remove", folder, "-o", tmp_path / "out", "--model", model_folder, "--steps", 0, "-q") == 0
    assert names_in(tmp_path / "out") == ["a.png", "b.png", "c.webp"]
    assert all(Image.open(path).size == (40, 30) for path in (tmp_path / "out").iterdir())


MISTAKES = [
    (["missing.tif", "-o", "b.tif"], "missing.tif does not exist"),
    (["no-folder/", "-o", "out"], "no-folder does not exist"),
    (["https://example.com/a.tif", "-o", "b.tif"], "looks like an address; only files are read: download it first"),
    (["empty.tif", "-o", "b.tif"], "is empty"),
    (["text.tif", "-o", "b.tif"], "not an image"),
    (["cut.tif", "-o", "b.tif"], "truncated"),
    (["complex.tif", "-o", "b.tif"], "complex"),
    (["scene.tif", "text.tif", "-o", "out"], "not an image"),
    (["nothing", "-o", "out"], "holds no image"),
    (["scene.tif"], "Missing option"),
    (["scene.tif", "-o", "nowhere/b.tif"], "mkdir -p nowhere"),
    (["scene.tif", "scene2.tif", "-o", "nowhere/out"], "mkdir -p nowhere"),
    (["scene.tif", "-o", "scene.tif", "--overwrite"], "is the input"),
    (["scene.tif", "-o", "link.tif", "--overwrite"], "is the input"),
    (["scene.tif", "-o", "scene2.tif"], "exists already; give --overwrite"),
    (["scene.tif", "-o", "new"], "or make the folder first: mkdir -p new"),
    (["", "-o", "b.tif"], "an argument is empty"),
    (["scene.tif", "-o", "b.jpg"], "JPEG would lose detail"),
    (["scene.tif", "scene2.tif", "-o", "b.tif"], "do not go into one file"),
    (["scene.tif", "sub/scene.tif", "-o", "out"], "would both become"),
    (["a/missing.tif", "b/missing.tif", "-o", "out"], "a/missing.tif does not exist"),
    (["scene.tif", "-o", "b.tif", "--bands", "0,1,2"], "counted from 1"),
    (["scene.tif", "-o", "b.tif", "--bands", "1,2,4"], "has 3 bands"),
    (["scene.tif", "-o", "b.tif", "--bands", "1,1,2"], "each band once"),
    (["scene.tif", "-o", "b.tif", "--bands", "red"], "--bands red names 1 bands"),
    (["scene.tif", "-o", "b.tif", "--bands", "one"], "no band that is called 'one' (red, green, blue)"),
    (["scene.tif", "-o", "b.tif", "--scale", "5,1"], "low 5 is not below high 1"),
    (["scene.tif", "-o", "b.tif", "--scale", "5"], "--scale is '5'"),
    (["scene.tif", "-o", "b.tif", "--scale", "nan,1"], "scale nan,1 is not of numbers up to 1e+37"),
    (["scene.tif", "-o", "b.tif", "--steps", "-1"], "steps is -1"),
    (["scene.tif", "-o", "b.tif", "--steps", "2", "--fast"], "give one of them"),
    (["scene.tif", "-o", "b.tif", "--steps", "0", "--fast"], "--fast and --steps exclude each other"),
    (["scene.tif", "-o", "b.tif", "--fast", "--best"], "--fast and --best exclude each other"),
    (["scene.tif", "-o", "b.tif", "--steps", "0", "--best"], "--steps 0 draws none"),
    (["scene.tif", "-o", "b.tif", "--steps", "0", "--samples", "2", "--provenance", "p.tif"], "--samples 2 draws"),
    (["scene.tif", "-o", "b.tif", "--steps", "0", "--sampler", "ddim"], "--steps 0 takes none"),
    (["/vsizip/a.zip/scene.tif", "-o", "b.tif"], "unpack it first"),
    (["scene.tif", "-o", "b.tif", "--samples", "0", "--best"], "samples is 0"),
    (["scene.tif", "-o", "b.tif", "--samples", "1", "--best"], "--best is the mean of several draws"),
    (["scene.tif", "-o", "b.tif", "--steps", "0", "--precision", "bf16"], "--steps 0 takes none"),
    (
        ["scene.tif", "scene2.tif", "-o", "out", "--mask", "absent.tif"],
        "error: absent.tif does not exist; check the name",
    ),
    (["scene.tif", "-o", "b.tif", "--steps", "many"], "'--steps'"),
    (["scene.tif", "-o", "b.tif", "--window", "31"], "window is 31 px; give at least 32"),
    (["scene.tif", "-o", "b.tif", "--enlarge", "0"], "enlarge is 0"),
    (["scene.tif", "-o", "b.tif", "--enlarge", "5"], "enlarge is 5; give a whole number from 1 to 4"),
    (["scene.tif", "-o", "b.tif", "--overlap", "600"], "overlap is 600 px"),
    (["scene.tif", "-o", "b.tif", "--batch", "0"], "batch is 0"),
    (["scene.tif", "-o", "b.tif", "--seed", "-5"], "seed is -5"),
    (["scene.tif", "-o", "b.tif", "--device", "tpu"], "--device is 'tpu'"),
    (["scene.tif", "-o", "b.tif", "--no-such-option"], "--no-such-option"),
    (["scene.tif", "-o", "b.tif", "--threads", "0"], "threads is 0"),
    (["scene.tif", "-o", "b.tif", "--mask", "missing.tif"], "missing.tif does not exist"),
    (["scene.tif", "-o", "b.tif", "--mask", "text.tif"], "not an image"),
    (["scene.tif", "-o", "b.tif", "--mask", "grey.png"], "give a mask of that size"),
    (["scene.tif", "-o", "mask.tif", "--mask", "mask.tif", "--overwrite"], "is the input"),
    (["scene.tif", "-o", "b.tif", "--mask-kind", "landsat-qa"], "the mask is none, which has neither kind"),
    (["scene.tif", "-o", "b.tif", "--mask", "auto", "--mask-values", "1"], "the mask is auto, which has neither"),
    (["scene.tif", "-o", "b.tif", "--mask", "mask.tif", "--mask-kind", "modis"], "mask kind is 'modis'"),
    (["scene.tif", "-o", "b.tif", "--mask", "mask.tif", "--mask-values", "cloud"], "--mask-values is 'cloud'"),
    (
        ["scene.tif", "-o", "b.tif", "--mask", "mask.tif", "--mask-kind", "landsat-qa", "--mask-values", "1"],
        "given for the kind landsat-qa",
    ),
    (["scene.tif", "-o", "b.tif", "--mask", "auto", "--feather", "-1"], "feather is -1 px"),
    (["scene.tif", "-o", "b.tif", "--feather", "8"], "--feather is of a mask; give --mask too"),
    (["scene.tif", "-o", "b.tif", "--provenance", "b.tif"], "is the output itself"),
    (["scene.tif", "-o", "b.tif", "--provenance", "sub/../b.tif"], "is the output itself"),
    (
        ["scene.tif", "-o", "b.tif", "--provenance", "scene.tif", "--overwrite"],
        "--provenance scene.tif is the input",
    ),
    (
        ["scene.tif", "-o", "b.tif", "--mask", "mask.tif", "--provenance", "mask.tif", "--overwrite"],
        "is the input",
    ),
    (["scene.tif", "-o", "b.tif", "--provenance", "scene2.tif"], "exists already"),
    (["scene.tif", "-o", "b.tif", "--provenance", "nowhere/said.tif"], "mkdir -p nowhere"),
    (["scene.tif", "-o", "b.tif", "--provenance", "said.png"], "cannot hold 2 bands of float32"),
    (["scene.tif", "scene2.tif", "-o", "out", "--provenance", "said.tif"], "--provenance names one file"),
    (["scene.tif", "-o", "b.tif", "--samples", "4"], "give --provenance"),
    (["scene.tif", "-o", "b.tif", "--samples", "0", "--provenance", "said.tif"], "samples is 0"),
    (["scene.tif", "-o", "b.png", "--cog"], "cannot be a cloud-optimised GeoTIFF"),
    (["scene.tif", "-o", "b.tif", "--max-pixels", "4199"], "--max-pixels 4200"),
    (["scene.tif", "-o", "b.tif", "--max-pixels", "0"], "max-pixels is 0"),
    (["sub/outside.vrt", "-o", "b.tif"], "--allow-outside"),
    (["-o", "b.tif"], "no INPUT is given"),
    (["-o", "out", "--list", "missing.txt"], "--list missing.txt does not exist; check the name"),
    (["-o", "out", "--list", "nothing"], "--list nothing cannot be read (Is a directory)"),
    (["-o", "out", "--list", "scene.tif"], "--list scene.tif is no text in UTF-8"),
    (["-o", "out", "--list", "empty.tif"], "names no image"),
    (["-o", "out", "--list", "names.txt"], "gone.tif does not exist"),
    (["scene.tif", "-o", "b.tif", "--skip-existing", "--overwrite"], "exclude each other"),
    (["scene.tif", "-o", "b.tif", "--cluster", "eight"], "--cluster is 'eight'"),
]
NEED_TORCH = [
    (["scene.tif", "-o", "b.tif", "--sampler", "magic"], "--sampler is 'magic'"),
    (["scene.tif", "-o", "b.tif", "--model", "./no-model"], "no-model"),
    (["scene.tif", "scene2.tif", "-o", "out", "--model", "./no-model"], "no-model"),
    (["scene.tif", "-o", "b.tif", "--model", "./half-model"], "denoiser"),
    (["scene.tif", "-o", "b.tif", "--model", "./model", "--bands", "1,2"], "names 2 bands"),
    (["grey.png", "-o", "b.png", "--model", "./model"], "has 1 band, this model wants 3"),
    (["scene.tif", "grey.png", "-o", "out", "--model", "./model"], "has 1 band, this model wants 3"),
]


@pytest.fixture
def workplace(tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with good and bad files."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(scene, "scene2.tif")
    Path("link.tif").symlink_to("scene.tif")
    Path("empty.tif").touch()
    Path("text.tif").write_text("no image\n")
    data = scene.read_bytes()
    Path("cut.tif").write_bytes(data[: len(data) * 3 // 4])
    write_tif(Path("complex.tif"), np.ones((3, 4, 4), np.complex64))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("grey.png")
    Path("nothing").mkdir()
    Path("sub").mkdir()
    write_tif(Path("mask.tif"), np.eye(70, dtype=np.uint8)[None, :60])
    Path("names.txt").write_text("# two scenes\nscene.tif\n\ngone.tif\n")
    Path("sub/outside.vrt").write_text(vrt_of("../scene.tif"))
    shutil.copy(scene, "sub/scene.tif")
    return tmp_path


def vrt_of(name: str) -> str:
    """Return a VRT of the scene, which it names relative to itself."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{k}"><SimpleSource><SourceFilename relativeToVRT="1">{name}'
        f"</SourceFilename><SourceBand>{k}</SourceBand></SimpleSource></VRTRasterBand>"
        for k in (1, 2, 3)
    )
    return f'<VRTDataset rasterXSize="70" rasterYSize="60">{bands}</VRTDataset>'


def assert_refused(arguments: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capfd.readouterr()
    assert run("remove", *arguments) == 2
    out, err = capfd.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("error: ") and words in last
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[words for _, words in MISTAKES])
def test_a_mistake_is_one_line_with_exit_2_and_leaves_nothing(arguments, words, workplace, capfd):
    assert_refused(arguments, words, capfd)
    # The message itself is the only line.
    run("remove", *arguments)
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "words"), NEED_TORCH, ids=[words for _, words in NEED_TORCH])
def test_a_mistake_about_the_model_leaves_nothing_either(arguments, words, workplace, model_folder, capfd):
    shutil.copytree(model_folder, "model")
    shutil.copytree(model_folder, "half-model")
    shutil.rmtree("half-model/denoiser")
    assert_refused(arguments, words, capfd)


def test_the_help_begins_with_what_people_come_for_and_names_all_samplers(capfd):
    from declouder.pipeline import SAMPLERS

    run("--help")
    commands = capfd.readouterr().out.split("Commands:")[1].split("\n")
    listed = [line.split()[0] for line in commands if re.match(r"  \S", line)]
    assert listed[:2] == ["remove", "evaluate"]
    assert {"train", "report", "ablate", "data", "info", "convert"} < {*listed}
    run("remove", "--help")
    told = " ".join(capfd.readouterr().out.split())
    assert all(name in told for name in SAMPLERS)


def test_the_help_of_ablate_names_all_that_it_can_do(capfd):
    from declouder.ablation import GROUP_NAMES

    run("ablate", "--help")
    told = "".join(capfd.readouterr().out.split())
    assert ",".join(GROUP_NAMES) in told


@pytest.mark.parametrize("group", [(), ("data",)], ids=["all", "data"])
def test_what_commands_do_is_told_in_whole_sentences(group, capfd):
    run(*group, "--help")
    told = [line for line in capfd.readouterr().out.split("Commands:")[1].splitlines() if line.strip()]
    assert len(told) >= 3
    assert all(line.endswith(".") and not line.endswith("...") for line in told)


def test_debug_shows_where_an_error_came_from(workplace, capfd):
    assert run("remove", "missing.tif", "-o", "b.tif", "--debug") == 2
    err = capfd.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("error: missing.tif does not exist")


def test_a_bug_of_ours_is_one_line_with_exit_1(capfd):
    with pytest.raises(SystemExit) as caught, cli.reporting_errors():
        raise ZeroDivisionError("by zero")
    assert caught.value.code == 1
    assert capfd.readouterr().err == (
        "error: ZeroDivisionError: by zero (this is a bug in declouder; --debug shows where)\n"
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"), MemoryError()])
def test_memory_that_does_not_suffice_is_no_bug(error, capfd):
    with pytest.raises(SystemExit) as caught, cli.reporting_errors():
        raise error
    told = capfd.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1
    assert told.startswith("error: memory does not suffice (") and "--device cpu" in told


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_exits_130_and_leaves_no_half_written_output(name, model_folder, tmp_path, rng):
    source = write_tif(tmp_path / "big.tif", rng.integers(1, 256, (3, 1500, 1500), dtype=np.uint8))
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "declouder.cli", "remove", source, "-o", folder / "b.tif"]
    command += ["--model", model_folder, "--steps", "50", "--window", "64"]
    # A shell starts what it puts in the background with SIGINT ignored, nohup with SIGHUP; a child inherits that.
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    for number, handler in before.items():
        signal.signal(number, handler)
    started = time.monotonic()
    while not names_in(folder) and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    try:
        # Not a test of speed: beside other work the threads of an operator wait for each other, and it takes long.
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert names_in(folder) == []


@pytest.mark.parametrize("words", [[], ["data"]])
def test_a_command_without_arguments_shows_its_help_as_it_is(words, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    told = capfd.readouterr().err
    assert ended.value.code == 2 and told.startswith("Usage: declouder") and told.count("\n") > 8


def test_help_and_mistakes_import_nothing_heavy():
    code = (
        "import sys; from declouder import cli\n"
        "for args in (['--help'], ['remove', '--help']):\n"
        "    try: cli.main(args)\n"
        "    except SystemExit as stop: assert not stop.code\n"
        "assert not {'torch', 'diffusers', 'rasterio', 'numpy'} & set(sys.modules)\n"
        "try: cli.main(['remove', 'missing.tif', '-o', 'b.tif', '--steps', '3'])\n"
        "except SystemExit as stop: assert stop.code == 2\n"
        "assert not {'torch', 'diffusers'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Remove the clouds" in result.stdout


@pytest.fixture
def quick(model_folder: Path) -> tuple[object, ...]:
    return ("--model", model_folder, "--steps", 0, "--window", 64, "--quiet")


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """A mask of class numbers: 8 in one corner (to Sentinel-2: cloud), 2 in another, else 4."""
    classes = np.full((1, 60, 70), 4, np.uint8)
    classes[:, :20, :20], classes[:, 40:, 50:] = 8, 2
    return write_tif(tmp_path / "mask.tif", classes)


@pytest.mark.parametrize(
    ("options", "corners"),
    [
        (("--mask-values", "8"), [True, False]),
        (("--mask-values", "2,8"), [True, True]),
        (("--mask-kind", "sentinel2-scl"), [True, False]),
    ],
)
def test_a_mask_says_which_pixels_may_change(options, corners, scene, mask, quick, tmp_path):
    output = tmp_path / "b.tif"
    # One step of the diffusion: an untrained reference network gives the image back.
    options = (*quick, "--steps", 1, "--mask", mask, "--feather", 0, *options)
    assert run("remove", scene, "-o", output, *options) == 0
    changed = (read_tif(output) != read_tif(scene)).any(axis=0)
    assert [bool(changed[:20, :20].any()), bool(changed[40:, 50:].any())] == corners
    assert not changed[20:40].any()


def test_the_feather_is_as_wide_as_asked_for(scene, mask, quick, tmp_path):
    said = tmp_path / "said.tif"
    options = ("--mask", mask, "--mask-values", 8, "--feather", 6, "--provenance", said)
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options, *quick) == 0
    share = read_tif(said)[0]
    assert (share[:23, 10] == 1).all() and 0 < share[24, 10] < 1 and (share[26:, 10] == 0).all()


def test_the_estimate_of_our_own_can_be_asked_for(scene, quick, tmp_path):
    assert run("remove", scene, "-o", tmp_path / "b.tif", "--mask", "auto", *quick) == 0


def test_provenance_and_samples_write_a_second_raster(scene, quick, tmp_path):
    options = (*quick, "--provenance", tmp_path / "said.tif", "--steps", 1, "--samples", 3)
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options) == 0
    changed, w, spread = read_tif(tmp_path / "said.tif")
    assert changed.max() == 1 and w.max() <= 1 and spread.max() > 0
    assert names_in(tmp_path) == ["b.tif", "said.tif", "scene.tif"]


def test_cog_writes_a_valid_cloud_optimised_geotiff(scene, quick, tmp_path):
    from rio_cogeo import cog_validate

    assert run("remove", scene, "-o", tmp_path / "b.tif", "--cog", *quick) == 0
    valid, errors, _ = cog_validate(tmp_path / "b.tif")
    assert valid, errors


def test_a_scene_as_large_as_allowed_and_a_vrt_of_files_elsewhere_are_restored(scene, quick, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "outside.vrt").write_text(vrt_of("../scene.tif"))
    options = ("--max-pixels", 4200, "--allow-outside")
    assert run("remove", tmp_path / "sub" / "outside.vrt", "-o", tmp_path / "b.tif", *options, *quick) == 0
    assert read_tif(tmp_path / "b.tif").shape == (3, 60, 70)


def test_a_mask_may_name_files_elsewhere_too_and_may_have_a_colour_table(scene, mask, quick, tmp_path):
    with rasterio.open(mask, "r+") as dataset:
        dataset.write_colormap(1, {8: (255, 255, 255, 255), 2: (0, 0, 99, 255)})
    (tmp_path / "sub").mkdir()
    place = tmp_path / "sub" / "mask.vrt"
    rasterio.shutil.copy(mask, place, driver="VRT")
    options = ("--mask", place, "--mask-values", 8, *quick, "--steps", 1)
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options) == 2
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options, "--allow-outside") == 0
    changed = (read_tif(tmp_path / "b.tif") != read_tif(scene)).any(axis=0)
    assert changed[:20, :20].any() and not changed[40:, 50:].any()


def test_a_mask_that_marks_nothing_of_the_scene_is_said(scene, mask, quick, tmp_path, capfd):
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", scene, "-o", tmp_path / "b.tif", "--mask", mask, "--mask-values", 99, *loud) == 0
    assert f"the mask {mask} marks no cloud there" in capfd.readouterr().err
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), read_tif(scene))


def test_a_scene_without_data_is_no_matter_of_its_mask(quick, tmp_path, capfd):
    scene = write_tif(tmp_path / "a.tif", np.full((3, 64, 64), 7, np.uint8), nodata=7)
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", scene, "-o", tmp_path / "b.tif", "--mask", "auto", *loud) == 0
    assert "nothing was restored in" in (told := capfd.readouterr().err) and "it holds no data" in told


@pytest.mark.parametrize("feather", [0, 8])
def test_how_much_a_mask_covers_is_said(feather, scene, mask, quick, tmp_path, capfd):
    loud = [option for option in quick if option != "--quiet"]
    options = (
        "--mask",
        mask,
        "--mask-values",
        8,
        "--feather",
        feather,
        "--provenance",
        tmp_path / "said.tif",
        *loud,
    )
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options) == 0
    share = (read_tif(tmp_path / "said.tif")[0] > 0).mean()
    assert 0.09 < share < 0.2
    assert (
        f"mask: cloud and its feather are {100 * share:.1f} % of {tmp_path / 'b.tif'}\n" in capfd.readouterr().err
    )


def test_of_several_scenes_the_log_says_which_it_tells_of(scene, quick, tmp_path, capfd):
    loud = [option for option in quick if option != "--quiet"]
    second = shutil.copy(scene, tmp_path / "second.tif")
    assert run("remove", scene, second, "-o", tmp_path / "out", *loud) == 0
    lines = capfd.readouterr().err.splitlines()
    assert [lines[0], lines[3]] == [f"{scene}:", f"{second}:"]
    assert lines[1].startswith("bands: ") and lines[4].startswith("bands: ")


@pytest.mark.parametrize("length", [20, 40, 120])
def test_a_long_name_leaves_the_numbers_of_the_bar_whole(length, scene, quick, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    loud = [option for option in quick if option != "--quiet"]
    long = scene.rename(tmp_path / f"{'x' * (length - 4)}.tif")
    assert run("remove", long, "-o", tmp_path / "b.tif", *loud) == 0
    bar = capfd.readouterr().err.splitlines()[-1]
    assert re.search(r"\.tif .* 2/2 windows, 0:00:0\d gone, 0:00:00 left$", bar)


def test_a_narrow_terminal_shows_the_numbers_in_place_of_a_bar(scene, quick, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", scene, "-o", tmp_path / "b.tif", *loud) == 0
    assert re.search(r"^scene\.tif +2/2 windows, 0:00:00 left$", capfd.readouterr().err.splitlines()[-1])


def test_a_scene_that_a_folder_and_a_list_name_is_restored_once(scene, quick, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(scene, tmp_path / "in" / "a.tif")
    (tmp_path / "in" / "._a.tif").write_bytes(b"\0\5\x16\7 Mac OS X")
    (tmp_path / "names.txt").write_text(str(tmp_path / "in" / "a.tif"))
    options = ("--list", tmp_path / "names.txt", "-o", tmp_path / "out", *quick)
    assert run("remove", tmp_path / "in", *options) == 0
    assert names_in(tmp_path / "out") == ["a.tif"]


def test_a_single_scene_goes_to_a_folder_that_is_there(scene, quick, tmp_path, capfd):
    out, said = tmp_path / "out", tmp_path / "said.tif"
    out.mkdir()
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", scene, "-o", f"{out}/", "--provenance", said, *loud) == 0
    assert names_in(out) == [scene.name] and said.exists()
    assert capfd.readouterr().out.startswith(f"wrote 1 image to {out}: ")
    assert run("remove", scene, "-o", out, "--skip-existing", *loud) == 0
    assert capfd.readouterr().out == "wrote nothing, 1 existed already\n"


def test_a_folder_that_another_run_has_made_meanwhile_is_used(scene, tmp_path):
    jobs = planned_jobs([scene, tmp_path], None, tmp_path / "out", SceneOptions(), skip_existing=True)
    (tmp_path / "out").mkdir()
    with jobs_folder(jobs):
        (tmp_path / "out" / "scene.tif").touch()
    assert names_in(tmp_path / "out") == ["scene.tif"]


def test_a_list_and_folders_go_to_one_folder_and_existing_outputs_are_passed_over(
    scene, model_folder, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("in/a.tif", "in/b.tif"):
        shutil.copy(scene, name)
    Path("names.txt").write_text("# more\n\nscene.tif\n", encoding="utf-8")
    options = ("in", "--list", "names.txt", "-o", "out", "--model", model_folder, "--steps", 0)
    assert run("remove", *options) == 0
    assert names_in(Path("out")) == ["a.tif", "b.tif", "scene.tif"]
    kept = Path("out/a.tif").stat().st_mtime_ns
    Path("out/.a.tif.journal").touch()  # a run was killed just before it deleted this
    os.utime("out/.a.tif.journal", ns=(kept, kept))
    Path("out/b.tif").unlink()
    capfd.readouterr()
    assert run("remove", *options, "--skip-existing") == 0
    assert capfd.readouterr().out.startswith("wrote 1 image to out, 2 existed already: 0.0042 megapixels in ")
    assert Path("out/a.tif").stat().st_mtime_ns == kept
    assert names_in(Path("out")) == ["a.tif", "b.tif", "scene.tif"]
    # What is passed over is not even opened; and a model is not needed for nothing.
    Path("in/a.tif").write_text("no image any more")
    assert run("remove", *options[:5], "--model", "./no-model", "--skip-existing") == 0
    assert capfd.readouterr().out == "wrote nothing, 3 existed already\n"


def test_a_damaged_scene_does_not_stop_the_others(scene, quick, tmp_path, rng, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    damaged = write_tif(folder / "a.tif", rng.integers(0, 256, (3, 256, 256), dtype=np.uint8), compress="deflate")
    shutil.copy(scene, folder / "b.tif")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)  # its blocks, not its table of them: it opens
    damaged.write_bytes(data)
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", folder, "-o", tmp_path / "out", *loud) == 2
    told = capfd.readouterr()
    assert names_in(tmp_path / "out") == ["b.tif"]
    assert "wrote 1 image" in told.out and "a.tif cannot be read" in told.err.splitlines()[-1]


def test_an_image_of_a_folder_that_cannot_be_used_does_not_stop_the_others(scene, quick, tmp_path, rng, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.tif", "d.tif"):
        shutil.copy(scene, folder / name)
    (folder / "b.tif").write_bytes(scene.read_bytes()[:2000])
    Image.fromarray(rng.integers(0, 9, (9, 9), dtype=np.uint8)).convert("P").save(folder / "c.tif")
    assert run("remove", folder, "-o", tmp_path / "out", *quick) == 2
    told = capfd.readouterr().err
    assert names_in(tmp_path / "out") == ["a.tif", "d.tif"]
    assert "b.tif" in told and "2 scenes failed in all, the others are finished" in told.splitlines()[-1]
    for name in ("a.tif", "d.tif"):
        (folder / name).unlink()
    assert run("remove", folder, "-o", tmp_path / "none", *[word for word in quick if word != "--quiet"]) == 2
    told = capfd.readouterr().err
    assert "passed over: " in told and "2 scenes failed in all, no other was left to do" in told.splitlines()[-1]
    shutil.copy(scene, folder / "a.tif")
    # One that was named is looked at first.
    assert run("remove", folder / "a.tif", folder / "c.tif", "-o", tmp_path / "named", *quick) == 2
    assert not (tmp_path / "named").exists()


def test_a_quick_look_in_a_folder_does_not_stop_cloud_optimised_geotiffs(scene, quick, tmp_path, rng, capfd):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(scene, folder / "a.tif")
    Image.fromarray(rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(folder / "look.jpg")
    for out in ("new", "there"):
        (tmp_path / "there").mkdir(exist_ok=True)
        assert run("remove", folder, "-o", tmp_path / out, "--cog", *quick) == 2
        assert names_in(tmp_path / out) == ["a.tif"]
        assert "look.png cannot be a cloud-optimised GeoTIFF" in capfd.readouterr().err.splitlines()[-1]
    # One that was named is told before any work.
    named = (folder / "a.tif", folder / "look.jpg")
    assert run("remove", *named, "-o", tmp_path / "named", "--cog", *quick) == 2
    assert not (tmp_path / "named").exists()


@pytest.mark.parametrize("given", [("xx\udcff.tif", "b.tif"), ("scene.tif", "b\udcff.tif")])
def test_a_name_that_is_no_utf_8_is_one_line_with_exit_2(given, scene, quick, tmp_path, capfd):
    source, output = (tmp_path / name for name in given)
    if not source.exists():
        try:
            shutil.copy(scene, source)
        except OSError:
            pytest.skip("the file system knows no such names")
    assert run("remove", source, "-o", output, *quick) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "is no UTF-8; rename" in err


@pytest.mark.parametrize("where", ["finished", "at work"])
def test_a_scene_that_another_run_took_meanwhile_is_passed_over(where, scene, quick, tmp_path, monkeypatch, capfd):
    from declouder import scene as scenes
    from declouder.errors import BusyError

    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(scene, folder / name)
    real = scenes.remove_from_scene

    def other_run(source: Path, output: Path, *arguments: object, **options: object) -> object:
        if source.name == "a.tif":
            if where == "at work":
                raise BusyError("another run is writing it")
            shutil.copy(scene, tmp_path / "out" / "b.tif")
        return real(source, output, *arguments, **options)

    monkeypatch.setattr(scenes, "remove_from_scene", other_run)
    loud = [option for option in quick if option != "--quiet"]
    assert run("remove", folder, "-o", tmp_path / "out", "--skip-existing", *loud) == 0
    assert ", 1 left to another run: " in capfd.readouterr().out
    assert names_in(tmp_path / "out") == (["a.tif", "b.tif"] if where == "finished" else ["b.tif"])


def test_a_provenance_that_is_none_of_ours_is_kept_whatever_a_stopped_run_left(scene, quick, tmp_path, capfd):
    precious = write_tif(tmp_path / "precious.tif", np.ones((1, 4, 4), np.float32))
    before = precious.read_bytes()
    (tmp_path / ".b.tif.journal").touch()
    assert run("remove", scene, "-o", tmp_path / "b.tif", "--provenance", precious, *quick) == 2
    assert "exists already" in capfd.readouterr().err and precious.read_bytes() == before


@pytest.mark.parametrize("option", ["-o", "--mask", "--provenance", "INPUT"])
def test_a_name_too_long_for_the_file_system_is_one_line_with_exit_2(option, scene, quick, tmp_path, capfd):
    long = tmp_path / ("x" * 300 + ".tif")
    given = {"-o": tmp_path / "b.tif", "INPUT": scene} | {option: long}
    words = [given.pop("INPUT")] + [word for pair in given.items() for word in pair]
    assert run("remove", *words, *quick) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "bug" not in err


def test_an_interrupt_that_something_caught_is_heard_at_the_next_window(scene, quick, tmp_path, monkeypatch, capfd):
    from declouder.scene import windows

    real = windows.Plan

    def caught(*arguments: object, **options: object) -> object:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        return real(*arguments, **options)

    monkeypatch.setattr(windows, "Plan", caught)
    # What a shell starts in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run("remove", scene, "-o", tmp_path / "b.tif", *quick) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted" in capfd.readouterr().err and not (tmp_path / "b.tif").exists()


def test_a_link_to_itself_is_a_bad_path_and_no_bug(tmp_path, capfd):
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    assert run("remove", source, "-o", tmp_path / "loop.tif", "--steps", 0, "-q") == 2
    assert capfd.readouterr().err.startswith("error: ")


def test_a_nodata_that_an_output_of_a_folder_cannot_hold_is_told_before_any_work(quick, tmp_path, capfd):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.webp", "b.png"):
        Image.new("RGB", (20, 20), (9, 9, 9)).save(folder / name)
    assert run("remove", folder, "-o", tmp_path / "out", "--nodata", 0, "-q", *quick) == 2
    assert "a.webp cannot hold the nodata value" in capfd.readouterr().err


def started(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "declouder.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=options.pop("capture_output", True), check=False, **options)


@pytest.mark.parametrize("case", ["names", "width", "stderr", "folder"])
def test_odd_surroundings_are_no_bug(case: str, scene: Path, model_folder: Path, tmp_path: Path) -> None:
    words = [scene.absolute(), "--model", model_folder.absolute(), "--steps", 0, "--mask", "auto"]
    environment = dict(os.environ)
    if case == "names":  # that stdout cannot show
        environment["PYTHONIOENCODING"] = "latin-1"
        ended = started("remove", *words, "-o", tmp_path / "\u65e5.tif", env=environment)
        assert (ended.returncode, b"\\u65e5.tif" in ended.stdout) == (0, True)
    elif case == "width":
        ended = started("remove", *words, "-o", tmp_path / "a.tif", env=environment | {"COLUMNS": "0"})
        assert ended.returncode == 0 and b"bands: 1,2,3" in ended.stderr
    elif case == "stderr":
        shell = f"{sys.executable} -m declouder.cli remove nope.tif -o a.tif 2>&-"
        ended = subprocess.run(["sh", "-c", shell], capture_output=True, check=False)
        assert (ended.returncode, ended.stdout) == (2, b"")
    else:
        (tmp_path / "gone").mkdir()
        gone = tmp_path / "gone"
        shell = f"cd {gone} && rmdir {gone} && {sys.executable} -m declouder.cli remove a.tif -o b.tif"
        ended = subprocess.run(["sh", "-c", shell], capture_output=True, check=False)
        assert ended.returncode == 2 and b"bug" not in ended.stderr


def test_a_record_is_not_blamed_for_a_full_device() -> None:
    with Path("/dev/full").open("wb") as full:
        ended = started("info", "--recipe", stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert ended.returncode == 2 and b"is no record" not in ended.stderr and b"No space left" in ended.stderr


def test_a_reader_that_goes_has_an_exit_code_of_its_own() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = started("info", "--recipe", stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_name_that_is_another_one_in_the_locale_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda path: str(path).encode("latin-1"))
    with pytest.raises(RasterError, match=r"no UTF-8 in this locale, .*; set another, such as LC_ALL=C\.UTF-8"):
        check_name(Path("w\u00f6lke.png"), RasterError)
    check_name(Path("wolke.png"), RasterError)


def test_a_name_that_python_reads_in_another_locale_only_is_not_to_be_changed() -> None:
    command = [sys.executable, "-X", "utf8=0", "-m", "declouder.cli", "remove", "w\u00f6lke.tif", "-o", "x.tif"]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(command, env=ascii_only, capture_output=True, check=False)
    assert ended.returncode == 2 and b"set another, such as LC_ALL=C.UTF-8" in ended.stderr


def test_a_provenance_that_is_not_made_beside_an_existing_output_is_told(tmp_path, scene, caplog):
    (tmp_path / "b.tif").touch()
    options = SceneOptions(provenance=tmp_path / "p.tif")
    assert not planned_jobs([scene], None, tmp_path / "b.tif", options, skip_existing=True).todo
    assert f"b.tif exists and is passed over, so {tmp_path / 'p.tif'} is not made" in caplog.text
    caplog.clear()
    (tmp_path / "p.tif").touch()
    planned_jobs([scene], None, tmp_path / "b.tif", options, skip_existing=True)
    assert not caplog.text


def test_a_list_of_a_windows_editor_is_read(tmp_path):
    (tmp_path / "list.txt").write_bytes("# scenes\r\na.tif\r\n\r\nb c.tif\r\n".encode("utf-8-sig"))
    assert listed_in(tmp_path / "list.txt") == [Path("a.tif"), Path("b c.tif")]
    (tmp_path / "list.txt").write_bytes("a.tif\r\n".encode("utf-8-sig"))
    assert listed_in(tmp_path / "list.txt") == [Path("a.tif")]


def test_of_several_scenes_with_small_clouds_left_one_is_named():
    reports = [SimpleNamespace(output=Path(name), small_clouds_left=name != "b") for name in "abc"]
    assert hint(reports, 1) == "small clouds seem to be left in a and 1 more: look at it, and try --enlarge 2"


@pytest.mark.parametrize("continued", [0, 3])
def test_a_speed_is_told_of_runs_that_did_all_of_it(continued):
    jobs = Jobs((), 0, {}, None, is_new=False)
    report = SimpleNamespace(output=Path("b.tif"), megapixels=9.0, seconds=4.0, ended=4.0, continued=continued)
    told = summary(jobs, Outcome({}, [report]))
    ending = ", beside what an earlier run had finished" if continued else ", 2.25 MP/s"
    assert told == f"wrote b.tif: 9.00 megapixels in 4.0 s{ending}"


def test_an_output_that_is_the_input_is_told_though_outputs_that_exist_are_skipped(workplace, capfd):
    write_tif(Path("own.tif"), np.ones((3, 9, 9), np.uint8))
    assert run("remove", "own.tif", "-o", "own.tif", "--skip-existing") == 2
    assert "output own.tif is the input own.tif itself" in capfd.readouterr().err


def test_one_scene_under_two_spellings_is_one(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    again = tmp_path / "sub" / ".." / "a.tif"
    (tmp_path / "sub").mkdir()
    jobs = planned_jobs([source, again], None, tmp_path / "out", SceneOptions(), skip_existing=False)
    assert [job.source for job in jobs.todo] == [again]


def test_names_that_differ_in_case_alone_are_one_where_disks_say_so(tmp_path, monkeypatch):
    scenes = [tmp_path / "a.tif", tmp_path / "b" / "A.tif"]
    scenes[1].parent.mkdir()
    for scene in scenes:
        write_tif(scene, np.ones((3, 9, 9), np.uint8))
    for platform in ("linux", "darwin"):
        monkeypatch.setattr("declouder.cli.jobs.sys.platform", platform)
        fails = (
            pytest.raises(OutputError, match="would both become")
            if platform == "darwin"
            else contextlib.nullcontext()
        )
        with fails:
            jobs = planned_jobs(scenes, None, tmp_path / "out", SceneOptions(), skip_existing=False)
    assert len(jobs.todo) == 2
