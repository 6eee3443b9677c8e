"""The model that a command asks for, ready to run, and packages that need an extra."""

from __future__ import annotations

import contextlib
import importlib
import logging
from pathlib import Path
from typing import Any

from declouder.cli.process import import_pipeline, keep_freed_memory
from declouder.devices import has_bfloat16, resolved_device
from declouder.errors import OptionError
from declouder.model_folder import trained_range


def loaded_pipeline(model: str | None, sampler: str | None, device: str, precision: str = "32") -> Any:
    """Return the pipeline of a --model option, on its device, with the --sampler and --precision asked for."""
    import_pipeline()
    from declouder.pipeline import SAMPLERS, CloudRemovalPipeline, make_scheduler
    from declouder.pipeline.folder import no_loading_bar

    if sampler is not None and sampler not in SAMPLERS:
        raise OptionError(f"--sampler is {sampler!r}; give one of {', '.join(SAMPLERS)}")
    resolved = resolved_device(device)
    in_bfloat16 = _in_bfloat16(precision, resolved)
    if resolved == "cpu":
        keep_freed_memory()
    with no_loading_bar():
        pipeline = CloudRemovalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)  # our bar counts windows, not steps
    if sampler is not None:
        pipeline.scheduler = make_scheduler(sampler)
    pipeline.steps_in_bfloat16 = in_bfloat16
    return pipeline.to(resolved)


def _in_bfloat16(precision: str, device: str) -> bool:
    """Return whether steps are in bfloat16 on a device, by what `chosen_precision` returned."""
    can = precision != "32" and has_bfloat16(device)
    if precision == "bf16" and not can:
        raise OptionError(f"--precision is bf16, which this {device} would only emulate, slowly; give 32 or auto")
    # On GPUs nobody has measured yet what it gains: there it wants to be asked for.
    return can and (precision != "fast" or device == "cpu")


def tell_trained_range(model: str | None, given: tuple[float, float] | None, *, option: str) -> None:
    """Warn where a model learnt numbers between other ends than those that are given: its recipe's `data.range`."""
    learnt = None
    if model is not None:
        with contextlib.suppress(LookupError):  # it need not say
            learnt = trained_range(Path(model))
    if learnt is not None and given != learnt:
        from declouder.arguments import digits

        ends = [digits(end) for end in learnt]
        logging.getLogger(__name__).warning(
            "%s learnt numbers from %s to %s (data.range); give %s %s,%s", model, *ends, option, *ends
        )


def extra_package(name: str, option: str, needed: str) -> Any:
    """Return declouder's package `name`, which needs an extra.

    Raises:
        OptionError: if that is not installed.
    """
    try:
        return importlib.import_module(f"declouder.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("declouder"):
            raise
        raise OptionError(
            f"{option} needs {needed} ({error}); install it, in the clone of the repository:"
            f" pip install -c constraints.txt '.[{name}]'"
        ) from error
