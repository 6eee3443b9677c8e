"""Runs that begin with the weights of a model, of all its networks or of some of their parts."""

from __future__ import annotations

import csv
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from declouder import CloudRemovalPipeline
from declouder.data.training import TrainingData
from declouder.errors import ConfigError, ModelError
from declouder.networks import CompactNet
from declouder.training import StageModule
from declouder.training.networks import build_networks, take_over
from toy import stage_module, toy, train_quietly


def test_a_start_that_does_not_fit_is_told_before_anything_is_learnt(toy_run, tmp_path):
    config = toy(f"model.start_from={toy_run / 'model'}", "model.weight_net.widths=[8, 24]")
    with pytest.raises(ModelError, match=r"model\.start_from: .*weight_net.* is of another network"):
        train_quietly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def widened(model):
    config = json.loads((model / "weight_net" / "config.json").read_text())
    (model / "weight_net" / "config.json").write_text(json.dumps({**config, "widths": [8, 24]}))


def spoilt(model):
    path = next((model / "denoiser").glob("*.safetensors"))
    weights = load_file(path)
    weights[min(weights)].view(-1)[0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (widened, r"weight_net is not the network of this recipe \("),
        (spoilt, r"denoiser holds NaN or infinity in .*; its weights are damaged, copy it anew"),
        (lambda model: (model / "denoiser" / "config.json").write_text('"x"'), "config.json holds no fields; copy"),
        (lambda model: (model / "denoiser" / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda model: next((model / "weight_net").glob("*.safetensors")).unlink(), "weight_net lacks its weights"),
        (lambda model: next((model / "weight_net").glob("*.safetensors")).write_bytes(b"cut"), "weight_net is not"),
        (
            lambda model: shutil.rmtree(model / "denoiser"),
            r"which does not exist; the recipe has no stage denoiser, and model\.start_from \(.*\) has no denoiser",
        ),
    ],
)
def test_what_later_stages_begin_with_is_looked_at_before_anything_is_learnt(damage, told, toy_run, tmp_path):
    shutil.copytree(toy_run / "model", tmp_path / "start")
    damage(tmp_path / "start")
    config = toy(f"model.start_from={tmp_path / 'start'}", "stages.reference.steps=1")
    stages = {name: stage for name, stage in config.stages.items() if name in ("reference", "joint")}
    with pytest.raises(ModelError, match=told):
        train_quietly(config.model_copy(update={"stages": stages}), tmp_path / "run", stages=list(stages))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("keep_to", ["shipped", "nowhere"])
def test_what_a_stage_keeps_to_is_looked_at_before_anything_is_learnt(keep_to, tmp_path):
    config = toy(
        f"stages.reference.keep_to={keep_to}",
        "stages.reference.augment.even_haze=true",
        "model.reference.network=memorynet",
        "model.reference.options={}",
    )
    with pytest.raises(ModelError, match=r"stages\.reference\.keep_to: "):
        train_quietly(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_finished_stage_has_left_and_is_gone_is_told_with_the_way_out(toy_run, tmp_path):
    config = toy(f"model.start_from={toy_run / 'model'}", "stages.reference.steps=1", "stages.joint.steps=1")
    train_quietly(config, tmp_path, stages=["reference"])
    shutil.rmtree(tmp_path / "model" / "reference")
    shutil.rmtree(tmp_path / "reference" / "networks")
    with pytest.raises(
        ModelError, match=r"has finished, but .*reference is gone; put it back, or remove .*finished"
    ):
        train_quietly(config, tmp_path, stages=["reference", "joint"], resume=True)


def test_a_record_that_cannot_be_read_is_begun_anew(tmp_path, caplog):
    train_quietly(toy("stages.reference.steps=1", "stages.denoiser.steps=1"), tmp_path, stages=["reference"])
    (tmp_path / "model" / "training.json").write_text("{")
    train_quietly(toy("stages.reference.steps=1", "stages.denoiser.steps=1"), tmp_path, stages=["denoiser"])
    assert "is no record of a training" in caplog.text
    assert list(json.loads((tmp_path / "model" / "training.json").read_text())["stages"]) == ["denoiser"]


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
    old = load_file(next((toy_run / "model" / "reference").glob("*.safetensors")))
    # Of the last step: what is kept may be what it began with.
    new = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)["state_dict"]
    changed = {name for name in old if not torch.equal(old[name], new[f"learning.reference.{name}"])}
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
    with pytest.raises(ModelError, match=r"is not the network of this recipe \(it has .*mid_block\.attentions"):
        train_quietly(config, tmp_path / "a", stages=["weights"])
    train_quietly(config, tmp_path / "b", stages=["reference"])
    assert [path.name for path in (tmp_path / "b" / "model").iterdir() if path.is_dir()] == ["reference"]


def test_weights_of_another_network_are_no_start(tmp_path, toy_run):
    other = toy(f"model.start_from={toy_run / 'model'}", "model.reference.options.widths=[8, 12]")
    with pytest.raises(ModelError, match="is of another network"):
        train_quietly(other, tmp_path / "a", stages=["reference"])
    with pytest.raises(ModelError, match="nowhere does not exist"):
        train_quietly(toy("model.start_from=nowhere"), tmp_path / "b", stages=["reference"])


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


def test_a_start_that_is_no_model_is_refused(tmp_path, toy_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    with pytest.raises(ModelError, match="a training that has not finished a stage yet: continue it with --resume"):
        CloudRemovalPipeline.from_pretrained(tmp_path / "begun")
    for folder, told in (
        (tmp_path / "empty", "holds no reference, denoiser, weight_net; give a model's folder"),
        (toy_run, f"is the folder of a training; give its model, {toy_run / 'model'}"),
    ):
        with pytest.raises(ModelError, match=re.escape(told)):
            train_quietly(toy(f"model.start_from={folder}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_start_that_learnt_other_bands_or_numbers_is_told(tmp_path, toy_run, caplog):
    start = f"model.start_from={toy_run / 'model'}"
    other = toy(start, "model.bands=[nir, red, green]", "data.range=[0, 5000]", "stages.reference.steps=1")
    train_quietly(other, tmp_path / "other", stages=["reference"])
    assert "model.start_from learnt red, green, blue; model.bands are nir, red, green" in caplog.text
    assert "model.start_from learnt with data.range none; here it is 0 to 5000" in caplog.text
    caplog.clear()
    train_quietly(toy(start, "stages.reference.steps=1"), tmp_path / "same", stages=["reference"])
    assert "start_from learnt" not in caplog.text


def test_networks_of_no_level_are_told():
    with pytest.raises(ConfigError, match=r"model\.denoiser cannot be built"):
        build_networks(toy("model.denoiser.widths=[]"))


def test_what_an_earlier_stage_left_is_read_from_safetensors_alone(tmp_path):
    network = build_networks(toy())["reference"]
    network.save_pretrained(tmp_path / "reference", safe_serialization=False)
    assert [path.suffix for path in sorted((tmp_path / "reference").iterdir())] == [".json", ".bin"]
    with pytest.raises(ModelError, match=r"reference lacks its weights .*save it with safe_serialization=True"):
        take_over(network, tmp_path / "reference", stage="joint")


@pytest.mark.parametrize("workers", [0, 3])
def test_samples_are_loaded_by_as_many_processes_as_the_recipe_says(workers, monkeypatch):
    module = stage_module("reference", f"data.workers={workers}")
    monkeypatch.setattr(type(module), "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(type(module), "global_step", 0)
    monkeypatch.setattr(type(module), "global_rank", 0)
    loader = module.train_dataloader()
    assert loader.num_workers == workers and not loader.persistent_workers


@pytest.mark.parametrize(("lr", "spoilt_by", "is_worse"), [("1.0", 0.0, True), ("1e-2", 0.5, False)])
def test_a_stage_that_makes_what_it_began_with_worse_keeps_it(lr, spoilt_by, is_worse, tmp_path, toy_run, caplog):
    start = CompactNet.from_pretrained(toy_run / "model" / "reference")
    start.state_dict()["head.bias"].add_(spoilt_by)
    start.save_pretrained(tmp_path / "start" / "reference")
    begun = (f"model.start_from={tmp_path / 'start'}", f"stages.reference.lr={lr}", "stages.reference.ema=0")
    run = tmp_path / "run"
    (report,) = train_quietly(toy(*begun, "stages.reference.validate_every=3"), run, stages=["reference"])
    with (run / "reference" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "3", "6"]
    best = max(rows, key=lambda row: float(row["score"]))
    assert report.scores["step"] == int(best["step"]) and (best["step"] == "0") == is_worse
    assert ("no score was better than that of the weights it began with" in caplog.text) == is_worse
    new = CompactNet.from_pretrained(run / "model" / "reference").state_dict()
    assert all(torch.equal(weight, new[name]) for name, weight in start.state_dict().items()) == is_worse
