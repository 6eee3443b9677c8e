"""Many scenes at once on a cluster: as many as it takes to keep all workers busy, and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from declouder.cluster.engine import Cluster
from declouder.raster import not_georeferenced_is_fine

Scene = TypeVar("Scene")
Report = TypeVar("Report")

_MOST_SCENES = 256
_LOOK_S = 0.5  # so soon Ctrl-C is heard


def finish_scenes(
    cluster: Cluster, scenes: Sequence[Scene], work: Callable[[Scene], Report], groups: Callable[[Scene], int]
) -> list[Report]:
    """Call `work` for every scene, several at once in threads of their own; return what it returns, in order.

    A large scene keeps all workers busy: then there is one more, which is read and sent as the first is written.
    Of small ones, so many are open that their groups do.

    Args:
        cluster: where the engines of `work` send their groups.
        scenes: in the order in which they begin.
        work: finishes one scene.
        groups: about how many groups of windows a scene has.

    Raises:
        the first error of `work`, once all that has begun is stopped.
    """
    reports: dict[int, Report] = {}
    waiting = deque(enumerate(scenes))
    running: dict[Future[Report], tuple[int, int]] = {}  # the scene's number, and what it takes of the room
    with not_georeferenced_is_fine(), ThreadPoolExecutor(_MOST_SCENES, "scene") as pool:
        try:
            while waiting or running:
                room = 2 * cluster.most_out - sum(share for _, share in running.values())
                while waiting and len(running) < _MOST_SCENES:
                    number, scene = waiting[0]
                    share = min(groups(scene), cluster.most_out)
                    if running and share > room:
                        break
                    waiting.popleft()
                    running[pool.submit(work, scene)] = number, share
                    room -= share
                for future in wait(running, _LOOK_S, FIRST_COMPLETED).done:
                    number, _ = running.pop(future)
                    reports[number] = future.result()
        except BaseException:
            cluster.stop()
            raise
    return [reports[number] for number in range(len(scenes))]
