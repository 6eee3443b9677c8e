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
