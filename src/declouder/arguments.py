"""Numbers as callers give them, numpy's among them, as plain ones that JSON knows."""

from __future__ import annotations

import operator
from typing import Any

from declouder.errors import OptionError


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
