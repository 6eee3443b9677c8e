"""What runs on a worker: the model, loaded once, and the groups of windows that go through it."""

from __future__ import annotations

import contextlib
import pickle
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distributed import WorkerPlugin, get_worker

from declouder.devices import has_bfloat16, resolved_device
from declouder.errors import OptionError
from declouder.journal import Layer
from declouder.scene.engine import Finished, Group, finished
from declouder.scene.inference import WindowModel
from declouder.scene.options import SceneOptions
from declouder.version import __version__


@dataclass(frozen=True)
class Facts:
    """What a worker, or the client, says of itself; results of two that differ may differ in the last bit."""

    version: str
    torch: str
    cpu: str
    """The instructions that PyTorch uses, such as AVX2."""
    device: str
    has_bfloat16: bool = False


def facts(device: str) -> Facts:
    """Return what this process says of itself, with the device that a --device option means here.

    Raises:
        OptionError: if this machine has no such device.
    """
    import torch

    device = resolved_device(device, where="every worker")
    cpu = torch.backends.cpu.get_cpu_capability()
    return Facts(__version__, str(torch.__version__), cpu, device, has_bfloat16(device))


def check_version(found: str, wanted: str, *, worker: str = "a worker") -> None:
    """Raise OptionError if a worker has another version of declouder than the client: windows would differ."""
    if found != wanted:
        raise OptionError(f"{worker} has declouder {found}, this is {wanted}; install the same version")


def check_bfloat16(pipeline: Any, device: str, *, has: bool) -> None:
    """Raise OptionError if a pipeline's steps are to be in bfloat16, and a worker's device does not have it."""
    if pipeline.steps_in_bfloat16 and not has:
        raise OptionError(
            f"the steps are to be in bfloat16, which a worker's {device} only emulates, slowly; give --precision 32"
        )


class ModelPlugin(WorkerPlugin):  # type: ignore[misc]
    """Holds the model on a worker. dask gives it to every worker, also to those that start later.

    Args:
        pickled: a CloudRemovalPipeline on the CPU, without its code.
        device: where it shall run.
        is_local: the worker is a child of the client's terminal, one of several on this machine.
    """

    def __init__(self, pickled: bytes, device: str, *, is_local: bool) -> None:
        self._pickled, self._device, self._is_local = pickled, device, is_local
        self._version = __version__  # the client's, who makes it

    def setup(self, worker: Any) -> None:
        """Prepare for the first group; the model is loaded with that."""
        # A pipeline keeps the state of its sampler: one group at a time, whatever threads the worker has.
        self._lock = threading.Lock()
        self._name = getattr(worker, "name", 0)
        self._pipeline: Any = None
        self._model: WindowModel | None = None
        self._model_of: tuple[SceneOptions, Mapping[str, Layer]] | None = None
        if self._is_local:
            # Ctrl-C reaches the whole group of processes; the client alone decides what it means.
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)

    def finished(self, work: Work) -> Finished:
        """Return the layers of a group's windows."""
        with self._lock:
            if self._pipeline is None:
                # A worker may have come later; the others were asked before.
                check_version(__version__, self._version)
                pipeline = pickle.loads(self._pickled)
                check_bfloat16(pipeline, self._device, has=has_bfloat16(self._device))
                self._pipeline = pipeline.to(self._place())
            if self._model is None or self._model_of != (work.options, work.layers):
                # Kept between groups: it learns how many windows the device's memory holds.
                self._model = WindowModel(self._pipeline, work.options, work.layers)
                self._model_of = work.options, work.layers
            return finished(self._model, work.group)

    def _place(self) -> str:
        """Return the device of this worker; processes of local:N share the machine's GPUs out by their numbers."""
        import torch

        gpus = torch.cuda.device_count() if self._is_local and self._device == "cuda" else 1
        return f"cuda:{int(self._name) % gpus}" if gpus > 1 else self._device


@dataclass(frozen=True)
class Work:
    """A group of windows and all that it takes to restore them; `model` is the name of the plugin."""

    model: str
    options: SceneOptions
    layers: Mapping[str, Layer]
    group: Group


def restore(work: Work) -> Finished:
    """Restore a group of windows; the task that dask runs."""
    plugin: ModelPlugin = get_worker().plugins[work.model]
    return plugin.finished(work)
