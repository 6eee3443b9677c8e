from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from declouder.data.pairs import Pair, find_images, hold_out, pair_up, read_image
from declouder.errors import DataError


def write(path: Path, size: tuple[int, int] = (8, 6), value: int = 7, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * len(mode)).save(path)
    return path


def make_tree(root: Path, names: list[str], suffix: str = ".png") -> None:
    for name in names:
        for kind in ("cloud", "label"):
            write(root / "train" / kind / f"{name}{suffix}")


def pairs_in(root: Path) -> list[Pair]:
    return pair_up(root / "train" / "cloud", root / "train" / "label")


def test_what_macos_leaves_beside_images_and_folders_named_like_them_are_no_images(tmp_path):
    make_tree(tmp_path, ["1"])
    folder = tmp_path / "train" / "cloud"
    (folder / "._1.png").write_bytes(b"no image")
    (folder / "2.png").mkdir()
    assert find_images(folder) == [folder / "1.png"]
    assert [pair.name for pair in pairs_in(tmp_path)] == ["1"]


def test_pairs_come_by_number_whatever_their_format(tmp_path):
    make_tree(tmp_path, ["10", "9"])
    make_tree(tmp_path, ["1"], suffix=".webp")
    assert [pair.name for pair in pairs_in(tmp_path)] == ["1", "9", "10"]


def test_twins_may_differ_in_format_and_the_path_may_hold_the_word_cloud(tmp_path):
    root = tmp_path / "cloud-removal"
    write(root / "train" / "cloud" / "a.png")
    write(root / "train" / "label" / "a.jpg")
    (pair,) = pairs_in(root)
    assert (pair.cloudy_path.name, pair.clear_path.name) == ("a.png", "a.jpg")


@pytest.mark.parametrize("lonely", ["cloud", "label"])
def test_a_missing_twin_is_named(tmp_path, lonely):
    make_tree(tmp_path, ["1"])
    write(tmp_path / "train" / lonely / "2.png")
    with pytest.raises(DataError, match=r"2\.png has no twin"):
        pairs_in(tmp_path)


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        pairs_in(tmp_path)
    (tmp_path / "train" / "cloud").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no image"):
        pairs_in(tmp_path)


def test_two_images_of_one_name_are_an_error(tmp_path):
    make_tree(tmp_path, ["1"])
    make_tree(tmp_path, ["1"], suffix=".webp")
    with pytest.raises(DataError, match="have one name"):
        pairs_in(tmp_path)


def numbered(numbers: range) -> list[Pair]:
    return [Pair(str(n), Path(f"c/{n}"), Path(f"l/{n}")) for n in numbers]


@pytest.mark.parametrize("share", [0.05, 0.12, 0.3, 0.5])
def test_held_out_blocks_are_whole_and_nothing_is_lost(share):
    pairs = numbered(range(0, 500, 3))
    training, held = hold_out(pairs, share=share, block=25)
    assert {p.name for p in training} | {p.name for p in held} == {p.name for p in pairs}
    assert not {int(p.name) // 25 for p in training} & {int(p.name) // 25 for p in held}
    assert share <= len(held) / len(pairs) < share + 0.07


def test_a_share_of_none_holds_out_none():
    pairs = numbered(range(10))
    assert hold_out(pairs, share=0, block=25) == (pairs, [])


def test_one_block_cannot_be_split():
    with pytest.raises(DataError, match="one block"):
        hold_out(numbered(range(10)), share=0.2, block=25)


def test_images_are_read_as_they_are(tmp_path):
    assert read_image(write(tmp_path / "a.png")).shape == (6, 8, 3)
    assert read_image(write(tmp_path / "g.png", mode="L")).shape == (6, 8, 1)
    deep = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[:, :, 0], deep)
    colours = np.stack([deep, deep // 2, deep // 3])
    with rasterio.open(tmp_path / "rgb.png", "w", "PNG", 8, 6, 3, dtype="uint16") as dataset:
        dataset.write(colours)
    assert np.array_equal(read_image(tmp_path / "rgb.png"), colours.transpose(1, 2, 0))  # not cut to 8 bits


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("no image")
    with pytest.raises(DataError, match=r"x\.png cannot be read as an image"):
        read_image(path)
    whole = write(tmp_path / "t.png", size=(80, 60))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"t\.png"):
        read_image(whole)


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
