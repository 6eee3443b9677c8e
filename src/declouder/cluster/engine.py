"""The client's side: groups of windows out to the workers and back, never too many at once."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

from distributed.scheduler import KilledWorker

from declouder.cluster.worker import Facts, Work, restore
from declouder.errors import DeclouderError, ModelError, OptionError, reason_of
from declouder.journal import Layer
from declouder.mosaic import Window
from declouder.scene.engine import Finished, Group
from declouder.scene.inference import threads_of
from declouder.scene.options import SceneOptions

log = logging.getLogger(__name__)

GROUPS_PER_WORKER = 2
"""One is computed while the next is on its way; more would only take memory."""
NO_WORKER_S = 60.0
"""So long without any worker ends the run; journals are kept."""
_LOOK_S = 1.0
_NO_SCHEDULER = "the cluster's scheduler is gone; start it again (dask scheduler) and run the same command again"


class Stopped(BaseException):
    """Another scene of the same run has failed or was interrupted."""


class Cluster:
    """Workers that have the model; made by `open_cluster`.

    Args:
        client: of dask.distributed.
        model: the name of the plugin that holds the model on each worker.
        facts: what the workers say of themselves; all have the same device.
    """

    def __init__(self, client: Any, model: str, facts: Facts) -> None:
        self.device = facts.device
        self.model = model
        self._client = client
        self._lock = threading.Lock()
        self._workers: set[str] = set(client.nthreads())
        self._out = 0
        self._queue: deque[threading.Event] = deque()
        self._looked = time.monotonic()
        self._none_since: float | None = None  # no worker was seen that takes work
        self._numbers = itertools.count()
        self._stopped = False

    @property
    def most_out(self) -> int:
        """How many groups may be out at a time."""
        return GROUPS_PER_WORKER * max(1, len(self._workers))

    def engine(self, options: SceneOptions, layers: Mapping[str, Layer]) -> Remote:
        """Return the engine of one scene; those of several scenes may be used in several threads."""
        # Said, not left to each machine: the number of threads is part of what makes pixels equal.
        return Remote(self, replace(options, threads=threads_of(options)), layers)

    def stop(self) -> None:
        """Let every engine end at once, with `Stopped`."""
        self._stopped = True

    def heed_stop(self) -> None:
        """Raise Stopped after `stop`."""
        if self._stopped:
            raise Stopped

    def try_send(self, work: Work, news: threading.Event) -> Any | None:
        """Send a group to the workers and return its future; None if too many are out or others asked before.

        Without this order a scene of many windows would take every place that one of its own groups leaves.

        Args:
            work: the group.
            news: of the scene; set when it is its turn. A scene that asked and no longer wants to must `leave`.
        """
        with self._lock:
            if news not in self._queue:
                self._queue.append(news)
            if self._out >= self.most_out or self._queue[0] is not news:
                return None
            self._queue.popleft()
            self._out += 1
            self._call_next()
            key = f"{self.model}-{next(self._numbers)}"
        return self._client.submit(restore, work, key=key, pure=False)

    def take_back(self, futures: Sequence[Any], *, cancel: bool = False) -> None:
        """Forget groups that are finished or no longer wanted."""
        with self._lock:
            self._out -= len(futures)
            if futures and not cancel:
                self._none_since = None  # one that is paused still finishes what it has begun
            self._call_next()
        if cancel and futures:
            with contextlib.suppress(Exception):  # there may be no scheduler any more
                self._client.cancel(list(futures), force=True)

    def leave(self, news: threading.Event) -> None:
        """Give up the place in the queue."""
        with self._lock:
            if news in self._queue:
                self._queue.remove(news)
                self._call_next()

    def _call_next(self) -> None:
        if self._queue and self._out < self.most_out:
            self._queue[0].set()

    def look_after(self) -> None:
        """Notice workers that come and go.

        Raises:
            OptionError: if the scheduler is gone, or all workers have been gone for long.
            Stopped: after `stop`.
        """
        self.heed_stop()
        with self._lock:
            now = time.monotonic()
            if now - self._looked < _LOOK_S:
                return
            self._looked = now
            states = self._states_of_workers()
            lost = self._workers - set(states)
            if lost:
                who = "others do" if states else "those that come will do"
                log.warning("%d of %d workers died; %s their windows again", len(lost), len(self._workers), who)
            self._workers = set(states)
            if "running" in states.values():
                self._none_since = None
            elif self._none_since is None:  # from now on: nobody may have looked for long
                self._none_since = now
            elif now - self._none_since > NO_WORKER_S:
                paused = f" ({len(states)} are paused, their memory is full)" if states else ""
                raise OptionError(
                    f"the cluster has had no worker that takes work for {NO_WORKER_S:.0f} s{paused}; start some "
                    "(dask worker ADDRESS) and run the same command again"
                )

    def _states_of_workers(self) -> dict[str, str]:
        try:
            if self._client.status == "running":
                found = self._client.scheduler_info(n_workers=-1)["workers"]
                return {address: worker.get("status", "running") for address, worker in found.items()}
        except (OSError, TimeoutError, ValueError):
            pass
        raise OptionError(_NO_SCHEDULER)


class Remote:
    """The engine of one scene on a cluster.

    Args:
        cluster: see there.
        options: of the scene, with the number of threads.
        layers: what to keep of a window.
    """

    def __init__(self, cluster: Cluster, options: SceneOptions, layers: Mapping[str, Layer]) -> None:
        self.batch = options.batch
        self.device = cluster.device
        self._cluster, self._options, self._layers = cluster, options, layers

    def finish(self, groups: Iterable[Group]) -> Iterator[Finished]:
        """Yield every group when it is finished, in any order.

        Raises:
            ModelError: if the model fails or workers die over a group again and again, with the place.
            OptionError: if the cluster is gone.
        """
        running: dict[Any, Window] = {}  # futures, and the first window of each
        news = threading.Event()  # something is finished, or there is room for one more
        try:
            for group in groups:
                first = next((part.place for part in group.values() if part is not None), None)
                if first is None:
                    yield dict.fromkeys(group)
                    continue
                work = Work(self._cluster.model, self._options, self._layers, group)
                while (future := self._cluster.try_send(work, news)) is None:
                    yield from self._arrivals(running, news)
                running[future] = first
                future.add_done_callback(lambda _future: news.set())
            while running:
                yield from self._arrivals(running, news)
        finally:
            self._cluster.leave(news)
            self._cluster.take_back(list(running), cancel=True)

    def heed_stop(self) -> None:
        """Raise Stopped where the whole run has been stopped."""
        self._cluster.heed_stop()

    def _arrivals(self, running: dict[Any, Window], news: threading.Event) -> Iterator[Finished]:
        """Yield what is finished; wait for it, but not for long."""
        self._cluster.look_after()
        news.wait(_LOOK_S)
        news.clear()
        for future in [future for future in running if future.done()]:
            result = _result(future, running[future])
            del running[future]
            self._cluster.take_back([future])
            yield result


def _result(future: Any, first: Window) -> Finished:
    """Return what came of a group; `first` is its first window."""
    place = f"row {first.row}, column {first.col}"
    try:
        result: Finished = future.result()
    except DeclouderError:
        raise  # names its place
    except KilledWorker as error:
        raise ModelError(
            f"{error.allowed_failures + 1} workers died one after another over the window at {place}; "
            "does their memory hold it? give a smaller --window or --batch"
        ) from None
    except CancelledError:
        raise OptionError(_NO_SCHEDULER) from None
    except Exception as error:
        raise ModelError(f"a worker failed at {place} ({type(error).__name__}: {reason_of(error)})") from error
    return result
