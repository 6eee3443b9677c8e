"""Runs that end before they are finished and go on, and what may not go on with them."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import names_in
from declouder.config import STAGE_NAMES, TrainConfig
from declouder.errors import ConfigError, DataError, ModelError, OutputError
from declouder.training import STAGES, StageModule
from declouder.training import callbacks as callbacks_module
from declouder.training.module import _lr_factor
from declouder.training.resuming import one_run_in
from declouder.training.score_table import append_row
from toy import toy, train_quietly, weights_of, write_four_pairs


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


def test_two_runs_do_not_train_in_one_folder(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path; from toy import toy, train_quietly\n"
        "train_quietly(toy('stages.reference.steps=100000'), Path(sys.argv[1]), stages=['reference'])\n"
    )
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", code, out], stderr=subprocess.PIPE)
    try:
        while not (out / "reference" / "last.ckpt").exists():
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.05)
        for resume in (False, True):
            with pytest.raises(OutputError, match=r"another run is training in .*run at this moment; wait for it"):
                train_quietly(toy(), out, stages=["reference"], resume=resume)
    finally:
        process.kill()
        process.wait()
    (report,) = train_quietly(  # the lock of a process that was killed is none
        toy("stages.reference.steps=100000"), out, stages=["reference"], resume=True, max_time_s=0.1
    )
    assert report.steps > 0 and not (out / ".lock").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_folder_that_another_run_holds_is_refused_however_the_system_says_so(number, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", _failing(number))
    with pytest.raises(OutputError, match="another run is training in"), one_run_in(tmp_path / "run"):
        pass
    assert (tmp_path / "run").exists(), "it is the other run's"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_trained_on(number, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fcntl, "lockf", _failing(number))
    with one_run_in(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert f"{tmp_path / 'run' / '.lock'}: this file system has no locks; see that no other" in caplog.text


def _failing(number: int):
    def lockf(file, how):
        raise OSError(number, os.strerror(number))

    return lockf


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_lock_that_the_run_before_deletes_at_this_moment_is_taken_anew(comes_back, tmp_path, monkeypatch):
    real, locked = fcntl.lockf, []

    def lockf(file, how):
        if not locked:
            (tmp_path / ".lock").unlink()
            if comes_back:
                (tmp_path / ".lock").touch()
        locked.append(file)
        real(file, how)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with one_run_in(tmp_path):
        assert len(locked) == 2
        assert os.path.samestat(os.fstat(locked[1]), (tmp_path / ".lock").stat())


def test_the_folder_of_a_run_is_made_and_removed_again_where_it_stays_empty(tmp_path):
    (tmp_path / "old").mkdir()
    files = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("old", "new", "deep/down"):
        with one_run_in(tmp_path / name):
            assert (tmp_path / name).is_dir()
    with one_run_in(tmp_path / "used"):
        (tmp_path / "used" / "config.yaml").touch()
    assert names_in(tmp_path) == ["deep", "old", "used"] and names_in(tmp_path / "used") == ["config.yaml"]
    assert len(list(Path("/proc/self/fd").iterdir())) == files, "locks that are given back stay open"
    with pytest.raises(OutputError, match="cannot be made or written"), one_run_in(tmp_path / "used/config.yaml/a"):
        pass


def test_a_run_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(DataError):
        train_quietly(toy("data.procedural=0", "data.base=nowhere", "data.clear=[a]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("stage", ["reference", "joint"])
def test_a_run_that_is_stopped_while_it_scores_goes_on_with_the_score(stage, tmp_path, toy_run, monkeypatch):
    run = tmp_path / "run"
    before = STAGE_NAMES[: STAGE_NAMES.index(stage)]
    if before:
        train_quietly(toy(), run, stages=before)
    score = StageModule.score

    def stopped(module: StageModule) -> Any:
        if module.trainer.global_step == 3:
            raise KeyboardInterrupt
        return score(module)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "score", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_quietly(toy(), run, stages=[stage])
    assert torch.load(run / stage / "last.ckpt", weights_only=False)["global_step"] == 3
    train_quietly(toy(), run, stages=[stage], resume=True)
    assert (run / stage / "scores.csv").read_text() == (toy_run / stage / "scores.csv").read_text()
    part = STAGES[stage].learns[0]
    ours, theirs = (torch.load(each / stage / "last.ckpt", weights_only=False) for each in (run, toy_run))
    assert all(
        torch.equal(weight, theirs["state_dict"][key])
        for key, weight in ours["state_dict"].items()
        if key.startswith(f"averaged.module.{part}.")
    )


def test_scoring_is_not_begun_where_it_would_take_longer_than_is_left(tmp_path, toy_run, monkeypatch):
    score, took = StageModule.score, []

    def slow(module: StageModule) -> Any:
        took.append(module.trainer.global_step)
        time.sleep(3)
        return score(module)

    steps = ("stages.reference.steps=100000", "stages.reference.validate_every=2")
    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "score", slow)
        began = time.monotonic()
        (report,) = train_quietly(toy(*steps), tmp_path, stages=["reference"], max_time_s=5)
        assert took == [2] and report.steps == 4 and not report.finished and time.monotonic() - began < 6
        train_quietly(toy(*steps), tmp_path, stages=["reference"], max_time_s=5, resume=True)
        assert took[:2] == [2, 4], "a resumed run begins with the score that is due"


def test_however_short_the_time_a_step_is_taken_and_kept(tmp_path):
    config = toy("stages.reference.steps=100000")
    for done in (1, 2):
        (report,) = train_quietly(config, tmp_path, max_time_s=1e-6, resume=done > 1)
        assert (report.stage, report.steps, report.finished) == ("reference", done, False)


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


def test_a_stage_that_is_repeated_begins_with_what_the_ones_before_it_left(toy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    shutil.rmtree(run / "joint")
    train_quietly(toy(), run, resume=True)
    assert weights_of(run / "model") == weights_of(toy_run / "model")
    shutil.rmtree(run / "joint")
    shutil.rmtree(run / "weights")
    train_quietly(toy(), run, stages=["weights"])  # with the denoiser's own, which joint has taught on
    record = json.loads((run / "model" / "training.json").read_text())
    assert [*record["stages"]] == ["reference", "denoiser", "weights"]  # nothing of joint is in the model
    train_quietly(toy(), run, stages=["joint"])
    assert weights_of(run / "model") == weights_of(toy_run / "model")


@pytest.mark.parametrize(
    ("stage", "later"), [("reference", "weights"), ("denoiser", "weights"), ("weights", "joint")]
)
def test_what_a_later_stage_has_learnt_from_is_not_learnt_anew(stage, later, toy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    shutil.rmtree(run / stage)
    told = rf"stage '{stage}' is to learn what stage '{later}' has learnt from; remove .*run/{later} first"
    for given in ({"resume": True}, {"stages": [stage]}):
        with pytest.raises(ModelError, match=told):
            train_quietly(toy(), run, **given)
    assert weights_of(run / "model") == weights_of(toy_run / "model")


def test_a_run_without_networks_of_its_stages_goes_on_with_its_model(toy_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    for stage in ("reference", "denoiser", "weights", "joint"):
        shutil.rmtree(run / stage / "networks")
    shutil.rmtree(run / "joint")
    assert [report.stage for report in train_quietly(toy(), run, resume=True)] == ["joint"]


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


SCORED_OFTEN = toy("stages.reference.steps=1000", "stages.reference.validate_every=1")


@pytest.fixture(scope="module")
def begun_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after it was scored; nobody changes it."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train_quietly(SCORED_OFTEN, out, stages=["reference"], max_time_s=1e-6)
    return out


@pytest.mark.parametrize("left", [0, 2000])
def test_a_damaged_checkpoint_is_named(tmp_path, left):
    config = toy("stages.reference.steps=1000")
    train_quietly(config, tmp_path, stages=["reference"], max_time_s=2)
    checkpoint = tmp_path / "reference" / "last.ckpt"
    os.truncate(checkpoint, left)
    told = r"last\.ckpt is damaged or no checkpoint; remove it to begin the stage anew$"
    with pytest.raises(DataError, match=told):
        train_quietly(config, tmp_path, stages=["reference"], resume=True)
    checkpoint.unlink()
    assert train_quietly(config, tmp_path, stages=["reference"], resume=True, max_time_s=2)


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        ({"a": 1}, "pytorch-lightning_version"),
        ([1], "pytorch-lightning_version"),
        ("no optimizer", "optimizer_states"),
    ],
)
def test_a_file_of_torch_that_is_no_checkpoint_is_named(content, lacks, begun_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun_run, run)
    path = run / "reference" / "last.ckpt"
    if content == "no optimizer":  # Lightning can save weights alone
        content = torch.load(path, weights_only=False)
        del content["optimizer_states"]
    torch.save(content, path)
    told = rf"last\.ckpt is no checkpoint of a training, as it holds no {lacks}; remove it to begin the stage anew"
    with pytest.raises(DataError, match=told):
        train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)


@pytest.mark.parametrize("how", ["missing", "of another shape", "unknown", "no tensor"])
def test_a_checkpoint_whose_tensors_are_not_those_of_its_stage_is_told_in_one_line(how, begun_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun_run, run)
    path = run / "reference" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    weights, name = checkpoint["state_dict"], "learning.reference.intro.bias"
    if how == "missing":
        del weights[name]
        told = rf"has no {name}, and this stage {name} of shape \[8\]"
    elif how == "of another shape":
        weights[name] = torch.zeros(9)
        told = rf"has {name} of shape \[9\], and this stage {name} of shape \[8\]"
    elif how == "unknown":
        weights["more"] = torch.zeros(())
        told = r"has more of shape \[\], and this stage no more"
    else:
        weights[name] = 3
        told = rf"has no {name}, and this stage"
    torch.save(checkpoint, path)
    with pytest.raises(DataError, match=rf"last\.ckpt {told}.*; put its own back, or remove it to begin") as error:
        train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)
    assert "\n" not in str(error.value)


def test_a_run_whose_recipe_is_gone_is_not_resumed(begun_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun_run, run)
    (run / "config.yaml").unlink()
    told = r"config\.yaml is missing, so the recipe cannot be compared with that of .*reference; put it back"
    for given in ({"resume": True, "stages": ["reference"]}, {"stages": ["denoiser"]}):
        with pytest.raises(ConfigError, match=told):
            train_quietly(SCORED_OFTEN, run, max_time_s=1e-6, **given)
    assert not (run / "config.yaml").exists() and not (run / "denoiser").exists()
    (run / "reference" / "last.ckpt").unlink()  # then nothing is gone on with
    (report,) = train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)
    assert report.steps == 1 and (run / "config.yaml").exists()


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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("seed=7", "seed was 0 when .* was begun, and is 7 now; put it back"),
        ("model.strength=0.9", "model.strength was .* and is 0.9 now"),
        ("model.reference.options={widths: [4, 8], blocks: [1, 1]}", "model.reference.options.widths was"),
        ("data.hold_out=0.4", "data.hold_out was"),
        ("stages.reference.steps=50", "stages.reference.steps was"),
        ("stages.denoiser.only=[conv_in]", "stages.denoiser.only was"),
        ("stages.reference.keep_to=shipped", "stages.reference.keep_to was None when"),
    ],
)
def test_a_run_is_not_resumed_with_a_recipe_that_makes_another_of_it(change, words, tmp_path):
    begun = ("stages.reference.steps=2", "stages.reference.augment.even_haze=true")  # which keep_to wants
    train_quietly(toy(*begun), tmp_path, stages=["reference"])
    if "keep_to" in change:
        (tmp_path / "reference" / "finished").unlink()  # of what has finished nothing may change anyhow
    (tmp_path / "denoiser").mkdir()
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=words):
        train_quietly(toy(*begun, change), tmp_path, resume=True)
    assert (tmp_path / "config.yaml").read_bytes() == before


LONG = toy("stages.reference.steps=100000", "stages.reference.validate_every=100000")


def test_what_comes_next_in_a_run_that_is_resumed_may_change(tmp_path):
    (report,) = train_quietly(LONG, tmp_path, stages=["reference"], max_time_s=3)
    assert not report.finished and report.steps > 1
    changed = toy("stages.reference.steps=1", "stages.reference.lr=1e-5", "data.workers=0", "data.cache_gb=1")
    (report,) = train_quietly(changed, tmp_path, stages=["reference"], resume=True)
    assert report.finished and (tmp_path / "model" / "reference").is_dir()  # though nothing was scored before


@pytest.mark.parametrize("field", ["perceptual_weight", "log_perceptual_weight"])
def test_a_run_is_not_resumed_with_lpips_in_its_loss_where_it_was_not(field, tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    train_quietly(LONG, tmp_path, stages=["reference"], max_time_s=1e-6)
    with pytest.raises(ConfigError, match=r"stages\.reference was begun without LPIPS in its loss"):
        changed = toy(f"stages.reference.{field}=0.1", "stages.reference.patch_px=40")
        train_quietly(changed, tmp_path, stages=["reference"], resume=True)


def test_a_run_of_summed_batches_stops_at_a_whole_step_and_is_first_scored_after_one(tmp_path):
    summed = toy("stages.reference.steps=3", "stages.reference.accumulate=40", "stages.reference.validate_every=1")
    train_quietly(summed, tmp_path / "whole", stages=["reference"])
    (report,) = train_quietly(summed, tmp_path / "cut", stages=["reference"], max_time_s=1e-6)
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
    assert stages["reference"]["versions"]["torch"] == version("torch")


def test_a_run_that_goes_on_remembers_how_long_its_scores_have_stayed_behind(tmp_path, monkeypatch):
    scores = iter([1.0, 3.0, 2.0, 2.5, 9.0, 9.5])
    monkeypatch.setattr(StageModule, "score", lambda module: ({"score": next(scores)}, []))
    config = toy(*(f"stages.reference.{field}" for field in ("steps=50", "validate_every=1", "patience=2")))
    for step in (1, 2, 3, 4):  # one a call
        (report,) = train_quietly(config, tmp_path, stages=["reference"], max_time_s=1e-6, resume=step > 1)
        assert (report.steps, report.finished) == (step, step == 4)
    (tmp_path / "reference" / "finished").unlink()  # killed before that was noted
    (report,) = train_quietly(config, tmp_path, stages=["reference"], resume=True)
    assert (report.steps, report.finished, report.scores["step"]) == (4, True, 2)


def test_a_run_that_goes_on_keeps_the_best_weights_of_before(tmp_path, monkeypatch):
    scores, kept = iter([1.0, 3.0, 2.0]), []

    def score(module: StageModule):
        kept.append({key: value.clone() for key, value in module.kept("reference").state_dict().items()})
        return {"score": next(scores)}, []

    monkeypatch.setattr(StageModule, "score", score)
    config = toy("stages.reference.steps=3", "stages.reference.validate_every=1")
    for step in (1, 2, 3):  # one a call
        train_quietly(config, tmp_path, stages=["reference"], max_time_s=1e-6, resume=step > 1)
    (file,) = (tmp_path / "model" / "reference").glob("*.safetensors")
    saved = load_file(file)
    assert all(torch.equal(saved[key], value) for key, value in kept[1].items())
    assert any(not torch.equal(saved[key], value) for key, value in kept[2].items())


def test_a_run_of_summed_batches_that_goes_on_is_not_scored_twice_at_one_step(tmp_path, monkeypatch):
    scores, scored = iter([3.0, 2.0, 1.0, 0.0]), []
    monkeypatch.setattr(
        StageModule, "score", lambda module: ({"score": next(scores)}, scored.append(module.global_step) or [])
    )
    config = toy(*(f"stages.reference.{field}" for field in ("steps=3", "accumulate=2", "validate_every=1")))
    for step in (1, 2, 3):  # one a call
        train_quietly(config, tmp_path, stages=["reference"], max_time_s=1e-6, resume=step > 1)
    assert scored == [1, 2, 3]


def test_a_step_that_is_scored_again_has_one_row(tmp_path):
    for step, score in ((3, 1.0), (6, 2.0), (3, 4.0)):
        append_row(tmp_path / "scores.csv", {"step": step, "score": score})
    assert (tmp_path / "scores.csv").read_text().splitlines() == ["step,score", "3,4.00000"]


@pytest.mark.parametrize("has_checkpoint", [True, False])
@pytest.mark.parametrize(
    ("before", "after", "how"),
    [
        (b"step,", b"", "it has no column 'step'"),
        (b",", b";", "it has no column 'step'"),
        (b"\n1,", b"\nabc,", "the step in line 2 is 'abc'"),
        (b"\n1,", b"\n1.0,", "the step in line 2 is '1.0'"),
        (b"\n1,", b"\n,", "the step in line 2 is ''"),
        (b"\n1,", b"\n", "line 2 has not 4 fields, as the first has"),
        (b"\n1,", b"\n1,1,", "line 2 has not 4 fields, as the first has"),
        (b"reference_psnr", b"step", "two of its columns have one name"),
        (b"reference_psnr", b"r\xe9f\xe9rence", "it is not UTF-8"),
    ],
)
def test_scores_that_were_edited_are_told_before_a_run_goes_on(
    before, after, how, has_checkpoint, begun_run, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(begun_run, run)
    if not has_checkpoint:
        (run / "reference" / "last.ckpt").unlink()
    path = run / "reference" / "scores.csv"
    path.write_bytes(path.read_bytes().replace(before, after))
    edited = path.read_bytes()
    told = rf"scores\.csv is not as training wrote it \(({how})\); put it back, or move it away"
    with pytest.raises(DataError, match=told):
        train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)
    assert path.read_bytes() == edited
    path.rename(tmp_path / "away.csv")
    (report,) = train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)
    assert report.steps == 1 + has_checkpoint and path.exists()


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(("before", "after"), [("reference_psnr", "psnr"), ("step,", "more,step,"), (",score", "")])
def test_scores_of_other_columns_are_told_before_a_run_goes_on(before, after, is_old, begun_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(begun_run, run)
    path = run / "reference" / "scores.csv"
    titles = path.read_text().splitlines()[0].replace(before, after)
    count = titles.count(",") + 1
    path.write_text(f"{titles}\n{','.join(['1'] * count)}\n")
    if is_old:  # the checkpoint, of a version that did not note the columns
        checkpoint = torch.load(run / "reference" / "last.ckpt", weights_only=False)
        del checkpoint["callbacks"]["ScoreLog"]["columns"]
        torch.save(checkpoint, run / "reference" / "last.ckpt")
    told = f"its columns are {titles.replace(',', ', ')}, and were step, reference_psnr, reference_ssim, score"
    with pytest.raises(DataError, match=told):
        train_quietly(SCORED_OFTEN, run, stages=["reference"], resume=True, max_time_s=1e-6)


def test_rows_of_scores_that_are_not_known_are_not_lost(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("step,taste,score\n1,sweet,2\n")
    with pytest.raises(DataError, match=r"is not as training wrote it \(no score is called 'taste'\)"):
        append_row(path, {"step": 2, "score": 3.0})
    assert path.read_text() == "step,taste,score\n1,sweet,2\n"
    append_row(tmp_path / "old.csv", {"step": 1, "score": 2.0})
    append_row(tmp_path / "old.csv", {"step": 2, "score": 3.0, "new": 4.0})  # which this version takes too
    assert (tmp_path / "old.csv").read_text().splitlines() == ["step,score,new", "1,2.00000,", "2,3.00000,4.00000"]


def test_as_many_pairs_of_other_pixels_are_other_data(tmp_path):
    write_four_pairs(tmp_path)
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.hold_out=0", "data.procedural=0"]
    fields += ["data.synthetic_share=0", "stages.reference.steps=1000"]
    train_quietly(toy(*fields), tmp_path / "run", stages=["reference"], max_time_s=1e-6)
    Image.new("RGB", (32, 32), (7, 7, 7)).save(tmp_path / "set" / "train" / "label" / "2.png")
    with pytest.raises(DataError, match=r"the data \(4 pairs\) are not those that .*reference was begun with"):
        train_quietly(toy(*fields), tmp_path / "run", stages=["reference"], resume=True, max_time_s=1e-6)


def test_a_run_goes_on_where_its_data_have_moved(tmp_path):
    write_four_pairs(tmp_path / "old")
    fields = ["data.pairs=[set]", "data.hold_out=0", "data.procedural=0", "data.synthetic_share=0"]
    fields += ["stages.reference.steps=1000"]
    old, new = (toy(f"data.base={tmp_path / name}", *fields) for name in ("old", "new"))
    train_quietly(old, tmp_path / "run", stages=["reference"], max_time_s=1e-6)
    (tmp_path / "old").rename(tmp_path / "new")
    (report,) = train_quietly(new, tmp_path / "run", stages=["reference"], max_time_s=1e-6, resume=True)
    assert report.steps == 2


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [
        ("reference", "perceptual_weight=0.1", "perceptual_weight=9"),
        ("denoiser", "max_t=1000", "max_t=900"),
        ("denoiser", "lr=1e-4", "lr=2e-4"),
    ],
)
def test_scores_by_another_measure_are_not_compared(stage, before, after, tmp_path, backbone, monkeypatch):
    monkeypatch.setenv("DECLOUDER_LPIPS_BACKBONE", str(backbone))
    scores = iter([3.0, 2.0, 1.0, 0.0])
    monkeypatch.setattr(StageModule, "score", lambda module: ({"score": next(scores)}, []))
    fields = ["steps=4", "validate_every=1", "patience=2"]
    fields += ["patch_px=40"] if stage == "reference" else []  # LPIPS sees no less
    for step, field in ((1, before), (2, after), (3, after)):
        config = toy(*(f"stages.{stage}.{each}" for each in (*fields, field)))
        (report,) = train_quietly(config, tmp_path, stages=[stage], max_time_s=1e-6, resume=step > 1)
    is_other = "lr" not in after
    assert report.scores == {"step": 2, "score": 2.0} if is_other else {"step": 1, "score": 3.0}
    assert report.finished is not is_other  # patience


def test_a_checkpoint_of_an_older_version_says_what_is_to_beat(tmp_path):
    log = callbacks_module.ScoreLog(tmp_path)
    log.load_state_dict({"best": {"step": 4, "score": 31.5}, "weights": {}, "scored_step": 6})
    now = log.state_dict()
    assert (now["to_beat"], now["without_better"], now["stopped"], now["scored_step"]) == (31.5, 0, False, 6)
    assert 0 <= now["seconds"] < 60


def test_a_resumed_run_leaves_none_of_the_files_that_a_kill_left_unfinished(tmp_path):
    train_quietly(toy(), tmp_path, stages=["reference"])
    left = [tmp_path / ".config.yaml.12-3.part", tmp_path / "reference" / ".scores.csv.12-3.part"]
    for path in left:
        path.write_text("torn")
    train_quietly(toy(), tmp_path, stages=["reference"], resume=True)
    assert not any(path.exists() for path in left)
