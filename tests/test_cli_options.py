"""Options of the commands reach what they are for, with the values that were given."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from conftest import FakePipeline, write_tif
from declouder.cli import main
from declouder.cli.app import _interrupt
from declouder.cli.bars import counting_bar, image_bar, shown_progress, stage_bars
from declouder.cli.loading import _in_bfloat16, loaded_pipeline
from declouder.cli.options import FAST_LEAST_PAINTED, FAST_STEPS
from declouder.devices import has_bfloat16
from declouder.errors import OptionError
from declouder.evaluation import Selection
from declouder.pipeline import SAMPLERS, make_scheduler
from declouder.scene import SceneOptions, remove_from_scene
from declouder.training import TrainingReport
from toy import TOY


class Recorder:
    """Takes the place of a function, notes what it was called with, and ends the command."""

    def __init__(self) -> None:
        self.given: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *given: Any, **options: Any) -> None:
        self.given, self.options = given, options
        raise OptionError("noted")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def run(target: str, *words: object) -> Recorder:
        recorder = Recorder()
        monkeypatch.setattr(target, recorder)
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert (caught.value.code, capfd.readouterr().err) == (2, "error: noted\n")
        return recorder

    return run


def test_what_is_asked_of_evaluate_reaches_it(noted, tmp_path: Path, model_folder: Path) -> None:
    found = noted(
        "declouder.evaluation.evaluate",
        *("evaluate", tmp_path / "DATA", "-o", tmp_path / "a.json", "--model", model_folder, "--name", "ours"),
        *("--split", "train", "--set", "RICE1", "--bands", "rgbn", "--exclude", "E", "--split-list", "L"),
        *("--limit", 2, "--size", 64, "--masks", "M", "--data-range", "7000,9600", "--steps", 3, "--enlarge", 2),
        *("--band-names", "nir, red,green"),
        *("--samples", 4, "--seed", 5, "--keep-images", "K", "--lpips-backbone", "B", "--lpips-download"),
        *("--lpips-per-band", "--overwrite", "--quiet"),
    )
    selection, method = found.given
    assert selection == Selection(
        tmp_path / "DATA",
        split="train",
        set_name="RICE1",
        bands="rgbn",
        exclude=Path("E"),
        split_list=Path("L"),
        limit=2,
        size_px=64,
    )
    assert (method.name, method.num_inference_steps, method.enlarge, method.samples) == ("ours", 3, 2, 4)
    assert method.seed == 5
    del found.options["on_image"]
    assert found.options == {
        "out": tmp_path / "a.json",
        "masks": Path("M"),
        "keep": Path("K"),
        "band_names": ["nir", "red", "green"],
        "data_range": (7000, 9600),
        "lpips_backbone": Path("B"),
        "download_backbone": True,
        "band_lpips": True,
        "overwrite": True,
    }


@pytest.mark.parametrize(
    "words",
    [
        *(("--steps", 0), ("--sampler", "ddim"), ("--fast",), ("--best",), ("--precision", "32"), ("--samples", 2)),
        *(("--seed", 1), ("--seed", -3), ("--enlarge", 2)),
    ],
)
@pytest.mark.parametrize("scored", [("--cloudy",), ("--outputs", "images")])
def test_what_is_of_a_model_is_refused_where_none_is_scored(words, scored, tmp_path: Path, capfd) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in ("evaluate", tmp_path, *scored, "-o", tmp_path / "a.json", *words)])
    told = f"error: {words[0]} is of a model, and none is scored; leave it out\n"
    assert (caught.value.code, capfd.readouterr().err) == (2, told)


@pytest.mark.parametrize(("text", "ends"), [("4095", (0, 4095)), ("1e4", (0, 10000)), ("-5,7.5", (-5, 7.5))])
def test_a_range_is_a_span_or_both_ends(text, ends, noted, tmp_path: Path) -> None:
    words = ("evaluate", tmp_path, "--cloudy", "-o", tmp_path / "a.json", "--data-range", text)
    assert noted("declouder.evaluation.evaluate", *words).options["data_range"] == ends


def test_what_is_asked_of_ablate_reaches_it(noted, tmp_path: Path, model_folder: Path) -> None:
    found = noted(
        "declouder.ablation.ablate",
        *("ablate", tmp_path / "DATA", "-o", tmp_path / "out", "--model", model_folder, "--only", "steps, seed"),
        *("--split", "train", "--exclude", "E", "--split-list", "L", "--limit", 2, "--size", 64),
        *("--data-range", 4095, "--lpips-backbone", "B", "--lpips-download"),
    )
    assert found.given[0] == Selection(
        tmp_path / "DATA", split="train", exclude=Path("E"), split_list=Path("L"), limit=2, size_px=64
    )
    wanted = {"out": tmp_path / "out", "only": ["steps", "seed"], "data_range": (0, 4095)}
    wanted |= {"lpips_backbone": Path("B"), "download_backbone": True}
    assert {name: found.options[name] for name in wanted} == wanted


def test_what_is_asked_of_simulate_reaches_it(noted, tmp_path: Path) -> None:
    (tmp_path / "clear").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "clear" / "1.png")
    found = noted(
        "declouder.data.simulate.simulate_set",
        *("data", "simulate", tmp_path / "clear", "-o", tmp_path / "out", "--split", "test", "--per-image", 3),
        *("--kind", "broken", "--cover", 0.4, "--bands", "blue, green,red", "--data-range", "10,2600", "--seed", 7),
    )
    assert found.given == (tmp_path / "clear", tmp_path / "out")
    del found.options["on_image"]
    assert found.options == {
        "split": "test",
        "per_image": 3,
        "kind": "broken",
        "cover": 0.4,
        "band_names": ["blue", "green", "red"],
        "dn_range": (10, 2600),
        "seed": 7,
    }


def test_what_is_asked_of_a_scene_reaches_the_pipeline(tmp_path: Path, rng: np.random.Generator) -> None:
    threads: list[int] = []

    def restored(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        threads.append(torch.get_num_threads())
        assert latents.shape[-1] == 2 * cloudy.shape[-1]
        return cloudy

    pipeline = FakePipeline(restored)
    before = torch.get_num_threads()
    options = SceneOptions(steps=3, least_painted=0.4, enlarge=2, threads=before + 1)
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 40, 40), dtype=np.uint8))
    remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
    assert threads == [before + 1] and torch.get_num_threads() == before
    (asked,) = pipeline.options
    assert asked == {
        "num_inference_steps": 3,
        "least_painted": 0.4,
        "enlarge": 2,
        "reference": None,
        "output_type": "pt",
    }


def test_stages_that_time_did_not_reach_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parent.parent / "configs" / "toy.yaml"
    report = TrainingReport("denoiser", 3, True, {}, 2.0, held_out=True)
    monkeypatch.setattr("declouder.training.train", lambda *given, **options: [report])
    (tmp_path / "joint").mkdir()
    (tmp_path / "joint" / "finished").touch()
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--out", str(tmp_path), "--max-time", "1s"])
    told = capfd.readouterr().out.splitlines()
    assert caught.value.code in (None, 0)
    assert told == ["denoiser: finished at step 3 in 2 s", "weights: not begun; continue with --resume"]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (
            TrainingReport(
                "reference", 5, True, {"step": 5, "reference_psnr": 30.0, "score": 1}, 2.0, held_out=True
            ),
            "finished at step 5 in 2 s (step 5, reference_psnr 30)",
        ),
        (
            TrainingReport("reference", 5, True, {"reference_psnr": 30.0}, 2.0, held_out=False),
            "finished at step 5 in 2 s (reference_psnr 30; of images that were learnt from, as none is held out)",
        ),
        (
            TrainingReport("reference", 1, False, {}, 2.0, held_out=False),
            "stopped at step 1 in 2 s; continue with --resume",
        ),
    ],
)
def test_the_end_of_a_stage_is_told(report, told, monkeypatch, tmp_path, capfd) -> None:
    recipe = Path(__file__).parent.parent / "configs" / "toy.yaml"
    monkeypatch.setattr("declouder.training.train", lambda *given, **options: [report])
    with pytest.raises(SystemExit):
        main(["train", "reference", str(recipe), "--out", str(tmp_path)])
    assert capfd.readouterr().out.splitlines() == [f"reference: {told}"]


def test_training_tells_on_how_many_pairs_unless_quiet(monkeypatch, tmp_path, capfd) -> None:
    recipe = Path(__file__).parent.parent / "configs" / "toy.yaml"

    def train(*given, **options) -> list[TrainingReport]:
        logging.getLogger("declouder.data.training").info("58 pairs to learn from, 10 held out")
        return []

    monkeypatch.setattr("declouder.training.train", train)
    for quiet in (False, True):
        with pytest.raises(SystemExit):
            main(["train", str(recipe), "--out", str(tmp_path), *(["--quiet"] if quiet else [])])
        assert ("58 pairs to learn from, 10 held out\n" in capfd.readouterr().err) is not quiet


def test_what_is_asked_of_train_reaches_it(noted, tmp_path: Path) -> None:
    recipe = Path(__file__).parent.parent / "configs" / "toy.yaml"
    found = noted(
        "declouder.training.train",
        *("train", "reference", recipe, "--out", tmp_path / "run", "--set", "seed=9", "--resume"),
        *("--max-time", "1h30m", "--devices", 2, "--nodes", 3, "--device", "cpu", "--quiet"),
    )
    config, folder = found.given
    assert config.seed == 9 and folder == tmp_path / "run"
    assert found.options == {
        "stages": ["reference"],
        "resume": True,
        "max_time_s": 5400,
        "device": "cpu",
        "devices": 2,
        "nodes": 3,
        "on_step": found.options["on_step"],
    }
    found.options["on_step"]("reference", 1, 2, None)  # a bar that nobody sees


def test_a_second_interrupt_does_not_break_off_what_the_first_began(monkeypatch):
    clock = iter([10.0, 11.0, 14.0, 20.0])
    monkeypatch.setitem(_interrupt.__globals__, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setitem(_interrupt.__globals__, "_interrupts", [])
    with pytest.raises(KeyboardInterrupt):
        _interrupt(2, None)
    _interrupt(2, None)
    _interrupt(15, None)
    with pytest.raises(KeyboardInterrupt):  # long after, something hangs
        _interrupt(2, None)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(
    ("bar", "moved"),
    [
        (shown_progress, lambda bars: bars.scene(Path("a.tif")).__enter__()(1, 2)),
        (counting_bar, lambda show: show(1, 2)),
        (image_bar, lambda show: show(1, 2, {})),
        (stage_bars, lambda show: show("reference", 1, 2, None)),
    ],
)
def test_an_interrupt_that_was_lost_where_it_struck_ends_the_work_at_its_next_step(bar, moved, quiet, monkeypatch):
    more = {shown_progress: {"scenes": 1}, stage_bars: {"first": True}}.get(bar, {})
    with bar(quiet=quiet, **more) as shown:
        moved(shown)
        monkeypatch.setitem(_interrupt.__globals__, "_interrupts", [1.0])
        with pytest.raises(KeyboardInterrupt):
            moved(shown)


def test_a_program_that_ends_heeds_no_signals():
    code = "import os, signal, sys, atexit; from declouder.cli import main; sys.argv[1:] = ['--version']"
    code += "; from declouder.interrupts import ENDING"
    code += "; atexit.register(lambda: [os.kill(os.getpid(), each) for each in ENDING])"
    done = subprocess.run([sys.executable, "-c", code + "; main()"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("declouder ") and done.stderr == ""


def test_a_log_that_cannot_be_written_ends_no_work(monkeypatch):
    class Full(io.StringIO):
        def write(self, text: str = "") -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write

    monkeypatch.setattr("sys.stderr", Full())
    with counting_bar(quiet=False) as show:
        for done in range(3):
            show(done, 3)
    with pytest.raises(SystemExit) as ended:
        main(["remove", "--steps", "-1"])
    assert ended.value.code == 2


def test_what_is_asked_of_ablate_about_the_set_reaches_it(noted, tmp_path: Path, model_folder: Path) -> None:
    words = (
        "ablate",
        tmp_path,
        "-o",
        tmp_path / "out",
        "--model",
        model_folder,
        "--set",
        "CUHK-CR1",
        "--bands",
        "rgbn",
    )
    (selection,) = noted("declouder.ablation.ablate", *words).given[:1]
    assert (selection.set_name, selection.bands, selection.split) == ("CUHK-CR1", "rgbn", "test")


def test_fast_scores_are_of_what_fast_removes(noted, tmp_path: Path, model_folder: Path) -> None:
    words = ("evaluate", tmp_path, "-o", tmp_path / "a.json", "--model", model_folder)
    method = noted("declouder.evaluation.evaluate", *words, "--fast").given[1]
    assert (method.num_inference_steps, method.least_painted) == (FAST_STEPS, FAST_LEAST_PAINTED)
    method = noted("declouder.evaluation.evaluate", *words).given[1]
    assert (method.num_inference_steps, method.least_painted) == (None, 0)


@pytest.mark.parametrize("command", ["evaluate", "remove"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [((), "32"), (("--fast",), "fast"), (("--fast", "--precision", "32"), "32"), (("--precision", "bf16"), "bf16")],
)
def test_the_precision_that_is_asked_for_is_taken(command, words, wanted, noted, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    given = ("a.tif", "-o", "b.tif") if command == "remove" else (".", "-o", "a.json")
    found = noted(f"declouder.cli.{command}.loaded_pipeline", command, *given, *words, "-q")
    assert found.given[3] == wanted


@pytest.mark.parametrize(
    ("precision", "has", "wanted"),
    [
        ("32", True, False),
        ("auto", True, True),
        ("auto", False, False),
        ("fast", True, True),
        ("fast", False, False),
    ],
)
def test_steps_are_in_bfloat16_where_it_is_asked_for_and_to_be_had(
    precision: str, has: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    monkeypatch.setattr(
        sys.modules["declouder.cli.loading"], "has_bfloat16", lambda device: has and device == "cpu"
    )
    assert loaded_pipeline(str(model_folder), None, "cpu", precision).steps_in_bfloat16 is wanted


@pytest.mark.parametrize(("precision", "wanted"), [("32", False), ("auto", True), ("bf16", True), ("fast", False)])
def test_on_a_gpu_being_quick_alone_takes_no_bfloat16(precision, wanted, monkeypatch):
    monkeypatch.setattr(sys.modules["declouder.cli.loading"], "has_bfloat16", lambda device: True)
    assert _in_bfloat16(precision, "cuda") is wanted


@pytest.mark.parametrize(
    ("words", "wanted"), [(("--precision", "bf16"), True), (("--precision", "auto"), False), (("--fast",), False)]
)
def test_on_a_cluster_steps_are_in_bfloat16_only_where_it_is_asked_for(
    words, wanted, noted, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    # The client's own processor says nothing about the workers'.
    monkeypatch.setattr(sys.modules["declouder.cli.loading"], "has_bfloat16", lambda device: not wanted)
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    given = ("remove", source, "-o", tmp_path / "b.tif", "--model", model_folder, "--cluster", "local:1", "-q")
    found = noted("declouder.cli.remove.Run", *given, *words)
    assert found.given[1].steps_in_bfloat16 is wanted


@pytest.mark.parametrize(
    ("precision", "words"),
    [
        ("bf16", "--precision is bf16, which this cpu would only emulate, slowly; give 32 or auto"),
        ("half", "--precision is 'half'; give one of auto, 32, bf16"),
    ],
)
def test_a_precision_that_is_not_to_be_had_is_one_line(
    precision: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["declouder.cli.loading"], "has_bfloat16", lambda device: False)
    source = write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    with pytest.raises(SystemExit) as ended:
        main(["remove", str(source), "-o", str(tmp_path / "b.tif"), "--device", "cpu", "--precision", precision])
    assert (ended.value.code, capfd.readouterr().err) == (2, f"error: {words}\n")
    assert not (tmp_path / "b.tif").exists()


def test_steps_in_bfloat16_are_taken_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
    model_folder: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.modules["declouder.cli.loading"], "has_bfloat16", lambda device: True)
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 256, (3, 40, 40), dtype=np.uint8))
    for precision in ("32", "bf16"):
        words = ("--model", str(model_folder), "--steps", "1", "--device", "cpu", "--precision", precision, "-q")
        with pytest.raises(SystemExit) as ended:
            main(["remove", str(source), "-o", str(tmp_path / f"{precision}.tif"), *words])
        assert (ended.value.code, capfd.readouterr()) == (0, ("", ""))
    made = [rasterio.open(tmp_path / f"{precision}.tif") for precision in ("32", "bf16")]
    assert [dataset.tags()["DECLOUDER_PRECISION"] for dataset in made] == ["float32", "bfloat16"]


def test_only_a_processor_or_gpu_that_has_bfloat16_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not has_bfloat16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_bfloat16("cpu") and not has_bfloat16("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_bfloat16("cuda")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("evaluate", ("evaluate", ".", "-o", "a.json")),
        ("ablate", ("ablate", ".", "-o", "out")),
        ("remove", ("remove", "a.tif", "-o", "b.tif")),
    ],
)
def test_the_device_that_is_asked_for_is_taken(module, words, noted, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tif(tmp_path / "a.tif", np.ones((3, 9, 9), np.uint8))
    found = noted(f"declouder.cli.{module}.loaded_pipeline", *words, "--device", "mps", "--model", "m", "-q")
    assert found.given[0] == "m" and found.given[2] == "mps"


def test_a_report_has_the_title_that_is_asked_for(noted, tmp_path: Path) -> None:
    words = ("report", "a.json", "b.json", "-o", tmp_path / "page.html", "--title", "Ours", "--overwrite")
    found = noted("declouder.report.write_report", *words)
    assert found.given == ([Path("a.json"), Path("b.json")], tmp_path / "page.html")
    assert found.options == {"overwrite": True, "title": "Ours"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45m", 2700), ("2h", 7200), ("1h0m5s", 3605), ("90", 90), ("1:30:05", 5405), ("2:30", 150)],
)
def test_times_are_read_as_people_write_them(text, seconds, noted) -> None:
    found = noted("declouder.training.train", "train", TOY, "--max-time", text)
    assert found.options["max_time_s"] == seconds
    assert found.given[1] == Path("runs") / "toy"
    assert found.options["stages"] == ["reference", "denoiser", "weights", "joint"] and not found.options["resume"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ((), {"window": 1024, "enlarge": 1, "steps": None, "least_painted": 0}),
        (("--enlarge", 4), {"window": 256, "enlarge": 4}),
        (("--enlarge", 2, "--window", 96, "--overlap", 8), {"window": 96, "enlarge": 2, "overlap": 8}),
        (("--batch", 3, "--nodata", 7, "--max-pixels", 99), {"batch": 3, "nodata": 7, "max_pixels": 99}),
    ],
)
def test_what_is_asked_of_remove_reaches_it(words, wanted, noted, tmp_path: Path) -> None:
    found = noted("declouder.cli.jobs.planned_jobs", "remove", "a.tif", "-o", tmp_path / "b.tif", *words)
    options = found.given[3]
    assert {name: getattr(options, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_give_their_core_away_soon_unless_the_user_says_otherwise(given, spins):
    # In a process of its own, and before torch is loaded, which reads it once.
    code = (
        "import os, sys\n"
        "from declouder import cli\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    cli.main(['--version'])\n"
        "finally:\n    print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == f"{spins} False", done.stderr


@pytest.mark.parametrize("learnt", [None, [7000, 9600], [0, 1_234_567.5]])
def test_ablate_tells_of_another_range_that_a_model_learnt(
    learnt: list[int] | None, monkeypatch, tmp_path: Path, model_folder: Path, caplog
) -> None:
    model = tmp_path / "model"
    shutil.copytree(model_folder, model)
    (model / "training.json").write_text(json.dumps({"recipe": {"data": {"range": learnt}}}))
    recorder = Recorder()
    monkeypatch.setattr("declouder.ablation.ablate", recorder)
    with pytest.raises(SystemExit):
        main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(model)])
    assert recorder.given
    told = "give --data-range {},{}".format(*learnt) if learnt else "give --data-range"
    assert (told in caplog.text) == (learnt is not None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--only", "steps,speed"), "there is no ablation 'speed'; choose among reference, diffusion, "),
        (("--device", "tpu"), "--device is 'tpu'; give one of auto, cpu, cuda, mps"),
        (("--data-range", "1,2,3"), "--data-range is '1,2,3'; give LOW,HIGH"),
    ],
)
def test_a_mistake_in_ablate_is_told_before_the_model_is_loaded(words, told, tmp_path: Path, capfd) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "none"), *words])
    assert ended.value.code == 2 and capfd.readouterr().err.startswith(f"error: {told}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "ablate"])
def test_bands_that_there_are_none_of_are_refused(command, tmp_path: Path, model_folder: Path, capfd) -> None:
    words = ("-o", str(tmp_path / "out.json"), "--model", str(model_folder), "--bands", "bgr")
    with pytest.raises(SystemExit) as ended:
        main([command, str(tmp_path), *words])
    assert (ended.value.code, capfd.readouterr().err) == (2, "error: --bands is 'bgr'; give rgb or rgbn\n")


@pytest.mark.parametrize("words", [(), ("--quiet",)])
@pytest.mark.parametrize("available", [True, False])
def test_ablate_says_why_there_is_no_lpips_and_where_its_table_is(
    words, available, monkeypatch, tmp_path: Path, model_folder: Path, capfd
) -> None:
    lpips = {"available": available, "reason": "no weights here"}
    monkeypatch.setattr("declouder.ablation.ablate", lambda *given, **options: {"lpips": lpips})
    monkeypatch.setattr("declouder.ablation.to_markdown", lambda found: "the table")
    with pytest.raises(SystemExit) as ended:
        main(["ablate", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(model_folder), *words])
    told = capfd.readouterr()
    assert ended.value.code in (None, 0)
    assert told.out == ("" if words else f"the table\nwrote {tmp_path / 'out' / 'ablation.md'}\n")
    assert told.err == ("" if words or available else "no LPIPS: no weights here\n")


def test_a_pipeline_has_the_sampler_and_the_device_that_are_asked_for(monkeypatch, model_folder: Path) -> None:
    saved = type(loaded_pipeline(str(model_folder), None, "cpu").scheduler)
    monkeypatch.setattr(sys.modules["declouder.cli.loading"], "resolved_device", lambda device: "meta")
    for name in SAMPLERS:
        pipeline = loaded_pipeline(str(model_folder), name, "cuda")
        wanted = make_scheduler(name)
        assert type(pipeline.scheduler) is type(wanted)
        assert pipeline.scheduler.config.timestep_spacing == wanted.config.timestep_spacing
        assert pipeline.device.type == "meta"
    assert type(loaded_pipeline(str(model_folder), None, "cuda").scheduler) is saved
