"""Cloud masks out of files: plain ones and the quality bands of sensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from declouder.errors import OptionError, RasterError
from declouder.raster import AlignedReader

log = logging.getLogger(__name__)

_NEARLY_ALL_GROUND = 0.99  # of a scene: a mask of another grid may leave out its last row
_NEARLY_ALL = 0.9  # of a mask: where so much is cloud, and in several numbers, it is hardly a plain mask
_LAST_CLASS = 11  # of Sentinel-2's scene classification
_LEAST_QUALITY = 32  # of Landsat's quality bands: their bits say how sure it is that there is no cloud

_OF_NO_CLOUD = ("clear", "cloud free", "cloudfree", "valid")
"""Names of bands that are 1 where there is no cloud, as the first one of Planet's UDM2."""

Decoder = Callable[[NDArray[np.generic]], NDArray[np.bool_]]


class FileMask:
    """A mask out of a file's first band; pixels where the file holds no data are clear.

    Args:
        aligned: the file on the scene's grid.
        kind: one of `KINDS`.
        values: with kind "values": what means cloud; None is every number but 0.

    Raises:
        RasterError: if the file cannot be read, or is no band of integers where the kind is.
        OptionError: if it cannot be of that kind, or hold these values.
    """

    def __init__(self, aligned: AlignedReader, kind: str, values: Sequence[int] | None) -> None:
        self._aligned = aligned
        self._takes_any_number = kind == "values" and values is None
        self._is_cloud = KINDS[kind](aligned) if values is None else _listed(aligned, values)

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols)."""
        values, valid = self._aligned.read(rows, cols)
        return self._is_cloud(values) & valid

    def tell_oddities(self, ground: NDArray[np.bool_]) -> None:
        """Warn of what a user may not expect of this file as a mask.

        Args:
            ground: where the scene holds data, (h, w), the whole of it at a smaller size.
        """
        info = self._aligned.info
        if info.count - 1 - (info.alpha is not None) > 0:
            log.warning("mask %s has %d bands; the first one is taken", info.path, info.count)
        _tell_reach(self._aligned, ground)
        if self._takes_any_number:
            _tell_numbers(self._aligned, self._is_cloud)


def _tell_reach(aligned: AlignedReader, ground: NDArray[np.bool_]) -> None:
    """Warn of a mask that says nothing over the scene, or lies on a part of its ground only."""
    path = aligned.info.path
    if not aligned.says_anything():
        log.warning(
            "mask %s holds no data over the scene, so nothing there is cloud; is it of another place?", path
        )
        return
    share = aligned.share_of(ground)
    if share < _NEARLY_ALL_GROUND:
        log.warning("mask %s lies on %.0f %% of the scene; what is beyond it stays as it is", path, 100 * share)


def _tell_numbers(aligned: AlignedReader, is_cloud: Decoder) -> None:
    """Warn of what is no plain mask, where any number but 0 counts as cloud."""
    info = aligned.info
    if (called := info.descriptions[0] or "").lower() in _OF_NO_CLOUD:
        log.warning(
            "mask %s calls its first band %r, so cloud is where it is 0: give --mask-values 0", info.path, called
        )
    # Of a quality band, probabilities or an image hardly a pixel is 0.
    seen, valid = aligned.read_reduced()
    cloud = is_cloud(seen) & valid
    share = float(cloud.sum()) / max(float(valid.sum()), 1)
    if share >= _NEARLY_ALL and len(np.unique(seen[cloud])) > 1:
        log.warning(
            "mask %s is cloud on %.0f %% of itself, as any number but 0 counts; if it is more than a plain mask, "
            "give --mask-kind or --mask-values",
            *(info.path, 100 * share),
        )
    if "JPEG" in (info.driver, info.compression):
        log.warning(
            "mask %s is a JPEG, which has numbers of its own beside every edge, and any but 0 is cloud; write masks"
            " as PNG or GeoTIFF, or give --mask-values",
            info.path,
        )


def _any_number(_aligned: AlignedReader) -> Decoder:
    return lambda values: (values != 0) & np.isfinite(values)


def _sentinel2_scl(aligned: AlignedReader) -> Decoder:
    """Sentinel-2's scene classification: 3 cloud shadow, 8 and 9 cloud, 10 thin cirrus."""
    _check_integers(aligned, "sentinel2-scl")
    seen, valid = aligned.read_reduced()
    seen = seen[valid & (seen > 0)]
    if seen.size and (seen > _LAST_CLASS).mean() > 0.5:
        raise OptionError(
            f"mask {aligned.info.path} holds numbers up to {seen.max()}, a scene classification of Sentinel-2 has"
            f" 0 to {_LAST_CLASS}; give that band, or another --mask-kind"
        )
    return lambda values: np.isin(values, (3, 8, 9, 10))


def _landsat_qa(aligned: AlignedReader) -> Decoder:
    """Landsat's quality band of three generations: cloud of medium or high confidence, shadow and cirrus of high.

    They share one format and mean different bits. Collection 2 (QA_PIXEL) gives every pixel a confidence of cloud
    in bits 8-9 and of snow in bits 12-13, Landsat 4 to 7's as well, which end there. Of Collection 1, which has no
    bit above 12, only shadow under cirrus looks so; in the generation before it (BQA) bits 8-9 are 0. Smaller
    copies of such a band may hold means, which are no bits: the most of what is seen decides.
    """
    _check_integers(aligned, "landsat-qa")
    seen, valid = aligned.read_reduced()
    seen = seen[valid & (seen != 1)].astype(np.int64)  # 1 is outside the ground taken
    if seen.size and seen.max() < _LEAST_QUALITY:
        raise OptionError(
            f"mask {aligned.info.path} holds no number above {seen.max()}, a quality band of Landsat has larger"
            " ones; give that band, or another --mask-kind"
        )
    generation: Decoder
    if seen.size and ((_bits(seen, 8, 2) > 0) & (_bits(seen, 12, 2) > 0)).mean() > 0.5:
        generation, told = _collection_2, "Collection 2"
    elif seen.size == 0 or seen.max() < 1 << 13:
        generation, told = _collection_1, "Collection 1"
    else:
        generation, told = _before_collections, "before Collection 1"
    log.info("mask: Landsat quality band, %s", told)
    return lambda values: generation(values.astype(np.int64))


def _collection_2(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    dilated, cloud, shadow = (_bits(qa, bit, 1) == 1 for bit in (1, 3, 4))
    return np.asarray(dilated | cloud | shadow | (_bits(qa, 8, 2) >= 2) | (_bits(qa, 14, 2) == 3))


def _collection_1(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    cloud = (_bits(qa, 4, 1) == 1) | (_bits(qa, 5, 2) >= 2)
    return np.asarray(cloud | (_bits(qa, 7, 2) == 3) | (_bits(qa, 11, 2) == 3))


def _before_collections(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    return np.asarray((_bits(qa, 14, 2) >= 2) | (_bits(qa, 12, 2) == 3))


def _bits(qa: NDArray[np.generic], first: int, count: int) -> NDArray[np.int64]:
    return (qa.astype(np.int64) >> first) & ((1 << count) - 1)


def _listed(aligned: AlignedReader, wanted: Sequence[int]) -> Decoder:
    """Return what takes the listed numbers for cloud, if the file can hold them."""
    kind = np.dtype(aligned.info.dtype)
    low, high = (np.iinfo(kind).min, np.iinfo(kind).max) if kind.kind in "iu" else (-np.inf, np.inf)
    strange = [value for value in wanted if not low <= value <= high]
    if strange:
        raise OptionError(
            f"the mask value {strange[0]} is none that {aligned.info.path} can hold, which is {kind};"
            f" give values from {low} to {high}"
        )
    return lambda values: np.isin(values, wanted)


def _check_integers(aligned: AlignedReader, kind: str) -> None:
    info = aligned.info
    if np.dtype(info.dtype).kind not in "iu":
        raise RasterError(
            f"mask {info.path} is {info.dtype}, {kind} is a band of integers; give that band itself, "
            "or another --mask-kind"
        )


KINDS: dict[str, Callable[[AlignedReader], Decoder]] = {
    "values": _any_number,
    "landsat-qa": _landsat_qa,
    "sentinel2-scl": _sentinel2_scl,
}
"""How a mask file is read, by the name of its kind."""
