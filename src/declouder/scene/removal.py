"""Clouds removed from one scene, from the file to the file."""

from __future__ import annotations

import contextlib
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from declouder.bands import BandChoice, choose_bands, listed
from declouder.errors import OutputError
from declouder.journal import Layer, journal_path, open_journal
from declouder.masks import NONE, SceneMask, open_mask
from declouder.mosaic import Mosaic, Origin, Window, moved, on_grid
from declouder.provenance import earlier_tags, is_provenance, model_digest, provenance_info, sampler_of, tagged
from declouder.raster import (
    RasterInfo,
    Undeclared,
    check_fits,
    check_output,
    create_raster,
    files_identity,
    open_raster,
    remove_stale_parts,
)
from declouder.scaling import Scaling
from declouder.scene.engine import Engine, Group, Here, MakeEngine
from declouder.scene.inference import Layers, Part, Progress, layers_of, steps_of, threads_of, unpacked
from declouder.scene.inputs import auto_scale, fill_invalid, grid_origin
from declouder.scene.options import SceneOptions, SceneReport
from declouder.scene.outputs import Restoration, write_scene
from declouder.scene.planning import Plan
from declouder.small_clouds import SmallClouds
from declouder.version import __version__

log = logging.getLogger(__name__)

# So many windows without cloud are noted in the journal at once.
_SKIPS_AT_ONCE = 64
# Windows that small clouds are looked for in; each takes about 2 % of what the model takes for it on two cores.
_LOOKED_AT = 64
CONTEXT_PX = 64
"""So much ground the model sees around the cloud of a window."""


def remove_from_scene(
    source: Path,
    output: Path,
    pipeline: Any,
    options: SceneOptions | None = None,
    *,
    progress: Progress | None = None,
    engine: MakeEngine | None = None,
) -> SceneReport:
    """Write `source` without its clouds to `output`; only valid pixels of the model's bands change.

    Args:
        source: a raster that `open_raster` reads.
        output: where the result goes; the file appears when it is complete.
        pipeline: a CloudRemovalPipeline, on the device where it shall run.
        options: see SceneOptions.
        progress: called with the numbers of finished windows and of all windows.
        engine: who brings the windows through the model, if it is not `pipeline` in this process.

    Raises:
        DeclouderError: if something cannot be read, written or fitted together; then no output is left.
    """
    source, output = Path(source), Path(output)
    options = options or SceneOptions()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            open_raster(source, max_pixels=options.max_pixels, allow_outside=options.allow_outside)
        )
        if options.nodata is not None:
            reader.declare_nodata(options.nodata)
        info = reader.info
        may_replace = check_outputs(source, output, info, options)
        if info.images > 1:
            log.warning("%s holds %d images; the others than the first are left out", source, info.images)
        if earlier_tags(info):
            log.warning(
                "%s was made by declouder before; what was made up then counts as observed now, and the tags "
                "DECLOUDER_BEFORE_* keep how",
                source,
            )
        bands = choose_bands(info, tuple(pipeline.config.bands), options.bands)
        log.info("bands: %s = %s (%s)", listed(bands.numbers), ", ".join(bands.names), bands.how)
        if bands.doubtful:
            called = ", ".join(bands.doubtful)
            log.warning("what bands are called (%s) is no sure sign; give --bands if they are not these", called)
        reader.look_for_undeclared(bands.numbers)
        if reader.undeclared is not None:
            log.info("no data: %s; it is left out, though the file declares no nodata", reader.undeclared)
        scale = options.scale or auto_scale(reader, bands.numbers)
        log.info("scale: %.6g,%.6g %s", scale.low, scale.high, "as given" if options.scale else "found")
        mask = stack.enter_context(
            open_mask(
                options.mask,
                reader,
                bands=bands.numbers,
                names=bands.names,
                scale=scale,
                allow_outside=options.allow_outside,
            )
        )
        if mask is not None:
            _check_apart(mask.files, output, options.provenance)
        origin = grid_origin(info)
        mosaic = Mosaic(
            info.height,
            info.width,
            window_px=options.window_px,
            overlap_px=options.overlap,
            origin=origin,
            least_cut_px=options.least_cut_px,
        )
        layers = layers_of(options, bands=len(bands.numbers), dtype=info.dtype)
        at_work: Engine = Here(pipeline, options, layers) if engine is None else engine(options, layers)
        key = _key(info, mask, pipeline, at_work.device, options, bands, scale, reader.undeclared)
        journal = stack.enter_context(
            open_journal(
                journal_path(output),
                key,
                layers,
                windows=len(mosaic.windows),
                height=max(window.height for window in mosaic.windows),
                width=max(window.width for window in mosaic.windows),
            )
        )
        found = Restoration(reader, mosaic, journal, bands.numbers, scale, mask)
        small_clouds = _restore(found, origin, at_work, progress or (lambda done, total: None))
        _write(found, output, options, key, layers, may_replace=may_replace)
        restored = journal.restored
    if restored == 0:
        log.warning("%s", _nothing_restored(source, options))
    ended = time.perf_counter()
    return SceneReport(
        source=source,
        output=output,
        height=info.height,
        width=info.width,
        bands=bands,
        scale=scale,
        windows=len(mosaic.windows),
        skipped=len(mosaic.windows) - restored,
        seconds=ended - started,
        ended=ended,
        small_clouds_left=small_clouds.are_left,
    )


def _nothing_restored(source: Path, options: SceneOptions) -> str:
    mask = options.mask.source
    where = "it holds no data" if mask == NONE else f"the mask {mask} marks no cloud there"
    return f"nothing of {source} was restored: {where}"


def check_outputs(source: Path, output: Path, info: RasterInfo, options: SceneOptions) -> bool:
    """Raise before hours of work what would be raised after them.

    Returns whether a file at the provenance's name may be replaced.

    Args:
        source: of the scene.
        output: where it goes.
        info: what the source says of itself.
        options: of the scene.

    Raises:
        OutputError: if output or provenance cannot be written there, or are one of the inputs or each other.
    """
    given = options.mask.source
    sources = [source, *info.files, *([given] if isinstance(given, Path) else [])]
    check_output(output, sources=sources, overwrite=options.overwrite)
    check_fits(output, info, cog=options.cog)
    if options.provenance is None:
        return options.overwrite
    if options.provenance.resolve() == output.resolve():
        raise OutputError(f"--provenance {options.provenance} is the output itself; give another name")
    # A run that was killed between its two files may have left the first: then it is one of ours.
    continued = journal_path(output).exists() and is_provenance(options.provenance, info)
    may_replace = options.overwrite or continued
    check_output(options.provenance, sources=[*sources, output], overwrite=may_replace)
    check_fits(options.provenance, provenance_info(info, samples=options.samples))
    return may_replace


def _check_apart(inputs: Sequence[Path], *outputs: Path | None) -> None:
    """Raise OutputError if an output is one of the files that are read."""
    for output in outputs:
        if output is not None:
            check_output(output, sources=inputs, overwrite=True)


def _restore(scene: Restoration, origin: Origin, engine: Engine, progress: Progress) -> SmallClouds:
    """Send every window with cloud through the model, into the journal; those that are there already are left.

    What is returned counts windows that went through the model now; of large scenes a part, as it takes time.
    """
    journal, windows = scene.journal, scene.mosaic.windows
    plan = Plan(windows, context_px=CONTEXT_PX)
    parts: dict[int, Part] = {}  # that are at work
    small_clouds, every = SmallClouds(), max(1, len(windows) // _LOOKED_AT)
    for group in engine.finish(_groups(scene, plan, origin, engine, parts)):
        finished: dict[int, Layers | None] = {}
        for index, layers in group.items():
            part = parts.pop(index, None)
            if part is not None and layers is not None:
                # By a hash: every so many windows in order could all lie in one column.
                if zlib.crc32(index.to_bytes(8, "little")) % every == 0:
                    small_clouds.add(part.x, unpacked(layers["image"]))
                layers = _padded_to_largest(layers, windows[index], part.place, journal.height, journal.width)
            finished[index] = layers
        journal.add(finished)
        progress(len(journal), len(windows))
    return small_clouds


def _groups(
    scene: Restoration, plan: Plan, origin: Origin, engine: Engine, parts: dict[int, Part]
) -> Iterator[Group]:
    """Yield the unfinished windows, so many at once as go through the model together; note their parts.

    Each group is a run of windows that ends with one that is restored, so that the groups of a continued run are
    those of an uninterrupted one, whichever of them were finished.
    """
    group: dict[int, Part | None] = {}
    for index in [index for index in range(len(plan.windows)) if index not in scene.journal]:
        part = group[index] = _model_input(scene, plan, origin, index)
        if part is not None:
            parts[index] = part
        todo = sum(part is not None for part in group.values())
        if todo >= engine.batch or (todo == 0 and len(group) >= _SKIPS_AT_ONCE):
            yield group
            group = {}
    if group:
        yield group


def _model_input(scene: Restoration, plan: Plan, origin: Origin, index: int) -> Part | None:
    """Return what of a window the model sees, mirrored up and left as far as the grid; None if there is no cloud.

    That is, if its core holds none, or no data there.
    """
    window = scene.mosaic.windows[index]
    cloudy = scene.share(window) > 0
    if not cloudy[plan.core(index)].any():
        return None  # without a look at the scene
    valid = scene.reader.read_valid(window.rows, window.cols, scene.bands)
    place = plan.part(index, valid.any(axis=0) & cloudy, cut=scene.mask is not None)
    if place is None:
        return None
    inside = np.s_[:, place.row - window.row :, place.col - window.col :]
    valid = valid[inside][:, : place.height, : place.width]
    dn = scene.reader.read(place.rows, place.cols, scene.bands)
    x = fill_invalid(scene.scale.to_model(np.where(valid, dn, 0)), valid)
    aligned = on_grid(place, origin)
    beyond = (0, 0), (place.row - aligned.row, 0), (place.col - aligned.col, 0)
    return Part(aligned, np.pad(x, beyond, mode="symmetric"), moved(aligned, origin))


def _padded_to_largest(layers: Layers, window: Window, place: Window, height: int, width: int) -> Layers:
    """Return the layers of a part in a window as large as the largest, 0 around it; nobody will look there."""
    top, left = place.row - window.row, place.col - window.col
    inside = np.s_[:, max(-top, 0) :, max(-left, 0) :]
    bottom, right = height - place.height - top, width - place.width - left
    around = (0, 0), (max(top, 0), bottom), (max(left, 0), right)
    return {name: np.pad(values[inside], around) for name, values in layers.items()}


def _write(
    scene: Restoration,
    output: Path,
    options: SceneOptions,
    key: Mapping[str, Any],
    layers: Mapping[str, Layer],
    *,
    may_replace: bool,
) -> None:
    """Write the output and, if it is wanted, the provenance, in the place of another where it may be replaced."""
    # The journal's lock says that no other run writes this output: what looks so was left by a killed one.
    remove_stale_parts(output)
    if options.provenance is not None:  # which another output's run may be writing
        remove_stale_parts(options.provenance, spare_living=True)
    like = scene.reader.info
    masked = scene.mask is not None
    restored = tagged(like, key, masked=masked)
    with create_raster(output, restored, overwrite=options.overwrite, cog=options.cog) as writer:
        if options.provenance is None:
            write_scene(scene, writer, None, [])
            return
        said = tagged(provenance_info(like, samples=options.samples), key, masked=masked)
        with create_raster(options.provenance, said, overwrite=may_replace) as provenance:
            write_scene(scene, writer, provenance, [name for name in layers if name != "image"])
            writer.finish()  # a cloud-optimised one takes its time: neither shall appear without the other


def _key(
    info: RasterInfo,
    mask: SceneMask | None,
    pipeline: Any,
    device: str,
    options: SceneOptions,
    bands: BandChoice,
    scale: Scaling,
    undeclared: Undeclared | None,
) -> dict[str, Any]:
    """Return all that the finished windows depend on, as JSON knows it."""
    choice = options.mask
    steps = steps_of(pipeline, options)
    return {
        "version": __version__,
        "input": files_identity(info.files),
        "model": model_digest(pipeline),
        "sampler": sampler_of(pipeline) if steps != 0 else None,
        "steps": steps,
        "least painted": options.least_painted,
        "enlarge": options.enlarge,
        "seed": options.seed,
        "samples": options.samples,
        "bands": list(bands.numbers),
        "scale": [scale.low, scale.high],
        "nodata": [str(info.nodata), undeclared and [undeclared.value, undeclared.share]],
        "window": options.window_px,
        "overlap": options.overlap,
        "mask": files_identity(mask.files) if mask is not None and mask.files else str(choice.source),
        "cloudiness": None if mask is None else mask.threshold,
        "mask kind": [choice.kind, None if choice.values is None else list(choice.values)],
        "feather": choice.feather_px,
        "device": device,
        "threads": threads_of(options) if device == "cpu" else None,
    }
