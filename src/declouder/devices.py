"""The device that a --device option means in this process, what it can do, and whether its memory has run out."""

from __future__ import annotations

from declouder.errors import OptionError


def resolved_device(name: str, *, where: str = "this machine") -> str:
    """Return "cuda", "mps" or "cpu" for one of these, or for "auto" the first of them that is to be had.

    Raises:
        OptionError: if it is not to be had; `where` is what the message calls this place.
    """
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in usable if usable[device])
    if not usable[name]:
        raise OptionError(f"--device {name} cannot be used on {where}; give --device cpu")
    return name


def has_bfloat16(device: str) -> bool:
    """Return whether "cuda", "mps" or "cpu" multiplies bfloat16 by itself here, as far as PyTorch tells.

    Others emulate it, slowly. Of mps it does not tell, so no; of AMD's GPUs, which are "cuda" too, always yes.
    """
    import torch

    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def has_avx512() -> bool:
    """Return whether PyTorch computes with AVX-512 on this machine's processor."""
    import torch

    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory, of whatever device, does not suffice."""
    import torch

    # On the CPU, on mps and in NVIDIA's libraries it is a plain RuntimeError; only its words tell.
    words = (
        "not enough memory",
        "can't allocate memory",
        "out of memory",
        "cudnn_status_alloc_failed",
        "cublas_status_alloc_failed",
    )
    is_by_class = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_by_class or any(word in str(error).lower() for word in words)
