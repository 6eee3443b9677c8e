"""What is computed from a weight once, and anew where the weight has changed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Derived:
    """Keeps what a function made of a weight.

    Args:
        make: of the weight.
    """

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self._make = make
        self._made: Tensor | None = None
        self._of: tuple[int, int] | None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """Return what is made of the weight as it is now, as far as PyTorch counts its versions."""
        now = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._made is None or now != self._of:
            self._made, self._of = self._make(weight.detach()), now
        return self._made
