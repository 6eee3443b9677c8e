"""CloudRemovalPipeline: cloudy images in, clear images out; the paper's sampler as one visible loop.

    reference = reference_network(cloudy)                       once an image
    x_T       = noise, or the noised reference at a step below T
    for t:      x0 = fuse(...)  (declouder.fusion);  x_{t-1} = scheduler.step(x0, t, x_t)
    image     = the last x0, held to the law of an even haze (declouder.consistency; not in the paper, 0 is off)

Any diffusers scheduler that takes prediction_type "sample" goes on from the fused x0. The paper's setting is
DDIM, 10 steps, "leading", eta 0 (Sui et al., IEEE TGRS 2024, doi 10.1109/TGRS.2024.3411671).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from declouder.arguments import PAPER_W_BOUNDS, checked_enlarge, seed_number, whole_number
from declouder.consistency import held_to_haze
from declouder.enlarging import enlarged, shrunk
from declouder.errors import ModelError, OptionError, reason_of
from declouder.fusion import predict_x0
from declouder.networks import MSDA, CompactNet, Denoiser, MemoryNet, WeightNet
from declouder.networks.prepared import Prepared, can_prepare, is_preparable
from declouder.painted import painted_share
from declouder.pipeline.folder import (
    DAMAGED,
    SHIPPED_MODEL,
    check_folder,
    check_whole,
    looks_like_hub_id,
    no_loading_bar,
    one_loads_quietly,
)
from declouder.pipeline.images import CloudRemovalOutput, check_output_type, output_of, to_tensor
from declouder.pipeline.samplers import SAMPLERS, check_scheduler, lead_to_next, make_scheduler
from declouder.rgb import RGB

__all__ = [
    "SAMPLERS",
    "SHIPPED_MODEL",
    "CloudRemovalOutput",
    "CloudRemovalPipeline",
    "make_scheduler",
    "remove_clouds",
]

_MOSTLY_IMAGE = 0.5
"""An alpha_bar: above it x_t is more image than noise."""


class CloudRemovalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Reference network, denoiser, weight network and scheduler as one folder and one call.

    The scheduler keeps the state of a call: threads need a pipeline each, or a lock.

    Args:
        reference: one of `networks.REFERENCES`; (B, C, H, W) in [-1, 1] to the same.
        denoiser: `networks.Denoiser`, for the same number of bands.
        weight_net: `networks.WeightNet`, for the same number of bands.
        scheduler: a diffusers scheduler with prediction_type "sample", such as `make_scheduler("ddim")`; of the
            first or second order.
        bands: the names of the C bands, in order.
        w_bounds: (w_min, w_max) when sampling; the authors' are (0.3, 1).
        num_inference_steps: steps where a call does not say; 0 gives the reference image. A sampler of the second
            order evaluates the networks twice in most steps.
        strength: in (0, 1], where a call does not say: 1 starts from pure noise, s < 1 from the reference noised to
            a step near 1000 s, coarsely with few steps: those of an even schedule of n = round(steps / s) steps
            begin at 1000 steps / n, a single one of s > 2/3 as high as pure noise. If more than 1000 s steps are
            taken, it starts at a higher one that leaves room for them. ("leading" samplers, such as "ddim", begin
            lower, at 1000 (steps - 1) / n.)
        consistency: in [0, 1], where a call does not say: how much of the finest detail of an image under even haze
            comes from the cloudy image, by the haze's law (`declouder.consistency`). 0 is the paper's method.

    Raises:
        ModelError: if the parts are for different numbers of bands, or the scheduler does not fit.
        OptionError: if the steps, the strength or the consistency are out of range.
    """

    model_cpu_offload_seq = "reference->denoiser->weight_net"
    quick = True
    """Compute by `networks.prepared` where that suits; False runs the networks as they are."""
    steps_in_bfloat16 = False
    """Where `quick` is set: compute denoiser and weight network in bfloat16, for devices that have it.

    The reference network stays as it is: what it chooses between lies too close together. See docs/speed.md. What
    comes of it is `steps_dtype`."""

    if TYPE_CHECKING:  # what diffusers gives, of whose classes type checkers see stand-ins
        reference: Any
        denoiser: Any
        weight_net: Any
        scheduler: Any
        config: Any
        device: torch.device
        dtype: torch.dtype
        to: Callable[..., Self]
        save_pretrained: Callable[..., None]
        set_progress_bar_config: Callable[..., None]
        enable_model_cpu_offload: Callable[..., None]

    def __init__(
        self,
        reference: CompactNet | MSDA | MemoryNet,
        denoiser: Denoiser,
        weight_net: WeightNet,
        scheduler: Any,
        bands: Sequence[str] = RGB,
        w_bounds: Sequence[float] = PAPER_W_BOUNDS,
        num_inference_steps: int = 10,
        strength: float = 1.0,
        consistency: float = 0.0,
    ) -> None:
        super().__init__()
        for name, network in (("denoiser", denoiser), ("weight_net", weight_net), ("reference", reference)):
            found = network.config["bands"]
            if found != len(bands):
                raise ModelError(
                    f"the {name} has {found} bands, the pipeline names {len(bands)} ({', '.join(bands)});"
                    f" build all parts for the same bands"
                )
        check_scheduler(scheduler)
        self.register_modules(reference=reference, denoiser=denoiser, weight_net=weight_net, scheduler=scheduler)
        self.register_to_config(
            bands=list(bands),
            w_bounds=list(_checked_bounds(w_bounds)),
            num_inference_steps=_checked_steps(num_inference_steps, strength),
            strength=float(strength),  # as JSON knows it, too
            consistency=_checked_share(consistency, "consistency"),
        )
        self._prepared: dict[str, Prepared] = {}

    @classmethod
    def from_pretrained(cls, model: str | Path | None = None, **kwargs: Any) -> Self:
        """Load a pipeline folder, a hub id, or the shipped model where `model` is None.

        Safetensors only: a pickle is never opened.

        Args:
            model: folder that `declouder train` or `declouder convert` wrote, or a hub id.
            kwargs: as for diffusers' `from_pretrained`. Weights become float32 unless `dtype` (diffusers also calls
                it `torch_dtype`) says otherwise.

        Raises:
            ModelError: if the folder does not exist, lacks a part or holds parts of another kind.
        """
        source = SHIPPED_MODEL if model is None else model
        if Path(source).is_dir() or not looks_like_hub_id(str(source)):
            check_folder(Path(source), kind=CloudRemovalPipeline.__name__)
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", torch.float32))
        kwargs["use_safetensors"] = True
        try:
            with one_loads_quietly():
                loaded = cast(Self, super().from_pretrained(str(source), **kwargs))
        except DAMAGED as error:
            reason = reason_of(error)
            if not Path(source).is_dir():
                raise ModelError(
                    f"there is no folder {source}, and the hub gave no model of that name ({reason}); give a folder"
                    " that `declouder train` wrote, or check the name and the network"
                ) from error
            raise ModelError(
                f"{source} cannot be loaded as a model ({reason}); copy the folder anew, or save it anew without"
                " variant="
            ) from error
        check_whole(loaded, str(source))
        if Path(source).is_dir():  # a place on this machine says nothing in a folder that is saved from here
            for part in (loaded, *loaded.components.values()):
                part.register_to_config(_name_or_path="")
        return loaded

    @torch.no_grad()
    def __call__(
        self,
        cloudy: Tensor | NDArray[Any] | Image.Image | Sequence[Image.Image],
        *,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        w_bounds: tuple[float, float] | None = None,
        consistency: float | None = None,
        least_painted: float = 0.0,
        enlarge: int = 1,
        reference: Tensor | NDArray[Any] | Image.Image | Sequence[Image.Image] | None = None,
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pt", "np", "pil"] = "pil",
    ) -> CloudRemovalOutput:
        """Remove the clouds.

        Args:
            cloudy: (B, C, H, W) float tensor, or (H, W, C) or (B, H, W, C) float array, in [0, 1]; or one 8-bit PIL
                image or a list of them, all of one size. C are the model's bands, in its order. No NaN.
            num_inference_steps: steps of the diffusion, at most 1000; 0 returns the reference image. None: as the
                model was saved.
            strength: in (0, 1]: where the process starts, see the class. None: as the model was saved.
            w_bounds: (w_min, w_max); equal bounds fix w. None: as the model was saved.
            consistency: in [0, 1], see the class. None: as the model was saved. With `num_inference_steps` 0 there
                is none: the reference image stays the network's.
            least_painted: in [0, 1]: images of which the reference network painted a smaller share (see
                `declouder.painted`) take no step, but are held to the haze like the others; 0: every image takes
                all steps.
            enlarge: how many times as large the networks see the images, from 1 to 4: for clouds of a few pixels,
                see `declouder.enlarging`. Time and memory grow with its square.
            reference: what the steps lean on, of the kinds and the size of `cloudy`, in place of what the reference
                network would make: another method's images, or an earlier call's for one more draw.
            generator: the source of the starting noise, on the CPU or the pipeline's device; None draws from
                PyTorch's global one. All images of a batch draw from it one after the other, so an image alone gets
                other noise than within a batch.
            latents: the starting noise itself, (B, C, enlarge H, enlarge W), in place of `generator`.
            output_type: "pt", "np" or "pil" (only for 1, 3 or 4 bands).

        Returns:
            See `CloudRemovalOutput`: `.images` and `.reference` in [0, 1], and `.weights`.

        Raises:
            OptionError: if an argument has the wrong shape, range or number of bands.
            ModelError: if a scheduler was set that expects other predictions than x0.
        """
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        start = self.config.strength if strength is None else strength
        bounds = _checked_bounds(self.config.w_bounds if w_bounds is None else w_bounds)
        steps = _checked_steps(steps, start)
        check_scheduler(self.scheduler)
        if steps > (finest := self.scheduler.config.num_train_timesteps):
            raise OptionError(f"{steps} steps asked for; the model knows {finest}: give fewer")
        least_painted = _checked_share(least_painted, "least_painted")
        share = _checked_share(self.config.consistency if consistency is None else consistency, "consistency")
        enlarge = checked_enlarge(enlarge)
        check_output_type(output_type, bands=len(self.config.bands))
        device = self.computing_device
        unit = enlarged(to_tensor(cloudy, bands=len(self.config.bands)), enlarge).clamp(0, 1)
        # Networks may be of half precision; what the sampler adds and subtracts between them is not.
        y = 2 * unit.to(device, torch.promote_types(torch.float32, self.denoiser.dtype)) - 1
        x0_reference = (
            self._network("reference", y)(y) if reference is None else _given_reference(reference, y, enlarge)
        )
        images, weights = x0_reference, torch.ones_like(x0_reference)
        if steps > 0:
            noise = _starting_noise(y, generator, latents)
            diffuse = partial(self._diffuse, steps=steps, start=start, w_bounds=bounds, generator=generator)
            if least_painted == 0:
                images, weights = diffuse(y, x0_reference, noise)
            elif bool((some := painted_share(y, x0_reference) >= least_painted).any()):
                images = x0_reference.clone()
                images[some], weights[some] = diffuse(y[some], x0_reference[some], noise[some])
            images = held_to_haze(y, images, share)
        self.maybe_free_model_hooks()
        images, x0_reference, weights = (shrunk(x, enlarge) for x in (images, x0_reference, weights))
        return output_of(images, x0_reference, weights, output_type)

    def _diffuse(
        self,
        y: Tensor,
        reference: Tensor,
        noise: Tensor,
        *,
        steps: int,
        start: float,
        w_bounds: tuple[float, float],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Take the steps from the noise, or the noised reference, to the fused x0; return it and the last w.

        `y`, `reference` and `noise` are (B, C, H, W), the first two in [-1, 1], and so are both results.
        """
        timesteps = self._timesteps(steps, start, y.device)
        alpha_bars = self._alpha_bars(timesteps).to(y.device, y.dtype)
        # A single step of the "leading" kind lies at t = 0, where x_t has no noise: noise is no x_t there.
        if start < 1 or float(self.scheduler.alphas_cumprod[int(timesteps[0])]) > _MOSTLY_IMAGE:
            x_t = self.scheduler.add_noise(reference, noise, timesteps[:1])
        else:
            x_t = noise * self.scheduler.init_noise_sigma
        # Samplers that draw noise on the way draw it from the same source.
        draws = "generator" in inspect.signature(self.scheduler.step).parameters
        source = {"generator": generator} if draws else {}
        lower = self.steps_dtype is torch.bfloat16
        denoiser = self._network("denoiser", y, in_bfloat16=lower)
        weight_net = self._network("weight_net", y, in_bfloat16=lower)
        for index, t in enumerate(self.progress_bar(timesteps)):
            step = t.long()
            prediction = predict_x0(
                denoiser,
                weight_net,
                x_t=self.scheduler.scale_model_input(x_t, t),
                cloudy=y,
                reference=reference,
                t=step.expand(y.shape[0]).to(y.device),
                alpha_bar=alpha_bars[index],
                w_bounds=w_bounds,
            )
            if index < len(timesteps) - 1:
                lead_to_next(self.scheduler, int(t - timesteps[index + 1]))
                x_t = self.scheduler.step(prediction.x0, t, x_t, **source).prev_sample
        # Every sampler ends at x0 itself, where no noise is left.
        return prediction.x0.clamp(-1, 1), prediction.w

    def _network(self, name: str, y: Tensor, *, in_bfloat16: bool = False) -> Callable[..., Tensor]:
        """Return a component as it is to be called on images like `y`: prepared once, or as it is.

        It sees images in its own precision and gives them in that of `y`.
        """
        network = getattr(self, name)
        own: torch.dtype = network.dtype
        compute = network
        if self.quick and can_prepare(network, y.new_empty(0, dtype=own), in_bfloat16=in_bfloat16):
            kept = self._prepared.get(name)
            # Another may have taken its place, or its weights changed.
            if kept is None or kept.in_bfloat16 != in_bfloat16 or not kept.is_of(network):
                kept = self._prepared[name] = Prepared(network, in_bfloat16=in_bfloat16)
            compute = kept

        def computed(x: Tensor, *others: Any) -> Tensor:
            result: Tensor = compute(x.to(own), *others)
            return result.to(y.dtype)

        return computed

    def _alpha_bars(self, timesteps: Tensor) -> Tensor:
        """Return alpha_bar, (N,), of the last N steps of the schedule that the sampler has set.

        By its sigmas where it has some: Karras' lie between whole steps, and so do Euler's and Heun's own.
        """
        sigmas: Tensor | None = getattr(self.scheduler, "sigmas", None)
        if sigmas is None:
            return cast(Tensor, self.scheduler.alphas_cumprod[timesteps.long().cpu()])
        begin = len(self.scheduler.timesteps) - len(timesteps)
        return 1 / (1 + sigmas[begin : begin + len(timesteps)].square())

    @property
    def steps_dtype(self) -> torch.dtype:
        """In which numbers denoiser and weight network compute.

        Theirs, or bfloat16 where `steps_in_bfloat16` asks for it and both can be prepared for it
        (`networks.prepared.is_preparable`).
        """
        lower = self.quick and self.steps_in_bfloat16
        if lower and is_preparable(self.denoiser) and is_preparable(self.weight_net):
            return torch.bfloat16
        return cast(torch.dtype, self.denoiser.dtype)

    @property
    def computing_device(self) -> torch.device:
        """The device that computes; with offloading, not where the networks lie between calls."""
        return cast(torch.device, self._execution_device)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the prepared networks: they are made anew where they are needed."""
        return {**self.__dict__, "_prepared": {}}

    def evaluations(self, steps: int) -> int:
        """Return how often so many steps run the denoiser: a step of the second order twice, if not the last."""
        order: int = self.scheduler.order
        return max(0, order * steps - (order - 1))

    def _timesteps(self, steps: int, strength: float, device: torch.device) -> Tensor:
        """Return the last `steps` steps of a schedule so fine that they begin near 1000 * strength.

        A sampler of the second order evaluates twice a step, but for the last.
        """
        finest = self.scheduler.config.num_train_timesteps
        total = min(max(steps, round(steps / strength)), finest)
        try:
            self.scheduler.set_timesteps(total, device=device)
        except ValueError as error:  # such as of LCM, which knows few steps
            raise OptionError(
                f"{type(self.scheduler).__name__} cannot take {steps} steps from strength {strength:g}"
                f" ({reason_of(error)}); give others, or another scheduler"
            ) from error
        if total == finest > steps and _stands_still(self.scheduler.timesteps):
            total -= 1  # "leading" DPM-Solver, UniPC and DEIS have one place too few, and stay at t = 0
            self.scheduler.set_timesteps(total, device=device)
        if total > 1 and _stands_still(self.scheduler.timesteps):
            raise OptionError(
                f"{type(self.scheduler).__name__} cannot take {steps} steps with its spacing; give fewer"
            )
        begin = (total - steps) * self.scheduler.order
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        return cast(Tensor, self.scheduler.timesteps[begin:])


def remove_clouds(
    image: NDArray[Any], *, model: str | Path | None = None, seed: int = 0, **options: Any
) -> NDArray[np.float32]:
    """Remove the clouds from one array, in one line: `clear = remove_clouds(cloudy)`.

    The model is loaded anew at each call, and the whole array goes through it at once. For many images keep a
    `CloudRemovalPipeline`; for a scene of any size, nodata or georeference use `declouder.scene.remove_from_scene`.

    Args:
        image: (H, W, C) or (B, H, W, C) float array in [0, 1], without NaN. C are the model's bands, in its order:
            red, green, blue for the shipped one. For 8-bit images divide by 255.
        model: pipeline folder or hub id; None is the shipped model.
        seed: of the starting noise, from 0 to 2^64 - 1; the images of a batch draw from it one after the other.
            `declouder remove` draws another noise from the same seed, by places: without steps both are alike.
        options: further arguments of `CloudRemovalPipeline.__call__`, such as num_inference_steps=0 or enlarge=2,
            except generator and output_type.

    Returns:
        The restored image, float32 in [0, 1], of the shape of `image`.

    Raises:
        OptionError: if the image is no float array in [0, 1] of that shape and number of bands, or an option is out
            of range.
        ModelError: if the model cannot be loaded.
    """
    if not isinstance(image, np.ndarray):
        raise OptionError(f"the image is a {type(image).__name__}; give an array (H, W, C) of floats in [0, 1]")
    seed = seed_number(seed)
    taken = sorted({"generator", "output_type"}.intersection(options))
    if taken:
        raise OptionError(f"{taken[0]} is given by remove_clouds itself; give seed, or call a CloudRemovalPipeline")
    with no_loading_bar():
        pipeline = CloudRemovalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    restored = pipeline(image, generator=generator, output_type="np", **options).images
    return cast("NDArray[np.float32]", restored[0] if image.ndim == 3 else restored)


def _stands_still(timesteps: Tensor) -> bool:
    return bool((timesteps == timesteps[0]).all())


def _checked_steps(steps: Any, strength: Any) -> int:
    """Return the number of steps as an int; OptionError if that, or the strength, is none."""
    number = whole_number(steps, "the number of steps")
    if number < 0:
        raise OptionError(f"{number} steps asked for; give 0 (reference image only) or more")
    if not (isinstance(strength, (int, float, np.floating)) and 0 < strength <= 1):
        raise OptionError(f"strength is {strength!r}; give a number above 0 and up to 1")
    return number


def _checked_share(share: Any, name: str) -> float:
    """Return a share as a float; OptionError if it is none."""
    if not (isinstance(share, (int, float, np.floating)) and 0 <= share <= 1):
        raise OptionError(f"{name} is {share!r}; give a share, from 0 to 1")
    return float(share)


def _checked_bounds(bounds: Any) -> tuple[float, float]:
    """Return bounds of w as two floats; OptionError if they are none."""
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low <= high < math.inf:
        raise OptionError(f"w_bounds are {bounds!r}; give (w_min, w_max) with w_min up to w_max")
    return low, high


def _given_reference(reference: Any, y: Tensor, enlarge: int) -> Tensor:
    """Return the reference images of a caller as the networks see them: of the shape of `y`, in [-1, 1]."""
    try:
        unit = enlarged(to_tensor(reference, bands=y.shape[1]), enlarge).clamp(0, 1)
    except OptionError as error:
        raise OptionError(f"reference: {error}") from None
    if unit.shape != y.shape:
        found, wanted = ((len(x), *(side // enlarge for side in (x.shape[3], x.shape[2]))) for x in (unit, y))
        raise OptionError(
            "reference: {} images of {} x {} px, the cloudy ones are {} of {} x {}; give one of each".format(
                *found, *wanted
            )
        )
    return 2 * unit.to(y.device, y.dtype) - 1


def _starting_noise(y: Tensor, generator: torch.Generator | None, latents: Tensor | None) -> Tensor:
    """Return x_T of the shape of `y`: the latents that are given, else what the generator draws."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise OptionError(f"generator is a {type(generator).__name__}; give one torch.Generator for all images")
    if latents is not None:
        if not isinstance(latents, Tensor):
            raise OptionError(f"latents are a {type(latents).__name__}; give a tensor")
        if latents.shape != y.shape:
            raise OptionError(f"latents are {tuple(latents.shape)}, the images {tuple(y.shape)}; give one shape")
        if not bool(torch.isfinite(latents).all()):
            raise OptionError("the latents hold NaN or infinite values; give noise")
        return latents.to(y.device, y.dtype)
    # Drawn where the generator lives: a CPU generator gives the same noise for every device.
    device = y.device if generator is None else generator.device
    return torch.randn(y.shape, generator=generator, device=device, dtype=torch.float32).to(y.device, y.dtype)
