"""A set in two parts by whole blocks of neighbouring numbers: training and held out, or train and test.

In the field's sets neighbouring numbers show neighbouring or the same ground; a random split would test on
ground that was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from declouder.data.pairs import Pair, number_first, number_in
from declouder.errors import DataError


def hold_out(pairs: Sequence[Pair], *, share: float, block: int) -> tuple[list[Pair], list[Pair]]:
    """Split off validation pairs by blocks of neighbouring numbers.

    Args:
        pairs: of one data set.
        share: of the pairs to hold out, in [0, 1), about, as whole blocks go; spread over the numbers.
        block: numbers n with equal n // block stay together. Images without a number count by position.

    Returns:
        (training pairs, held-out pairs); the second is empty if `share` is 0 and only then.

    Raises:
        DataError: if all pairs lie in one block, so that nothing would be left on one side.
    """
    if share == 0:
        return list(pairs), []
    blocks = _blocks([pair.name for pair in pairs], block)
    if len(pairs) == 1:
        raise DataError("there is one pair, so none can be held out; give more, or set data.hold_out: 0")
    if len(blocks) < 2:
        raise DataError(
            f"{len(pairs)} pairs lie in one block of {block} numbers, so none can be held out;"
            f" {_mend_of_one_block([pair.name for pair in pairs], 'data.hold_out_block')}"
        )
    order = sorted(blocks)
    # Walks the blocks in strides, so that the held-out ones do not all come from one end of the set.
    stride = max(1, round(1 / share))
    visit = [number for start in range(stride) for number in order[stride // 2 + start :: stride]]
    visit += [number for number in order if number not in visit]
    held = _nearest(blocks, visit, share * len(pairs))
    training = [pairs[place] for number in order if number not in held for place in blocks[number]]
    return training, [pairs[place] for number in sorted(held) for place in blocks[number]]


def split_by_blocks(names: Sequence[str], *, share: float, block: int, seed: int) -> dict[str, str]:
    """Return name -> "train" or "test".

    Args:
        names: of all pairs. Names without a number count by their position.
        share: of the names that goes to test, in (0, 1), about, as whole blocks go.
        block: numbers n with equal n // block stay together.
        seed: which blocks are drawn; equal seeds give equal splits.

    Raises:
        DataError: if all names lie in one block.
    """
    ordered = sorted(names, key=number_first)
    blocks = _blocks(ordered, block)
    if len(ordered) == 1:
        raise DataError(f"there is one pair ({ordered[0]}), so there is nothing to split; give more")
    if len(blocks) < 2:
        mend = _mend_of_one_block(ordered, "--block")
        raise DataError(f"{len(names)} pairs lie in one block of {block} numbers; {mend}")
    # PCG64's stream is fixed by numpy; permutation() of a Generator may change between its versions.
    drawn = np.random.PCG64(seed).random_raw(len(blocks))
    visit = [number for _, number in sorted(zip(drawn.tolist(), sorted(blocks), strict=True))]
    test = _nearest(blocks, visit, share * len(ordered))
    return {
        ordered[place]: "test" if number in test else "train"
        for number in sorted(blocks)
        for place in blocks[number]
    }


def _blocks(names: Sequence[str], block: int) -> dict[int, list[int]]:
    """Return the places of names by the number of their block; names without a number count by their place."""
    blocks: dict[int, list[int]] = {}
    for place, name in enumerate(names):
        number = number_in(name)
        blocks.setdefault((place if number is None else number) // block, []).append(place)
    return blocks


def _nearest(blocks: Mapping[int, Sequence[int]], visit: Sequence[int], wanted: float) -> set[int]:
    """Return blocks that hold about `wanted` names, taken in the order of `visit`; never none, never all of them.

    A block that would lead further beyond `wanted` than twice what is missing is passed by: too few to judge by are
    worse than somewhat more.
    """
    taken: set[int] = set()
    held = 0
    for number in visit:
        count = len(blocks[number])
        if held < wanted and held + count - wanted < 2 * (wanted - held) and len(taken) < len(blocks) - 1:
            taken.add(number)
            held += count
    return taken or {min(visit, key=lambda number: len(blocks[number]))}


def _mend_of_one_block(names: Sequence[str], option: str) -> str:
    """Return what helps where all names lie in one block of numbers."""
    numbers = {number_in(name) for name in names}
    if len(numbers) == 1 and None not in numbers:
        return f"all end in one number ({names[0]}): let the number that tells images apart come last"
    return f"give a lower {option}"
