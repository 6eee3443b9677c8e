from pathlib import Path

import pytest
from PIL import Image

from declouder.data.pairs import Pair, find_images, pair_up
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


def test_hidden_images_those_in_hidden_folders_and_folders_named_like_images_are_none(tmp_path):
    make_tree(tmp_path, ["1"])
    folder = tmp_path / "train" / "cloud"
    (folder / "._1.png").write_bytes(b"no image")
    (folder / "2.png").mkdir()
    write(folder / ".ipynb_checkpoints" / "1-checkpoint.png")
    write(folder / ".Trash-1000" / "files" / "3.png")
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


@pytest.mark.parametrize("kind", ["cloud", "label"])
def test_an_image_without_a_twin_can_be_left_out(kind, tmp_path):
    make_tree(tmp_path, ["1", "2"])
    write(tmp_path / "train" / kind / "3.png")
    folders = tmp_path / "train" / "cloud", tmp_path / "train" / "label"
    assert [pair.name for pair in pair_up(*folders, may_lack={"3", "2"})] == ["1", "2"]
    with pytest.raises(DataError, match=r"3\.png has no twin"):
        pair_up(*folders, may_lack={"2"})
