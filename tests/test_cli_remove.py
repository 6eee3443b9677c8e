"""`declouder remove` as a user meets it: exit codes, the one line of an error, what is left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import names_in, read_tif, write_tif
from declouder import cli


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
    assert out.startswith(f"wrote {output}: 0.00 megapixels in ") and out.endswith(" MP/s\n")
    assert "bands: 1,2,3 = red, green, blue" in err and "scale: 0,255" in err
    assert read_tif(output).shape == (3, 60, 70)


def test_the_same_seed_gives_the_same_pixels_and_another_gives_others(scene, model_folder, tmp_path):
    options = ("--model", model_folder, "--steps", 2, "--quiet")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run("remove", scene, "-o", tmp_path / f"{name}.tif", "--seed", seed, *options) == 0
    a, b, c = (read_tif(tmp_path / f"{name}.tif") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_quiet_prints_nothing(scene, model_folder, tmp_path, capfd):
    options = ("--model", model_folder, "--steps", 0, "--sampler", "ddim-trailing", "--quiet")
    assert run("remove", scene, "-o", tmp_path / "b.tif", *options) == 0
    assert capfd.readouterr() == ("", "")


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
    (["scene.tif", "-o", "nothing"], "no suffix"),
    (["scene.tif", "-o", "b.jpg"], "JPEG would lose detail"),
    (["scene.tif", "scene2.tif", "-o", "b.tif"], "do not go into one file"),
    (["scene.tif", "sub/scene.tif", "-o", "out"], "would both become"),
    (["scene.tif", "-o", "b.tif", "--bands", "0,1,2"], "counted from 1"),
    (["scene.tif", "-o", "b.tif", "--bands", "1,2,4"], "has 3 bands"),
    (["scene.tif", "-o", "b.tif", "--bands", "1,1,2"], "each band once"),
    (["scene.tif", "-o", "b.tif", "--bands", "red"], "--bands is 'red'"),
    (["scene.tif", "-o", "b.tif", "--bands", ""], "--bands is ''"),
    (["scene.tif", "-o", "b.tif", "--scale", "5,1"], "low 5 is not below high 1"),
    (["scene.tif", "-o", "b.tif", "--scale", "5"], "--scale is '5'"),
    (["scene.tif", "-o", "b.tif", "--scale", "nan,1"], "not finite"),
    (["scene.tif", "-o", "b.tif", "--steps", "-1"], "steps is -1"),
    (["scene.tif", "-o", "b.tif", "--steps", "many"], "'--steps'"),
    (["scene.tif", "-o", "b.tif", "--window", "0"], "window is 0 px"),
    (["scene.tif", "-o", "b.tif", "--overlap", "400"], "overlap is 400 px"),
    (["scene.tif", "-o", "b.tif", "--batch", "0"], "batch is 0"),
    (["scene.tif", "-o", "b.tif", "--seed", "-5"], "seed is -5"),
    (["scene.tif", "-o", "b.tif", "--device", "tpu"], "--device is 'tpu'"),
    (["scene.tif", "-o", "b.tif", "--no-such-option"], "--no-such-option"),
]
NEED_TORCH = [
    (["scene.tif", "-o", "b.tif", "--sampler", "magic"], "--sampler is 'magic'"),
    (["scene.tif", "-o", "b.tif", "--model", "./no-model"], "no-model"),
    (["scene.tif", "scene2.tif", "-o", "out", "--model", "./no-model"], "no-model"),
    (["scene.tif", "-o", "b.tif", "--model", "./half-model"], "denoiser"),
    (["scene.tif", "-o", "b.tif", "--model", "./model", "--bands", "1,2"], "names 2 bands"),
    (["grey.png", "-o", "b.png", "--model", "./model"], "has 1 band, this model wants 3"),
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
    shutil.copy(scene, "sub/scene.tif")
    return tmp_path


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


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_exits_130_and_leaves_no_half_written_output(name, model_folder, tmp_path, rng):
    source = write_tif(tmp_path / "big.tif", rng.integers(1, 256, (3, 1500, 1500), dtype=np.uint8))
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-m", "declouder.cli", "remove", source, "-o", folder / "b.tif"]
    command += ["--model", model_folder, "--steps", "50", "--window", "64"]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not names_in(folder) and process.poll() is None and time.monotonic() - started < 60:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert names_in(folder) == []


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
