"""Clouds removed from one scene, from the file to the file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder import __version__
from declouder.journal import Layer, journal_path, open_journal
from declouder.masks import open_mask
from declouder.mosaic import Mosaic, Window
from declouder.provenance import model_digest, output_tags, provenance_info, sampler_of
from declouder.raster import (
    RasterReader,
    check_fits,
    check_output,
    create_raster,
    file_identity,
    open_raster,
    remove_stale_parts,
    with_tags,
)
from declouder.scaling import Scaling
from declouder.scene.bands import BandChoice, choose_bands, listed
from declouder.scene.inference import Layers, Progress, WindowModel, layers_of
from declouder.scene.inputs import auto_scale, fill_invalid
from declouder.scene.options import SceneOptions, SceneReport
from declouder.scene.outputs import Restoration, write_scene

log = logging.getLogger(__name__)

# So many windows without cloud are noted in the journal at once.
_SKIPS_AT_ONCE = 64


def remove_from_scene(
    source: Path,
    output: Path,
    pipeline: Any,
    options: SceneOptions | None = None,
    *,
    progress: Progress | None = None,
) -> SceneReport:
    """Write `source` without its clouds to `output`; only valid pixels of the model's bands change.

    Args:
        source: a raster that `open_raster` reads.
        output: where the result goes; the file appears when it is complete.
        pipeline: a CloudRemovalPipeline, on the device where it shall run.
        options: see SceneOptions.
        progress: called with the numbers of finished windows and of all windows.

    Raises:
        DeclouderError: if something cannot be read, written or fitted together; then no output is left.
    """
    options = options or SceneOptions()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            open_raster(source, max_pixels=options.max_pixels, allow_outside=options.allow_outside)
        )
        info = reader.info
        _check_outputs(source, output, reader, options)
        bands = choose_bands(info, tuple(pipeline.config.bands), options.bands)
        log.info("bands: %s = %s (%s)", listed(bands.numbers), ", ".join(bands.names), bands.how)
        scale = options.scale or auto_scale(reader, bands.numbers)
        log.info("scale: %.6g,%.6g %s", scale.low, scale.high, "as given" if options.scale else "found")
        mask = stack.enter_context(
            open_mask(options.mask, reader, bands=bands.numbers, names=bands.names, scale=scale)
        )
        mosaic = Mosaic(info.height, info.width, window_px=options.window_px, overlap_px=options.overlap)
        layers = layers_of(options, bands=len(bands.numbers), dtype=info.dtype)
        model = WindowModel(pipeline, options, layers)
        key = _key(source, pipeline, model, options, bands, scale)
        journal = stack.enter_context(
            open_journal(
                journal_path(output),
                key,
                layers,
                windows=len(mosaic.windows),
                height=mosaic.windows[0].height,
                width=mosaic.windows[0].width,
            )
        )
        found = Restoration(reader, mosaic, journal, bands.numbers, scale, mask)
        _restore(found, model, progress or (lambda done, total: None))
        _write(found, output, options, key, layers)
        restored = journal.restored
    return SceneReport(
        source=source,
        output=output,
        height=info.height,
        width=info.width,
        bands=bands,
        scale=scale,
        windows=len(mosaic.windows),
        skipped=len(mosaic.windows) - restored,
        seconds=time.perf_counter() - started,
    )


def _check_outputs(source: Path, output: Path, reader: RasterReader, options: SceneOptions) -> None:
    """Raise before hours of work what would be raised after them."""
    given = options.mask.source
    sources = [source, *([given] if isinstance(given, Path) else [])]
    check_output(output, sources=sources, overwrite=options.overwrite)
    check_fits(output, reader.info, cog=options.cog)
    if options.provenance is not None:
        # A run that was killed between its two files may have left the first.
        continued = journal_path(output).exists()
        check_output(options.provenance, sources=[*sources, output], overwrite=options.overwrite or continued)
        check_fits(options.provenance, provenance_info(reader.info, samples=options.samples))


def _restore(found: Restoration, model: WindowModel, progress: Progress) -> None:
    """Send every window with cloud through the model, into the journal; those that are there already are left."""
    journal, windows = found.journal, found.mosaic.windows
    group: dict[int, NDArray[np.float32] | None] = {}
    for index, window in enumerate(windows):
        if index in journal:
            continue
        group[index] = _model_input(found, window)
        todo = sum(x is not None for x in group.values())
        if todo >= model.batch or (todo == 0 and len(group) >= _SKIPS_AT_ONCE):
            _finish(group, found, model, progress)
            group = {}
    _finish(group, found, model, progress)


def _finish(
    group: Mapping[int, NDArray[np.float32] | None], found: Restoration, model: WindowModel, progress: Progress
) -> None:
    windows = found.mosaic.windows
    todo = {index: x for index, x in group.items() if x is not None}
    layers: Iterator[Layers] = iter(model.restore([windows[k] for k in todo], list(todo.values())) if todo else [])
    if group:
        found.journal.add({index: None if x is None else next(layers) for index, x in group.items()})
        progress(len(found.journal), len(windows))


def _model_input(found: Restoration, window: Window) -> NDArray[np.float32] | None:
    """Return a window as the model sees it, (C, h, w) in [-1, 1]; None if it holds no cloud, or no data there."""
    share = found.share(window)
    if not share.any():
        return None
    valid = found.reader.read_valid(window.rows, window.cols, found.bands)
    if not (valid & (share > 0)).any():
        return None
    dn = found.reader.read(window.rows, window.cols, found.bands)
    return fill_invalid(found.scale.to_model(np.where(valid, dn, 0)), valid)


def _write(
    found: Restoration, output: Path, options: SceneOptions, key: Mapping[str, Any], layers: Mapping[str, Layer]
) -> None:
    """Write the output and, if it is wanted, the provenance."""
    for path in (output, options.provenance):
        if path is not None:
            # The journal's lock says that no other run writes here: what looks so was left by a killed one.
            remove_stale_parts(path)
    like = found.reader.info
    tags = output_tags(key, masked=found.mask is not None)
    with create_raster(output, with_tags(like, tags), overwrite=options.overwrite, cog=options.cog) as writer:
        if options.provenance is None:
            write_scene(found, writer, None, [])
            return
        said = with_tags(provenance_info(like, samples=options.samples), tags)
        with create_raster(options.provenance, said, overwrite=True) as provenance:
            write_scene(found, writer, provenance, [name for name in layers if name != "image"])


def _key(
    source: Path, pipeline: Any, model: WindowModel, options: SceneOptions, bands: BandChoice, scale: Scaling
) -> dict[str, Any]:
    """Return all that the finished windows depend on, as JSON knows it."""
    mask = options.mask
    given = isinstance(mask.source, Path)
    return {
        "version": __version__,
        "input": file_identity(source),
        "model": model_digest(pipeline),
        "sampler": sampler_of(pipeline) if model.steps != 0 else None,
        "steps": model.steps,
        "seed": options.seed,
        "samples": options.samples,
        "bands": list(bands.numbers),
        "scale": [scale.low, scale.high],
        "window": options.window_px,
        "overlap": options.overlap,
        "mask": file_identity(Path(mask.source)) if given else str(mask.source),
        "mask kind": [mask.kind, None if mask.values is None else list(mask.values)],
        "feather": mask.feather_px,
        "device": getattr(pipeline.device, "type", str(pipeline.device)),
    }
