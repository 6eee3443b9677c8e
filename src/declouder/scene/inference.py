"""Windows through the model: noise by place, several draws, a device that may run out of memory.

What comes back of a window are layers, as the journal keeps them:

    image    (C, h, w)  restored, [-1, 1]; of integers with a scale of up to 65535 kept as uint16 over that range
    w        (1, h, w)  uint8, the share of the reference, 0..255, mean over the bands, cut to [0, 1] where a
                        model's bounds of w go beyond                                       (for a provenance)
    spread   (1, h, w)  float16, standard deviation over the draws, root mean square over the bands, of [-1, 1]
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.devices import is_out_of_memory
from declouder.errors import ModelError, OptionError, reason_of
from declouder.journal import Layer
from declouder.mosaic import Window, enlarged_window
from declouder.noise import draws, scene_noise
from declouder.scaling import Scaling
from declouder.scene.options import SceneOptions

log = logging.getLogger(__name__)

Layers = dict[str, NDArray[Any]]


def layers_of(options: SceneOptions, *, bands: int, dtype: str, scale: Scaling) -> dict[str, Layer]:
    """Return what is kept of each window of a scene of `dtype` and `scale` for a model of so many bands."""
    # Half the disk, where a step of 2^-16 of the scale is no more than one DN.
    small = np.dtype(dtype).kind in "iu" and scale.high - scale.low <= 2**16 - 1
    layers = {"image": Layer("uint16" if small else "float32", bands)}
    if options.provenance is not None:
        layers["w"] = Layer("uint8", 1)
        if options.samples > 1:
            layers["spread"] = Layer("float16", 1)
    return layers


def steps_of(pipeline: Any, options: SceneOptions) -> int:
    """Return how many steps of the diffusion are taken: the options', or else the model's own."""
    return int(pipeline.config.num_inference_steps) if options.steps is None else options.steps


def threads_of(options: SceneOptions) -> int:
    """Return with how many threads the CPU computes a window."""
    import torch

    return options.threads or torch.get_num_threads()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads of the CPU, as PyTorch is set where it is None."""
    import torch

    before = torch.get_num_threads()
    if count is None or count == before:  # it is the whole process's: set back, it would undo another thread's
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _draws_noise(scheduler: Any) -> bool:
    """Return whether a scheduler adds noise of its own in each step, so that a result is not that of its start."""
    kind = type(scheduler).__name__
    by_name = kind.startswith(("DDPM", "LCM", "SASolver", "TCD")) or "Ancestral" in kind or "SDE" in kind
    return by_name or str(scheduler.config.get("algorithm_type", "")).startswith("sde")


def packed(values: NDArray[np.float32], layer: Layer) -> NDArray[Any]:
    """Bring a layer into the dtype that it is kept in."""
    if layer.dtype == "uint16":
        return np.asarray(np.rint((np.clip(values, -1, 1) + 1) * 32767.5), np.uint16)
    if layer.dtype == "uint8":
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.asarray(values.astype(layer.dtype))


def unpacked(kept: NDArray[Any]) -> NDArray[np.float32]:
    """Bring a layer back: the opposite of `packed`."""
    if kept.dtype == np.uint16:
        return kept.astype(np.float32) / np.float32(32767.5) - 1
    if kept.dtype == np.uint8:
        return kept.astype(np.float32) / np.float32(255)
    return kept.astype(np.float32)


@dataclass(frozen=True)
class Part:
    """What of a window goes through the model.

    Attributes:
        place: in the scene; it may reach up and left beyond it, to the grid.
        x: (C, height, width) in [-1, 1].
        on_grid: the same place on the grid that noise is keyed to.
    """

    place: Window
    x: NDArray[np.float32]
    on_grid: Window


@dataclass(frozen=True)
class _Draw:
    """What the model makes of some windows with one draw of the noise.

    Attributes:
        image: (B, C, h, w) in [-1, 1].
        w: (B, 1, h, w).
        reference: a tensor, (B, C, h, w) in [0, 1], where the model computes.
    """

    image: NDArray[np.float32]
    w: NDArray[np.float32]
    reference: Any


class WindowModel:
    """A pipeline as windows of one scene see it.

    Args:
        pipeline: a CloudRemovalPipeline, on its device.
        options: of the scene.
        layers: what to keep, see `layers_of`.

    Attributes:
        batch: windows at once; it is halved when the device's memory does not hold them.
    """

    def __init__(self, pipeline: Any, options: SceneOptions, layers: Mapping[str, Layer]) -> None:
        self.batch = options.batch
        self._pipeline = pipeline
        self._options = options
        self._layers = layers
        self._device = pipeline.device  # diffusers looks through all parts for it
        self.steps = steps_of(pipeline, options)
        if self.steps != 0 and _draws_noise(pipeline.scheduler):
            raise ModelError(
                f"{type(pipeline.scheduler).__name__} draws noise in each step, which has no place in a scene; give"
                " a sampler that does not, such as ddim"
            )

    def restore(self, parts: Sequence[Part]) -> list[Layers]:
        """Return the layers of each part; they may be of any sizes.

        Raises:
            ModelError: if the model fails, with the place.
            OptionError: if even one window does not fit into the device's memory.
        """
        done: list[Layers] = []
        while len(done) < len(parts):
            group = self._next(parts[len(done) :])
            try:
                done += self._restored(group)
            except (RuntimeError, MemoryError) as error:
                first, count = group[0].place, len(group)
                if not is_out_of_memory(error):
                    raise ModelError(
                        f"the model failed at {_place(first)} ({reason_of(error)}); does it fit this device?"
                    ) from error
                if count == 1:
                    raise OptionError(
                        f"the device's memory does not hold one window of {first.width} x {first.height} px; "
                        "give a smaller --window"
                    ) from error
                self.batch = count // 2
            else:
                continue
            # Out of the handler: the exception holds on to the tensors that did not fit.
            _free_memory()
            log.warning("%d windows at once are too much for the device's memory; now %d", count, self.batch)
        return done

    def _next(self, parts: Sequence[Part]) -> list[Part]:
        """Return those that go at once: the first ones, a batch of them as far as they have one size."""
        return list(takewhile(lambda part: part.x.shape == parts[0].x.shape, parts[: self.batch]))

    def _restored(self, parts: Sequence[Part]) -> list[Layers]:
        """Send some parts through the model at once, as often as there are samples."""
        drawn = draws(partial(self._draw, parts), self._options.samples, enlarge=self._options.enlarge)
        first: _Draw = next(drawn)
        found: dict[str, NDArray[np.float32]] = {"image": first.image, "w": first.w}
        if self._options.samples > 1:
            image, w, found["spread"] = _over_all(first, drawn)
            if self._options.average:
                found["image"], found["w"] = image, w
        return [
            {name: packed(found[name][k], layer) for name, layer in self._layers.items()} for k in range(len(parts))
        ]

    def _draw(self, parts: Sequence[Part], sample: int, reference: Any) -> _Draw:
        """Return one draw; with the reference of an earlier one it is not made again."""
        import torch

        pipeline, seed = self._pipeline, self._options.seed
        cloudy = torch.from_numpy(np.stack([part.x for part in parts]))
        latents = None
        if self.steps != 0:
            places = [enlarged_window(part.on_grid, self._options.enlarge) for part in parts]
            noise = np.stack([scene_noise(seed, place, cloudy.shape[1], sample=sample) for place in places])
            latents = torch.from_numpy(noise).to(self._device)
        # A caller's autocast would be in no tag and no journal, and the reference network does not bear it.
        as_it_is = torch.autocast(pipeline.computing_device.type, enabled=False)
        with torch.inference_mode(), as_it_is, _threads(self._options.threads):
            result = pipeline(
                ((cloudy + 1) / 2).to(self._device),
                num_inference_steps=self._options.steps,
                least_painted=self._options.least_painted,
                enlarge=self._options.enlarge,
                reference=reference,
                latents=latents,
                output_type="pt",
            )
            restored = (result.images * 2 - 1).float().cpu()
            weights = result.weights.mean(1, keepdim=True).float().cpu()
        for part, image in zip(parts, restored, strict=True):
            if not torch.isfinite(image).all():
                raise ModelError(
                    f"the model gave NaN or infinity for the window at {_place(part.place)}; "
                    "its weights are damaged, or do not fit the device's precision or the sampler"
                )
        return _Draw(restored.numpy(), weights.numpy(), result.reference)


def _over_all(first: _Draw, others: Iterator[_Draw]) -> tuple[NDArray[np.float32], ...]:
    """Return means and spread over all draws.

    Returns:
        The image, (B, C, h, w), w, (B, 1, h, w), and the image's standard deviation, root mean square over the
        bands, (B, 1, h, w).
    """
    # Welford's sums, so that memory does not grow with the number of draws.
    mean, squares, count = first.image.astype(np.float64), np.zeros(first.image.shape), 1
    w = first.w.astype(np.float64)
    for drawn in others:
        count += 1
        change = drawn.image - mean
        mean += change / count
        squares += change * (drawn.image - mean)
        w += (drawn.w - w) / count
    variance = squares.mean(axis=1, keepdims=True) / (count - 1)
    return mean.astype(np.float32), w.astype(np.float32), np.sqrt(variance).astype(np.float32)


def _place(window: Window) -> str:
    return f"row {window.row}, column {window.col}"


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
