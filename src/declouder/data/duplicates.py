"""Images that show the same ground: duplicates and near-duplicates, by a perceptual hash and a check.

    hash     the signs of 64 of the lowest frequencies (DCT-II) of a grey 32 x 32 thumbnail; Zauner 2010
    check    correlation of the two images at 64 x 64 px over all bands, each with its own mean taken off

Pairs of images whose hashes differ in few bits are candidates; those that the check confirms are reported. The
first image of a pair is turned and mirrored in all eight ways. Found are re-encoded, re-scaled, differently lit,
turned and mirrored copies. Not found: ground that overlaps in part, for which one hash an image is not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from declouder.data.resize import resize_bicubic
from declouder.scaling import Scaling

HASH_PX = 32
CHECK_PX = 64
CANDIDATE_BITS = 20
"""Hashes of 64 bits that differ in at most this many belong to candidates."""
SAME_CORRELATION = 0.9
"""Correlation from which two images show the same ground. RICE's images of other ground stay below 0.8."""
FLAT_DEVIATION = 0.008
"""Deviation, of a range of 1, below which an image (sea, desert) has no pattern to know it by."""
FLAT_DIFFERENCE = 0.002
"""Flat images are the same if their pixels differ by less than this on average: copies, not likenesses."""
WAYS: Mapping[str, tuple[int, bool]] = {
    "": (0, False),
    "turned by 90 degrees": (1, False),
    "turned by 180 degrees": (2, False),
    "turned by 270 degrees": (3, False),
    "mirrored": (0, True),
    "mirrored and turned by 90 degrees": (1, True),
    "mirrored and turned by 180 degrees": (2, True),
    "mirrored and turned by 270 degrees": (3, True),
}
"""The ways to lay a square onto itself: quarter turns to the left, and whether it is mirrored first."""


@dataclass(frozen=True)
class Look:
    """What is kept of an image to compare it with others."""

    key: Any
    """Whatever the caller knows the image by."""
    signs: NDArray[np.float32]
    """(8, 64) of -1 and 1: the perceptual hash of the image laid in each of the `WAYS`."""
    small: NDArray[np.float32]
    """(C, 64, 64) in [0, 1]."""


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same ground; `first` came first."""

    first: Any
    second: Any
    correlation: float
    """1 for copies; nan for flat images, which were compared pixel by pixel."""
    way: str = ""
    """How the first must be laid to be the second, one of `WAYS`."""


def look_of(key: Any, image: NDArray[Any], scaling: Scaling | None = None) -> Look:
    """Return the look of an image (H, W, C) of any dtype, in its dtype's range or the given one."""
    scaling = scaling or Scaling.of_dtype(image.dtype)
    unit = scaling.to_unit(image.transpose(2, 0, 1))
    small = resize_bicubic(unit, CHECK_PX, CHECK_PX)
    grey = resize_bicubic(unit.mean(0, keepdims=True), HASH_PX, HASH_PX)[0]
    return Look(key, np.stack([_hash(_laid(grey, way)) for way in WAYS]), small)


def find_duplicates(looks: Iterable[Look]) -> list[Duplicate]:
    """Return all pairs of looks that show the same ground, in the order of the looks."""
    all_looks = list(looks)
    if len(all_looks) < 2:
        return []
    upright = np.stack([look.signs[0] for look in all_looks])
    found = []
    for number, look in enumerate(all_looks):
        differing = (64 - upright[number + 1 :] @ look.signs.T) / 2  # (others, 8) bits
        candidates = differing <= CANDIDATE_BITS
        for other in np.flatnonzero(candidates.any(axis=1)):
            ways = [way for way, is_candidate in zip(WAYS, candidates[other], strict=True) if is_candidate]
            second = all_looks[number + 1 + other]
            same = _same_ground(look.small, second.small, ways)
            if same is not None:
                found.append(Duplicate(look.key, second.key, *same))
    return found


def _hash(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    low = dctn(grey, norm="ortho")[:9, :9].ravel()[1:65]  # the mean (0, 0) says nothing about the ground
    return np.where(low > np.median(low), 1, -1).astype(np.float32)


def _laid(image: NDArray[np.float32], way: str) -> NDArray[np.float32]:
    """Turn and mirror (..., H, W)."""
    turns, mirrored = WAYS[way]
    return np.rot90(image[..., ::-1] if mirrored else image, turns, (-2, -1))


def _same_ground(a: NDArray[np.float32], b: NDArray[np.float32], ways: Iterable[str]) -> tuple[float, str] | None:
    """Return correlation and way of two images (C, 64, 64) that show the same ground, else None."""
    if a.shape != b.shape:
        return None
    if min(a.std(axis=(1, 2)).mean(), b.std(axis=(1, 2)).mean()) < FLAT_DEVIATION:
        return (float("nan"), "") if float(np.abs(a - b).mean()) < FLAT_DIFFERENCE else None
    a, b = (image - image.mean(axis=(1, 2), keepdims=True) for image in (a, b))
    lengths = float(np.sqrt((a * a).sum() * (b * b).sum()))
    correlation, way = max(((float((_laid(a, way) * b).sum()) / lengths, way) for way in ways), key=lambda x: x[0])
    return (correlation, way) if correlation >= SAME_CORRELATION else None
