"""Numbers as callers give them, numpy's among them, as plain ones that JSON knows, and how large they may be."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from declouder.errors import OptionError

MOST_ENLARGED = 4
"""How many times as large networks may see an image: beyond, there is nothing to see but pixels."""

MOST_STEPS = 1000
"""Of the diffusion: as many as the noise schedule has."""

PAPER_W_BOUNDS = (0.3, 1.0)
"""Between which the authors' code keeps w when it samples."""

MOST_DN = 1e37
"""Beyond, a number is no ground, and a scale does not reach: float32 is to hold ten times a scale's span."""

LEAST_SPAN = 1e-37
"""Between black and white: of less, the factor to the model's range is beyond what float32 holds."""


def largest_of(dtype: DTypeLike) -> float:
    """Return the number that is white where nobody says which is: the largest of an integer dtype, of floats 1."""
    kind = np.dtype(dtype)
    return float(np.iinfo(kind).max) if np.issubdtype(kind, np.integer) else 1.0


def whole_number(value: Any, name: str) -> int:
    """Return a whole number as an int.

    Raises:
        OptionError: if it is none; `name` is what the message calls it.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise OptionError(f"{name} is {value!r}; give a whole number") from None


def real_number(value: Any, name: str) -> float:
    """Return a number as a float.

    Raises:
        OptionError: if it is none; `name` is what the message calls it.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {value!r}; give a number") from None


def seed_number(value: Any) -> int:
    """Return the seed of noise as an int in [0, 2^64), which is what `noise.scene_noise` and torch take.

    Raises:
        OptionError: if it is none.
    """
    seed = whole_number(value, "seed")
    if not 0 <= seed < 2**64:
        raise OptionError(f"seed is {seed}; give a number from 0 to 2^64 - 1")
    return seed


def checked_enlarge(factor: Any) -> int:
    """Return how many times as large images are seen, as an int; OptionError if they cannot be."""
    if not hasattr(factor, "__index__") or not 1 <= factor <= MOST_ENLARGED:
        raise OptionError(f"enlarge is {factor}; give a whole number from 1 to {MOST_ENLARGED}")
    return operator.index(factor)


def digits(number: float) -> str:
    """Return a number in as few digits as tell it from all others."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(float(number))
