"""The scenes of one `declouder remove`, here or on a cluster, and what is said of them in the end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from declouder.cli.bars import Bars
from declouder.cli.loading import extra_package
from declouder.cli.logs import scene_at_work
from declouder.errors import BusyError, DeclouderError, ModelError, OutputError, RasterError

if TYPE_CHECKING:
    from declouder.cli.jobs import Job, Jobs
    from declouder.scene import SceneOptions, SceneReport

log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What came of the scenes.

    Attributes:
        failed: what went wrong with scenes of several, by source: the others are finished all the same.
        reports: of the finished ones, in order.
        passed: scenes that another run has finished, or is at, since this one began.
    """

    failed: dict[Path, DeclouderError]
    reports: list[SceneReport] = field(default_factory=list)
    passed: list[Path] = field(default_factory=list)


class Run:
    """The scenes of one command, one after the other or several at once.

    Args:
        jobs: what is to be done.
        pipeline: a CloudRemovalPipeline, on its device.
        options: of every scene.
        bars: show how far each is.
        skip_existing: pass over scenes whose output exists.
        outcome: gets what comes of them.
    """

    def __init__(
        self,
        jobs: Jobs,
        pipeline: Any,
        options: SceneOptions,
        bars: Bars,
        *,
        skip_existing: bool,
        outcome: Outcome,
    ) -> None:
        self._jobs, self._pipeline, self._options, self._bars = jobs, pipeline, options, bars
        self._skip_existing = skip_existing
        self._outcome = outcome

    def here(self) -> None:
        """Finish scene after scene in this process."""
        self._note([self._finished(job, None) for job in self._jobs.todo])

    def on_cluster(self, name: str, device: str) -> None:
        """Finish the scenes on a cluster, several at once where they are small.

        Args:
            name: "local:N", or the address of a scheduler.
            device: of the workers.
        """
        from declouder.cli.jobs import window_count

        todo, options = self._jobs.todo, self._options
        package = extra_package("cluster", "--cluster", "dask.distributed")
        with package.open_cluster(name, self._pipeline, device=device) as cluster:

            def work(job: Job) -> SceneReport | None:
                return self._finished(job, cluster.engine)

            def groups(job: Job) -> int:
                return -(-window_count(job, options) // options.batch)

            # One scene stays in the main thread, where Ctrl-C is heard at once.
            self._note([work(todo[0])] if len(todo) == 1 else package.finish_scenes(cluster, todo, work, groups))

    def _note(self, reports: Sequence[SceneReport | None]) -> None:
        self._outcome.reports += [report for report in reports if report is not None]

    def _finished(self, job: Job, engine: Any) -> SceneReport | None:
        """Finish a scene; None if it was passed over, or failed and others go on."""
        from declouder.cli.jobs import is_done
        from declouder.scene import remove_from_scene

        try:
            with self._bars.scene(job.source) as progress:
                if is_done(job, skip_existing=self._skip_existing):
                    self._outcome.passed.append(job.source)
                    return None
                if self._jobs.many and engine is None:
                    log.info("%s:", job.source)  # whose lines come next
                mingled = scene_at_work.set(job.source if self._jobs.many and engine is not None else None)
                try:
                    return remove_from_scene(
                        job.source, job.output, self._pipeline, self._options, progress=progress, engine=engine
                    )
                finally:
                    scene_at_work.reset(mingled)
        except RasterError as error:
            # It is the scene's: it does not stand in the way of the others.
            if not self._jobs.many:
                raise
            log.warning("%s", error)
            self._outcome.failed[job.source] = error
        except ModelError as error:
            raise ModelError(f"{job.source}: {error}") from error
        except OutputError as error:
            # Another run has finished it since, or is about to.
            elsewhere = isinstance(error, BusyError) or job.output.is_file()
            if not (self._skip_existing and elsewhere):
                raise
            log.warning("%s is passed over: %s", job.source, error)
            self._outcome.passed.append(job.source)
        return None


def failure(outcome: Outcome) -> DeclouderError:
    """Return the first error of an outcome that has some; it says how many there are."""
    failed = outcome.failed
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return first
    rest = "the others are finished" if outcome.reports else "no other was left to do"
    return type(first)(f"{first}; {len(failed)} scenes failed in all, {rest}")


def summary(jobs: Jobs, outcome: Outcome) -> str:
    """Return a line of what was written, how much and how fast."""
    reports = outcome.reports
    existed = f", {jobs.existing} existed already" if jobs.existing else ""
    existed += f", {len(outcome.passed)} left to another run" if outcome.passed else ""
    if not reports:
        return f"wrote nothing{existed}"
    pixels = sum(report.megapixels for report in reports)
    # From the first's beginning to the last's end: scenes on a cluster overlap.
    seconds = max(report.ended for report in reports) - min(report.ended - report.seconds for report in reports)
    images = "1 image" if len(reports) == 1 else f"{len(reports)} images"
    what = f"{images} to {jobs.folder}" if jobs.many else str(reports[0].output)
    amount = f"{pixels:.2f}" if pixels >= 0.1 else f"{pixels:.2g}"
    wrote = f"wrote {what}{existed}: {amount} megapixels in {seconds:.1f} s"
    if any(report.continued for report in reports):
        return f"{wrote}, beside what an earlier run had finished"
    return f"{wrote}, {pixels / seconds:.3g} MP/s"


def hint(reports: Sequence[SceneReport], enlarge: int) -> str | None:
    """Return what a user may do about small clouds that seem to be left; None if there is nothing to do."""
    from declouder.arguments import MOST_ENLARGED

    left = [report for report in reports if report.small_clouds_left]
    if not left or enlarge >= MOST_ENLARGED:
        return None
    where = str(left[0].output)
    if len(left) > 1:
        where += f" and {len(left) - 1} more"
    return f"small clouds seem to be left in {where}: look at it, and try --enlarge {enlarge + 1}"
