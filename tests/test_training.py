"""The four stages from recipe to model folder: what a run leaves, learns and tells."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from safetensors.torch import load_file

from declouder import CloudRemovalPipeline
from declouder import training as training_module
from declouder.cli import main
from declouder.config import STAGE_NAMES, StageConfig, load_config, parse_config
from declouder.errors import ConfigError
from declouder.training import STAGES, StageModule
from declouder.training import callbacks as callbacks_module
from declouder.training.module import COLUMNS, _lr_factor
from declouder.training.networks import build_networks, export
from declouder.training.record import commit_of_source, write_record
from declouder.training.surroundings import lightning_precision
from toy import TOY, stage_module, toy, train_quietly, weights_of, write_four_pairs


def test_four_stages_leave_a_pipeline_that_restores_an_image(toy_run):
    pipeline = CloudRemovalPipeline.from_pretrained(toy_run / "model")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(torch.rand(1, 3, 20, 30), output_type="pt").images
    assert images.shape == (1, 3, 20, 30)
    assert (pipeline.config.num_inference_steps, pipeline.config.strength) == (2, 0.2)


def test_a_run_leaves_its_recipe_scores_and_pictures(toy_run):
    assert load_config(toy_run / "config.yaml") == toy()
    for stage in STAGE_NAMES:
        with (toy_run / stage / "scores.csv").open() as file:
            rows = list(csv.DictReader(file))
        # The joint stage begins with what the stages before have learnt.
        assert [row["step"] for row in rows] == (["0", "3", "6"] if stage == "joint" else ["3", "6"])
        assert all(float(row["score"]) == float(row["score"]) for row in rows)
    assert len(list((toy_run / "joint" / "pictures").glob("*.png"))) == 3


def test_every_stage_changes_what_it_learns_and_nothing_else(tmp_path):
    before: dict[str, bytes] = {}
    for stage in STAGE_NAMES:
        train_quietly(toy(), tmp_path, stages=[stage])
        after = weights_of(tmp_path / "model")
        changed = {name for name in after if after[name] != before.get(name)}
        assert changed == set(STAGES[stage].learns)
        before = after


def test_a_finished_run_is_not_trained_again(toy_run):
    assert train_quietly(toy(), toy_run, resume=True) == []


@pytest.mark.parametrize("broken", ["denoiser/config.json", "reference/diffusion_pytorch_model.safetensors"])
def test_a_model_stays_whole_where_saving_it_breaks_off(toy_run, tmp_path, monkeypatch, broken):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    before = {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()}
    config = toy()

    networks = build_networks(config)
    kind = type(networks[Path(broken).parts[0]])
    save = kind.save_pretrained

    def break_off(self, folder, **_):
        if "networks" in str(folder.parent):  # what the stage keeps for itself comes first
            save(self, folder)
            return
        Path(folder).mkdir(parents=True)
        (Path(folder) / Path(broken).name).write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "save_pretrained", break_off)
    with pytest.raises(KeyboardInterrupt):
        export(config, run, "joint", networks)
    assert {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()} == before
    assert not list(run.glob(".*"))


def test_networks_are_built_without_waking_a_gpu(monkeypatch):
    def woken(*_, **__):
        raise AssertionError("a GPU was woken")

    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed_all", "_lazy_init"):
        monkeypatch.setattr(f"torch.cuda.{name}", woken)
    state = torch.get_rng_state()
    first, second = build_networks(toy()), build_networks(toy("seed=1"))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [next(networks["reference"].parameters()) for networks in (first, second)]
    assert not torch.equal(*weights)


def test_unknown_networks_and_fields_are_named():
    with pytest.raises(ConfigError, match="choose one of compact, memorynet, msda"):
        build_networks(toy("model.reference.network=mdsa"))
    with pytest.raises(ConfigError, match=r"cannot be built: width is no option of it; did you mean 'widths'\?"):
        build_networks(toy("model.denoiser={width: 3}"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.reference.options={block: nafnet}", "block is 'nafnet'; give one of naf, residual"),
        ("model.reference.options={widths: [-24, 48, 72, 96, 128]}", ""),
        ("model.denoiser={widths: [-96, 96]}", ""),
    ],
)
def test_options_that_no_network_can_have_are_told(override, told):
    kind = override.split("=")[0].removesuffix(".options")
    with pytest.raises(ConfigError, match=rf"{kind} cannot be built: .*{told}"):
        build_networks(toy("model.reference.network=compact", override))


def test_networks_follow_from_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build_networks(toy(f"seed={seed}")) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    key = "unet.conv_in.weight"
    assert torch.equal(first["denoiser"].state_dict()[key], again["denoiser"].state_dict()[key])
    assert not torch.equal(first["denoiser"].state_dict()[key], other["denoiser"].state_dict()[key])


def test_pictures_show_every_part_of_the_method_side_by_side(toy_run):
    def columns(stage: str) -> float:
        with Image.open(toy_run / stage / "pictures" / "0000006.png") as sheet:
            return sheet.width / 96

    assert columns("joint") == len(COLUMNS) == 6
    assert columns("reference") == 3


def test_the_model_folder_says_how_it_was_trained(toy_run):
    record = json.loads((toy_run / "model" / "training.json").read_text())
    assert parse_config(record["recipe"], source="record") == toy()
    assert list(record["stages"]) == list(STAGE_NAMES)
    assert record["stages"]["joint"]["steps"] == 6
    assert record["stages"]["joint"]["scores"].keys() >= {"step", "restored_psnr", "reference_psnr"}
    assert {"python", "torch", "lightning"} <= record["versions"].keys()
    assert len(record["data"]["sha256"]) == 64
    assert "commit" in record


def test_info_tells_how_a_model_was_trained(toy_run, capsys):
    with pytest.raises(SystemExit):
        main(["info", str(toy_run / "model")])
    told = capsys.readouterr().out
    record = json.loads((toy_run / "model" / "training.json").read_text())
    assert "recipe      toy, seed 0; commit" in told
    assert record["data"]["sha256"] in told
    assert f"torch {version('torch')}" in told
    assert "joint       6 steps in" in told
    assert "restored_psnr" in told


def test_four_stages_run_on_four_bands_in_the_published_layout(tmp_path):
    generator = np.random.default_rng(0)
    for tree in ("CUHK-CR1", "nir/CUHK-CR1"):
        for kind in ("cloud", "label"):
            folder = tmp_path / "C-CUHK" / tree / "train" / kind
            folder.mkdir(parents=True)
            for number in range(1, 5):
                image = generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{number}.png")
    overrides = [
        "model.bands=[red, green, blue, nir]",
        f"data.base={tmp_path}",
        "data.pairs=[{set: CUHK-CR1, root: C-CUHK, bands: rgbn}]",
        "data.size=32",
        "data.hold_out_block=2",
        "data.synthetic_share=0",
        *(f"stages.{name}.{field}" for name in STAGE_NAMES for field in ("steps=2", "patch_px=null")),
    ]
    reports = train_quietly(toy(*overrides), tmp_path / "run")
    assert [report.finished for report in reports] == [True] * 4
    pipeline = CloudRemovalPipeline.from_pretrained(tmp_path / "run" / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(torch.rand(1, 4, 32, 32), output_type="pt").images.shape == (1, 4, 32, 32)
    with Image.open(tmp_path / "run" / "joint" / "pictures" / "0000002.png") as sheet:
        assert sheet.size == (6 * 32, 32)


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, monkeypatch):
    seen: dict[str, list[torch.Tensor]] = {}

    def remember(module, optimizer):
        seen.setdefault(run, [p.grad.clone() for p in module.learning.parameters()])

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", remember, raising=False)
    for run, fields in (("large", "batch=4"), ("accumulated", "accumulate=2")):
        stage = f"stages.reference.{fields}"
        train_quietly(toy(stage, "stages.reference.steps=1"), tmp_path / run, stages=["reference"])
    for large, accumulated in zip(seen["large"], seen["accumulated"], strict=True):
        assert torch.allclose(large, accumulated, rtol=1e-4, atol=1e-6)


class Scalars(CSVLogger):
    """Stands for TensorBoard where that is not installed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, flush_logs_every_n_steps=1)
        self.experiment.add_image = lambda *_, **__: None


def test_held_out_scores_are_logged_at_their_own_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "tensorboard_logger", Scalars)
    fields = ("steps=50", "validate_every=15")
    train_quietly(toy(*(f"stages.reference.{field}" for field in fields)), tmp_path, stages=["reference"])
    (path,) = (tmp_path / "reference").rglob("metrics.csv")
    psnr = "held_out/reference_psnr"
    logged = [(row["step"], float(row[psnr])) for row in csv.DictReader(path.open()) if row[psnr]]
    with (tmp_path / "reference" / "scores.csv").open() as file:
        scored = [(row["step"], float(row["reference_psnr"])) for row in csv.DictReader(file)]
    assert [step for step, _ in logged] == ["15", "30", "45", "50"] == [step for step, _ in scored]
    assert [value for _, value in logged] == pytest.approx([value for _, value in scored], abs=1e-4)
    assert [row["step"] for row in csv.DictReader(path.open()) if row["loss"]] == ["20", "40"]
    train_quietly(toy(), tmp_path / "short", stages=["reference"])
    (path,) = (tmp_path / "short").rglob("metrics.csv")
    assert [row["step"] for row in csv.DictReader(path.open()) if row["loss"]] == ["6"]  # the last of them


def test_a_model_that_is_not_whole_yet_says_so(tmp_path, caplog):
    train_quietly(toy(), tmp_path / "first")
    other = toy(f"model.start_from={tmp_path / 'first' / 'model'}", "model.weight_net.widths=[8, 24]")
    caplog.set_level("WARNING")
    train_quietly(other, tmp_path / "second", stages=["reference"])
    assert "is no whole model yet, as what model.start_from has is not the recipe's" in caplog.text
    assert not (tmp_path / "second" / "model" / "model_index.json").exists()


def test_a_stage_whose_scores_stay_behind_stops_early_and_keeps_the_best(tmp_path, monkeypatch):
    scores, kept = iter([1.0, 3.0, 2.0, 2.5, 9.0]), []

    def score(module: StageModule):
        kept.append({key: value.clone() for key, value in module.kept("reference").state_dict().items()})
        return {"score": next(scores)}, []

    monkeypatch.setattr(StageModule, "score", score)
    config = toy(*(f"stages.reference.{field}" for field in ("steps=50", "validate_every=2", "patience=2")))
    (report,) = train_quietly(config, tmp_path, stages=["reference"])
    assert (report.steps, report.finished) == (8, True)
    assert report.scores == {"step": 4, "score": 3.0}
    (file,) = (tmp_path / "model" / "reference").glob("*.safetensors")
    saved = load_file(file)
    assert all(torch.equal(saved[key], value) for key, value in kept[1].items())
    assert any(not torch.equal(saved[key], value) for key, value in kept[-1].items())
    assert train_quietly(config, tmp_path, stages=["reference"], resume=True) == []


def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch, caplog):
    scores = iter([math.nan, 2.0, math.nan, 1.0])
    monkeypatch.setattr(StageModule, "score", lambda module: ({"score": next(scores)}, []))
    config = toy("stages.reference.steps=8", "stages.reference.validate_every=2")
    (report,) = train_quietly(config, tmp_path, stages=["reference"])
    assert report.scores == {"step": 4, "score": 2.0}
    assert caplog.text.count("is nan: these weights are not kept") == 2


def test_what_is_kept_is_the_running_average_of_what_learns():
    module = stage_module("reference", "stages.reference.ema=0.9")
    learns, kept = (next(network("reference").parameters()) for network in (module.network, module.kept))
    before = kept.detach().clone()
    with torch.no_grad():
        learns.add_(1.0)
    assert torch.equal(kept, before)
    count = int(module.averaged.n_averaged)
    module.averaged.update_parameters(module.learning)
    moved = 1.0 if count == 0 else 1 - min(0.9, (1 + count) / (10 + count))  # the first is taken whole
    torch.testing.assert_close(kept, before + moved * (learns - before))
    for _ in range(200):
        module.averaged.update_parameters(module.learning)
    with torch.no_grad():
        learns.add_(1.0)
    last = kept.detach().clone()
    module.averaged.update_parameters(module.learning)
    torch.testing.assert_close(kept, last + 0.1 * (learns - last))


@pytest.mark.parametrize(
    ("fields", "steps", "wanted"),
    [
        ({"schedule": "constant", "warmup_steps": 4}, (0, 3, 9), (0.25, 1, 1)),
        ({"schedule": "cosine", "warmup_steps": 0}, (0, 50, 100, 200), (1, 0.505, 0.01, 0.01)),
        ({"schedule": "cosine", "warmup_steps": 100}, (49,), (0.5 * 0.515,)),
    ],
)
def test_the_learning_rate_follows_its_schedule(fields, steps, wanted):
    settings = StageConfig(steps=100, **fields)
    assert [_lr_factor(step, settings) for step in steps] == pytest.approx(wanted, rel=0.02)


def test_the_recipe_reaches_optimizer_and_trainer(tmp_path, monkeypatch):
    seen, real = {}, lightning.Trainer.__init__
    monkeypatch.setattr(lightning.Trainer, "__init__", lambda self, **o: (seen.update(o), real(self, **o))[1])
    fields = ("clip_norm=0.5", "weight_decay=0.1", "steps=1", "lr=2e-3", "warmup_steps=0", "accumulate=2")
    overrides = [f"stages.reference.{field}" for field in fields]
    train_quietly(toy(*overrides), tmp_path, stages=["reference"])
    assert (seen["gradient_clip_val"], seen["max_steps"], seen["accumulate_grad_batches"]) == (0.5, 1, 2)
    chosen = stage_module("reference", *overrides).configure_optimizers()
    (group,) = chosen["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"]) == (2e-3, 0.1)
    assert chosen["lr_scheduler"]["interval"] == "step"


def test_every_step_is_told_with_its_loss(tmp_path):
    told: list[tuple[str, int, int, float | None]] = []
    config = toy("stages.reference.steps=3")
    train_quietly(config, tmp_path, stages=["reference"], on_step=lambda *step: told.append(step))
    assert [step[:3] for step in told] == [("reference", done, 3) for done in range(4)]
    assert told[0][3] is None and all(loss is not None and loss > 0 for *_, loss in told[1:])


def test_with_nothing_held_out_the_last_weights_are_kept_as_no_score_can_choose(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(StageModule, "score", lambda module: ({"score": next(scores)}, []))
    write_four_pairs(tmp_path)
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.hold_out=0"]
    fields += [f"stages.reference.{field}" for field in ("steps=6", "validate_every=2")]
    (report,) = train_quietly(toy(*fields), tmp_path / "run", stages=["reference"])
    assert report.scores == {"step": 6, "score": 2.0}
    record = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    assert (record["data"]["pairs"], record["data"]["held_out_pairs"]) == (4, 0)


def test_the_bar_tells_steps_of_all_and_nothing_advertises(tmp_path, capfd):
    words = ["--out", str(tmp_path / "run"), "--device", "cpu", "--set", "stages.reference.steps=3"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["train", "reference", str(TOY), *words])
    told = capfd.readouterr()
    assert "3/3" in told.err
    assert "reference" in told.err
    for noise in ("litlogger", "GPU available", "Epoch", "Tip"):
        assert noise not in told.err + told.out


def test_info_prints_what_the_recipe_sets_and_all_of_it(toy_run, capsys):
    with pytest.raises(SystemExit):
        main(["info", str(toy_run / "model")])
    told = capsys.readouterr().out
    settings = toy().stages["denoiser"]
    assert f"steps={settings.steps}; batch={settings.batch}; lr={settings.lr}" in told
    assert "data.procedural=" in told and "patience" not in told
    with pytest.raises(SystemExit):
        main(["info", str(toy_run / "model"), "--recipe"])
    printed = toy_run / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == toy()


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["nir", "Blue", "green", "red"], (3, 2, 1)),
        (["nir", "red", "green"], (0, 1, 2)),
        (["grey"], (0, 0, 0)),
    ],
)
def test_pictures_show_red_green_and_blue_wherever_these_are(names, shown):
    levels = torch.arange(4)[: len(names), None, None] / 5
    sheet = callbacks_module._sheet_of([levels.expand(-1, 8, 8)], columns=1, names=names)
    assert (sheet == np.round(255 * levels[list(shown), 0, 0].numpy())).all()


def test_pictures_of_all_sizes_stand_in_columns():
    levels = torch.linspace(0.2, 1, 4)
    rows = [
        torch.cat([torch.full((4, height, width), float(level)) for level in levels], dim=-1)
        for height, width in ((8, 6), (5, 10))
    ]
    sheet = callbacks_module._sheet_of(rows, columns=4, names=["red", "green", "blue", "nir"])
    assert sheet.shape == (13, 40, 3)
    for column, level in enumerate(levels):
        assert (sheet[:8, 10 * column : 10 * column + 6] == round(255 * float(level))).all()
        assert (sheet[:8, 10 * column + 6 : 10 * column + 10] == 0).all()
        assert (sheet[8:, 10 * column : 10 * column + 10] == round(255 * float(level))).all()


def test_the_psnr_of_held_out_pairs_is_that_of_images_in_0_to_1():
    module = stage_module("reference")
    scores, _ = module.score()
    psnrs = []
    for sample in module.held_out:
        with torch.no_grad():
            found = module.kept("reference")(torch.from_numpy(sample["cloudy"])[None])[0].numpy()
        psnrs.append(-10 * np.log10(np.square((found - sample["clear"]) / 2).mean()))
    assert scores["reference_psnr"] == scores["score"] == pytest.approx(np.mean(psnrs), abs=1e-3)


@pytest.mark.parametrize(
    ("wanted", "capable", "word"),
    [
        ("32", True, "32-true"),
        ("auto", True, "bf16-mixed"),
        ("auto", False, "32-true"),
        ("bf16", True, "bf16-mixed"),
    ],
)
def test_bfloat16_is_taken_where_the_hardware_has_it_and_the_recipe_wants_it(wanted, capable, word, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: capable)
    assert lightning_precision(wanted, "cpu") == word


def test_bfloat16_that_would_be_emulated_is_refused(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with pytest.raises(ConfigError, match="only emulates"):
        lightning_precision("bf16", "cpu")


@pytest.mark.parametrize("compiles", [True, False])
def test_the_networks_that_learn_are_compiled_where_the_recipe_says_so(compiles, tmp_path, monkeypatch):
    compiled, ways = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    monkeypatch.setattr(torch, "compile", lambda way: ways.append(way.__name__) or way)
    fields = [f"stages.{name}.steps=1" for name in STAGE_NAMES]
    train_quietly(toy(f"compile={compiles}", *fields), tmp_path)
    learn = ["CompactNet", "Denoiser", "WeightNet", "Denoiser", "WeightNet"]
    assert (compiled, ways) == ((learn, ["supervised_outputs", "supervised_choices"]) if compiles else ([], []))


def test_a_row_of_pictures_is_from_black_to_white():
    module = stage_module("reference")
    images = {name: torch.full((1, 3, 4, 4), level) for name, level in zip(module.columns, (-1, 0, 1), strict=True)}
    row = module._row(images)
    assert row.shape == (3, 4, 12) and [float(row[0, 0, 4 * column]) for column in range(3)] == [0, 0.5, 1]


def test_the_record_of_a_training_counts_its_images_and_names_no_place_on_this_machine(tmp_path):
    counts = {"pairs": 5, "held_pairs": 2, "cloudless": 3, "terrain": 4}
    data = SimpleNamespace(fingerprint=lambda: "f", **{name: [None] * count for name, count in counts.items()})
    write_record(toy(), data, tmp_path, "reference", {"steps": 6})
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["data"] == {
        "sha256": "f",
        "pairs": 5,
        "held_out_pairs": 2,
        "clear_images": 3,
        "procedural_images": 4,
    }
    assert record["stages"]["reference"]["steps"] == 6
    assert "base" not in record["recipe"]["data"] and str(TOY.parent) not in json.dumps(record)


def test_the_commit_is_that_of_declouders_own_source_and_says_if_it_was_edited(tmp_path, monkeypatch):
    package = tmp_path / "declouder"
    (package / "training").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr("declouder.training.record.__file__", str(package / "training" / "record.py"))
    asked = commit_of_source.__wrapped__  # once in a process it is kept
    assert asked() is None, "no repository"

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "of something else")
    assert asked() is None, "a folder in some other repository"
    git("add", ".")
    git("commit", "-m", "declouder")
    (tmp_path / "beside.txt").touch()
    assert asked() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True")
    assert asked() == git("rev-parse", "HEAD") + "+changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asked() is None, "no git"
