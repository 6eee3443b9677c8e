"""What `declouder remove` shall do: which scene goes where, checked before any work is done."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from declouder import raster
from declouder.bands import choose_bands, numbered
from declouder.errors import DeclouderError, MisfitError, OptionError, OutputError, RasterError
from declouder.journal import remove_finished_journal
from declouder.mosaic import plan_windows
from declouder.scene import SceneOptions, check_outputs, open_scene

log = logging.getLogger(__name__)

_MOST_LIST_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Job:
    """One scene: where it comes from, where it goes to, what it says of itself, whether the user named it."""

    source: Path
    output: Path
    info: raster.RasterInfo
    is_named: bool


@dataclass(frozen=True)
class Jobs:
    """What is to be done.

    Attributes:
        todo: scene by scene.
        existing: how many scenes are passed over because their output exists.
        unusable: what is wrong with images found in a folder that can be neither read nor kept in their format.
        folder: where several go, or None for one file.
        is_new: the folder is not there yet.
    """

    todo: tuple[Job, ...]
    existing: int
    unusable: Mapping[Path, DeclouderError]
    folder: Path | None
    is_new: bool

    @property
    def many(self) -> bool:
        """Whether the outputs go to a folder."""
        return self.folder is not None


def planned_jobs(
    inputs: Sequence[Path], input_list: Path | None, output: Path, options: SceneOptions, *, skip_existing: bool
) -> Jobs:
    """Return what goes where; every input that is not passed over is opened, every output checked.

    Args:
        inputs: images and folders of images.
        input_list: a text file that names further ones, see `listed_in`; or None.
        output: a file, or a folder where there are several images, a folder or a list.
        options: of every scene.
        skip_existing: pass over scenes whose output exists.

    Raises:
        DeclouderError: if something cannot be read, written or fitted together; an image found in a folder that
            cannot be read, or whose format cannot hold the result, does not stand in the way of the others there.
    """
    if skip_existing and options.overwrite:
        raise OptionError("--skip-existing and --overwrite exclude each other; give one of them")
    given = [*inputs, *(listed_in(input_list) if input_list is not None else [])]
    sources = _sources_in(given)
    many = len(given) > 1 or input_list is not None or _is_folder(given[0]) or output.is_dir()
    is_new = many and not output.exists()
    if many:
        _check_folder(output, is_new=is_new, images=len(sources))
    if len(sources) > 1 and options.provenance is not None:
        raise OptionError("--provenance names one file; give one input, or a run for each")
    outputs = [output / raster.output_name(source) if many else output for source in sources]
    originals = {source.resolve(): source for source in sources}
    for target in outputs:
        if (source := originals.get(target.resolve())) is not None:  # also where it would be passed over
            raise OutputError(f"output {target} is the input {source} itself; give another name")
    pairs = list(zip(sources, outputs, strict=True))
    todo = _left_to_do(pairs, options) if skip_existing else pairs
    by_name = set(given)
    for source, _ in todo:
        if source in by_name:  # a missing input is told before anything about its output
            raster.check_source(source)
    _check_apart(sources, outputs)
    if todo and isinstance(options.mask.source, Path):  # once, not as a fault of every scene
        raster.check_source(options.mask.source)
    if not is_new:
        for _, target in todo:
            raster.check_output(target, sources=[], overwrite=options.overwrite)
    jobs: list[Job] = []
    unusable: dict[Path, DeclouderError] = {}
    for source, target in todo:
        try:
            info = _looked_at(source, target, options, is_new=is_new)
            jobs.append(Job(source, target, info, is_named=source in by_name))
        except (RasterError, MisfitError) as error:
            # An odd image in a folder, such as a PNG preview where --cog is given, must not stop the others.
            if len(pairs) == 1 or source in by_name:
                raise
            unusable[source] = error
    return Jobs(tuple(jobs), len(pairs) - len(todo), unusable, output if many else None, is_new)


def _sources_in(given: Sequence[Path]) -> list[Path]:
    """Return the images that are given, and those in folders that are; each once."""
    if not given:
        raise OptionError("no INPUT is given; name images, a folder of them, or a list with --list FILE")
    named = [source for path in given for source in (_images_in(path) if _is_folder(path) else [path])]
    # Also under another spelling; a link is a scene of its own.
    return list({source.parent.resolve() / source.name: source for source in named}.values())


def _check_folder(output: Path, *, is_new: bool, images: int) -> None:
    """Raise OutputError if several images cannot go to `output`, as its name or its place is no folder's."""
    if is_new and output.suffix.lower() in raster.OUTPUT_DRIVERS:
        what = f"{images} images do" if images > 1 else "a folder or list does"
        raise OutputError(f"{what} not go into one file {output}; give a folder with -o")
    raster.check_folder(output.parent if is_new else output)


def _left_to_do(pairs: Sequence[tuple[Path, Path]], options: SceneOptions) -> list[tuple[Path, Path]]:
    """Return the scenes whose output is not there yet; put away what finished ones left beside theirs."""
    todo = [(source, target) for source, target in pairs if not target.is_file()]
    for _, target in pairs:
        if target.is_file():
            remove_finished_journal(target)
    if options.provenance is not None and not todo and not options.provenance.exists():
        log.warning(
            "%s exists and is passed over, so %s is not made; for both give --overwrite, not --skip-existing",
            *(pairs[0][1], options.provenance),
        )
    return todo


@contextlib.contextmanager
def jobs_folder(jobs: Jobs) -> Iterator[None]:
    """Make the folder that the outputs go to; it is removed again if nothing came into it."""
    if jobs.folder is None or not jobs.is_new:
        yield
        return
    try:
        jobs.folder.mkdir(exist_ok=True)  # another run may have made it since
    except OSError as error:
        raise OutputError(f"the output folder {jobs.folder} cannot be made ({error}); give another one") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            jobs.folder.rmdir()


def is_done(job: Job, *, skip_existing: bool) -> bool:
    """Return whether another run has finished a scene since the jobs were planned, and it is to be passed over."""
    return skip_existing and job.output.is_file()


def window_count(job: Job, options: SceneOptions) -> int:
    """Return about how many windows a scene has: a few more where its corner lies within the grid."""
    least = options.least_cut_px
    return len(plan_windows(job.info.height, job.info.width, options.window, options.overlap, least_cut_px=least))


def listed_in(path: Path) -> list[Path]:
    """Return the images that a text file names, one a line; empty lines and those with # in front say nothing.

    Raises:
        OptionError: if it is no such text.
    """
    try:
        if path.stat().st_size > _MOST_LIST_BYTES:
            raise OptionError(
                f"--list {path} is over {_MOST_LIST_BYTES >> 20} MiB; give a text with one name a line"
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise OptionError(f"--list {path} does not exist; check the name") from None
    except (OSError, ValueError) as error:
        found = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "is no text in UTF-8"
        raise OptionError(
            f"--list {path} {found}; give a text with one name a line, and an image without --list"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names or any("\0" in name for name in names):
        raise OptionError(f"--list {path} names no image; give a text with one name a line")
    return [Path(name) for name in names]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not raster.is_safe(path)


def _images_in(folder: Path) -> list[Path]:
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in raster.INPUT_SUFFIXES
        and not path.name.startswith(".")  # ._scene.tif, which macOS leaves on other file systems, is no image
        and (path.is_file() or raster.is_safe(path))
    )
    if not found:
        wanted = ", ".join(raster.INPUT_SUFFIXES)
        raise RasterError(f"{folder} holds no image; wanted files with one of {wanted}")
    return found


def _check_apart(sources: Sequence[Path], outputs: Sequence[Path]) -> None:
    taken: dict[str, Path] = {}
    for source, output in zip(sources, outputs, strict=True):
        # On the disks that are usual there, A.tif and a.tif are one file.
        name = str(output).casefold() if sys.platform in ("darwin", "win32") else str(output)
        if name in taken:
            raise OutputError(f"{taken[name]} and {source} would both become {output}; rename one")
        taken[name] = source


def check_bands(jobs: Jobs, names: Sequence[str], options: SceneOptions) -> None:
    """Look whether images that the user named have the bands of a model, before work on any of them begins.

    Raises:
        DeclouderError: if one has not; one of a folder that has not fails alone, when it is its turn.
    """
    for job in jobs.todo:
        if job.is_named:
            choose_bands(job.info, names, options.bands)


def _looked_at(source: Path, output: Path, options: SceneOptions, *, is_new: bool) -> raster.RasterInfo:
    """Look into a scene, and at its output if that folder is there already; return what it says of itself."""
    with open_scene(source, options) as reader:
        info = reader.info
        if is_new:
            raster.check_fits(output, info, cog=options.cog)
        else:
            check_outputs(source, output, info, options)
        mask = options.mask
        if isinstance(mask.source, Path):
            with raster.open_aligned(mask.source, info, allow_outside=mask.allow_outside):
                pass
        if options.bands:
            numbered(info, options.bands)
    return info
