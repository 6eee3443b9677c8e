"""What goes wrong in a run, told in one line and, where it can be, before anything is learnt."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from declouder import training as training_module
from declouder.cli import main
from declouder.config import LPIPS_LOSS_PX, SSIM_LOSS_PX, dump_config
from declouder.data.training import TrainingData
from declouder.errors import ConfigError, DataError, ModelError, OptionError, OutputError
from declouder.metrics import BACKBONE_VARIABLE, GAUSSIAN, LPIPS_SMALLEST_PX
from declouder.training import StageModule
from declouder.training import callbacks as callbacks_module
from declouder.training import stages as stages_module
from declouder.training.stages import LPIPS_STRIDE
from declouder.training.surroundings import check_devices, one_line_errors
from toy import TOY, stage_module, toy, train_quietly, weights_of, write_four_pairs


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--devices", "0"], "--devices is 0; give 1 or more"),
        (["--nodes", "0"], "--nodes is 0; give 1 or more"),
        (["--max-time", "soon"], "--max-time is 'soon'; give a time such as 90s, 45m, 1h30m or 1:30:00"),
        (["--max-time", "0s"], "--max-time is '0s'; give more than nothing, and less than 30 years"),
        (["--max-time", "9" * 400], f"--max-time is '{'9' * 40}'; give more than nothing, and less than 30 years"),
        (["--max-time", "1h30"], "--max-time is '1h30'; give a time such as 90s, 45m, 1h30m or 1:30:00"),
    ],
)
def test_options_of_train_that_mean_nothing_are_told(options, told, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["train", str(TOY), "--out", str(tmp_path / "run"), *options])
    assert caught.value.code == 2
    assert capfd.readouterr().err == f"error: {told}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "model.denoiser.heads=3",
            "heads is 3, which does not divide a width of .*; look at model.denoiser$",
        ),
        ("model.weight_net.attention_levels=[7]", "model.weight_net cannot be built: attention_levels holds 7"),
        (
            "model.reference.options.widths=[]",
            "model.reference cannot be built: .*; look at model.reference.options",
        ),
        ("model.denoiser.layers=0", "model.denoiser cannot"),
        ("model.weight_net.stem=0", "model.weight_net cannot"),
    ],
)
def test_networks_that_cannot_run_are_told_before_anything_is_learnt(change, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        train_quietly(toy(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
        "--set",
        "stages.reference.checkpoint_every=1",
    ]
    checkpoint = tmp_path / "run" / "reference" / "last.ckpt"
    with subprocess.Popen([sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 120
            while not checkpoint.exists():
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            run.send_signal(signal.SIGINT)
            _, told = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130 and told.splitlines()[-1] == "interrupted"
    assert f"is kept in {checkpoint.parent}; go on with --resume" in told


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
    (tmp_path / "config.yaml").write_text(dump_config(other))  # then the networks tell
    with pytest.raises(ModelError, match="is not the network of this recipe"):
        train_quietly(other, tmp_path, stages=["weights"])


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "reference_loss", lambda *_, **__: torch.tensor(float("nan")))
    with pytest.raises(DataError, match="the loss is nan at step 0"):
        train_quietly(toy(), tmp_path, stages=["reference"])


def test_a_stage_of_which_no_score_is_a_number_leaves_no_model(tmp_path, toy_run, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    shutil.rmtree(run / "joint")
    before = weights_of(run / "model")
    monkeypatch.setattr(StageModule, "score", lambda module: ({"score": float("nan")}, []))
    with pytest.raises(DataError, match=r"no score of this stage was a number.*remove .*joint to begin it anew"):
        train_quietly(toy(), run, stages=["joint"])
    assert not (run / "joint" / "finished").exists() and weights_of(run / "model") == before


def test_weights_that_are_no_numbers_do_not_take_the_place_of_the_last_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints = callbacks_module.AtomicCheckpointIO()
    good = {"global_step": 1, "state_dict": {"learning.a": torch.ones(2), "learning.n": torch.tensor(3)}}
    checkpoints.save_checkpoint(good, path)
    spoilt = {"global_step": 2, "state_dict": {"learning.a": torch.tensor([1.0, float("inf")])}}
    with pytest.raises(DataError, match=r"at step 2 the weights are no numbers \(learning\.a\); .* --resume"):
        checkpoints.save_checkpoint(spoilt, path)
    assert torch.load(path, weights_only=True)["global_step"] == 1


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
    with pytest.raises(OutputError, match=r"last\.ckpt cannot be written \(.*(space|may be full).* free some room"):
        checkpoints.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and [*tmp_path.iterdir()] == [path]


def test_no_space_left_elsewhere_in_a_run_is_one_line_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(callbacks_module, "append_row", full)
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
    with pytest.raises(DataError, match=told), one_line_errors(tmp_path, "joint"):
        raise error
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    with (
        pytest.raises(DataError, match=r"^another process of this run has ended"),
        one_line_errors(tmp_path, "joint"),
    ):
        raise lost
    with pytest.raises(RuntimeError, match=r"^another$"), one_line_errors(tmp_path, "joint"):
        raise RuntimeError("another")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_step_that_memory_does_not_hold_is_told_with_what_to_lower(error, tmp_path):
    told = r"does not hold a step of stage 'joint'; lower stages\.joint\.batch .* --resume$"
    with pytest.raises(OptionError, match=told), one_line_errors(tmp_path, "joint"):
        raise error


def test_a_precision_that_the_device_lacks_leaves_no_run_behind(tmp_path, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    with pytest.raises(ConfigError, match="only emulates"):
        train_quietly(toy("precision=bf16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_devices_than_there_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(OptionError, match=r"--devices is 2, and this machine has 1; give 1 or less"):
        training_module.train(toy(), tmp_path / "run", device="cuda", devices=2)
    assert not (tmp_path / "run").exists()
    check_devices(1, "cuda")
    check_devices(2, "cpu")


def test_a_device_that_is_not_there_is_told_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OptionError, match=r"--device cuda cannot be used on this machine; give --device cpu"):
        training_module.train(toy(), tmp_path / "run", device="cuda")
    assert not (tmp_path / "run").exists()


def test_a_mac_has_one_gpu(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    check_devices(1, "mps")
    with pytest.raises(OptionError, match=r"--devices is 2, and this machine has 1; give 1 or less"):
        check_devices(2, "mps")


def test_several_devices_at_a_prompt_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(
        OptionError, match="2 devices cannot train together from a prompt or a notebook; run declouder"
    ):
        training_module.train(toy(), tmp_path / "run", device="cpu", devices=2)
    assert not (tmp_path / "run").exists()
    check_devices(1, "cpu")


@pytest.mark.parametrize("downscale", [1, 3])
@pytest.mark.parametrize(
    ("field", "least"), [("perceptual_weight", LPIPS_LOSS_PX), ("ssim_weight", 11), ("choice_weight", 8)]
)
def test_whole_images_too_small_for_the_loss_are_named_before_anything_is_learnt(
    field, least, downscale, tmp_path, backbone, monkeypatch
):
    monkeypatch.setenv(BACKBONE_VARIABLE, str(backbone))
    for kind in ("cloud", "label"):
        folder = tmp_path / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(4):
            side = 120 if number == 2 else downscale * least - 1  # 2 is held out
            Image.new("RGB", (120, side), (number, 90, 90)).save(folder / f"{number}.png")
    held_out = ("data.hold_out=0.2", "data.hold_out_block=1")
    config = toy(f"data.base={tmp_path}", "data.pairs=[set]", "data.synthetic_share=0", *held_out)
    changed = {"patch_px": None, "batch": 1, "downscale": downscale, field: 1.0}
    stage = config.stages["reference"].model_copy(update=changed)
    config = config.model_copy(update={"stages": {"reference": stage}})
    data = TrainingData(config.data, band_names=config.model.bands, seed=0)
    told = rf"\d\.png is 120 x {downscale * least - 1}, and .* needs {least} px.*; leave it out"
    with pytest.raises(DataError, match=told):
        StageModule("reference", config, data)


def test_generated_images_too_small_for_the_loss_are_named_before_anything_is_learnt():
    with pytest.raises(DataError, match=r"data\.procedural.* is 96 x 96, and SSIM in the loss needs 11 px after"):
        stage_module(
            "reference",
            *("stages.reference.patch_px=null", "stages.reference.downscale=9", "stages.reference.ssim_weight=0.1"),
        )


def test_the_least_image_that_the_loss_sees_is_what_alexnet_sees_when_shifted():
    assert LPIPS_LOSS_PX == LPIPS_SMALLEST_PX + LPIPS_STRIDE - 1 and len(GAUSSIAN) == SSIM_LOSS_PX


def test_held_out_images_too_small_for_their_scores_are_named_before_anything_is_learnt(tmp_path):
    for kind in ("cloud", "label"):
        folder = tmp_path / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 10), (number, 90, 90)).save(folder / f"{number}.png")
    config = toy(f"data.base={tmp_path}", "data.pairs=[set]", "data.hold_out=0.5", "data.hold_out_block=1")
    config = config.model_copy(
        update={"stages": {"reference": config.stages["reference"].model_copy(update={"patch_px": None})}}
    )
    with pytest.raises(DataError, match=r"\d\.png is 16 x 10, and the scores of held-out images need 11 px"):
        train_quietly(config, tmp_path / "run", stages=["reference"])
    assert not (tmp_path / "run").exists()
