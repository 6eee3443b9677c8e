from collections.abc import Iterable
from pathlib import Path

import pytest

from declouder.data.pairs import Pair
from declouder.data.split import hold_out, split_by_blocks
from declouder.errors import DataError


def numbered(numbers: Iterable[int]) -> list[Pair]:
    return [Pair(str(n), Path(f"c/{n}"), Path(f"l/{n}")) for n in numbers]


@pytest.mark.parametrize("share", [0.05, 0.12, 0.3, 0.5])
def test_held_out_blocks_are_whole_and_nothing_is_lost(share):
    pairs = numbered(range(0, 500, 3))
    training, held = hold_out(pairs, share=share, block=25)
    assert {p.name for p in training} | {p.name for p in held} == {p.name for p in pairs}
    assert not {int(p.name) // 25 for p in training} & {int(p.name) // 25 for p in held}
    assert abs(len(held) / len(pairs) - share) < 0.05


@pytest.mark.parametrize("numbers", [range(1, 31), range(1, 41), range(1, 101), [*range(30), 60, 61]])
def test_no_block_is_held_out_that_is_far_larger_than_what_is_wanted_where_another_is_not(numbers):
    pairs = numbered(numbers)
    _, held = hold_out(pairs, share=0.12, block=25)
    blocks = [sum(int(other.name) // 25 == block for other in pairs) for block in range(5)]
    wanted = 0.12 * len(pairs)
    assert 0 < len(held) <= max(3 * wanted, min(count for count in blocks if count))
    for seed in range(4):
        parts = list(split_by_blocks([p.name for p in pairs], share=0.12, block=25, seed=seed).values())
        assert 0 < parts.count("test") <= max(3 * wanted, min(count for count in blocks if count))


def test_a_share_of_none_holds_out_none():
    pairs = numbered(range(10))
    assert hold_out(pairs, share=0, block=25) == (pairs, [])


def test_one_block_cannot_be_split():
    with pytest.raises(DataError, match="one block"):
        hold_out(numbered(range(10)), share=0.2, block=25)


def test_held_out_blocks_are_spread_over_the_numbers():
    _, held = hold_out(numbered(range(100)), share=0.1, block=5)
    numbers = [int(pair.name) for pair in held]
    assert len(numbers) == 10 and max(numbers) - min(numbers) > 40


@pytest.mark.parametrize(
    ("names", "mend"),
    [
        (["7"], "there is one pair, so none can be held out; give more, or set data.hold_out: 0"),
        (["alpha", "beta"], "give a lower data.hold_out_block"),
        (["a1", "b1"], r"all end in one number \(a1\)"),
    ],
)
def test_what_helps_where_nothing_can_be_held_out_is_told(names, mend):
    with pytest.raises(DataError, match=mend):
        hold_out([Pair(name, Path(name), Path(name)) for name in names], share=0.2, block=25)


def test_blocks_stay_whole_and_another_seed_draws_others():
    names = [f"{number:03d}" for number in range(200)]
    splits = [split_by_blocks(names, share=0.2, block=25, seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    for split in splits:
        assert set(split) == set(names)
        by_block = {(int(name) // 25, part) for name, part in split.items()}
        assert len(by_block) == 8
        assert sum(part == "test" for part in split.values()) == 50
    with pytest.raises(DataError, match="lie in one block"):
        split_by_blocks(names[:20], share=0.2, block=25, seed=0)


@pytest.mark.parametrize("block", [1, 2])
def test_names_without_a_number_count_by_their_place(block):
    names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    training, held = hold_out([Pair(name, Path(name), Path(name)) for name in names], share=0.25, block=block)
    assert len(held) == 2 and len(training) == 6
    if block == 2:
        assert names.index(held[1].name) == names.index(held[0].name) + 1
    split_of = split_by_blocks(names, share=0.25, block=block, seed=0)
    assert list(split_of.values()).count("test") == 2
