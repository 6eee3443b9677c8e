"""Windows through the model: noise by place, several draws, a device that may run out of memory.

What comes back of a window are layers, as the journal keeps them:

    image    (C, h, w)  restored, [-1, 1]; for integers of 16 bits and less kept as uint16 over that range
    w        (1, h, w)  uint8, the share of the reference, 0..255, mean over the bands      (for a provenance)
    spread   (1, h, w)  float16, standard deviation over the draws, mean over the bands, in units of [-1, 1]
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.errors import ModelError, OptionError
from declouder.journal import Layer
from declouder.mosaic import Origin, Window, enlarged_window, moved
from declouder.noise import scene_noise
from declouder.scene.options import SceneOptions

log = logging.getLogger(__name__)

Layers = dict[str, NDArray[Any]]


def layers_of(options: SceneOptions, *, bands: int, dtype: str) -> dict[str, Layer]:
    """Return what is kept of each window of a scene of `dtype` for a model of so many bands."""
    kind = np.dtype(dtype)
    # A step of 2^-16 of the scale is less than one DN there; half the disk.
    small = kind.kind in "iu" and kind.itemsize <= 2
    layers = {"image": Layer("uint16" if small else "float32", bands)}
    if options.provenance is not None:
        layers["w"] = Layer("uint8", 1)
        if options.samples > 1:
            layers["spread"] = Layer("float16", 1)
    return layers


def steps_of(pipeline: Any, options: SceneOptions) -> int | None:
    """Return how many steps of the diffusion are taken; None if neither options nor model say it."""
    own: int | None = getattr(pipeline.config, "num_inference_steps", None)
    return own if options.steps is None else options.steps


def threads_of(options: SceneOptions) -> int:
    """Return with how many threads the CPU computes a window."""
    import torch

    return options.threads or torch.get_num_threads()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads of the CPU, as PyTorch is set where it is None."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def packed(name: str, values: NDArray[np.float32], layer: Layer) -> NDArray[Any]:
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
        self.steps = steps_of(pipeline, options)
        self._origin: Origin = (0, 0)

    def restore(
        self, windows: Sequence[Window], inputs: Sequence[NDArray[np.float32]], *, origin: Origin = (0, 0)
    ) -> list[Layers]:
        """Return the layers of each window; `inputs` are (C, h, w) in [-1, 1], of any sizes.

        Noise is that of the windows' places on the grid, on which the scene's first pixel lies at `origin`.

        Raises:
            ModelError: if the model fails, with the place.
            OptionError: if even one window does not fit into the device's memory.
        """
        self._origin = origin
        done: list[Layers] = []
        while len(done) < len(windows):
            group = self._next(len(done), inputs)
            try:
                done += self._restored(windows[group], inputs[group])
            except (RuntimeError, MemoryError) as error:
                first, count = windows[group][0], len(windows[group])
                if not _is_out_of_memory(error):
                    raise ModelError(
                        f"the model failed at {_place(first)} ({' '.join(str(error).split())[:300]}); "
                        "does it fit this device?"
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

    def _next(self, start: int, inputs: Sequence[NDArray[np.float32]]) -> slice:
        """Return which inputs go at once: a batch of them, as far as they have one size."""
        stop = start + 1
        while stop < min(len(inputs), start + self.batch) and inputs[stop].shape == inputs[start].shape:
            stop += 1
        return slice(start, stop)

    def _restored(self, windows: Sequence[Window], inputs: Sequence[NDArray[np.float32]]) -> list[Layers]:
        """Send some windows through the model at once, as often as there are samples."""
        output, w = self._draw(windows, inputs, sample=0)
        found: dict[str, NDArray[np.float32]] = {"image": output}
        if "w" in self._layers:
            found["w"] = w
        if "spread" in self._layers:
            found["spread"] = self._spread(windows, inputs, output)
        return [
            {name: packed(name, values[k], self._layers[name]) for name, values in found.items()}
            for k in range(len(windows))
        ]

    def _spread(
        self, windows: Sequence[Window], inputs: Sequence[NDArray[np.float32]], first: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the standard deviation over all draws, mean over the bands: (B, 1, h, w)."""
        # Welford's sums, so that memory does not grow with the number of draws.
        mean, squares = first.astype(np.float64), np.zeros(first.shape)
        for sample in range(1, self._options.samples):
            image, _ = self._draw(windows, inputs, sample=sample)
            change = image - mean
            mean += change / (sample + 1)
            squares += change * (image - mean)
        deviation = np.sqrt(squares / (self._options.samples - 1))
        return np.asarray(deviation.mean(axis=1, keepdims=True), np.float32)

    def _draw(
        self, windows: Sequence[Window], inputs: Sequence[NDArray[np.float32]], *, sample: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return one draw of restored images (B, C, h, w) in [-1, 1], and w (B, 1, h, w) if it is kept."""
        import torch

        pipeline, seed = self._pipeline, self._options.seed
        cloudy = torch.from_numpy(np.stack(inputs))
        latents = None
        if self.steps != 0:
            factor = self._options.enlarge
            places = [enlarged_window(moved(window, self._origin), factor) for window in windows]
            noise = np.stack([scene_noise(seed, place, cloudy.shape[1], sample=sample) for place in places])
            latents = torch.from_numpy(noise).to(pipeline.device)
        with torch.inference_mode(), _threads(self._options.threads):
            result = pipeline(
                ((cloudy + 1) / 2).to(pipeline.device),
                num_inference_steps=self._options.steps,
                least_painted=self._options.least_painted,
                enlarge=self._options.enlarge,
                latents=latents,
                output_type="pt",
            )
            restored = (result.images * 2 - 1).float().cpu()
            weights = result.weights.mean(1, keepdim=True).float().cpu() if "w" in self._layers else restored[:, :1]
        for window, image in zip(windows, restored, strict=True):
            if not torch.isfinite(image).all():
                raise ModelError(
                    f"the model gave NaN or infinity for the window at {_place(window)}; "
                    "its weights are damaged, or do not fit the device's precision"
                )
        return restored.numpy(), weights.numpy()


def _place(window: Window) -> str:
    return f"row {window.row}, column {window.col}"


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    # On the CPU and on mps it is a plain RuntimeError; only its words tell.
    words = ("not enough memory", "can't allocate memory", "out of memory")
    is_ours = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_ours or any(word in str(error).lower() for word in words)


def _free_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Progress = Callable[[int, int], None]
"""Called with the numbers of finished windows and of all windows."""
