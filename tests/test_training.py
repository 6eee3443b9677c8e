import csv
from pathlib import Path

import pytest
import torch

from declouder import CloudRemovalPipeline
from declouder import training as training_module
from declouder.config import STAGE_NAMES, TrainConfig, load_config
from declouder.errors import ConfigError, DataError, ModelError, OutputError
from declouder.training import STAGES, StageModule, build_networks, train

ROOT = Path(__file__).parent.parent
TOY = ROOT / "configs" / "toy.yaml"


def toy(*overrides: str) -> TrainConfig:
    return load_config(TOY, overrides)


def train_quietly(config: TrainConfig, out: Path, **options):
    return train(config, out, quiet=True, device="cpu", **options)


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
    (report,) = train_quietly(config, tmp_path, max_time_s=1.5)
    assert (report.stage, report.finished) == ("reference", False)
    assert 0 < report.steps < 100000
    checkpoint = torch.load(tmp_path / "reference" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == report.steps
    finished = train_quietly(
        toy(f"stages.reference.steps={report.steps + 2}"), tmp_path, stages=["reference"], resume=True
    )
    assert finished[0].steps == report.steps + 2


def test_a_finished_run_is_not_trained_again(toy_run):
    assert train_quietly(toy(), toy_run, resume=True) == []


def test_two_runs_are_not_mixed(toy_run):
    with pytest.raises(OutputError, match="continue it with --resume"):
        train_quietly(toy(), toy_run)


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
    with pytest.raises(ModelError, match="is not the network of this recipe"):
        train_quietly(other, tmp_path, stages=["weights"])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "reference_loss", lambda *_, **__: torch.tensor(float("nan")))
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
    checkpoints = training_module.AtomicCheckpointIO()
    checkpoints.save_checkpoint({"step": 1}, path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_module.torch, "save", full_disk)
    with pytest.raises(OutputError, match="free some room"):
        checkpoints.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_builds_its_networks(path):
    config = load_config(path)
    networks = build_networks(config)
    assert set(networks) == {"reference", "denoiser", "weight_net"}
    assert all(network.config["bands"] == len(config.model.bands) for network in networks.values())
