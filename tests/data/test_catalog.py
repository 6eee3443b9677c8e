"""Every row of the catalog on a small tree of fake images in its published layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from conftest import write_tif
from declouder.config import DataConfig, StageConfig
from declouder.data.catalog import CATALOG, GENERIC, all_pairs, has_near_infrared, locate, set_pairs
from declouder.data.check import check_set
from declouder.data.images import read_image
from declouder.data.lists import SPLITS, read_exclude_list, read_split_list, write_exclude_list, write_split_list
from declouder.data.pairs import Pair, fingerprint
from declouder.data.samples import StageSamples
from declouder.data.training import TrainingData
from declouder.errors import DataError

NAMES = ("1", "2", "3")


def write(path: Path, value: int, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)


def write_tree(root: Path, pattern: str, splits: tuple[str, ...] = ("train", "test"), offset: int = 0) -> None:
    for split in splits:
        for kind in ("cloud", "label"):
            for name in NAMES:
                folder = pattern.format(split=split, kind=kind)
                write(root / folder / f"{name}.png", offset + int(name) + 10 * (split == "test"))


# What users may have on their disks: row, where the tree lies below tmp, the root that they name.
LAYOUTS = [
    ("RICE1", "RICE1/{split}/{kind}", "RICE1"),
    ("RICE2", "data/{split}/{kind}", "data"),
    ("CUHK-CR1", "C-CUHK/CUHK-CR1/{split}/{kind}", "C-CUHK"),
    ("CUHK-CR1", "C-CUHK/CUHK-CR1/{split}/{kind}", "C-CUHK/CUHK-CR1"),
    ("CUHK-CR2", "data/CUHK-CR2/{split}/{kind}", "data"),
    ("CUHK-CR2", "data/CUHK-CR2/{split}/{kind}", "data/CUHK-CR2"),
    ("T-Cloud", "T-Cloud/{split}/{kind}", "T-Cloud"),
    (None, "RICE2/{split}/{kind}", "RICE2"),
    (GENERIC, "mine/{split}/{kind}", "mine"),
]


def test_a_folder_of_sets_names_those_that_it_holds(tmp_path):
    for tree in ("CUHK-CR1/{split}/{kind}", "nir/CUHK-CR1/{split}/{kind}", "RICE1/{split}/{kind}"):
        write_tree(tmp_path, tree)
    (tmp_path / "T-Cloud").mkdir()
    told = rf"laid out as wanted itself, but RICE1, CUHK-CR1; give {re.escape(str(tmp_path / 'RICE1'))}$"
    with pytest.raises(DataError, match=told):
        locate(tmp_path)
    assert has_near_infrared(locate(tmp_path / "CUHK-CR1"))
    assert not has_near_infrared(locate(tmp_path / "RICE1"))
    assert any("--bands rgbn joins it" in note for note in check_set(tmp_path / "CUHK-CR1").notes)
    assert not any("rgbn" in note for note in check_set(tmp_path / "CUHK-CR1", bands="rgbn").notes)


@pytest.mark.parametrize(("name", "tree", "root"), LAYOUTS)
def test_every_row_finds_its_pairs_in_its_layouts(tmp_path, name, tree, root):
    write_tree(tmp_path, tree)
    for split in ("train", "test"):
        pairs = set_pairs(tmp_path / root, split, name=name)
        assert [pair.name for pair in pairs] == list(NAMES)
        assert all(split in pair.cloudy_path.parts and pair.cloudy_path.is_file() for pair in pairs)


@pytest.mark.parametrize("clear", ["label", "reference"])
def test_t_clouds_clear_folder_may_be_called_as_its_authors_do(tmp_path, clear):
    write_tree(tmp_path, "T-CLOUD/{split}/{kind}")
    for split in ("train", "test"):
        (tmp_path / "T-CLOUD" / split / "label").rename(tmp_path / "T-CLOUD" / split / clear)
    found = locate(tmp_path / "T-CLOUD")  # recognised in capital letters too
    assert found.row.name == "T-Cloud"
    assert found.folder("test", "label") == tmp_path / "T-CLOUD" / "test" / clear
    assert {pair.clear_path.parent.name for pair in set_pairs(tmp_path / "T-CLOUD", "test")} == {clear}


def test_the_rows_are_those_of_the_field():
    assert set(CATALOG) == {"RICE1", "RICE2", "CUHK-CR1", "CUHK-CR2", "T-Cloud", GENERIC}
    counts = {name: dict(row.counts) for name, row in CATALOG.items()}
    assert counts["CUHK-CR1"] == {"train": 534, "test": 134}
    assert counts["CUHK-CR2"] == {"train": 448, "test": 111}
    assert counts["T-Cloud"] == {"train": 2351, "test": 588}
    assert (counts["RICE1"], counts["RICE2"]) == ({"all": 500}, {"all": 736})


NIR_LAYOUTS = [
    ("C-CUHK/CUHK-CR1/{split}/{kind}", "C-CUHK/nir/CUHK-CR1/{split}/{kind}", "C-CUHK"),
    ("C-CUHK/CUHK-CR1/{split}/{kind}", "C-CUHK/nir/CUHK-CR1/{split}/{kind}", "C-CUHK/CUHK-CR1"),
    ("data/CUHK-CR1/{split}/{kind}", "data/CUHK-CR1/{split}/nir/{kind}", "data/CUHK-CR1"),
    ("data/CUHK-CR1/{split}/{kind}", "data/CUHK-CR1/{split}/nir/{kind}", "data"),
]


@pytest.mark.parametrize(("colours", "nir", "root"), NIR_LAYOUTS)
def test_the_near_infrared_of_its_own_tree_becomes_the_fourth_band(tmp_path, colours, nir, root):
    write_tree(tmp_path, colours)
    write_tree(tmp_path, nir, offset=50)
    pairs = set_pairs(tmp_path / root, "train", name="CUHK-CR1", bands="rgbn")
    assert [pair.name for pair in pairs] == list(NAMES)
    image = pairs[1].read_cloudy()
    assert image.shape == (16, 16, 4)
    assert np.array_equal(image[..., :3], read_image(pairs[1].cloudy_path))
    infrared = read_image(tmp_path / nir.format(split="train", kind="cloud") / "2.png")
    assert np.array_equal(image[..., 3], infrared[..., 0])
    assert pairs[1].read_clear().shape == (16, 16, 4)


def test_colours_alone_are_taken_where_the_infrared_was_not_asked_for(tmp_path):
    write_tree(tmp_path, NIR_LAYOUTS[0][0])
    (first, *_) = set_pairs(tmp_path / "C-CUHK", "train", name="CUHK-CR1")
    assert first.read_cloudy().shape == (16, 16, 3)
    with pytest.raises(DataError, match=r"not its near infrared; put it at .*nir/CUHK-CR1.* or set bands: rgb"):
        set_pairs(tmp_path / "C-CUHK", "train", name="CUHK-CR1", bands="rgbn")


def test_an_infrared_image_that_is_missing_or_of_another_size_is_named(tmp_path):
    write_tree(tmp_path, NIR_LAYOUTS[0][0])
    write_tree(tmp_path, NIR_LAYOUTS[0][1])
    infrared = tmp_path / "C-CUHK" / "nir" / "CUHK-CR1" / "train" / "label" / "3.png"
    write(infrared, 1, size=8)
    pairs = set_pairs(tmp_path / "C-CUHK", "train", name="CUHK-CR1", bands="rgbn")
    with pytest.raises(DataError, match=r"3\.png is 8 x 8 uint8, its colours .* 16 x 16"):
        pairs[2].read_clear()
    infrared.unlink()
    with pytest.raises(DataError, match=r"label/3\.png has no near infrared \(1 of 3"):
        set_pairs(tmp_path / "C-CUHK", "train", name="CUHK-CR1", bands="rgbn")


def test_the_original_rice_layout_wants_a_split_and_then_has_one(tmp_path):
    root = tmp_path / "RICE2"
    write_tree(root, "{kind}", splits=("train",))
    write(root / "mask" / "2.png", 0)
    with pytest.raises(DataError, match=r"no split\.txt; make one with: declouder data split"):
        set_pairs(root, "train")
    assert [pair.mask_path is not None for pair in all_pairs(root)] == [False, True, False]
    write_split_list(root / "split.txt", {"1": "train", "2": "test", "3": "train"}, heading="made by a test")
    assert read_split_list(root / "split.txt") == {"1": "train", "2": "test", "3": "train"}
    assert [pair.name for pair in set_pairs(root, "train")] == ["1", "3"]
    assert [pair.name for pair in set_pairs(root, "test")] == ["2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train/1\ntest/9\n", "names '9', which .* does not hold"),
        ("1\n", "line 1 is '1'; wanted train/NAME or test/NAME"),
        ("train/1\ntest/1\n", "line 2: 1 is in train and in test"),
        ("test/1  # all of it\n", "names no pair of train"),
    ],
)
def test_a_split_list_that_does_not_fit_is_named(tmp_path, text, message):
    write_tree(tmp_path, "{kind}", splits=("train",))
    path = tmp_path / "split.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        set_pairs(tmp_path, "train")


def test_a_published_split_list_parts_a_set_that_lies_in_other_folders(tmp_path):
    write_tree(tmp_path, "{split}/{kind}", splits=("train",))
    published = tmp_path / "published.txt"
    published.write_text("# from a paper\ntrain/1\ntest/2\ntest/3\n")
    assert [p.name for p in set_pairs(tmp_path, "test", split_list=published)] == ["2", "3"]


def test_an_exclude_list_may_name_pairs_of_the_other_part(tmp_path):
    for part, numbers in (("train", (1, 2)), ("test", (3, 4))):
        for kind in ("cloud", "label"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in numbers:
                Image.new("RGB", (8, 8)).save(tmp_path / part / kind / f"{number}.png")
    path = tmp_path / "exclude.txt"
    path.write_text("2\n3\n")
    assert [pair.name for pair in set_pairs(tmp_path, "train", exclude=path)] == ["1"]
    assert [pair.name for pair in set_pairs(tmp_path, "test", exclude=path)] == ["4"]
    path.write_text("2\n5\n")
    with pytest.raises(DataError, match=r"names '5', which is not in the data \(1 such names\)"):
        set_pairs(tmp_path, "test", exclude=path)


def test_names_of_an_exclude_list_are_left_out(tmp_path):
    write_tree(tmp_path, "{split}/{kind}")
    path = tmp_path / "exclude.txt"
    path.write_text("# repeats\n2  # same ground as train/1\n\n")
    assert [pair.name for pair in set_pairs(tmp_path, "train", exclude=path)] == ["1", "3"]
    path.write_text("2.png\n")
    with pytest.raises(DataError, match=r"names '2\.png', which is not in the data .*without their ending"):
        set_pairs(tmp_path, "train", exclude=path)
    path.write_text("1\n2\n3\n")
    with pytest.raises(DataError, match=r"names all \d+ pairs, and leaves none; take"):
        set_pairs(tmp_path, "train", exclude=path)
    with pytest.raises(DataError, match="does not exist"):
        set_pairs(tmp_path, "train", exclude=tmp_path / "none.txt")


@pytest.mark.parametrize("name", CATALOG)
def test_a_missing_set_tells_where_it_is_published_and_how_to_lay_it_out(tmp_path, name):
    with pytest.raises(DataError) as caught:
        locate(tmp_path / "nowhere", name)
    message = str(caught.value)
    assert "does not exist; wanted" in message
    assert "{train,test}/{cloud,label}/NAME.png" in message
    assert ("{train,test}/{cloud,reference}/NAME.png" in message) == (name == "T-Cloud")
    if name != GENERIC:
        assert f"{name} is published: {CATALOG[name].source}" in message


def test_an_unknown_set_and_bands_that_a_set_lacks_are_named(tmp_path):
    with pytest.raises(DataError, match="no data set 'RICE3'; choose one of RICE1"):
        locate(tmp_path, "RICE3")
    with pytest.raises(DataError, match="RICE1 has no rgbn images, only rgb"):
        locate(tmp_path, "RICE1", bands="rgbn")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_geotiffs_of_any_number_of_bands_are_pairs_too(tmp_path, dtype):
    generator = np.random.default_rng(0)
    high = {np.uint8: 255, np.uint16: 10_000, np.float32: 1}[dtype]
    for kind in ("cloud", "label"):
        folder = tmp_path / "mine" / "train" / kind
        folder.mkdir(parents=True)
        for name in range(4):
            write_tif(folder / f"{name}.tif", (generator.random((6, 20, 24)) * high).astype(dtype))
    data = TrainingData(
        DataConfig(base=tmp_path, pairs=["mine"], hold_out_block=1, range=(0, high)),
        band_names=["blue", "green", "red", "nir", "swir16", "swir22"],
        seed=0,
    )
    sample = StageSamples(data, StageConfig(steps=1, patch_px=16), seed=0)[0]
    assert sample["cloudy"].shape == (6, 16, 16)
    assert -1 <= sample["clear"].min() < -0.9 < 0.9 < sample["clear"].max() <= 1


def test_a_geotiff_with_pixels_without_data_is_named(tmp_path):
    dn = np.full((3, 8, 8), 7, np.uint16)
    dn[:, :2] = 0
    with pytest.raises(DataError, match=r"a\.tif has 25\.0 % of its pixels without data"):
        read_image(write_tif(tmp_path / "a.tif", dn, nodata=0))


def test_the_fingerprint_changes_with_any_byte_of_any_image(tmp_path):
    write_tree(tmp_path, "{split}/{kind}")
    before = fingerprint(set_pairs(tmp_path, "train"))
    assert before == fingerprint(set_pairs(tmp_path, "train"))
    write(tmp_path / "train" / "label" / "2.png", 99)
    assert before != fingerprint(set_pairs(tmp_path, "train"))


def test_names_with_a_number_sign_are_no_comments(tmp_path):
    path = tmp_path / "split.txt"
    write_split_list(path, {"tile#3": "test", "b": "train"}, heading="made # by hand")
    assert read_split_list(path) == {"tile#3": "test", "b": "train"}
    path.write_text("#a\ntest/x # a remark\ntrain/y#2\t# another\n")
    assert read_split_list(path) == {"x": "test", "y#2": "train"}


def test_a_split_list_wants_names_of_which_there_is_one(tmp_path):
    write_tree(tmp_path / "set", "{split}/{kind}")
    write_split_list(tmp_path / "list.txt", {"1": "train", "3": "test"}, heading="")
    with pytest.raises(DataError, match=r"names '1', which is in more than one part of .*set \(2 such names\)"):
        set_pairs(tmp_path / "set", "test", split_list=tmp_path / "list.txt")


def test_a_band_that_gdal_calls_alpha_is_one_where_it_has_more_than_two_levels(tmp_path, rng):
    dn = rng.integers(1, 255, (4, 8, 8), dtype=np.uint8)
    dn[3, :2] = 0
    with rasterio.open(write_tif(tmp_path / "nir.tif", dn)) as dataset:
        assert dataset.colorinterp[3].name == "alpha"  # by itself
    np.testing.assert_array_equal(read_image(tmp_path / "nir.tif"), dn.transpose(1, 2, 0))
    dn[3, 2:] = 255
    with pytest.raises(DataError, match=r"25\.0 % of its pixels without data"):
        read_image(write_tif(tmp_path / "alpha.tif", dn))


def test_names_that_a_list_could_not_tell_from_comments_stand_in_quotes(tmp_path):
    names = ["tile #1", "#2", " spaces ", '"quoted"', '"half', "plain 3", "d\u00e9j\u00e0 #4", "new\nline"]
    write_split_list(tmp_path / "split.txt", {name: SPLITS[i % 2] for i, name in enumerate(names)}, heading="x")
    assert read_split_list(tmp_path / "split.txt") == {name: SPLITS[i % 2] for i, name in enumerate(names)}
    write_exclude_list(tmp_path / "exclude.txt", {name: f'is "odd" # {name!r}' for name in names}, heading="x")
    assert read_exclude_list(tmp_path / "exclude.txt") == {*names}
    assert "\ntrain/plain 3" not in (text := (tmp_path / "split.txt").read_text()) and "\ntest/plain 3\n" in text


def test_a_set_is_known_from_inside_its_folder_too(tmp_path, monkeypatch):
    write_tree(tmp_path / "T-Cloud", "{split}/{kind}")
    for place, root in (("T-Cloud", "."), ("T-Cloud/train", "..")):
        monkeypatch.chdir(tmp_path / place)
        assert locate(Path(root)).row.name == "T-Cloud"
    monkeypatch.chdir(tmp_path / "T-Cloud" / "train")
    with pytest.raises(DataError, match=r"^\. is one part of a set; give .*T-Cloud$"):
        set_pairs(Path(), "train")


def test_parts_that_a_set_lacks_are_named_with_those_that_it_has(tmp_path):
    write_tree(tmp_path, "{split}/{kind}", splits=("test",))
    with pytest.raises(DataError, match=r"has no part 'val': .*val/cloud is missing; it has test$"):
        set_pairs(tmp_path, "val")
    with pytest.raises(DataError, match=r"is split into folders already: .*test/cloud exists"):
        all_pairs(tmp_path)


def test_lists_of_windows_editors_are_read(tmp_path):
    (tmp_path / "list.txt").write_bytes("12\r\n13  # why\r\n".encode("utf-8-sig"))
    assert read_exclude_list(tmp_path / "list.txt") == {"12", "13"}


def test_the_fingerprint_is_of_the_near_infrared_too(tmp_path):
    paths = [tmp_path / f"{name}.png" for name in ("cloud", "label", "cloud-nir", "label-nir")]
    for path in paths:
        path.write_bytes(b"as it was")
    pair = Pair("1", *paths)
    found = {fingerprint([pair])}
    for path in paths:
        path.write_bytes(b"changed")
        found.add(fingerprint([pair]))
    assert len(found) == 5
