"""Several processes and machines that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import torch

from declouder.config import STAGE_NAMES
from declouder.errors import OptionError
from declouder.training import StageModule, train
from declouder.training.surroundings import check_nodes
from toy import TOY, toy, train_quietly

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


def start(command: list[object], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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
    try:
        told = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
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
