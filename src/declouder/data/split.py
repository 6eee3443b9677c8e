"""A reproducible split into train and test, by blocks of neighbouring numbers.

In the field's sets neighbouring numbers show neighbouring or the same ground; a random split would test on
ground that was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from declouder.data.pairs import mend_of_one_block, number_first, number_in
from declouder.errors import DataError


def split_by_blocks(names: Sequence[str], *, share: float, block: int, seed: int) -> dict[str, str]:
    """Return name -> "train" or "test".

    Args:
        names: of all pairs. Names without a number count by their position.
        share: of the names that goes to test, in (0, 1); reached by the fewest blocks.
        block: numbers n with equal n // block stay together.
        seed: which blocks are drawn; equal seeds give equal splits.

    Raises:
        DataError: if all names lie in one block.
    """
    ordered = sorted(names, key=number_first)
    blocks: dict[int, list[str]] = {}
    for position, name in enumerate(ordered):
        number = number_in(name)
        blocks.setdefault((position if number is None else number) // block, []).append(name)
    if len(ordered) == 1:
        raise DataError(f"there is one pair ({ordered[0]}), so there is nothing to split; give more")
    if len(blocks) < 2:
        mend = mend_of_one_block(ordered, "--block")
        raise DataError(f"{len(names)} pairs lie in one block of {block} numbers; {mend}")
    # PCG64's stream is fixed by numpy; permutation() of a Generator may change between its versions.
    drawn = np.random.PCG64(seed).random_raw(len(blocks))
    visit = [number for _, number in sorted(zip(drawn.tolist(), sorted(blocks), strict=True))]
    test: set[int] = set()
    for number in visit[: len(visit) - 1]:
        if sum(len(blocks[chosen]) for chosen in test) >= share * len(ordered):
            break
        test.add(number)
    return {name: "test" if number in test else "train" for number in sorted(blocks) for name in blocks[number]}
