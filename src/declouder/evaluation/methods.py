"""What is scored: a pipeline, a folder of finished outputs of any software, or the cloudy images themselves."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from declouder.arguments import checked_enlarge, real_number, seed_number, whole_number
from declouder.data.images import check_no_alpha, read_image
from declouder.data.pairs import Pair, images_by_name
from declouder.devices import is_out_of_memory
from declouder.errors import DataError, ModelError, OptionError
from declouder.evaluation.files import files_fingerprint
from declouder.evaluation.selection import described
from declouder.model_identity import model_digest, precision_of, sampler_of
from declouder.mosaic import Window, enlarged_window
from declouder.noise import draws, scene_noise
from declouder.scaling import Scaling

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline


@dataclass(frozen=True)
class Restored:
    """What a method makes of one image; the maps are those that it has.

    Attributes:
        image: (H, W, C) in the dtype and numbers of the cloudy image: this is scored.
        reference: the reference network's image, the same.
        w: (H, W) share of the reference at the last step, mean over bands.
        spread: (H, W) standard deviation over samples, root mean square over bands, as a share of the range.
        path: the file that the image is from.
    """

    image: NDArray[Any]
    reference: NDArray[Any] | None = None
    w: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None
    path: Path | None = None


class Method(Protocol):
    """What is scored: it restores one image at a time, the same whatever the order."""

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what is needed to repeat it, fingerprint included; raise if it does not fit the pairs."""

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Return the restored image (H, W, C) in the dtype and numbers of `cloudy`."""


@dataclass(frozen=True)
class ModelMethod:
    """A pipeline. Every image starts from the noise of its seed and place alone, so that order does not matter.

    The noise is that of `declouder remove` with the same seed, so that an image of one window, of 8 bits, without
    georeference or a frame of no data, gets the same scores here and from the file that `remove` wrote.

    Attributes:
        pipeline: what restores.
        num_inference_steps, strength, w_bounds, consistency: as for the pipeline's call; None: as the model was
            saved.
        least_painted, enlarge: as for the pipeline's call.
        seed: of the noise.
        samples: draws of the noise; from two on their spread is told.
        average: score the mean of the samples in place of the first; w is then a mean too.
        name: how the table calls it.
    """

    pipeline: CloudRemovalPipeline
    num_inference_steps: int | None = None
    strength: float | None = None
    w_bounds: tuple[float, float] | None = None
    consistency: float | None = None
    least_painted: float = 0.0
    enlarge: int = 1
    seed: int = 0
    samples: int = 1
    average: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        for name in ("num_inference_steps", "enlarge", "samples"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name))
        for name in ("strength", "consistency", "least_painted"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, real_number(value, name))
        object.__setattr__(self, "seed", seed_number(self.seed))
        object.__setattr__(self, "average", bool(self.average))
        if self.samples < 1:
            raise OptionError(f"{self.samples} samples asked for; give 1 or more")
        checked_enlarge(self.enlarge)

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind, name, fingerprint, bands, steps, sampler, seed, device and precision."""
        config = self.pipeline.config
        strength, bounds = self.strength, self.w_bounds
        return {
            "kind": "model",
            "name": self.name,
            "sha256": model_digest(self.pipeline),
            "bands": list(config.bands),
            "num_inference_steps": self._steps,
            "strength": config.strength if strength is None else strength,
            "w_bounds": [float(bound) for bound in (config.w_bounds if bounds is None else bounds)],
            "consistency": float(config.consistency if self.consistency is None else self.consistency),
            "least_painted": self.least_painted,
            **({"enlarge": self.enlarge} if self.enlarge > 1 else {}),
            "sampler": type(self.pipeline.scheduler).__name__,
            "timestep_spacing": self.pipeline.scheduler.config.get("timestep_spacing"),
            "sampler_settings": sampler_of(self.pipeline)["settings"],
            "seed": self.seed,
            "samples": self.samples,
            "averaged": self.average,
            "device": self.pipeline.computing_device.type,
            "precision": precision_of(self.pipeline) if self._steps != 0 else None,
        }

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Run the pipeline on one image, once a sample.

        Raises:
            DataError: if the image has not the model's bands.
            OptionError: if the device's memory does not hold the image.
            ModelError: if the model gives numbers that are none.
        """
        bands = len(self.pipeline.config.bands)
        if cloudy.shape[2] != bands:
            raise DataError(
                f"{pair.cloudy_path} has {cloudy.shape[2]} bands, this model wants {bands}"
                f" ({', '.join(self.pipeline.config.bands)}); choose a model of the data's bands"
                + (", or --bands rgbn" if bands == 4 else "")
            )
        try:
            results = list(draws(partial(self._once, pair, cloudy, scaling), self.samples, enlarge=self.enlarge))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OptionError(
                f"the device's memory does not hold {pair.cloudy_path}, {described(cloudy)}; restore it with"
                " declouder remove, which goes window by window, and score that file with --outputs"
            ) from error
        drawn = np.stack([np.asarray(result.images[0], np.float64) for result in results])
        chosen = drawn.mean(0) if self.average else drawn[0]
        spread = np.sqrt(drawn.var(0, ddof=1).mean(2)) if self.samples > 1 else None
        restored = scaling.unit_to_dn(chosen, cloudy.dtype)
        if self._steps == 0:
            return Restored(restored, spread=spread)  # this is the reference; nothing was weighted
        reference = np.asarray(results[0].reference[0])
        weighted = results if self.average else results[:1]
        w = np.mean([np.asarray(result.weights[0], np.float64).mean(2) for result in weighted], axis=0)
        return Restored(restored, scaling.unit_to_dn(reference, cloudy.dtype), w, spread)

    @property
    def _steps(self) -> int:
        steps = self.num_inference_steps
        return int(self.pipeline.config.num_inference_steps) if steps is None else steps

    def _once(
        self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling, sample: int, reference: NDArray[np.float32] | None
    ) -> Any:
        """Return one draw; with the reference of an earlier one it is not made again."""
        import torch

        height, width, bands = cloudy.shape
        unit = scaling.to_unit(cloudy)
        place = enlarged_window(Window(0, 0, height, width), self.enlarge)
        noise = scene_noise(self.seed, place, bands, sample=sample)
        result = self.pipeline(
            torch.from_numpy(unit.transpose(2, 0, 1)[None].copy()),
            num_inference_steps=self.num_inference_steps,
            strength=self.strength,
            w_bounds=self.w_bounds,
            consistency=self.consistency,
            least_painted=self.least_painted,
            enlarge=self.enlarge,
            reference=reference,
            latents=torch.from_numpy(noise[None].copy()),
            # For schedulers that draw noise on the way, each image and sample its own again and again.
            generator=torch.Generator().manual_seed(zlib.crc32(noise.tobytes())),
            output_type="np",
        )
        # Before the next draw leans on its reference.
        if not np.isfinite(result.images).all():
            raise ModelError(
                f"the model gave NaN or infinity for {pair.cloudy_path}; its weights are damaged, or do not fit the"
                " device's precision or the sampler"
            )
        return result


@dataclass(frozen=True)
class OutputsMethod:
    """A folder with one finished image a pair, named as the pair, in any image format."""

    folder: Path
    name: str = "outputs"

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind, name and the outputs' fingerprint.

        Raises:
            DataError: if an output is missing.
        """
        found = self._by_name
        missing = [pair.name for pair in pairs if pair.name not in found]
        if missing:
            raise DataError(
                f"{self.folder} lacks {len(missing)} of {len(pairs)} outputs, the first is {missing[0]};"
                f" name each output as its cloudy image, or leave the images out with --exclude"
            )
        files = files_fingerprint((pair.name, found[pair.name]) for pair in pairs)
        return {"kind": "outputs", "name": self.name, "sha256": files}

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Read the finished image.

        Raises:
            DataError: if it cannot be read, or differs from the cloudy one in size, bands or type.
        """
        path = self._by_name[pair.name]
        restored = read_image(path)
        if restored.shape != cloudy.shape or restored.dtype != cloudy.dtype:
            raise DataError(
                f"{path} is {described(restored)}, its cloudy image, of the size that is scored,"
                f" {described(cloudy)}; give outputs of the same size, bands and type"
            )
        if restored.shape[2] == len("RGBA") and (restored[:, :, 3] == Scaling.of_dtype(restored.dtype).high).all():
            check_no_alpha(path, restored)  # opaque all over: no near infrared that was saved in its place
        return Restored(restored, path=path)

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        return images_by_name(self.folder)


@dataclass(frozen=True)
class CloudyMethod:
    """The cloudy image itself: the floor that every method must beat."""

    name: str = "the cloudy image itself"

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind and name."""
        return {"kind": "cloudy", "name": self.name}

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Return the cloudy image."""
        return Restored(cloudy)
