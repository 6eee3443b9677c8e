"""Digital numbers (DN) to the model's range [-1, 1] and back: the only place that maps one to the other.

    x  = 2 (dn - low) / (high - low) - 1        clipped to [-1, 1]
    dn = low + (x + 1) / 2 (high - low)         rounded for integers, clipped to the dtype's range

One `Scaling` serves a whole scene, so that windows of one scene stay comparable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from declouder.arguments import LEAST_SPAN, MOST_DN, largest_of
from declouder.errors import OptionError

LEAST_USED = 0.03
"""Of a range that somebody gave, the share that numbers must span, else it is doubted: bytes are 0.026 of 0 to
10000, calm sea is 0.04 of it."""


@dataclass(frozen=True)
class Scaling:
    """A linear map between `[low, high]` in DN and `[-1, 1]`.

    Raises:
        OptionError: if `low` is not below `high`, or by less than 1e-37, or one of them is not finite, or beyond
            1e37.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        for name in ("low", "high"):  # numpy's numbers are no JSON
            object.__setattr__(self, name, float(getattr(self, name)))
        if not max(abs(self.low), abs(self.high)) <= MOST_DN:  # nor NaN
            raise OptionError(
                f"scale {self.low:g},{self.high:g} is not of numbers up to {MOST_DN:g}; give LOW,HIGH in the"
                " image's own"
            )
        if 0 < self.high - self.low < LEAST_SPAN:
            raise OptionError(
                f"scale {self.low:g},{self.high:g} spans less than {LEAST_SPAN:g}, which float32 cannot tell apart;"
                " multiply the numbers, and give LOW,HIGH of those"
            )
        if not self.low < self.high:
            raise OptionError(
                f"scale low {self.low:g} is not below high {self.high:g}; give LOW,HIGH with LOW < HIGH"
            )

    @classmethod
    def of_dtype(cls, dtype: DTypeLike) -> Scaling:
        """Return [0, largest number] of an integer dtype, also of a signed one, or [0, 1] for floats."""
        return cls(0.0, largest_of(dtype))

    def to_model(self, dn: NDArray[Any]) -> NDArray[np.float32]:
        """Map DN of any shape and dtype to float32 in [-1, 1]; values outside [low, high] are clipped."""
        # Numbers of 32 bits and more can lie so far from 0 that float32 does not tell neighbours apart.
        wide = dn.dtype.itemsize > 2 and dn.dtype != np.float32
        x: NDArray[Any] = dn.astype(np.float64 if wide else np.float32)
        x -= self.low
        x *= 2.0 / (self.high - self.low)
        x -= 1
        return np.asarray(np.clip(x, -1, 1), np.float32)

    def to_dn(self, x: NDArray[np.floating[Any]], dtype: DTypeLike) -> NDArray[Any]:
        """Map [-1, 1] of any shape back to DN of `dtype`; integers are rounded to the nearest and clipped."""
        return stored_as(self.low + (x.astype(np.float64) + 1) * ((self.high - self.low) / 2), dtype)

    def to_unit(self, dn: NDArray[Any]) -> NDArray[np.float32]:
        """Map DN as `to_model` does, but to [0, 1], in which images are simulated, compared and given to users."""
        return (self.to_model(dn) + np.float32(1)) / np.float32(2)

    def unit_to_dn(self, unit: NDArray[np.floating[Any]], dtype: DTypeLike) -> NDArray[Any]:
        """Map [0, 1] of any shape back to DN of `dtype`, as `to_dn` does."""
        return self.to_dn(2 * unit - 1, dtype)


def beside_nodata(dn: NDArray[Any], nodata: Sequence[float]) -> NDArray[Any]:
    """Return DN of any shape and dtype, those that are a `nodata` by chance moved to a number next to it."""
    for value in nodata:
        other = _next_to(value, dn.dtype, nodata)
        if other is not None:
            dn = np.where(dn == value, np.asarray(other, dn.dtype), dn)
    return dn


def _next_to(value: float, kind: np.dtype[Any], nodata: Sequence[float]) -> float | None:
    """Return the nearest number of a dtype that is no `nodata`; None if `value` is none that it has."""
    if kind.kind not in "iu":
        if not math.isfinite(value):
            return None
        other = kind.type(value)
        inward = kind.type(-np.inf if value > 0 else np.inf)  # beyond the largest number lies infinity
        while other == value or other in nodata:
            other = np.nextafter(other, inward)
        return float(other)
    limits = np.iinfo(kind)
    if not limits.min <= value <= limits.max:
        return None
    near = (value + step for distance in itertools.count(1) for step in (distance, -distance))
    return next(other for other in near if limits.min <= other <= limits.max and other not in nodata)


def stored_as(values: NDArray[np.float64], dtype: DTypeLike) -> NDArray[Any]:
    """Return numbers in the data type of a file; integers are rounded to the nearest and clipped to what they hold.

    They come in float64: float32 would round the largest numbers of 32 bits up, beyond what these hold.
    """
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(kind)
