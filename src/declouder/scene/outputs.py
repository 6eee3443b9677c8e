"""From finished windows to the rasters: blended, brought back to DN, put into the scene where the cloud was.

A second raster, the provenance, says where that is, and what the pixels come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.journal import Journal
from declouder.masks import SceneMask, widened
from declouder.mosaic import Mosaic, Window, areas
from declouder.raster import BLOCK_PX, RasterReader, RasterWriter
from declouder.scaling import Scaling, beside_nodata, stored_as
from declouder.scene.inference import unpacked


@dataclass(frozen=True)
class Restoration:
    """The windows of a scene and where their results are kept."""

    reader: RasterReader
    mosaic: Mosaic
    journal: Journal
    bands: Sequence[int]
    """1-based, in the model's order."""
    scale: Scaling
    mask: SceneMask | None

    def blended(self, layer: str, area: Window, bands: int) -> NDArray[np.float32]:
        """Return a layer of all windows that reach an area: (bands, area.height, area.width)."""

        def load(index: int, rows: slice, cols: slice) -> NDArray[np.float32] | None:
            if not self.journal.has_image(index):
                return None
            return unpacked(self.journal.read(index, layer, rows, cols))

        def ones(index: int, rows: slice, cols: slice) -> NDArray[np.float32] | None:
            if not self.journal.has_image(index):
                return None
            return np.ones((1, rows.stop - rows.start, cols.stop - cols.start), np.float32)

        image = self.mosaic.blended(area, bands, load)
        if all(self.journal.has_image(index) for index in self.mosaic.reaching(area)):
            return image
        # Windows that were passed by leave their share to the others.
        weight = self.mosaic.blended(area, 1, ones)
        return np.asarray(image / np.where(weight > 0, weight, 1), np.float32)

    @property
    def mask_reads_scene(self) -> bool:
        """Whether the scene itself is read to know how much of a pixel is restored."""
        return self.mask is not None and self.mask.scene_reach_px is not None

    def keep_rows(self, rows: slice, bands: Sequence[int] | None = None) -> None:
        """Have these rows at hand, see `RasterReader.keep_rows`, as far around them as the mask reads the scene."""
        reach_px = None if self.mask is None else self.mask.scene_reach_px
        self.reader.keep_rows(widened(rows, reach_px or 0, self.reader.info.height)[0], bands)

    def share(self, area: Window) -> NDArray[np.float32]:
        """Return how much of each pixel is restored: (area.height, area.width) in [0, 1]."""
        if self.mask is None:
            return np.ones((area.height, area.width), np.float32)
        return self.mask.share(area.rows, area.cols)


def write_scene(
    scene: Restoration,
    writer: RasterWriter,
    provenance: RasterWriter | None,
    layers: Sequence[str],
    heed_stop: Callable[[], None],
) -> int:
    """Write the whole scene: the source's pixels, the valid samples of the model's bands replaced under the mask.

    Area by area, each of whole blocks of the output: every block is compressed once.

    Args:
        scene: what was restored.
        writer: of the output.
        provenance: of the raster that says where; or None.
        layers: that go there.
        heed_stop: called once an area; raises where the run shall end.

    Returns:
        How many pixels were restored, in whole or in part.
    """
    changed_px = 0
    reader, info = scene.reader, scene.reader.info
    # Fewer columns where there are many bands: about 16 MiB of float64.
    cols_px = BLOCK_PX * max(1, min(4, 32 // info.count))
    for area in areas(info.height, info.width, rows_px=BLOCK_PX, cols_px=cols_px):
        heed_stop()
        scene.keep_rows(area.rows)
        dn = reader.read(area.rows, area.cols)
        changed = np.zeros((1, area.height, area.width), np.float32)
        if any(scene.journal.has_image(index) for index in scene.mosaic.reaching(area)):
            changed[0] = _replace_restored(scene, area, dn)
            changed_px += int(np.count_nonzero(changed))
        writer.write(dn, area.rows, area.cols)
        if info.has_mask:
            writer.write_mask(reader.read_mask(area.rows, area.cols), area.rows, area.cols)
        if provenance is not None:
            provenance.write(_provenance_of(scene, area, changed, layers), area.rows, area.cols)
    return changed_px


def _replace_restored(scene: Restoration, area: Window, dn: NDArray[Any]) -> NDArray[np.float32]:
    """Replace what is restored in `dn`, (C, h, w) of all bands; return the share of it, (h, w) in [0, 1]."""
    chosen = [number - 1 for number in scene.bands]
    valid = scene.reader.valid_of(dn[chosen], area.rows, area.cols)
    share = scene.share(area)
    changed = valid & (share > 0)
    if not changed.any():
        return np.zeros_like(share)
    image = scene.blended("image", area, len(chosen))
    restored = restored_dn(dn[chosen], image, scene.scale, scene.reader.no_data, share)
    dn[chosen] = np.where(changed, restored, dn[chosen])
    if (color := scene.reader.info.nodata_color) is not None:
        _leave_color(dn, color, dict(zip(chosen, changed, strict=True)), scene.reader.no_data)
    return np.where(changed.any(axis=0), share, np.float32(0))


def _leave_color(
    dn: NDArray[Any], color: Sequence[float], changed: Mapping[int, NDArray[np.bool_]], nodata: Sequence[float]
) -> None:
    """Move pixels that have come to be the transparent colour to one next to it.

    Args:
        dn: (C, h, w), of all bands.
        color: a number for each band.
        changed: of each band that may be moved, counted from 0, where it may, (h, w).
        nodata: values that no result may have.
    """
    for band, movable in changed.items():
        came = movable & (dn == np.reshape(color, (-1, 1, 1))).all(axis=0)
        if came.any():
            dn[band] = np.where(came, beside_nodata(dn[band], [color[band], *nodata]), dn[band])


def _provenance_of(
    scene: Restoration, area: Window, changed: NDArray[np.float32], layers: Sequence[str]
) -> NDArray[np.float32]:
    """Return the provenance of an area, (1 + further layers, h, w); 0 where nothing was changed."""
    said = [changed]
    for layer in layers:
        values = scene.blended(layer, area, 1) if changed.any() else np.zeros_like(changed)
        if layer == "w":  # kept in steps of 1/255; means of 1 are 1 but for rounding
            values = np.asarray(np.rint(values * 255) / 255, np.float32)
        if layer == "spread":
            values = values * np.float32((scene.scale.high - scene.scale.low) / 2)
        said.append(np.where(changed > 0, values, np.float32(0)))
    return np.concatenate(said)


def restored_dn(
    dn: NDArray[Any],
    restored: NDArray[np.float32],
    scale: Scaling,
    nodata: Sequence[float],
    share: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """Bring restored samples back to DN.

    The model sees DN beyond the scale clipped. Where it leaves such a sample at that end of the scale, what
    was clipped is put back; where it moves it away, the excess was the cloud's and is dropped, with a smooth
    passage over a tenth of the scale.

    Args:
        dn: what was there, (C, H, W).
        restored: the model's result, (C, H, W) in [-1, 1].
        scale: of the scene.
        nodata: values that no result may have.
        share: how much of each pixel is restored, (H, W) in [0, 1]; None is all. What it keeps of `dn` is mixed in.

    Returns:
        (C, H, W) in the dtype of `dn`; where that is NaN or infinite, whatever comes of it.
    """
    wide = dn.astype(np.float64)
    with np.errstate(invalid="ignore"):
        excess = wide - np.clip(wide, scale.low, scale.high)
    excess[~np.isfinite(excess)] = 0  # no data there
    kept = np.clip((restored * np.sign(excess) - 0.8) / 0.2, 0, 1)
    values = scale.to_dn(restored, np.float64) + kept * excess
    if share is not None:
        with np.errstate(invalid="ignore"):
            values = np.where(share < 1, wide + share * (values - wide), values)
    return beside_nodata(stored_as(values, dn.dtype), nodata)
