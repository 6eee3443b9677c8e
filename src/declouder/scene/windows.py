"""The windows of a scene through the model and into its journal, several at once."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from declouder.mosaic import Window, moved, on_grid
from declouder.scene.engine import Engine, Group
from declouder.scene.inference import Layers, Part, unpacked
from declouder.scene.inputs import fill_invalid
from declouder.scene.options import Progress
from declouder.scene.outputs import Restoration
from declouder.scene.planning import Plan
from declouder.small_clouds import SmallClouds

# So many windows without cloud are noted in the journal at once.
_SKIPS_AT_ONCE = 64
# Windows that small clouds are looked for in; each takes about 2 % of what the model takes for it on two cores.
_LOOKED_AT = 64
CONTEXT_PX = 64
"""So much ground the model sees around the cloud of a window."""


def restore_windows(scene: Restoration, engine: Engine, progress: Progress) -> SmallClouds:
    """Send every window with cloud through the model, into the journal; those that are there already are left.

    Args:
        scene: its journal gets the results.
        engine: who brings the windows through the model.
        progress: called with the numbers of finished windows and of all windows.

    Returns:
        The small clouds in windows that went through the model now; of large scenes in a part, as it takes time.
    """
    journal, windows = scene.journal, scene.mosaic.windows
    plan = Plan(windows, context_px=CONTEXT_PX)
    parts: dict[int, Part] = {}  # that are at work
    small_clouds, every = SmallClouds(), max(1, len(windows) // _LOOKED_AT)
    for group in engine.finish(_groups(scene, plan, engine, parts)):
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


def _groups(scene: Restoration, plan: Plan, engine: Engine, parts: dict[int, Part]) -> Iterator[Group]:
    """Yield the unfinished windows, so many at once as go through the model together; note their parts.

    Each group is a run of windows that ends with one that is restored, so that the groups of a continued run are
    those of an uninterrupted one, whichever of them were finished.
    """
    group: dict[int, Part | None] = {}
    for index in [index for index in range(len(plan.windows)) if index not in scene.journal]:
        part = group[index] = _model_input(scene, plan, index)
        if part is not None:
            parts[index] = part
        todo = sum(part is not None for part in group.values())
        if todo >= engine.batch or (todo == 0 and len(group) >= _SKIPS_AT_ONCE):
            yield group
            group = {}
    if group:
        yield group


def _model_input(scene: Restoration, plan: Plan, index: int) -> Part | None:
    """Return what of a window the model sees, mirrored up and left as far as the grid; None if there is no cloud.

    That is, if its core holds none, or no data there.
    """
    window = scene.mosaic.windows[index]
    if scene.mask_reads_scene:
        scene.keep_rows(window.rows, scene.bands)
    cloudy = scene.share(window) > 0
    if not cloudy[plan.core(index)].any():
        return None  # of a mask from a file without a look at the scene
    scene.keep_rows(window.rows, scene.bands)
    dn = scene.reader.read(window.rows, window.cols, scene.bands)
    valid = scene.reader.valid_of(dn, window.rows, window.cols)
    ground = np.asarray(valid.any(axis=0))
    place = plan.part(index, ground & cloudy, ground=ground, cut=scene.mask is not None)
    if place is None:
        return None
    top, left = place.row - window.row, place.col - window.col
    inside = np.s_[:, top : top + place.height, left : left + place.width]
    dn, valid = dn[inside], valid[inside]
    x = fill_invalid(scene.scale.to_model(np.where(valid, dn, 0)), valid)
    aligned = on_grid(place, scene.mosaic.origin)
    beyond = (0, 0), (place.row - aligned.row, 0), (place.col - aligned.col, 0)
    return Part(aligned, np.pad(x, beyond, mode="symmetric"), moved(aligned, scene.mosaic.origin))


def _padded_to_largest(layers: Layers, window: Window, place: Window, height: int, width: int) -> Layers:
    """Return the layers of a part in a window as large as the largest, 0 around it; nobody will look there."""
    top, left = place.row - window.row, place.col - window.col
    inside = np.s_[:, max(-top, 0) :, max(-left, 0) :]
    bottom, right = height - place.height - top, width - place.width - left
    around = (0, 0), (max(top, 0), bottom), (max(left, 0), right)
    return {name: np.pad(values[inside], around) for name, values in layers.items()}
