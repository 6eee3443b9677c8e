import csv
import errno
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
from declouder.config import STAGE_NAMES, DataConfig, StageConfig, TrainConfig, load_config, parse_config
from declouder.data.catalog import CATALOG
from declouder.data.training import TrainingData
from declouder.errors import ConfigError, DataError, ModelError, OptionError, OutputError
from declouder.fusion import predict_x0
from declouder.losses import fidelity_loss
from declouder.networks import CompactNet, Denoiser
from declouder.perceptual import LEAST_DISTANCE
from declouder.training import STAGES, StageModule, train
from declouder.training import callbacks as callbacks_module
from declouder.training import stages as stages_module
from declouder.training.module import COLUMNS, _lr_factor
from declouder.training.networks import NETWORKS, build_networks, export, make_pipeline
from declouder.training.stages import _perceptual_loss
from declouder.training.surroundings import check_nodes, one_line_errors

ROOT = Path(__file__).parent.parent
TOY = ROOT / "configs" / "toy.yaml"


def toy(*overrides: str) -> TrainConfig:
    return load_config(TOY, overrides)


def train_quietly(config: TrainConfig, out: Path, **options):
    return train(config, out, device="cpu", **options)


def weights_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "toy"
    reports = train_quietly(toy(), out)
    assert [report.stage for report in reports] == list(STAGE_NAMES)
    assert all(report.finished and report.steps == 6 for report in reports)
    return out


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
        assert [row["step"] for row in rows] == ["3", "6"]
        assert all(float(row["score"]) == float(row["score"]) for row in rows)
    assert len(list((toy_run / "joint" / "pictures").glob("*.png"))) == 2


def test_every_stage_changes_what_it_learns_and_nothing_else(tmp_path):
    before: dict[str, bytes] = {}
    for stage in STAGE_NAMES:
        train_quietly(toy(), tmp_path, stages=[stage])
        after = weights_of(tmp_path / "model")
        changed = {name for name in after if after[name] != before.get(name)}
        assert changed == set(STAGES[stage].learns)
        before = after


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("stage", ["reference", "joint"])
def test_a_run_that_was_cut_off_resumes_to_the_same_weights(tmp_path, toy_run, monkeypatch, stage):
    earlier = STAGE_NAMES[: STAGE_NAMES.index(stage)]
    train_quietly(toy(), tmp_path, stages=earlier)
    training_step = StageModule.training_step

    def cut(module, batch, index):
        if module.global_step == 5:
            raise PowerCut
        return training_step(module, batch, index)

    monkeypatch.setattr(StageModule, "training_step", cut)
    with pytest.raises(PowerCut):
        train_quietly(toy(), tmp_path, stages=[stage])
    monkeypatch.undo()
    assert not (tmp_path / stage / "finished").exists()
    (report,) = train_quietly(toy(), tmp_path, stages=[*earlier, stage], resume=True)
    assert (report.stage, report.finished) == (stage, True)
    uninterrupted, resumed = weights_of(toy_run / "model"), weights_of(tmp_path / "model")
    assert all(resumed[name] == uninterrupted[name] for name in STAGES[stage].learns)


def test_time_that_runs_out_leaves_a_checkpoint_to_go_on_from(tmp_path):
    config = toy("stages.reference.steps=100000")
    (report,) = train_quietly(config, tmp_path, max_time_s=4)
    assert (report.stage, report.finished) == ("reference", False)
    assert 0 < report.steps < 100000
    checkpoint = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == report.steps
    (further,) = train_quietly(config, tmp_path, stages=["reference"], max_time_s=4, resume=True)
    assert further.steps > report.steps + 1, "the time of the call before was counted once more"
    report = further
    finished = train_quietly(
        toy(f"stages.reference.steps={report.steps + 2}"), tmp_path, stages=["reference"], resume=True
    )
    assert finished[0].steps == report.steps + 2


def test_however_short_the_time_a_step_is_taken_and_kept(tmp_path):
    config = toy("stages.reference.steps=100000")
    for done in (1, 2):
        (report,) = train_quietly(config, tmp_path, max_time_s=1e-6, resume=done > 1)
        assert (report.stage, report.steps, report.finished) == ("reference", done, False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--devices", "0"], "--devices is 0; give 1 or more"),
        (["--nodes", "0"], "--nodes is 0; give 1 or more"),
        (["--max-time", "soon"], "--max-time is 'soon'; give a time such as 90s, 45m, 1h30m or 1:30:00"),
        (["--max-time", "0s"], "--max-time is '0s'; give more than nothing"),
        (["--max-time", "1h30"], "--max-time is '1h30'; give a time such as 90s, 45m, 1h30m or 1:30:00"),
    ],
)
def test_options_of_train_that_mean_nothing_are_told(options, told, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["train", str(TOY), "--out", str(tmp_path / "run"), *options])
    assert caught.value.code == 2
    assert capfd.readouterr().err == f"error: {told}\n"
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_trained_again(toy_run):
    assert train_quietly(toy(), toy_run, resume=True) == []


@pytest.mark.parametrize("broken", ["denoiser/config.json", "reference/diffusion_pytorch_model.safetensors"])
def test_a_model_stays_whole_where_saving_it_breaks_off(toy_run, tmp_path, monkeypatch, broken):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    before = {path: path.read_bytes() for path in (run / "model").rglob("*") if path.is_file()}
    config = toy()

    def break_off(self, folder, **_):
        Path(folder).mkdir(parents=True)
        (Path(folder) / Path(broken).name).write_text("")
        raise KeyboardInterrupt

    networks = build_networks(config)
    monkeypatch.setattr(type(networks[Path(broken).parts[0]]), "save_pretrained", break_off)
    with pytest.raises(KeyboardInterrupt):
        export(config, run, networks)
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


def test_the_held_out_loss_is_of_steps_that_the_stage_learns(tmp_path, monkeypatch):
    asked = []

    def forward(self, x, t, *, real=Denoiser.forward):
        asked.append(t.tolist())
        return real(self, x, t)

    monkeypatch.setattr(Denoiser, "forward", forward)
    train_quietly(toy(), tmp_path / "whole", stages=["reference"])
    config = toy("stages.denoiser.max_t=60", "stages.denoiser.steps=1", "stages.denoiser.validate_every=1")
    train_quietly(config, tmp_path / "whole", stages=["denoiser"])
    scored = [t for t in asked if len(t) == 10]
    assert scored and all(t == [3, 9, 15, 21, 27, 33, 39, 45, 51, 57] for t in scored)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.denoiser.heads=3", "model.denoiser cannot run: "),
        ("model.denoiser.layers=0", "model.denoiser cannot"),
        ("model.weight_net.stem=0", "model.weight_net cannot"),
    ],
)
def test_networks_that_cannot_run_are_told_before_anything_is_learnt(change, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        train_quietly(toy(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_does_not_fit_is_told_before_anything_is_learnt(toy_run, tmp_path):
    config = toy(f"model.start_from={toy_run / 'model'}", "model.weight_net.widths=[8, 24]")
    with pytest.raises(ModelError, match=r"model\.start_from: .*weight_net.* is of another network"):
        train_quietly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_stage_whose_network_is_gone_says_so(toy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    shutil.rmtree(run / "model" / "denoiser")
    with pytest.raises(ModelError, match=r"stage 'denoiser' has finished, but .*denoiser is gone; .* or remove"):
        train_quietly(toy(), run, resume=True)
    (run / "denoiser" / "finished").unlink()
    with pytest.raises(ModelError, match="stage 'joint' has finished, but"):
        train_quietly(toy(), run, resume=True)
    (run / "joint" / "finished").unlink()
    train_quietly(toy(), run, resume=True)
    assert weights_of(run / "model") == weights_of(toy_run / "model")


def test_two_runs_are_not_mixed(toy_run):
    with pytest.raises(OutputError, match="continue it with --resume"):
        train_quietly(toy(), toy_run)


def test_a_stage_of_another_recipe_does_not_join_a_run(tmp_path):
    train_quietly(toy(), tmp_path, stages=["reference"])
    recipe = (tmp_path / "config.yaml").read_text()
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"seed was 0 when .* was begun, and is 7 now"):
            train_quietly(toy("seed=7"), tmp_path, stages=["denoiser"], resume=resume)
    assert (tmp_path / "config.yaml").read_text() == recipe
    (tmp_path / "config.yaml").write_text(recipe[:100])
    with pytest.raises(ConfigError, match="so the recipe cannot be compared with it"):
        train_quietly(toy(), tmp_path, stages=["reference"], resume=True)


def test_a_run_that_goes_on_learns_from_the_data_it_was_begun_with(tmp_path):
    write_four_pairs(tmp_path)
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.hold_out=0", "data.procedural=0"]
    fields += ["data.synthetic_share=0", "stages.reference.steps=1000"]
    train_quietly(toy(*fields), tmp_path / "run", stages=["reference"], max_time_s=2)
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "train" / kind / "2.png").unlink()
    with pytest.raises(
        DataError, match=r"the data \(3 pairs\) are not those that .*reference was begun with \(4 pairs\)"
    ):
        train_quietly(toy(*fields), tmp_path / "run", stages=["reference"], resume=True, max_time_s=2)


def test_a_later_stage_learns_from_the_data_of_the_earlier_ones_and_the_recipe_stays(tmp_path):
    write_four_pairs(tmp_path)
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.hold_out=0", "data.procedural=0"]
    fields += ["data.synthetic_share=0", "stages.denoiser.downscale=1"]
    train_quietly(toy(*fields), tmp_path / "run", stages=["reference"])
    recipe = (tmp_path / "run" / "config.yaml").read_text()
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "train" / kind / "2.png").unlink()
    with pytest.raises(DataError, match=r"are not those that .*reference was begun with"):
        train_quietly(toy(*fields, "stages.denoiser.lr=0.5"), tmp_path / "run", stages=["denoiser"])
    assert (tmp_path / "run" / "config.yaml").read_text() == recipe
    (tmp_path / "run" / "reference" / "data.json").write_text("{")
    with pytest.raises(DataError, match=r"data\.json is damaged"):
        train_quietly(toy(*fields), tmp_path / "run", stages=["denoiser"])


def test_finished_stages_ask_for_nothing_when_a_run_goes_on(tmp_path, monkeypatch):
    asked = "stages.reference.perceptual_weight=0.1", "stages.reference.patch_px=40"
    stand_in = lambda bands: lambda image, clear: (image - clear).square().mean((1, 2, 3))  # noqa: E731
    monkeypatch.setattr("declouder.training.module.PerceptualLoss", stand_in)
    train_quietly(toy(*asked), tmp_path, stages=["reference"])
    monkeypatch.undo()
    monkeypatch.delenv("DECLOUDER_LPIPS_BACKBONE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    (report,) = train_quietly(toy(*asked), tmp_path, stages=["reference", "denoiser"], resume=True)
    assert report.stage == "denoiser"


def test_an_interrupted_training_is_no_bug(tmp_path):
    # Where the tests run in the background of a shell, Ctrl-C is ignored, and children inherit that.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; from declouder.cli import main; main(sys.argv[1:])"
    words = [
        "train",
        "reference",
        str(TOY),
        "--out",
        str(tmp_path / "run"),
        "--set",
        "stages.reference.steps=100000",
    ]
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True) as run:
        try:
            while not list((tmp_path / "run").rglob("data.json")):
                time.sleep(0.1)
            time.sleep(2)
            run.send_signal(signal.SIGINT)
            _, told = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130 and told.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("left", [0, 2000])
def test_a_damaged_checkpoint_is_named(tmp_path, left):
    config = toy("stages.reference.steps=1000")
    train_quietly(config, tmp_path, stages=["reference"], max_time_s=2)
    checkpoint = tmp_path / "reference" / "last.ckpt"
    os.truncate(checkpoint, left)
    with pytest.raises(DataError, match=r"last\.ckpt is damaged .* remove it to begin the stage anew"):
        train_quietly(config, tmp_path, stages=["reference"], resume=True)
    checkpoint.unlink()
    assert train_quietly(config, tmp_path, stages=["reference"], resume=True, max_time_s=2)


@pytest.mark.parametrize(
    ("changes", "missing", "error", "told"),
    [
        ([], "weights", ModelError, "the recipe has no stage weights"),
        (["stages.joint.only=[foo]"], None, ConfigError, "foo"),
        (
            ["stages.joint.perceptual_weight=0.1", "stages.joint.patch_px=40"],
            None,
            ConfigError,
            "DECLOUDER_LPIPS_BACKBONE",
        ),
    ],
)
def test_what_a_later_stage_lacks_is_found_before_the_first(changes, missing, error, told, tmp_path, monkeypatch):
    monkeypatch.delenv("DECLOUDER_LPIPS_BACKBONE", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    config = toy(*changes)
    stages = {name: stage for name, stage in config.stages.items() if name != missing}
    config = config.model_copy(update={"stages": stages})
    with pytest.raises(error, match=told):
        train_quietly(config, tmp_path / "run", stages=list(stages))
    assert not (tmp_path / "run").exists()


def test_a_stage_without_the_earlier_ones_says_so(tmp_path):
    with pytest.raises(ModelError, match="run the earlier stages first"):
        train_quietly(toy(), tmp_path, stages=["weights"])


def test_a_stage_that_the_recipe_lacks_is_named(tmp_path):
    config = toy()
    without = config.model_copy(update={"stages": {"reference": config.stages["reference"]}})
    with pytest.raises(ConfigError, match="has no stage 'joint'"):
        train_quietly(without, tmp_path, stages=["joint"])


def test_other_networks_than_the_earlier_stage_left_are_refused(tmp_path):
    train_quietly(toy(), tmp_path, stages=["reference"])
    train_quietly(toy(), tmp_path, stages=["denoiser"])
    other = toy("model.denoiser.widths=[16,32]")
    with pytest.raises(ConfigError, match=r"model\.denoiser\.widths was \[8, 16\]"):
        train_quietly(other, tmp_path, stages=["weights"])
    (tmp_path / "config.yaml").unlink()  # then the networks tell
    with pytest.raises(ModelError, match="is not the network of this recipe"):
        train_quietly(other, tmp_path, stages=["weights"])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "reference_loss", lambda *_, **__: torch.tensor(float("nan")))
    with pytest.raises(DataError, match="the loss is nan at step 0"):
        train_quietly(toy(), tmp_path, stages=["reference"])


def test_unknown_networks_and_fields_are_named():
    with pytest.raises(ConfigError, match="choose one of compact, memorynet, msda"):
        build_networks(toy("model.reference.network=mdsa"))
    with pytest.raises(ConfigError, match=r"model\.denoiser cannot be built: .*width"):
        build_networks(toy("model.denoiser={width: 3}"))


def test_networks_follow_from_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (build_networks(toy(f"seed={seed}")) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    key = "unet.conv_in.weight"
    assert torch.equal(first["denoiser"].state_dict()[key], again["denoiser"].state_dict()[key])
    assert not torch.equal(first["denoiser"].state_dict()[key], other["denoiser"].state_dict()[key])


def test_a_checkpoint_is_written_beside_its_name_first(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoints = callbacks_module.AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(callbacks_module.torch, "save", full_disk)
    with pytest.raises(OutputError, match="free some room"):
        checkpoints.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


RECIPES = sorted((ROOT / "configs").glob("**/*.yaml"))
PAPER_RECIPES = {
    f"{data}_{network}" for data in ("rice1", "rice2", "cuhk_cr1", "cuhk_cr2") for network in ("msda", "memorynet")
}


def test_there_is_a_recipe_for_every_benchmark_and_reference_network_of_the_paper():
    assert {path.stem for path in RECIPES} >= PAPER_RECIPES | {"toy", "compact", "one_gpu"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_its_networks(path):
    config = load_config(path)
    with torch.device("meta"):
        networks = build_networks(config)
    assert set(networks) == {"reference", "denoiser", "weight_net"}
    assert all(network.config["bands"] == len(config.model.bands) for network in networks.values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_paper_have_its_networks_and_settings(path):
    config = load_config(path)
    assert config.name == path.stem
    if path.stem not in PAPER_RECIPES:
        return
    assert set(config.stages) == set(STAGE_NAMES)
    with torch.device("meta"):
        networks = build_networks(config)
    four = "cuhk" in path.stem
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert sizes["denoiser"] == (32_144_740 if four else 32_142_147)
    assert sizes["weight_net"] == (4_660_484 if four else 4_658_179)
    assert CATALOG[config.data.pairs[0].set].size_px == 512
    assert config.data.size == 256
    assert (config.model.num_inference_steps, config.model.w_bounds) == (10, (0.3, 1.0))
    assert config.stages["denoiser"].downscale == 4
    assert (config.stages["joint"].steps, config.stages["joint"].noise_weight) == (10_000, 1.0)


ONE_STEP = [
    f"stages.{stage}.{field}"
    for stage in STAGE_NAMES
    for field in (
        "batch=1",
        "patch_px=16",
        "fused_px=null",
        "downscale=1",
        "ssim_weight=0",
        "perceptual_weight=0",
        "log_perceptual_weight=0",
    )
]


def test_every_config_builds_and_takes_one_step_in_every_stage(monkeypatch):
    """Recipes that share a network share its step: what differs between them is the data's name and a length."""
    found, built = 0, {}
    ours = "declouder.training.module.build_networks"
    monkeypatch.setattr(ours, lambda config: built[config.model.model_dump_json()])
    taken = set()
    for path in RECIPES:
        present = load_config(path).stages
        changes = [change for change in ONE_STEP if change.split(".")[1] in present]
        changes += [f"stages.{name}.augment.dim=0" for name in present]  # generated ground has no such pairs
        config = load_config(path, ["data.workers=0", *changes])
        found += 1
        key = config.model.model_dump_json()
        if key not in built:
            built[key] = build_networks(config)
        config = config.model_copy(update={"data": DataConfig(procedural=2, synthetic_share=1)})
        data = TrainingData(config.data, band_names=config.model.bands, seed=0)
        for name in config.stages:
            parts = (*STAGES[name].learns, *STAGES[name].takes_over)
            step = (name, str([config.model.model_dump()[p] for p in parts]), len(config.model.bands))
            if step in taken:
                continue
            taken.add(step)
            module = StageModule(name, config, data)
            batch = torch.utils.data.default_collate([module.samples[0]])
            module.learning.requires_grad_(True)  # an earlier stage may have frozen the shared network
            module.stage.loss(module, batch).backward()
            # DDP waits for the gradient of every parameter: one that gets none would stop it.
            lonely = [key for key, p in module.learning.named_parameters() if p.grad is None]
            assert not lonely, f"{path.stem}, {name}: no gradient for {lonely[:3]}"
            learner = module.configure_optimizers()
            learner["optimizer"].step()
            assert all(torch.isfinite(p).all() for p in module.learning.parameters())
            module.learning.zero_grad(set_to_none=True)
    assert found == len(RECIPES) >= 11


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
    assert f"torch {torch.__version__}" in told
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


TWO_PROCESSES = """
import os
import sys
from pathlib import Path
import torch
from declouder.config import load_config
from declouder.training import StageModule, train

torch.set_num_threads(1)
config, out, devices, nodes, *settings = sys.argv[1:]

def remember(module, optimizer):
    if module.global_rank == 0 and module.global_step == 0:
        gradients = [parameter.grad for parameter in module.learning.parameters()]
        torch.save(gradients, Path(out).with_suffix(f".{module.stage.learns[0]}.pt"))

StageModule.on_before_optimizer_step = remember
stages = ["reference", "denoiser"]
reports = train(
    load_config(Path(config), settings), Path(out), stages=stages,
    device="cpu", devices=int(devices), nodes=int(nodes),
)
# In one write: two processes share this pipe.
os.write(1, f"{[report.stage for report in reports]}\\n".encode())
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(command: list[object], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("machines", [1, 2])
def test_two_processes_give_the_gradients_of_one_with_the_doubled_batch(tmp_path, monkeypatch, machines):
    """On one machine Lightning starts the second process, on two machines each starts its own."""

    def settings(batch: int) -> list[str]:
        return [f"stages.{s}.{field}" for s in STAGE_NAMES[:2] for field in ("steps=1", f"batch={batch}")]

    one: dict[str, list[torch.Tensor]] = {}

    def remember(module, optimizer):
        one[module.stage.learns[0]] = [parameter.grad.clone() for parameter in module.learning.parameters()]

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", remember, raising=False)
    train_quietly(toy(*settings(4)), tmp_path / "one", stages=STAGE_NAMES[:2])

    (tmp_path / "run.py").write_text(TWO_PROCESSES)
    command = [sys.executable, tmp_path / "run.py", TOY, tmp_path / "two", 2 // machines, machines, *settings(2)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if machines > 1 else {}
    processes = [start(command, **meeting, NODE_RANK=str(node)) for node in range(machines)]
    told = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0] * machines, told
    # The first process alone reports, wherever the other one was started.
    assert sorted("".join(out for out, _ in told).split("\n")) == ["", "['reference', 'denoiser']", "[]"]
    for part in STAGE_NAMES[:2]:
        two = torch.load(tmp_path / f"two.{part}.pt")
        assert len(two) == len(one[part]) > 10
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(one[part], two, strict=True))
    assert (tmp_path / "two" / "denoiser" / "finished").exists()


def test_several_machines_that_do_not_know_each_other_are_refused(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(OptionError, match=r"2 nodes, but MASTER_ADDR, NODE_RANK not set; start .* torchrun"):
        train(toy(), tmp_path / "run", nodes=2)
    assert not (tmp_path / "run").exists()


def test_torchrun_and_the_number_of_devices_must_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = r"torchrun has started 2 processes, for --devices 1 and --nodes 1 there are 1; give --devices as"
    with pytest.raises(OptionError, match=told):
        train(toy(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_nodes(1, 2)
    check_nodes(2, 1)


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
    train_quietly(toy(), tmp_path / "short", stages=["reference"])
    (path,) = (tmp_path / "short").rglob("metrics.csv")
    assert any(row["loss"] for row in csv.DictReader(path.open()))


def test_a_model_that_is_not_whole_yet_says_so(tmp_path, caplog):
    train_quietly(toy(), tmp_path / "first")
    other = toy(f"model.start_from={tmp_path / 'first' / 'model'}", "model.weight_net.widths=[8, 24]")
    caplog.set_level("WARNING")
    train_quietly(other, tmp_path / "second", stages=["reference"])
    assert "is no whole model yet, as what model.start_from has is not the recipe's" in caplog.text
    assert not (tmp_path / "second" / "model" / "model_index.json").exists()


def run_until_killed(config: TrainConfig, out: Path, after_s: float) -> None:
    """Train in a forked process and kill it with SIGKILL a while after its first checkpoint."""
    process = multiprocessing.get_context("fork").Process(
        target=train_quietly, args=(config, out), kwargs={"resume": True}
    )
    process.start()
    begun, limit = out / "reference" / "last.ckpt", time.monotonic() + 60
    while not begun.exists() and process.is_alive() and time.monotonic() < limit:
        time.sleep(0.01)
    process.join(after_s)
    process.kill()
    process.join()


def test_a_run_that_is_killed_at_any_moment_resumes_to_the_same_weights(tmp_path, toy_run):
    for after_s in random.Random(time.time()).choices((0.0, 0.1, 0.3, 0.6, 1.0, 1.5), k=4):
        run_until_killed(toy(), tmp_path / "killed", after_s)
    train_quietly(toy(), tmp_path / "killed", resume=True)
    assert weights_of(tmp_path / "killed" / "model") == weights_of(toy_run / "model")
    for stage in STAGE_NAMES:
        scores = Path(stage) / "scores.csv"
        assert (tmp_path / "killed" / scores).read_text() == (toy_run / scores).read_text()


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


def stage_module(stage: str, *overrides: str) -> StageModule:
    config = toy(*overrides)
    return StageModule(stage, config, TrainingData(config.data, band_names=config.model.bands, seed=0))


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
    fields = ("clip_norm=0.5", "weight_decay=0.1", "steps=1", "lr=1e-3", "warmup_steps=0", "accumulate=2")
    overrides = [f"stages.reference.{field}" for field in fields]
    train_quietly(toy(*overrides), tmp_path, stages=["reference"])
    assert (seen["gradient_clip_val"], seen["max_steps"], seen["accumulate_grad_batches"]) == (0.5, 1, 2)
    chosen = stage_module("reference", *overrides).configure_optimizers()
    (group,) = chosen["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)
    assert chosen["lr_scheduler"]["interval"] == "step"


def test_time_steps_are_drawn_below_max_t():
    module, clear = stage_module("denoiser", "stages.denoiser.max_t=10"), torch.zeros(3, 8, 8)
    drawn = {int(module._draw(seed, clear)[0]) for seed in range(200)}
    assert drawn == set(range(10))


def test_less_noise_left_is_a_better_score():
    module = stage_module("denoiser")
    assert module._score_of({"noise_loss": 1.0}) > module._score_of({"noise_loss": 2.0})


def test_lpips_and_its_logarithm_are_weighed_as_the_recipe_says(monkeypatch):
    stand_in = lambda bands: lambda image, clear: torch.full((len(image),), 0.2)  # noqa: E731
    monkeypatch.setattr("declouder.training.module.PerceptualLoss", stand_in)
    weights = ("perceptual_weight=0.3", "log_perceptual_weight=0.7", "patch_px=40")
    module = stage_module("joint", *(f"stages.joint.{field}" for field in weights))
    image = torch.zeros(2, 3, 40, 40)
    found = _perceptual_loss(module, image, image, {"seed": torch.tensor([5, 6])})
    assert float(found) == pytest.approx(0.3 * 0.2 + 0.7 * math.log(0.2 + LEAST_DISTANCE))


def test_every_step_is_told_with_its_loss(tmp_path):
    told: list[tuple[str, int, int, float | None]] = []
    config = toy("stages.reference.steps=3")
    train_quietly(config, tmp_path, stages=["reference"], on_step=lambda *step: told.append(step))
    assert [step[:3] for step in told] == [("reference", done, 3) for done in range(4)]
    assert told[0][3] is None and all(loss is not None and loss > 0 for *_, loss in told[1:])


def write_four_pairs(root: Path) -> None:
    for kind in ("cloud", "label"):
        folder = root / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (number, 90, 90)).save(folder / f"{number}.png")


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


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")]
)
def test_a_full_disk_is_named_and_leaves_the_previous_checkpoint(error, tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    checkpoints = callbacks_module.AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, path)

    def full(_, part):
        Path(part).write_bytes(b"torn")
        raise error  # torch.save tells a full disk in either way

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"last\.ckpt cannot be written .* free some room"):
        checkpoints.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and [*tmp_path.iterdir()] == [path]


def test_no_space_left_elsewhere_in_a_run_is_one_line_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks_module, "_append_row", full)
    with pytest.raises(OutputError, match="no space is left; free some room and go on with --resume"):
        train_quietly(toy(), tmp_path, stages=["reference"])


def test_an_image_damaged_in_the_middle_of_an_epoch_is_named_in_one_line(tmp_path, monkeypatch):
    write_four_pairs(tmp_path)
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.synthetic_share=0", "data.hold_out_block=1"]
    config = toy(*fields, "data.cache_gb=0", "data.workers=1", "stages.reference.steps=20")

    class DamagedMeanwhile(training_module.TrainingData):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            for pair in self.pairs:
                pair.cloudy_path.write_bytes(b"\x89PNG damaged")

    monkeypatch.setattr(training_module, "TrainingData", DamagedMeanwhile)
    with pytest.raises(DataError, match=r"cloud/\d\.png cannot be read as an image") as caught:
        train_quietly(config, tmp_path / "run", stages=["reference"])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
)
def test_a_loader_process_that_is_killed_is_one_line(error, tmp_path):
    told = r"^a loader process was ended from outside \([^()]+\); .* go on with --resume$"
    with pytest.raises(DataError, match=told), one_line_errors(tmp_path):
        raise error
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(DataError, match=r"^another process of this run has ended"), one_line_errors(tmp_path):
        raise lost
    with pytest.raises(RuntimeError, match=r"^another$"), one_line_errors(tmp_path):
        raise RuntimeError("another")


def fused_stage(stage: str = "joint", **fields) -> StageModule:
    config = toy(*(f"stages.{stage}.{name}={value}" for name, value in fields.items()))
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module = StageModule(stage, config, data)
    with torch.no_grad():
        for network in (module.network("denoiser"), module.network("weight_net")):
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def batch_of(module: StageModule) -> dict[str, torch.Tensor]:
    return torch.utils.data.default_collate([module.samples[number] for number in range(2)])


def test_noise_on_the_reference_is_what_leads_back_to_the_clear_image():
    module = fused_stage(noised="reference")
    batch = batch_of(module)
    reference = torch.rand_like(batch["clear"])
    x_t, eps, _, alpha_bar = module.noisy(batch, reference)
    torch.testing.assert_close(x_t - alpha_bar.sqrt() * batch["clear"], (1 - alpha_bar).sqrt() * eps)
    as_published, *_ = fused_stage().noisy(batch, reference)
    torch.testing.assert_close(x_t - as_published, alpha_bar.sqrt() * (reference - batch["clear"]))


@pytest.mark.parametrize("through", [False, True])
def test_the_fused_image_teaches_the_denoiser_only_where_the_recipe_says_so(through):
    module = fused_stage(through_denoiser=str(through).lower(), noise_weight=0)
    module.stage.loss(module, batch_of(module)).backward()
    gradients = [p.grad.abs().max() for p in module.network("denoiser").parameters() if p.grad is not None]
    assert (max(gradients, default=0) > 0) == through
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in module.network("weight_net").parameters())


@pytest.mark.parametrize("stage", ["weights", "joint"])
def test_a_square_of_a_patch_is_fused_with_the_reference_of_the_whole(stage, monkeypatch):
    module = fused_stage(stage, patch_px=48, fused_px=16)
    batch = batch_of(module)
    whole = module.network("reference")(batch["cloudy"])
    seen: tuple[list[tuple[int, int]], ...] = ([], [])

    def spy(*arguments, cloudy: torch.Tensor, reference: torch.Tensor, **others):
        for number, (top, left) in itertools.product(range(2), itertools.product(range(0, 33, 8), repeat=2)):
            square = (number, ..., slice(top, top + 16), slice(left, left + 16))
            if torch.equal(cloudy[number], batch["cloudy"][square]):
                torch.testing.assert_close(reference[number], whole[square])
                seen[number].append((top // 8, left // 8))
        return predict_x0(*arguments, cloudy=cloudy, reference=reference, **others)

    monkeypatch.setattr(stages_module, "predict_x0", spy)
    for seed in range(0, 16 * 25, 16):
        assert module.stage.loss(module, batch | {"seed": torch.tensor([seed, 99])}).ndim == 0
    assert sorted(seen[0]) == [(top, left) for top in range(5) for left in range(5)]
    assert seen[1] == [(1, 1)] * 25  # of 99 // 16


def test_the_fused_image_may_be_judged_as_the_reference_is():
    plain, judged = fused_stage(), fused_stage(ssim_weight=0.5, psnr_weight=0.25)
    for learnt, other in zip(plain.learning.parameters(), judged.learning.parameters(), strict=True):
        other.data.copy_(learnt.data)
    batch = batch_of(plain)
    with torch.no_grad():
        fused = stages_module._fused(plain, batch)
        added = fidelity_loss(fused.prediction.x0, batch["clear"], ssim_weight=0.5, psnr_weight=0.25)
        difference = judged.stage.loss(judged, batch) - plain.stage.loss(plain, batch)
    torch.testing.assert_close(difference, added)
    assert added.abs() > 0.01


def test_a_stage_with_a_perceptual_loss_is_scored_by_it(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    settings = {"perceptual_weight": 0.5, "log_perceptual_weight": 0.1, "noised": "reference", "patch_px": 40}
    config = toy(
        *(f"stages.joint.{name}={value}" for name, value in settings.items()),
        "data.procedural=2",
    )
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module, plain = StageModule("joint", config, data), StageModule("joint", toy(), data)
    batch = batch_of(module)
    with torch.no_grad():
        assert module.stage.loss(module, batch) != plain.stage.loss(plain, batch)
    scores, _ = module.score()
    expected = -scores["restored_l1"] - 0.5 * scores["restored_lpips"] - 0.1 * scores["restored_ln_lpips"]
    assert scores["score"] == pytest.approx(expected) and scores["restored_lpips"] > 0
    assert not [key for key in module.state_dict() if "perceptual" in key]


def test_a_perceptual_loss_sees_every_place_of_a_patch_alike(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    module = fused_stage("weights", perceptual_weight=1.0, patch_px=40)
    seen = []

    def spy(restored: torch.Tensor, clear: torch.Tensor) -> torch.Tensor:
        assert restored.shape == clear.shape == (2, 3, 37, 37)
        places = list(itertools.product(range(4), repeat=2))
        cuts = [batch["clear"][..., down : down + 37, right : right + 37] for down, right in places]
        seen.append(
            [next(i for i, cut in enumerate(cuts) if torch.equal(image, cut[n])) for n, image in enumerate(clear)]
        )
        return restored.mean()

    monkeypatch.setattr(module.perceptual, "forward", spy)
    batch = batch_of(module)
    with torch.no_grad():
        for seed in range(16):
            module.stage.loss(module, batch | {"seed": torch.tensor([seed, 99])})
    assert sorted(place for place, _ in seen) == list(range(16))
    assert {place for _, place in seen} == {12}  # of 99: three down, none to the right


def test_a_perceptual_loss_without_a_backbone_is_an_error_of_the_recipe(monkeypatch, tmp_path):
    monkeypatch.delenv("DECLOUDER_LPIPS_BACKBONE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match="perceptual_weight is above 0, but no LPIPS backbone"):
        fused_stage(log_perceptual_weight=0.1, patch_px=40)


def test_a_network_that_chooses_can_learn_by_its_choices(tmp_path):
    chooser = "model.reference.options={block: residual, widths: [8, 16], blocks: [1, 1], guided: [3]}"
    losses = []
    for weight in (0, 1, 2, 3):
        config = toy(chooser, f"stages.reference.choice_weight={weight}")
        data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
        module = StageModule("reference", config, data)
        losses.append(float(module.stage.loss(module, batch_of(module)).detach()))
    assert losses[1] > losses[0]
    # From 0 to 1 the network's own image is supervised too.
    choice = losses[2] - losses[1]
    assert choice > 0 and losses[3] - losses[2] == pytest.approx(choice, rel=1e-4)
    assert losses[1] - losses[0] > choice
    with pytest.raises(ConfigError, match="choice_weight wants a network that chooses"):
        toy("stages.reference.choice_weight=1")


def test_of_ambiguous_samples_a_network_can_keep_to_an_earlier_one(tmp_path, toy_run):
    keeps = f"stages.reference.keep_to={toy_run / 'model'}"
    config = toy(keeps, "stages.reference.augment.even_haze=true")
    data = TrainingData(config.data, band_names=config.model.bands, seed=config.seed)
    module = StageModule("reference", config, data)
    batch = batch_of(module)
    assert not batch["ambiguous"].any()
    earlier = CompactNet.from_pretrained(toy_run / "model" / "reference")
    module.teacher.load_state_dict(earlier.state_dict())
    with torch.no_grad():
        usual = module.stage.loss(module, batch)
        taught = earlier(batch["cloudy"])
        expected = module.stage.loss(module, batch | {"clear": torch.stack([batch["clear"][0], taught[1]])})
        kept = module.stage.loss(module, batch | {"ambiguous": torch.tensor([False, True])})
    torch.testing.assert_close(kept, expected, atol=1e-5, rtol=0)
    assert abs(float(kept - usual)) > 1e-3
    learns = {id(parameter) for parameter in module.configure_optimizers()["optimizer"].param_groups[0]["params"]}
    assert not any(id(parameter) in learns for parameter in module.teacher.parameters())
    train_quietly(config, tmp_path, stages=["reference"])
    saved = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)["state_dict"]
    for key, weight in earlier.state_dict().items():
        assert torch.equal(saved[f"teacher.{key}"], weight)
    nowhere = toy("stages.reference.keep_to=nowhere", "stages.reference.augment.even_haze=true")
    with pytest.raises(ModelError, match=r"stages\.reference\.keep_to: nowhere does not exist"):
        train_quietly(nowhere, tmp_path / "other", stages=["reference"])
    strange = toy("stages.reference.keep_to=shipped", "stages.reference.augment.even_haze=true")
    with pytest.raises(ModelError, match=r"stages\.reference\.keep_to: .* is of another network"):
        train_quietly(strange, tmp_path / "third", stages=["reference"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["stages.joint.keep_to=shipped"], "stages.joint.keep_to does nothing"),
        (["stages.reference.keep_to=shipped"], "which finds the samples"),
    ],
)
def test_keeping_to_nothing_is_an_error_of_the_recipe(fields, message):
    with pytest.raises(ConfigError, match=message):
        toy(*fields)


def test_a_run_can_begin_with_the_weights_of_another(tmp_path, toy_run):
    start = f"model.start_from={toy_run / 'model'}"
    begun = StageModule("reference", toy(), TrainingData(toy().data, band_names=toy().model.bands, seed=0))
    config = toy(start, "stages.reference.steps=1", "stages.reference.lr=1e-9", "stages.reference.weight_decay=0")
    train_quietly(config, tmp_path, stages=["reference"])
    files = [next((run / "model" / "reference").glob("*.safetensors")) for run in (toy_run, tmp_path)]
    trained, again = (load_file(path) for path in files)
    for name, tensor in trained.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=0)
    own = begun.network("reference").state_dict()
    assert any(not torch.equal(own[name], tensor) for name, tensor in trained.items())


def test_one_stage_of_a_model_can_be_trained_further_and_leaves_a_whole_model(tmp_path, toy_run):
    fields = (f"model.start_from={toy_run / 'model'}", "stages.joint.steps=1", "stages.reference.steps=1")
    for stage, others in (("joint", ["reference"]), ("reference", ["denoiser", "weight_net"])):
        train_quietly(toy(*fields), tmp_path / stage, stages=[stage])
        CloudRemovalPipeline.from_pretrained(tmp_path / stage / "model")
        for name in others:
            old, new = (
                load_file(next((run / "model" / name).glob("*.safetensors"))) for run in (toy_run, tmp_path / stage)
            )
            assert all(torch.equal(new[key], value) for key, value in old.items())


def test_a_stage_whose_start_has_other_networks_beside_its_own_leaves_its_own_alone(tmp_path, toy_run):
    config = toy(
        f"model.start_from={toy_run / 'model'}", "model.denoiser.widths=[16, 32]", "stages.reference.steps=1"
    )
    train_quietly(config, tmp_path, stages=["reference"])
    assert [path.name for path in (tmp_path / "model").iterdir() if path.is_dir()] == ["reference"]
    with pytest.raises(ModelError, match="is not the network of this recipe"):
        train_quietly(config, tmp_path, stages=["joint"])


def test_a_network_grows_without_forgetting(tmp_path, toy_run):
    wider = toy(
        f"model.start_from={toy_run / 'model'}",
        "model.reference.options.context=3",
        "stages.reference.lr=1e-9",
        "stages.reference.steps=1",
        "stages.reference.weight_decay=0",
    )
    train_quietly(wider, tmp_path, stages=["reference"])
    old, new = (CompactNet.from_pretrained(run / "model" / "reference") for run in (toy_run, tmp_path))
    cloudy = torch.rand(1, 3, 32, 48) * 2 - 1
    torch.testing.assert_close(new(cloudy), old(cloudy), atol=1e-5, rtol=0)
    assert len(new.state_dict()) > len(old.state_dict())


def test_parts_alone_can_learn(tmp_path, toy_run):
    begun = ("stages.reference.steps=2", f"model.start_from={toy_run / 'model'}")
    train_quietly(toy(*begun, "stages.reference.only=[head, decoder.0.norm1]"), tmp_path, stages=["reference"])
    old, new = (load_file(next((run / "model" / "reference").glob("*.safetensors"))) for run in (toy_run, tmp_path))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert {"head.weight", "head.bias", "decoder.0.norm1.weight"} <= changed
    assert all(name.startswith(("head.", "decoder.0.norm1.")) for name in changed)


def test_a_part_that_is_to_learn_must_be_there(tmp_path):
    with pytest.raises(
        ConfigError, match=r"stages.reference.only: no network .* has a part 'haed'; there are .*head"
    ):
        train_quietly(toy("stages.reference.only=[haed]"), tmp_path, stages=["reference"])


@pytest.mark.parametrize(("stage", "learnt"), [("denoiser", ["denoiser"]), ("joint", ["denoiser", "weight_net"])])
def test_attention_in_the_middle_can_be_left_behind(stage, learnt, tmp_path, toy_run):
    without = ("model.denoiser.middle_attention=false", "model.weight_net.middle_attention=false")
    config = toy(
        f"model.start_from={toy_run / 'model'}", f"stages.{stage}.steps=1", f"stages.{stage}.lr=1e-9", *without
    )
    train_quietly(config, tmp_path, stages=[stage])
    for name in learnt:
        old, new = (load_file(next((run / "model" / name).glob("*.safetensors"))) for run in (toy_run, tmp_path))
        left = set(old) - set(new)
        assert left and set(new) < set(old)
        assert all(key.startswith("unet.mid_block.attentions.") for key in left)
        assert all(torch.allclose(new[key], old[key], atol=1e-6) for key in new)


def test_a_network_that_does_not_learn_on_keeps_its_attention_in_the_middle(tmp_path, toy_run):
    config = toy(
        f"model.start_from={toy_run / 'model'}", "model.denoiser.middle_attention=false", "stages.weights.steps=1"
    )
    with pytest.raises(ModelError, match=r"is not the network of this recipe: it has .*mid_block\.attentions"):
        train_quietly(config, tmp_path / "a", stages=["weights"])
    train_quietly(config, tmp_path / "b", stages=["reference"])
    assert [path.name for path in (tmp_path / "b" / "model").iterdir() if path.is_dir()] == ["reference"]


def test_weights_of_another_network_are_no_start(tmp_path, toy_run):
    other = toy(f"model.start_from={toy_run / 'model'}", "model.reference.options.widths=[8, 12]")
    with pytest.raises(ModelError, match="is of another network"):
        train_quietly(other, tmp_path / "a", stages=["reference"])
    with pytest.raises(ModelError, match="nowhere does not exist"):
        train_quietly(toy("model.start_from=nowhere"), tmp_path / "b", stages=["reference"])


def test_the_recipe_that_trains_the_shipped_model_further_builds_it():
    """Options without tensors too: with another, the same weights make another image from the first step on."""
    config = load_config(ROOT / "configs" / "finetune.yaml")
    built, shipped = make_pipeline(config, build_networks(config)), CloudRemovalPipeline.from_pretrained()
    for part in NETWORKS:
        ours, theirs = (settings_of(getattr(pipeline, part)) for pipeline in (built, shipped))
        assert ours == theirs, part
    for name in ("bands", "num_inference_steps", "strength", "w_bounds"):
        assert list(np.ravel(built.config[name])) == list(np.ravel(shipped.config[name]))
    assert settings_of(built.scheduler) == settings_of(shipped.scheduler)


def settings_of(part: Any) -> dict[str, Any]:
    return {key: value for key, value in part.config.items() if not key.startswith("_")}


def test_a_recipe_that_starts_from_a_network_of_other_settings_says_so(tmp_path, caplog):
    config = toy("model.reference.options={widths: [8, 16], blocks: [1, 1], guided: [3], keep_clear: 4.0}")
    reference = build_networks(config)["reference"]
    reference.save_pretrained(tmp_path / "start" / "reference")
    other = toy(
        "model.reference.options={widths: [8, 16], blocks: [1, 1], guided: [3], keep_clear: 0.0}",
        f"model.start_from={tmp_path / 'start'}",
        "stages.reference.steps=1",
    )
    train_quietly(other, tmp_path / "run", stages=["reference"])
    assert "was trained with keep_clear 4.0, here 0.0" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=7", "seed was 0 when .* was begun, and is 7 now; put it back"),
        ("model.strength=0.9", "model.strength was .* and is 0.9 now"),
        ("model.reference.options={widths: [4, 8], blocks: [1, 1]}", "model.reference.options.widths was"),
        ("data.hold_out=0.4", "data.hold_out was"),
        ("stages.reference.steps=50", "stages.reference.steps was"),
        ("stages.denoiser.only=[conv_in]", "stages.denoiser.only was"),
    ],
)
def test_a_run_is_not_resumed_with_a_recipe_that_makes_another_of_it(change, words, tmp_path):
    train_quietly(toy("stages.reference.steps=2"), tmp_path, stages=["reference"])
    (tmp_path / "denoiser").mkdir()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=words):
        train_quietly(toy("stages.reference.steps=2", change), tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == before


LONG = toy("stages.reference.steps=100000", "stages.reference.validate_every=100000")


def test_what_comes_next_in_a_run_that_is_resumed_may_change(tmp_path):
    (report,) = train_quietly(LONG, tmp_path, stages=["reference"], max_time_s=3)
    assert not report.finished and report.steps > 1
    changed = toy("stages.reference.steps=1", "stages.reference.lr=1e-5", "data.workers=0", "data.cache_gb=1")
    (report,) = train_quietly(changed, tmp_path, stages=["reference"], resume=True)
    assert report.finished and (tmp_path / "model" / "reference").is_dir()  # though nothing was scored before


def test_a_run_is_not_resumed_with_or_without_lpips_in_its_loss_where_it_was_not(tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    train_quietly(LONG, tmp_path, stages=["reference"], max_time_s=3)
    with pytest.raises(ConfigError, match=r"stages\.reference was begun without LPIPS in its loss"):
        changed = toy("stages.reference.perceptual_weight=0.1", "stages.reference.patch_px=40")
        train_quietly(changed, tmp_path, stages=["reference"], resume=True)


def test_a_run_of_summed_batches_stops_at_a_whole_step_and_is_first_scored_after_one(tmp_path):
    summed = toy("stages.reference.steps=3", "stages.reference.accumulate=40", "stages.reference.validate_every=1")
    train_quietly(summed, tmp_path / "whole", stages=["reference"])
    (report,) = train_quietly(summed, tmp_path / "cut", stages=["reference"], max_time_s=0.3)
    assert not report.finished and report.steps < 3
    checkpoint = torch.load(tmp_path / "cut" / "reference" / "last.ckpt", weights_only=False)
    ready = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
    assert ready == 40 * report.steps > 0
    train_quietly(summed, tmp_path / "cut", stages=["reference"], resume=True)
    assert weights_of(tmp_path / "cut" / "model") == weights_of(tmp_path / "whole" / "model")
    with (tmp_path / "whole" / "reference" / "scores.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_a_run_that_is_resumed_learns_at_the_rate_of_its_recipe(tmp_path):
    fields = ("stages.reference.checkpoint_every=1", "stages.reference.schedule=cosine")
    train_quietly(toy("stages.reference.steps=9", *fields), tmp_path, stages=["reference"], max_time_s=1e-6)
    slow = ("stages.reference.lr=1e-30", "stages.reference.weight_decay=0.5", *fields)
    train_quietly(
        toy("stages.reference.steps=9", *slow), tmp_path, stages=["reference"], max_time_s=1e-6, resume=True
    )
    checkpoint = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    expected = toy("stages.reference.steps=9", *slow).stages["reference"]
    assert (checkpoint["global_step"], group["weight_decay"]) == (2, 0.5)
    assert group["lr"] == 1e-30 * _lr_factor(2, expected)
    begun = {key: value.clone() for key, value in checkpoint["state_dict"].items() if key.startswith("learning")}
    train_quietly(toy("stages.reference.steps=4", *slow), tmp_path, stages=["reference"], resume=True)
    after = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)["state_dict"]
    assert all(torch.allclose(after[key], value, rtol=0, atol=1e-20) for key, value in begun.items())


def test_a_run_of_summed_batches_that_is_cut_off_again_when_it_has_hardly_gone_on_loses_nothing(
    tmp_path, monkeypatch
):
    summed = toy(*(f"stages.reference.{field}" for field in ("steps=4", "accumulate=3", "checkpoint_every=2")))
    train_quietly(summed, tmp_path / "whole", stages=["reference"])
    training_step = StageModule.training_step
    for batches in (8, 2):  # in the third step, and in it once more, after its second batch
        left = iter(range(batches))

        def cut(module, batch, index, left=left):
            if next(left, None) is None:
                raise PowerCut
            return training_step(module, batch, index)

        monkeypatch.setattr(StageModule, "training_step", cut)
        with pytest.raises(PowerCut):
            train_quietly(summed, tmp_path / "cut", stages=["reference"], resume=batches == 2)
    monkeypatch.undo()
    train_quietly(summed, tmp_path / "cut", stages=["reference"], resume=True)
    assert weights_of(tmp_path / "cut" / "model") == weights_of(tmp_path / "whole" / "model")


def test_the_record_counts_the_time_of_all_calls_and_names_each_stages_versions(tmp_path, monkeypatch):
    def passed(path: Path) -> float:
        return json.loads(path.read_text())["stages"]["reference"]["seconds"]

    train_quietly(toy("stages.reference.steps=2"), tmp_path, stages=["reference"], max_time_s=1e-6)
    checkpoint = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("ScoreLog"))
    assert 0 < state["seconds"] < 600
    state["seconds"] += 5000
    torch.save(checkpoint, tmp_path / "reference" / "last.ckpt")
    train_quietly(toy("stages.reference.steps=2"), tmp_path, stages=["reference"], resume=True)
    record = tmp_path / "model" / "training.json"
    assert 5000 < passed(record) < 5600
    monkeypatch.setattr("declouder.training.record.commit_of_source", lambda: "another")
    train_quietly(toy("stages.reference.steps=2"), tmp_path, stages=["denoiser"])
    stages = json.loads(record.read_text())["stages"]
    assert stages["denoiser"]["commit"] == "another" != stages["reference"]["commit"]
    assert stages["reference"]["versions"]["torch"] == torch.__version__


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


def test_pictures_of_all_sizes_stand_in_columns():
    levels = torch.linspace(0.2, 1, 4)
    rows = [
        torch.cat([torch.full((4, height, width), float(level)) for level in levels], dim=-1)
        for height, width in ((8, 6), (5, 10))
    ]
    sheet = callbacks_module._sheet_of(rows, columns=4)
    assert sheet.shape == (13, 40, 3)
    for column, level in enumerate(levels):
        assert (sheet[:8, 10 * column : 10 * column + 6] == round(255 * float(level))).all()
        assert (sheet[:8, 10 * column + 6 : 10 * column + 10] == 0).all()
        assert (sheet[8:, 10 * column : 10 * column + 10] == round(255 * float(level))).all()


def test_parts_of_patches_are_cut_for_each_sample_so_that_summed_batches_stay_equal(backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    module = fused_stage("weights", patch_px=72, fused_px=48, perceptual_weight=1.0)
    whole = batch_of(module) | {"seed": torch.tensor([5 + 16 * 7, 10])}

    def gradients(*batches) -> list[torch.Tensor]:
        module.zero_grad()
        for batch in batches:
            (module.stage.loss(module, batch) / len(batches)).backward()
        return [parameter.grad.clone() for parameter in module.learning.parameters() if parameter.grad is not None]

    parts = [{key: value[n : n + 1] for key, value in whole.items()} for n in range(2)]
    for large, summed in zip(gradients(whole), gradients(*parts), strict=True):
        torch.testing.assert_close(large, summed, rtol=1e-4, atol=1e-6)
