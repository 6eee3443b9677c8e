"""Who brings the windows of a scene through the model: this process, or others (`declouder.cluster`).

An engine takes groups of windows one after another, as it has room for them, and hands each back when it is
finished, in any order. The groups are the same for every engine, and a group goes through the model at once: so
pixels do not depend on who did it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from declouder.journal import Layer
from declouder.scene.inference import Layers, Part, WindowModel
from declouder.scene.options import SceneOptions

Group = Mapping[int, Part | None]
"""By number of the window; None for one that is passed by."""
Finished = dict[int, "Layers | None"]
"""The layers of each window's part, by number."""


class Engine(Protocol):
    """What brings windows through a model; `device` is the kind that computes, such as "cpu"."""

    device: str

    @property
    def batch(self) -> int:
        """Windows of a group that go through the model."""

    def finish(self, groups: Iterable[Group]) -> Iterator[Finished]:
        """Yield every group when it is finished; the next one is asked for when there is room for it.

        Raises:
            ModelError: if the model fails, with the place.
        """

    def heed_stop(self) -> None:
        """Raise where the whole run has been stopped: between windows, and while the output is written."""


MakeEngine = Callable[[SceneOptions, Mapping[str, Layer]], Engine]
"""Makes the engine of one scene, which keeps the given layers."""


class Here:
    """The engine that is this process.

    Args:
        pipeline: a CloudRemovalPipeline, on its device.
        options: of the scene.
        layers: what to keep of a window.
    """

    def __init__(self, pipeline: Any, options: SceneOptions, layers: Mapping[str, Layer]) -> None:
        self._model = WindowModel(pipeline, options, layers)
        self.device: str = pipeline.computing_device.type

    @property
    def batch(self) -> int:
        """Windows of a group; it falls where the device's memory does not hold them."""
        return self._model.batch

    def finish(self, groups: Iterable[Group]) -> Iterator[Finished]:
        """Yield every group when it is finished, in order."""
        for group in groups:
            yield finished(self._model, group)

    def heed_stop(self) -> None:
        """Do nothing: what stops this process is an interrupt."""


def finished(model: WindowModel, group: Group) -> Finished:
    """Send the windows of a group through a model; those passed by stay None."""
    todo = [part for part in group.values() if part is not None]
    layers = iter(model.restore(todo))
    return {index: None if part is None else next(layers) for index, part in group.items()}
