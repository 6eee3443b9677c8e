"""What a run finds around it: devices, further machines, and Lightning's ways."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from declouder.config import StageName
from declouder.devices import has_bfloat16, is_out_of_memory, resolved_device
from declouder.errors import ConfigError, DataError, OptionError, OutputError

_PEER_LOST = re.compile(r"Connection (closed by peer|reset by peer|refused)|NCCL.*remote process exited", re.DOTALL)
"""What gloo and NCCL say where a process that they wait for is gone."""
MAKE_ROOM = "free some room and go on with --resume"
"""The mend where a run cannot write."""


def check_nodes(nodes: int, devices: int) -> None:
    """Refuse processes that do not know of each other: machines would wait for ever, torchrun's would run alone.

    Raises:
        OptionError: if there are several nodes, and neither Slurm, torchrun nor the environment tells where they
            meet; if torchrun has started another number of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != nodes * devices:
            raise OptionError(
                f"torchrun has started {started} processes, for --devices {devices} and --nodes {nodes} there are"
                f" {nodes * devices}; give --devices as torchrun's --nproc-per-node, and --nodes as its --nnodes"
            )
    by_hand = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    told = "SLURM_JOB_ID" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if nodes > 1 and not told:
        missing = [name for name in by_hand if name not in os.environ]
        if missing:
            raise OptionError(
                f"{nodes} nodes, but {', '.join(missing)} not set; start the command with srun or torchrun, or set"
                f" {', '.join(by_hand)} on each machine"
            )


def check_devices(devices: int, device: str) -> None:
    """Refuse more devices than this machine has, and several where the program cannot be run once for each.

    Raises:
        OptionError: if there are none of that kind, or fewer; a CPU is any number. If several are asked for at a
            prompt or in a notebook.
    """
    if device != "auto":
        resolved_device(device)
    there = _count_of(device)
    if there is not None and devices > there:
        raise OptionError(f"--devices is {devices}, and this machine has {there}; give {there} or less")
    if devices > 1 and hasattr(sys, "ps1"):
        raise OptionError(
            f"{devices} devices cannot train together from a prompt or a notebook; run declouder train, or a script"
        )


def _count_of(device: str) -> int | None:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if device in ("auto", "mps") and torch.backends.mps.is_available() else None


def is_first_process() -> bool:
    """Return whether this process alone writes what belongs to the whole run.

    Lightning runs the command once more for each further device and tells it its rank; the first process of a
    further machine, when it was started by hand, knows only its machine's number.
    """
    node = int(os.environ.get("NODE_RANK", 0))
    return getattr(rank_zero_only, "rank", 0) == 0 and node == 0


def lightning_precision(wanted: str, device: str) -> str:
    """Return Lightning's word for a precision; "auto" takes bfloat16 only where the hardware has it.

    Raises:
        ConfigError: if bfloat16 is asked for where it would be emulated.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        capable = has_bfloat16("cuda")
    else:
        capable = device in ("auto", "cpu") and has_bfloat16("cpu")
    if wanted == "bf16" and not capable:
        raise ConfigError("precision is bf16, which this device only emulates, slowly; set precision to auto or 32")
    return "bf16-mixed" if capable and wanted != "32" else "32-true"


def tensorboard_logger(folder: Path) -> Any:
    """TensorBoard where it is installed."""
    try:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advertisements and hints to itself; its errors come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # An endless loader without a length, and one that resumes by sample number, are meant.
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
            # Vectors lie in memory as they lie, whatever the layout of the convolutions around them.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def one_line_errors(out: Path, stage: StageName) -> Iterator[None]:
    """Turn what a loader process, a full disk or a full memory says into one line."""
    try:
        yield
    except DataError as error:
        # A loader process sends its whole traceback as the message; the last line is what was raised.
        lines = str(error).strip().splitlines()
        if len(lines) < 2:
            raise
        raise DataError(lines[-1].removeprefix(f"{DataError.__module__}.{DataError.__name__}: ")) from None
    except (RuntimeError, MemoryError, ConnectionError) as error:
        if is_out_of_memory(error):
            raise OptionError(
                f"the device's memory does not hold a step of stage {stage!r}; lower stages.{stage}.batch (and"
                " raise its accumulate by as much) or its patch_px, and go on with --resume"
            ) from error
        # A process that is gone shows in one of three ways: to PyTorch's signal handler, to its own look at the
        # processes, or as a batch that breaks off.
        if not isinstance(error, ConnectionError) and _PEER_LOST.search(str(error)):
            raise DataError(
                "another process of this run has ended; its message says why; go on with --resume"
            ) from error
        told = re.search(r"DataLoader worker .*(killed by signal: \w+|exited unexpectedly)", str(error))
        if told is None and not isinstance(error, ConnectionError):
            raise
        how = told[1] if told else "its batch broke off"
        raise DataError(
            f"a loader process was ended from outside ({how}); if it was for want of memory, lower"
            " data.cache_gb or data.workers; go on with --resume"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OutputError(f"{out}: no space is left; {MAKE_ROOM}") from error
