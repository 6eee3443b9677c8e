"""Images as users have them, arrays, tensors or PIL's, to tensors in [0, 1] and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from declouder.errors import OptionError
from declouder.scaling import Scaling

_DEEP = ("I", "F")
"""How PIL's modes of more than 8 bits a band begin; in converting it would cut them off."""


@dataclass
class CloudRemovalOutput(BaseOutput):  # type: ignore[misc]
    """What the pipeline returns, float32, of the size of its input.

    For output_type "pt" all are (B, C, H, W) tensors, for "np" (B, H, W, C) arrays. For "pil" images and reference
    are lists of B 8-bit PIL images, and weights is an array as for "np".
    """

    images: Any
    """The restored images, in [0, 1]."""
    reference: Any
    """The reference images, the network's or those that were given, in [0, 1]."""
    weights: Any
    """w of the last step, for each pixel and band: the share of the reference. 1 in images that took no step."""


def to_tensor(cloudy: Any, *, bands: int) -> Tensor:
    """Return (B, C, H, W) float32 in [0, 1] of any accepted kind of image.

    Raises:
        OptionError: if it is of another kind, shape, range or number of bands, or holds what is no number.
    """
    if isinstance(cloudy, Image.Image):
        cloudy = [cloudy]
    if isinstance(cloudy, (list, tuple)) and all(isinstance(image, Image.Image) for image in cloudy):
        cloudy = _array_of_pils(cloudy, bands=bands)
    if isinstance(cloudy, np.ndarray):
        cloudy = _tensor_of_array(cloudy)
    if not isinstance(cloudy, Tensor) or cloudy.ndim != 4:
        raise OptionError("cloudy must be a (B, C, H, W) tensor, an (H, W, C) or (B, H, W, C) array, or PIL images")
    if cloudy.layout != torch.strided or cloudy.is_meta:
        kind = "a meta tensor, which holds no numbers" if cloudy.is_meta else "sparse"
        raise OptionError(f"the tensor is {kind}; give a dense one of floats in [0, 1]")
    if not cloudy.is_floating_point():
        raise OptionError(f"the tensor is of {cloudy.dtype}; give floats in [0, 1]")
    if cloudy.shape[1] != bands:
        elsewhere = bands in cloudy.shape[2:]
        mend = "arrays are (H, W, C), tensors (B, C, H, W)" if elsewhere else f"pick {bands} of them"
        raise OptionError(f"the image has {cloudy.shape[1]} bands, this model wants {bands}; {mend}")
    if cloudy.numel() == 0:
        raise OptionError(f"the images are {tuple(cloudy.shape)}, which holds no pixel; give at least one")
    if not bool(torch.isfinite(cloudy).all()):
        raise OptionError("the image holds NaN or infinite values; fill them first")
    if float(cloudy.min()) < -1e-3 or float(cloudy.max()) > 1 + 1e-3:
        raise OptionError(
            f"the image spans {float(cloudy.min()):g} to {float(cloudy.max()):g}; scale it to [0, 1] first"
        )
    # One memory layout for all kinds of input: convolutions round differently in another.
    return cloudy.float().contiguous().clamp(0, 1)


def _array_of_pils(images: Sequence[Image.Image], *, bands: int) -> NDArray[np.float32]:
    """Return (B, H, W, C) in [0, 1] of 8-bit images of one size."""
    if not images:
        raise OptionError("the list of images is empty; give at least one")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise OptionError(f"the images are of {len(sizes)} sizes; pass images of one size at a time")
    strange = [image.mode for image in images if image.mode.startswith(_DEEP)]
    if strange:
        raise OptionError(
            f"a PIL image is of mode {strange[0]}, of more than 8 bits; give an array of floats in [0, 1]"
        )
    arrays = [_of_pil(image, bands=bands) for image in images]
    dn = np.stack([a if a.ndim == 3 else a[..., None] for a in arrays])
    return Scaling.of_dtype(np.uint8).to_unit(dn)


def _tensor_of_array(array: NDArray[Any]) -> Tensor:
    """Return (B, C, H, W) float32 of an array of floats, (H, W, C) or (B, H, W, C)."""
    if not np.issubdtype(array.dtype, np.floating):
        raise OptionError(f"the array is {array.dtype}; give floats in [0, 1] (8 bit: divide by 255)")
    if np.ma.is_masked(array):
        raise OptionError("some of the array is masked, and nothing is known there; fill it first")
    if array.ndim not in (3, 4):
        raise OptionError(f"the array is {array.shape}; give (H, W, C) or (B, H, W, C)")
    batch = array if array.ndim == 4 else array[None]
    kept = np.ascontiguousarray(batch, dtype=np.float32)
    # PyTorch warns of arrays that it may not write to; it does not write to this one either.
    return torch.from_numpy(kept if kept.flags.writeable else kept.copy()).permute(0, 3, 1, 2)


def _of_pil(image: Image.Image, *, bands: int) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, C) of an 8-bit image; OptionError if some of it is transparent."""
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if bands != len("RGBA") and has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise OptionError("a PIL image is transparent in part, and nothing is known there; give an opaque one")
    if bands == len("CMYK") == len(image.getbands()) and image.mode != "RGBA":
        raise OptionError(f"a PIL image is {image.mode}, which is no image of four bands; give RGBA or an array")
    if bands == 1:
        return np.asarray(image.convert("L") if image.mode in ("1", "LA", "P", "PA") else image)
    return np.asarray(image.convert("RGB") if bands == len("RGB") else image)


def check_output_type(output_type: str, *, bands: int) -> None:
    """Raise OptionError if images of so many bands cannot be given so."""
    if output_type not in ("pt", "np", "pil"):
        raise OptionError(f'there is no output_type {output_type!r}; choose "pt", "np" or "pil"')
    if output_type == "pil" and bands not in (1, 3, 4):
        raise OptionError(f'PIL has no image of {bands} bands; ask for output_type="np"')


def output_of(images: Tensor, reference: Tensor, weights: Tensor, output_type: str) -> CloudRemovalOutput:
    """Return what the pipeline gives, of images and weights (B, C, H, W), the images in [-1, 1]."""
    images, reference, weights = ((images + 1) / 2).float(), ((reference + 1) / 2).float(), weights.float()
    if output_type == "pt":
        return CloudRemovalOutput(images=images, reference=reference, weights=weights)
    arrays = [x.permute(0, 2, 3, 1).cpu().numpy() for x in (images, reference, weights)]
    if output_type == "np":
        return CloudRemovalOutput(images=arrays[0], reference=arrays[1], weights=arrays[2])
    return CloudRemovalOutput(images=_to_pil(arrays[0]), reference=_to_pil(arrays[1]), weights=arrays[2])


def _to_pil(images: NDArray[np.float32]) -> list[Image.Image]:
    dn = Scaling.of_dtype(np.uint8).unit_to_dn(images, np.uint8)
    return [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in dn]
