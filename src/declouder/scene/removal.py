"""Clouds removed from one scene, from the file to the file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from declouder.bands import BandChoice, choose_bands, listed
from declouder.errors import OptionError, OutputError, RasterError
from declouder.interrupts import interrupts_wait
from declouder.journal import Layer, journal_path, open_journal, reserved
from declouder.masks import NONE, SceneMask, open_mask
from declouder.model_identity import model_digest, precision_of, sampler_of
from declouder.mosaic import Mosaic
from declouder.provenance import is_provenance, provenance_info, tagged
from declouder.raster import (
    RasterInfo,
    RasterReader,
    RasterWriter,
    check_fits,
    check_folder,
    check_output,
    create_raster,
    file_stamps,
    files_identity,
    remove_unfinished_rasters,
    written_over,
)
from declouder.scaling import Scaling
from declouder.scene.engine import Engine, Here, MakeEngine
from declouder.scene.inference import layers_of, steps_of, threads_of
from declouder.scene.inputs import auto_scale, grid_origin, open_scene, tell_misfit
from declouder.scene.options import Progress, SceneOptions, SceneReport
from declouder.scene.outputs import Restoration, write_scene
from declouder.scene.windows import restore_windows
from declouder.tags import BEFORE, own_tags
from declouder.version import __version__

log = logging.getLogger(__name__)


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
    if not isinstance(options, SceneOptions):
        raise OptionError(f"options is a {type(options).__name__}; give a SceneOptions")
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open_scene(source, options))
        info = reader.info
        stamps = file_stamps(info.files)
        may_replace = check_outputs(source, output, info, options)
        _tell_oddities(source, info)
        bands = _bands_of(reader, pipeline, options)
        scale = _scale_of(reader, bands, options)
        mask = stack.enter_context(
            open_mask(options.mask, reader, bands=bands.numbers, names=bands.names, scale=scale)
        )
        if mask is not None:
            stamps |= file_stamps(mask.files)
            _check_apart(mask.files, output, options.provenance)
        mosaic = Mosaic(
            info.height,
            info.width,
            window_px=options.window,
            overlap_px=options.overlap,
            origin=grid_origin(info),
            least_cut_px=options.least_cut_px,
        )
        layers = layers_of(options, bands=len(bands.numbers), dtype=info.dtype, scale=scale)
        at_work: Engine = Here(pipeline, options, layers) if engine is None else engine(options, layers)
        key = _key(reader, mask, pipeline, at_work.device, options, bands, scale)
        tags = own_tags(tagged(info, key, masked=mask is not None))
        if may_replace and not options.overwrite:  # what is there may be of another output of this scene
            assert options.provenance is not None
            may_replace = is_provenance(options.provenance, info, said=tags)
        windows = mosaic.windows
        height, width = max(window.height for window in windows), max(window.width for window in windows)
        journal = stack.enter_context(
            open_journal(journal_path(output), key, layers, windows=len(windows), height=height, width=width)
        )
        if options.provenance is not None:
            stack.enter_context(reserved(options.provenance))
        _check_still_free(output, options, may_replace=may_replace)
        continued = len(journal)
        scene = Restoration(reader, mosaic, journal, bands.numbers, scale, mask)
        small_clouds = restore_windows(scene, at_work, progress or (lambda done, total: None))
        changed_px = _write(scene, output, options, key, layers, stamps, at_work, may_replace=may_replace)
        restored = journal.restored
        if restored == 0:
            log.warning("%s", _nothing_restored(output, reader, bands, options))
    if restored and mask is not None:
        share = changed_px / (info.height * info.width)
        log.info("mask: cloud and its feather are %.1f %% of %s", 100 * share, output)
    ended = time.perf_counter()
    return SceneReport(
        source=source,
        output=output,
        height=info.height,
        width=info.width,
        bands=bands,
        scale=scale,
        windows=len(windows),
        skipped=len(windows) - restored,
        seconds=ended - started,
        ended=ended,
        small_clouds_left=small_clouds.are_left,
        tags=tags,
        continued=continued,
    )


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
    check_output(options.provenance, sources=[*sources, output], overwrite=may_replace, called="--provenance")
    check_fits(options.provenance, provenance_info(info, samples=options.samples))
    return may_replace


def _tell_oddities(source: Path, info: RasterInfo) -> None:
    """Warn of what a user may not expect of a scene's file."""
    if info.images > 1:
        log.warning("%s holds %d images; the others than the first are left out", source, info.images)
    if own_tags(info):
        log.warning(
            "%s was made by declouder before; what was made up then counts as observed now, and the tags %s* keep "
            "how",
            *(source, BEFORE),
        )


def _bands_of(reader: RasterReader, pipeline: Any, options: SceneOptions) -> BandChoice:
    """Return the bands that the model sees, and tell which they are and why."""
    bands = choose_bands(reader.info, tuple(pipeline.config.bands), options.bands)
    log.info("bands: %s = %s (%s)", listed(bands.numbers), ", ".join(bands.names), bands.how)
    if bands.doubtful:
        called = ", ".join(bands.doubtful)
        log.warning("what bands are called (%s) is no sure sign; give --bands if they are not these", called)
    return bands


def _scale_of(reader: RasterReader, bands: BandChoice, options: SceneOptions) -> Scaling:
    """Return which numbers are black and white; first find what holds no data, and tell both."""
    reader.take_for_data(bands.numbers)
    reader.look_for_undeclared(bands.numbers)
    if reader.undeclared is not None:
        log.info("no data: %s; it is left out, though the file does not declare it", reader.undeclared)
    if len(reader.no_data) > 1:
        declared, given = reader.no_data
        log.info("no data: %.9g as given, besides the %.9g that the file declares", given, declared)
    scale = options.scale or auto_scale(reader, bands.numbers)
    log.info("scale: %.6g,%.6g %s", scale.low, scale.high, "as given" if options.scale else "found")
    if options.scale is not None:
        tell_misfit(reader, bands.numbers, scale)
    return scale


def _nothing_restored(output: Path, reader: RasterReader, bands: BandChoice, options: SceneOptions) -> str:
    _, valid = reader.read_reduced(bands.numbers)
    mask = options.mask.source if valid.any() else NONE
    where = (
        "it holds no data"
        if mask == NONE
        else f"the mask {mask} marks no cloud there (what is no data in it counts as clear)"
    )
    return f"nothing was restored in {output}: {where}"


def _check_apart(inputs: Sequence[Path], *outputs: Path | None) -> None:
    """Raise OutputError if an output is one of the files that are read."""
    for output in outputs:
        if output is not None:
            check_output(output, sources=inputs, overwrite=True)


def _write(
    scene: Restoration,
    output: Path,
    options: SceneOptions,
    key: Mapping[str, Any],
    layers: Mapping[str, Layer],
    stamps: Mapping[Path, tuple[int, int, int]],
    at_work: Engine,
    *,
    may_replace: bool,
) -> int:
    """Write the output and, if it is wanted, the provenance, in the place of another where it may be replaced.

    Returns how many pixels were restored, in whole or in part.
    """
    for path in (output, options.provenance):
        if path is not None:
            check_folder(path.resolve().parent)  # again: hours may have passed
    # The journal's lock says that no other run writes this output: what looks so was left by a killed one.
    remove_unfinished_rasters(output)
    if options.provenance is not None:  # which another output's run may be writing
        remove_unfinished_rasters(options.provenance, spare_living=True)
    like = scene.reader.info
    masked = scene.mask is not None
    restored = tagged(like, key, masked=masked)
    with create_raster(output, restored, overwrite=options.overwrite, cog=options.cog) as writer:
        if options.provenance is None:
            changed_px = write_scene(scene, writer, None, [], at_work.heed_stop)
            _check_unchanged(stamps, like)
            return changed_px
        said = tagged(provenance_info(like, samples=options.samples), key, masked=masked)
        with create_raster(options.provenance, said, overwrite=may_replace) as provenance:
            further = [name for name in layers if name != "image"]
            changed_px = write_scene(scene, writer, provenance, further, at_work.heed_stop)
            _check_unchanged(stamps, like)
            _publish_both(writer, provenance, output, options)
    return changed_px


def _publish_both(writer: RasterWriter, provenance: RasterWriter, output: Path, options: SceneOptions) -> None:
    """Give output and provenance their names: neither shall appear without the other."""
    assert options.provenance is not None
    for each in (writer, provenance):
        each.finish()  # a cloud-optimised one takes its time, and so does a far disk
    check_output(output, sources=[], overwrite=options.overwrite)  # something may have come there since
    place = options.provenance.resolve()  # of a link that leads nowhere yet, the file
    is_new = not place.exists()
    with interrupts_wait():
        provenance.publish()
        try:
            writer.publish()
        except OutputError:
            if is_new:
                place.unlink(missing_ok=True)
            raise


def _check_still_free(output: Path, options: SceneOptions, *, may_replace: bool) -> None:
    """Raise OutputError if another run has finished the outputs while this one looked at the scene."""
    check_output(output, sources=[], overwrite=options.overwrite)
    if options.provenance is not None:
        check_output(options.provenance, sources=[], overwrite=may_replace)


def _check_unchanged(stamps: Mapping[Path, tuple[int, int, int]], info: RasterInfo) -> None:
    """Raise RasterError if a file was written over while it was read: old and new pixels would be mixed."""
    # What a VRT names is opened when it is first read, which may be at the end.
    changed = written_over(stamps, opened_late=info.files if info.driver == "VRT" else ())
    if changed is not None:
        raise RasterError(f"{changed} was changed while it was read; run again when it is whole")


def _key(
    reader: RasterReader,
    mask: SceneMask | None,
    pipeline: Any,
    device: str,
    options: SceneOptions,
    bands: BandChoice,
    scale: Scaling,
) -> dict[str, Any]:
    """Return all that the finished windows depend on, as JSON knows it."""
    choice, undeclared = options.mask, reader.undeclared
    steps = steps_of(pipeline, options)
    return {
        "version": __version__,
        "input": files_identity(reader.info.files),
        "model": model_digest(pipeline),
        "sampler": sampler_of(pipeline) if steps != 0 else None,
        "steps": steps,
        "precision": precision_of(pipeline) if steps != 0 else None,
        "least painted": options.least_painted,
        "enlarge": options.enlarge,
        "seed": options.seed if steps != 0 else None,
        "samples": options.samples,
        "averaged": options.average,
        "bands": list(bands.numbers),
        "scale": [scale.low, scale.high],
        "nodata": [*map(str, reader.no_data), undeclared and [undeclared.value, undeclared.share]],
        "window": options.window,
        "overlap": options.overlap,
        "mask": files_identity(mask.files) if mask is not None and mask.files else str(choice.source),
        "cloudiness": None if mask is None else mask.threshold,
        "mask kind": [choice.kind, None if choice.values is None else list(choice.values)],
        "feather": choice.feather_px,
        "device": device,
        "threads": threads_of(options) if device == "cpu" else None,
    }
