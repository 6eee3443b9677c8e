"""`declouder data`: what is told about a set, its split, and sets made of clear images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from conftest import names_in, read_tif, write_tif
from declouder.cli import main
from declouder.config import load_config
from declouder.data.catalog import set_pairs
from declouder.data.check import Key, SetReport
from declouder.data.clouds import simulate_clouds
from declouder.data.duplicates import Duplicate
from declouder.data.lists import read_exclude_list
from declouder.data.pairs import Pair
from declouder.data.split import hold_out
from declouder.data.terrain import make_terrain
from declouder.errors import DataError
from declouder.scaling import Scaling

ROOT = Path(__file__).parent.parent


def run(capsys, *words) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


def ground(seed: int, size: int = 48) -> Image.Image:
    image = make_terrain(np.random.default_rng(seed), size, size)
    return Image.fromarray(np.rint(255 * image).astype(np.uint8).transpose(1, 2, 0))


def write_pair(folder: Path, name: str, seed: int, size: int = 48) -> None:
    for kind in ("cloud", "label"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = ground(seed, size)
        if kind == "cloud":
            image.paste((250, 250, 250), (0, 0, size, size // 2))
        image.save(folder / kind / f"{name}.png")


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Six pairs of train; of four of test, 12 and 13 are in train and 14 repeats 11."""
    root = tmp_path / "set"
    for number in range(6):
        write_pair(root / "train", str(number), number)
    for name, seed in (("11", 11), ("12", 2), ("13", 3), ("14", 11)):
        write_pair(root / "test", name, seed)
    return root


def test_check_tells_pairs_sizes_ranges_and_cloud(capsys, leaky):
    code, out, _ = run(capsys, "data", "check", leaky, "-q")
    assert code == 0
    assert "train  6 pairs, 48 x 48, 3 bands, uint8, values" in out
    assert "test   4 pairs" in out
    assert "3 pairs of images show the same ground" in out
    assert "train/2 = test/12 (correlation 1.000)" in out
    assert "(estimated)" in out and "mask" not in out


def test_check_finds_leaks_and_training_and_evaluation_read_its_list(capsys, leaky, tmp_path):
    path = tmp_path / "exclude.txt"
    code, out, _ = run(capsys, "data", "check", leaky, "-q", "--write", path)
    assert code == 0
    assert "3 of 4 pairs of test" in out
    assert read_exclude_list(path) == {"12", "13", "14"}

    scores = tmp_path / "scores.json"
    words = ("evaluate", leaky, "--cloudy", "--exclude", path, "--out", scores, "-q")
    assert run(capsys, *words)[0] == 0
    assert [image["name"] for image in json.loads(scores.read_text())["images"]] == ["11"]

    code, out, _ = run(capsys, "data", "check", leaky, "-q", "--write", path, "--of", "train", "--overwrite")
    assert read_exclude_list(path) == {"2", "3"}
    recipe = ROOT / "configs" / "toy.yaml"
    fields = [f"data.base={tmp_path}", "data.pairs=[set]", "data.exclude=exclude.txt", "data.hold_out_block=1"]
    config = load_config(recipe, [*fields, "data.synthetic_share=0"])
    from declouder.data.training import TrainingData

    data = TrainingData(config.data, band_names=config.model.bands, seed=0)
    assert sorted(pair.name for pair in [*data.pairs, *data.held_pairs]) == ["0", "1", "4", "5"]


def test_check_tells_everything_that_is_wrong_and_goes_on(capsys, leaky):
    train = leaky / "train"
    (train / "label" / "0.png").unlink()
    (train / "cloud" / "1.png").write_bytes(b"\x89PNG no image")
    ground(2, 40).save(train / "cloud" / "2.png")
    ground(3).convert("L").save(train / "cloud" / "3.png")
    code, out, err = run(capsys, "data", "check", leaky, "-q")
    assert code == 2
    assert "train/label lacks 1 of 6: 0" in out
    assert "cloud/1.png cannot be read as an image" in out
    assert "2.png is 40 x 40 x 3 uint8, its twin" in out
    assert "3.png is 48 x 48 x 1 uint8, its twin" in out
    assert "train  2 pairs" in out
    assert err.strip().endswith("has 4 problems, told above")


def test_check_names_images_of_another_number_of_bands(capsys, leaky):
    for kind in ("cloud", "label"):
        Image.open(leaky / "train" / kind / "1.png").convert("L").save(leaky / "train" / kind / "1.png")
    code, out, _ = run(capsys, "data", "check", leaky, "-q")
    assert code == 2 and "1.png: 1 band, most of the set have 3; a set has one number of bands" in out
    for kind in ("cloud", "label"):
        Image.open(leaky / "train" / kind / "2.png").convert("L").save(leaky / "train" / kind / "2.png")
    assert "1.png and 1 more: 1 band, most of" in run(capsys, "data", "check", leaky, "-q")[1]


def test_check_compares_with_what_was_published(capsys, leaky):
    code, out, _ = run(capsys, "data", "check", leaky, "-q", "--set", "CUHK-CR2")
    assert code == 0
    assert "note: CUHK-CR2 has 448 pairs in train as published, here are 6" in out
    assert "note: CUHK-CR2 has 512 x 512 px as published, here are 48 x 48" in out
    shutil.rmtree(leaky / "test")
    _, out, _ = run(capsys, "data", "check", leaky, "-q", "--set", "CUHK-CR2")
    assert "in train as published" in out and "in test" not in out, "what is not there at all is told as missing"


def test_check_takes_the_cloud_share_from_masks(capsys, tmp_path):
    root = tmp_path / "RICE2"
    for number in range(2):
        write_pair(root, str(number), number)
        (root / "mask").mkdir(exist_ok=True)
        mask = np.zeros((48, 48), np.uint8)
        mask[:12] = 128
        Image.fromarray(mask).save(root / "mask" / f"{number}.png")
    _, out, _ = run(capsys, "data", "check", root, "-q")
    assert "all    2 pairs" in out
    assert "cloud 25.0 % (by mask)" in out
    assert "RICE2 has 736 pairs as published, here are 2" in out


def test_of_many_sizes_it_is_said_how_many_are_not_listed(capsys, tmp_path):
    for kind in ("cloud", "label"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        for number in range(6):
            write_tif(tmp_path / "train" / kind / f"{number}.tif", np.ones((3, 16 + number, 16), np.uint8))
    _, out, _ = run(capsys, "data", "check", tmp_path)
    assert out.count("(1 times)") == 4 and "or 2 others," in out


@pytest.mark.parametrize("kind", ["palette", "nodata"])
def test_check_reads_masks_as_evaluation_does(kind, capsys, tmp_path):
    write_pair(tmp_path / "RICE2", "0", 0)
    mask = np.zeros((48, 48), np.uint8)
    mask[:12] = 1
    folder = tmp_path / "RICE2" / "mask"
    folder.mkdir()
    if kind == "palette":
        image = Image.fromarray(mask, mode="P")
        image.putpalette([0, 0, 0, 0, 255, 0])  # cloud is green
        image.save(folder / "0.png")
    else:
        write_tif(folder / "0.tif", mask[None], nodata=0)
    _, out, _ = run(capsys, "data", "check", tmp_path / "RICE2", "-q")
    assert "cloud 25.0 % (by mask)" in out


def test_check_judges_by_the_range_that_counts(capsys, tmp_path):
    """Reflectance of one ground, a little apart: in 16 bits all of it is dark, flat and alike."""
    for number in range(3):
        for kind, cloud in (("label", 0), ("cloud", 9000)):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            dn = 800 + 60 * make_terrain(np.random.default_rng(number), 64, 64)
            write_tif(tmp_path / "set" / kind / f"{number}.tif", (dn + cloud).astype(np.uint16))
    _, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    assert "note: all uses 98" in out and "of 65535" in out and "--data-range LOW,HIGH" in out
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q", "--data-range", "700,1000")
    assert code == 0 and "note" not in out and "0 pairs of images show the same ground" in out
    _, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q", "--data-range", "0,1000000")
    assert "note: all goes up to 98" in out and "hardly above the black of --data-range 0,1e+06" in out
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q", "--data-range", "800")
    assert (code, "hardly above" in out) == (0, False)


def test_an_empty_or_missing_folder_is_one_line(capsys, tmp_path):
    code, _, err = run(capsys, "data", "check", tmp_path, "-q")
    assert code == 2
    assert "holds no images laid out as wanted; wanted" in err
    assert err.count("\n") == 1
    (tmp_path / "train" / "cloud").mkdir(parents=True)
    (tmp_path / "train" / "label").mkdir()
    code, out, _ = run(capsys, "data", "check", tmp_path, "-q")
    assert code == 2
    assert "holds no image; wanted .bmp" in out


def test_split_is_reproducible_and_makes_train_and_test_findable(capsys, tmp_path):
    root = tmp_path / "RICE1"
    for number in range(12):
        write_pair(root, str(number), number, size=16)
    code, out, _ = run(capsys, "data", "split", root, "--block", 3, "--share", 0.25)
    assert code == 0
    assert "9 train, 3 test" in out
    first = (root / "split.txt").read_text()
    assert run(capsys, "data", "split", root, "--block", 3)[0] == 2
    run(capsys, "data", "split", root, "--block", 3, "--share", 0.25, "--overwrite")
    assert (root / "split.txt").read_text() == first
    test = [int(pair.name) for pair in set_pairs(root, "test")]
    assert len(test) == 3
    assert len({number // 3 for number in test}) == 1
    assert "test   3 pairs" in run(capsys, "data", "check", root, "-q")[1]
    scores = tmp_path / "s.json"
    assert run(capsys, "evaluate", root, "--cloudy", "--out", scores, "-q")[0] == 0
    assert len(json.loads(scores.read_text())["images"]) == 3
    half = tmp_path / "half.json"
    assert run(capsys, "evaluate", root, "--cloudy", "--size", 24, "--out", half, "-q")[0] == 0
    assert json.loads(half.read_text())["data"]["size_px"] == 24
    assert run(capsys, "evaluate", root, "--cloudy", "--size", 0, "--out", half, "-q", "--overwrite")[0] == 2


def test_simulate_makes_a_paired_set_with_masks(capsys, tmp_path):
    clear, out = tmp_path / "clear", tmp_path / "made"
    (clear / "fields").mkdir(parents=True)
    for number in range(3):
        ground(number).save(clear / "fields" / f"v1.0-{number}.png")
    words = ("data", "simulate", clear, "--per-image", 2, "--kind", "broken", "-q")
    assert run(capsys, *words, "-o", out)[0] == 0
    pairs = set_pairs(out, "train")
    assert [pair.name for pair in pairs] == [f"fields/{k}-v1.0-{n}" for n in range(3) for k in (1, 2)]
    # The number that tells grounds apart stays the last: none is on both sides of a split.
    training, held = hold_out(pairs, share=0.3, block=1)
    assert held and not {pair.name[-1] for pair in training} & {pair.name[-1] for pair in held}
    for pair in pairs:
        cloudy, label = (np.asarray(Image.open(p)) for p in (pair.cloudy_path, pair.clear_path))
        mask = np.asarray(Image.open(out / "train" / "mask" / f"{pair.name}.png"))
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.shape == label.shape[:2]
        changed = np.abs(cloudy.astype(int) - label).max(axis=2)
        assert (changed[mask > 0] > 0).mean() > 0.9
    assert len({pair.cloudy_path.read_bytes() for pair in pairs}) == len(pairs)
    run(capsys, *words, "-o", tmp_path / "again")
    for pair, again in zip(pairs, set_pairs(tmp_path / "again", "train"), strict=True):
        assert pair.cloudy_path.read_bytes() == again.cloudy_path.read_bytes()
    code, _, err = run(capsys, *words, "-o", out)
    assert (code, "exists; give another folder" in err) == (2, True)


def test_repeats_of_a_ground_without_a_number_get_one(capsys, tmp_path):
    (tmp_path / "clear").mkdir()
    for number, name in enumerate(("lyon", "paris", "7")):
        ground(number).save(tmp_path / "clear" / f"{name}.png")
    words = ("data", "simulate", tmp_path / "clear", "-o", tmp_path / "made", "--per-image", 2, "-q")
    assert run(capsys, *words)[0] == 0
    names = {path.stem for path in (tmp_path / "made" / "train" / "label").iterdir()}
    assert names == {f"{k}-{ending}" for k in (1, 2) for ending in ("lyon-0", "paris-1", "7")}


@pytest.mark.parametrize("what", ["an image that cannot be used", "its own images", "a full disk"])
def test_simulate_leaves_a_whole_set_or_nothing(capsys, tmp_path, monkeypatch, what):
    clear, out = tmp_path / "clear", tmp_path / "made"
    clear.mkdir()
    for number in range(3):
        ground(number).save(clear / f"{number}.png")
    if what == "an image that cannot be used":
        ground(3).convert("RGBA").save(clear / "3.png")
        words = "4 bands, one of them an alpha"
    elif what == "its own images":
        assert run(capsys, "data", "simulate", clear, "-o", out, "-q")[0] == 0
        clear = out / "train" / "label"
        words = "would be among the clear images"
    else:
        words = "No space left"

        def full(_, path, **options):
            Path(path).write_bytes(b"torn")
            raise OSError(28, "No space left")

        monkeypatch.setattr(Image.Image, "save", full)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(capsys, "data", "simulate", clear, "-o", out, "--split", "test", "-q")
    assert code == 2 and words in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("below", "word"), [("", "is"), ("made", "lies in"), ("../link/deep", "lies in")])
def test_simulated_clouds_do_not_go_into_the_folder_of_clear_images(capsys, tmp_path, below, word):
    clear = tmp_path / "clear"
    clear.mkdir()
    (tmp_path / "link").symlink_to(clear)
    ground(0).save(clear / "0.png")
    code, _, err = run(capsys, "data", "simulate", clear, "-o", clear / below, "-q")
    assert code == 2 and len(err.splitlines()) == 1
    assert f"{clear / below} {word} {clear}, where a later run" in err and "a folder outside of it with -o" in err
    assert names_in(clear) == ["0.png"]


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_ground_without_cloud_keeps_numbers_beyond_the_scale(capsys, tmp_path, dtype):
    (tmp_path / "clear").mkdir()
    dn = np.random.default_rng(0).integers(300, 14000, (3, 64, 64)).astype(dtype)
    write_tif(tmp_path / "clear" / "a.tif", dn)
    words = ("data", "simulate", tmp_path / "clear", "-o", tmp_path / "made", "-q", "--kind", "broken")
    assert run(capsys, *words, "--cover", "0.3", "--data-range", "1000,10000")[0] == 0
    cloudy = read_tif(tmp_path / "made" / "train" / "cloud" / "a.tif")
    made = simulate_clouds(
        Scaling(1000, 10000).to_unit(dn), np.random.default_rng([0, 0, 0]), kind="broken", cover=0.3
    )
    is_seen = (made.transmission == 1) & (made.shadow == 1)
    assert is_seen.mean() > 0.2 and np.array_equal(cloudy[is_seen], dn[is_seen])
    # Thick cloud hides also what was brighter than white.
    thick = made.transmission < 0.05
    assert thick.any() and (cloudy[thick] < 10000 + 0.05 * 4000).all()


@pytest.mark.parametrize("nodata", [0, 255])
def test_no_pixel_of_a_simulated_image_becomes_nodata(capsys, tmp_path, nodata):
    (tmp_path / "clear").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        dn = rng.integers(1, 3 if nodata == 0 else 255, (3, 48, 48), dtype=np.uint8)
        write_tif(tmp_path / "clear" / f"{number}.tif", dn, nodata=nodata)
    words = ("data", "simulate", tmp_path / "clear", "-o", tmp_path / "made", "-q", "--kind", "broken")
    assert run(capsys, *words)[0] == 0
    assert run(capsys, "data", "check", tmp_path / "made", "-q")[0] == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("is_alpha", [True, False])
def test_a_geotiffs_transparency_gets_no_clouds_though_it_is_opaque(capsys, tmp_path, dtype, is_alpha):
    (tmp_path / "clear").mkdir()
    full = np.iinfo(dtype).max
    dn = np.random.default_rng(0).integers(1, full, (4, 32, 32), dtype=dtype)
    if is_alpha:
        dn[3] = full
    path = write_tif(tmp_path / "clear" / "a.tif", dn)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in ("red", "green", "blue", "alpha")]
    code, _, err = run(capsys, "data", "simulate", tmp_path / "clear", "-o", tmp_path / "made", "-q")
    assert (code, "a.tif has an alpha channel, which is no band" in err) == ((2, True) if is_alpha else (0, False))
    pair = Pair("a", path, path)
    if is_alpha:
        with pytest.raises(DataError, match="has an alpha channel"):
            pair.read_cloudy()
    else:
        np.testing.assert_array_equal(pair.read_cloudy(), dn.transpose(1, 2, 0))


def test_simulate_keeps_the_place_and_type_of_geotiffs(capsys, tmp_path):
    (tmp_path / "clear").mkdir()
    dn = np.random.default_rng(0).integers(300, 4000, (4, 32, 40), dtype=np.uint16)
    source = write_tif(tmp_path / "clear" / "a.tif", dn)
    words = ("data", "simulate", tmp_path / "clear", "-o", tmp_path / "made", "-q", "--kind", "haze")
    assert run(capsys, *words, "--bands", "red,green,blue,nir", "--data-range", "0,10000")[0] == 0
    cloudy = tmp_path / "made" / "train" / "cloud" / "a.tif"
    assert np.array_equal(read_tif(tmp_path / "made" / "train" / "label" / "a.tif"), dn)
    assert read_tif(cloudy).dtype == np.uint16
    assert read_tif(cloudy).max() <= 10000
    with rasterio.open(cloudy) as made, rasterio.open(source) as given:
        assert (made.crs, made.transform) == (given.crs, given.transform)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data", "simulate", ".", "-o", "../x", "--kind", "fog"), "haze, broken, mixed"),
        (("data", "simulate", ".", "-o", "../x", "--split", "validation"), "--split is 'validation'"),
        (("data", "simulate", ".", "-o", "../x", "--per-image", 0), "--per-image is 0"),
        (("data", "simulate", ".", "-o", "../x", "--data-range", "1,b"), "--data-range is '1,b'"),
        (("data", "check", ".", "--data-range", "much"), "--data-range is 'much'; give SPAN or LOW,HIGH"),
        (("data", "simulate", ".", "-o", "../x", "--kind", "haze", "--cover", "0.3"), "haze lies over all"),
        (("data", "check", ".", "--write", "nowhere/list.txt"), "does not exist; make it first"),
        (("data", "split", ".", "--share", 2), "--share is 2"),
        (("data", "check", ".", "--bands", "nir"), "--bands is 'nir'; give rgb or rgbn"),
        (("data", "check", ".", "--set", "RICE"), "no data set 'RICE'; choose one of"),
    ],
)
def test_wrong_options_are_one_line_that_names_the_right_ones(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    ground(0).save("a.png")
    code, _, err = run(capsys, *words)
    assert code == 2
    assert message in err
    assert err.count("error:") == 1


def test_no_two_grounds_give_cloudy_images_of_one_name(capsys, tmp_path):
    clear = tmp_path / "clear"
    clear.mkdir()
    for seed, name in enumerate(("field", "scene", "scene-1")):
        ground(seed).save(clear / f"{name}.png")
    words = ("data", "simulate", clear, "-o", tmp_path / "made", "-q")
    code, _, err = run(capsys, *words, "--per-image", 2)
    assert code == 2 and "error: scene and scene-1 would both become 1-scene-1; rename one" in err
    assert not (tmp_path / "made").exists()
    assert run(capsys, *words)[0] == 0
    assert len(list((tmp_path / "made" / "train" / "cloud").iterdir())) == 3


def test_simulate_tells_a_scale_of_which_the_images_use_hardly_anything(capsys, tmp_path):
    clear = tmp_path / "clear"
    clear.mkdir()
    ground(0).save(clear / "a.png")
    words = ("data", "simulate", clear)
    assert "the images use" not in run(capsys, *words, "-o", tmp_path / "a")[2]
    code, _, err = run(capsys, *words, "-o", tmp_path / "b", "--data-range", "0,65535")
    assert code == 0 and "of --data-range, so clouds are far brighter than they" in err
    dn = np.full((3, 40, 40), 200, np.uint16)
    write_tif(clear / "b.tif", dn)
    err = run(capsys, *words, "-o", tmp_path / "c")[2]
    assert "the images of uint16 use 0.0031 of its range" in err and "of uint8" not in err


@pytest.mark.parametrize(
    ("change", "elsewhere"),
    [
        ({"crs": "EPSG:32634"}, True),
        ({"transform": Affine(10, 0, 5e5 + 6, 0, -10, 4e6)}, True),
        ({"transform": Affine(10.4, 0, 5e5, 0, -10.4, 4e6)}, True),
        ({"transform": Affine(10, 0, 5e5 + 4, 0, -10, 4e6)}, False),
        ({"crs": None, "transform": Affine.identity()}, False),
    ],
)
def test_twins_that_lie_elsewhere_on_earth_are_told(change, elsewhere, capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in "12":
        for kind in ("cloud", "label"):
            folder = tmp_path / "set" / "train" / kind
            folder.mkdir(parents=True, exist_ok=True)
            where = change if (kind, name) == ("label", "2") else {}
            write_tif(folder / f"{name}.tif", rng.integers(1, 255, (3, 24, 20), dtype=np.uint8), **where)
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    assert ("label/2.tif lies elsewhere on Earth than its twin" in out) == elsewhere
    assert code == (2 if elsewhere else 0) and f"train  {1 if elsewhere else 2} pairs" in out


def test_pairs_that_a_split_list_lacks_and_those_that_are_not_there_are_told(capsys, tmp_path):
    for number in range(4):
        write_pair(tmp_path / "set", str(number), number)
    (tmp_path / "set" / "split.txt").write_text("train/0\ntrain/1\ntest/2\ntest/99\n")
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    assert code == 2 and "split.txt lacks 1 pairs, the first is 3" in out
    assert "split.txt names 1 pairs that are not there, the first is 99" in out
    assert "train  2 pairs" in out and "test   1 pairs" in out
    (tmp_path / "set" / "split.txt").write_text("train/0\nvalid/1\n")
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    assert code == 2 and "line 2 is 'valid/1'; wanted train/NAME or test/NAME" in out
    assert "4 pairs" in out  # the check went on, without a split


def test_a_pair_whose_twin_is_left_out_already_stays():
    report = SetReport(found=None)
    report.duplicates = [
        Duplicate(Key("train", "1"), Key("test", "2"), 0.95),
        Duplicate(Key("test", "2"), Key("test", "3"), 0.95),
        Duplicate(Key("test", "4"), Key("test", "5"), 0.95),
    ]
    assert list(report.to_leave_out("test")) == ["2", "5"]
    assert list(report.to_leave_out("train")) == ["1"]


def test_pairs_that_are_left_out_say_why_in_the_order_of_their_numbers_whatever_other_parts_call_theirs():
    report = SetReport(found=None)
    report.duplicates = [
        Duplicate(Key("train", "1"), Key("test", "10"), 0.95, "mirrored"),
        Duplicate(Key("train", "10"), Key("test", "9"), 0.95),
    ]
    assert list(report.to_leave_out("test").items()) == [
        ("9", "same ground as train/10"),
        ("10", "same ground as train/1, mirrored"),
    ]


def test_a_list_in_a_set_that_lies_in_train_and_test_already_splits_nothing(capsys, leaky, tmp_path):
    (leaky / "split.txt").write_text("train/11\n")
    code, out, _ = run(capsys, "data", "check", leaky, "-q")
    assert code == 0 and "train  6 pairs" in out and "test   4 pairs" in out
    shutil.rmtree(leaky / "test")
    words = ("data", "check", leaky, "-q", "--write", tmp_path / "list.txt", "--of", "test")
    assert "has only train" in run(capsys, *words)[2]


@pytest.mark.parametrize("kind", ["cloud", "label"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda image: np.where(image > 0.5, np.nan, image), "pixels without data (nodata, NaN"),
        (lambda image: 10_000 * image, "and floats are taken as 0 to 1; give --data-range LOW,HIGH"),
        (lambda image: image.astype(np.float64), "20 x 24 x 3 float64"),
    ],
)
def test_numbers_that_cannot_be_learnt_from_are_told_of_either_image(change, told, kind, capsys, tmp_path):
    for folder in ("cloud", "label"):
        (tmp_path / "set" / "train" / folder).mkdir(parents=True)
        image = np.random.default_rng(0).random((3, 24, 20), np.float32)
        changed = change(image) if folder == kind else image
        write_tif(tmp_path / "set" / "train" / folder / "1.tif", changed)
    code, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    (problem,) = [line for line in out.splitlines() if "problem:" in line]
    assert code == 2 and told in problem and f"{kind}/1.tif" in problem


def test_numbers_and_sizes_are_told_of_both_images_of_a_pair(capsys, tmp_path):
    for folder, (low, high) in (("cloud", (10, 250)), ("label", (30, 200))):
        (tmp_path / "set" / "train" / folder).mkdir(parents=True)
        image = np.linspace(low, high, 24 * 20 * 3).reshape(24, 20, 3).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / "train" / folder / "1.png")
    assert "20 x 24, 3 bands, uint8, values 10 to 250" in run(capsys, "data", "check", tmp_path / "set", "-q")[1]
    for path in (tmp_path / "set").rglob("1.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 2 + (100 if "cloud" not in str(path) else 90)).save(path)
    assert "values 95 to 215" in run(capsys, "data", "check", tmp_path / "set", "-q")[1]


@pytest.mark.parametrize(("high", "is_told"), [(9020, True), (9200, False)])
def test_how_much_of_a_range_is_used_counts_from_its_black(high, is_told, capsys, tmp_path):
    for folder in ("cloud", "label"):
        (tmp_path / "set" / "train" / folder).mkdir(parents=True)
        dn = np.linspace(9000, high, 3 * 24 * 24).reshape(3, 24, 24).astype(np.uint16)
        write_tif(tmp_path / "set" / "train" / folder / "1.tif", dn)
    _, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q", "--data-range", "9000,10000")
    assert (f"goes up to {high}, hardly above the black of --data-range 9000,10000" in out) == is_told


def test_a_folder_without_images_is_one_problem_and_five_missing_names_are_all_told(capsys, leaky):
    for number in range(5):
        (leaky / "train" / "label" / f"{number}.png").unlink()
    _, out, _ = run(capsys, "data", "check", leaky, "-q")
    assert "train/label lacks 5 of 6: 0, 1, 2, 3, 4\n" in out
    (leaky / "train" / "label" / "5.png").unlink()
    _, out, _ = run(capsys, "data", "check", leaky, "-q")
    assert out.count("problem:") == 1


def test_cloud_is_estimated_by_the_span_of_the_range_that_is_given(capsys, tmp_path):
    for kind, cloud in (("label", 0), ("cloud", 40)):
        (tmp_path / "set" / kind).mkdir(parents=True)
        dn = 9000 + 900 * make_terrain(np.random.default_rng(0), 64, 64)
        dn[:, :, :32] += cloud
        write_tif(tmp_path / "set" / kind / "1.tif", dn.astype(np.uint16))
    _, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q", "--data-range", "9000,10000")
    share = float(out.split("cloud ")[1].split(" %")[0])
    assert 40 < share < 60


def test_check_joins_the_near_infrared_where_it_is_asked_for(capsys, tmp_path):
    for tree in ("CUHK-CR1", "nir/CUHK-CR1"):
        for number in range(3):
            write_pair(tmp_path / tree / "train", str(number), number)
    words = ("data", "check", tmp_path, "--set", "CUHK-CR1", "-q", "--bands")
    code, out, _ = run(capsys, *words, "rgb")
    assert code == 0 and "3 pairs, 48 x 48, 3 bands" in out
    code, out, _ = run(capsys, *words, "rgbn")
    assert code == 0 and "3 pairs, 48 x 48, 4 bands" in out
    (tmp_path / "nir" / "CUHK-CR1" / "train" / "cloud" / "1.png").unlink()
    code, out, _ = run(capsys, *words, "rgbn")
    assert code == 2 and "nir/CUHK-CR1/train/cloud lacks 1 of 3: 1" in out and "2 pairs" in out


def test_a_list_is_not_written_over_another(capsys, tmp_path):
    write_pair(tmp_path / "set" / "test", "0", 0)
    kept = tmp_path / "list.txt"
    kept.write_text("7\n")
    code, _, err = run(capsys, "data", "check", tmp_path / "set", "-q", "--write", kept)
    assert code == 2 and "list.txt exists; give --overwrite" in err and kept.read_text() == "7\n"


def test_of_many_problems_and_duplicates_the_rest_is_counted(capsys, tmp_path):
    for number in range(23):
        write_pair(tmp_path / "set", str(number), number, size=16)
        (tmp_path / "set" / "cloud" / f"{number}.png").write_bytes(b"no image")
    _, out, _ = run(capsys, "data", "check", tmp_path / "set", "-q")
    assert out.count("problem: ") == 20 and "    and 3 more\n" in out


def test_neighbours_stay_together_unless_asked_otherwise_and_the_seed_draws_the_blocks(capsys, tmp_path):
    for number in range(75):
        write_pair(tmp_path / "set", str(number), 0, size=8)
    listed = {}
    for seed in range(4):
        words = ("data", "split", tmp_path / "set", "-o", tmp_path / f"{seed}.txt", "--seed", seed)
        assert run(capsys, *words)[0] == 0
        lines = [line for line in (tmp_path / f"{seed}.txt").read_text().splitlines() if line[0] != "#"]
        assert lines and len({(int(line.split("/")[1]) // 25, line.split("/")[0]) for line in lines}) == 3
        listed[seed] = frozenset(line for line in lines if line.startswith("test/"))
    assert all(len(test) == 25 for test in listed.values()) and len(set(listed.values())) > 1


def test_another_seed_makes_another_set(capsys, tmp_path):
    (tmp_path / "clear").mkdir()
    ground(0).save(tmp_path / "clear" / "1.png")
    made = {}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        words = ("data", "simulate", tmp_path / "clear", "-o", tmp_path / name, "-q", "--seed", seed)
        assert run(capsys, *words)[0] == 0
        made[name] = (tmp_path / name / "train" / "cloud" / "1.png").read_bytes()
    assert made["a"] == made["b"] != made["c"]


def test_clouds_are_simulated_at_the_wavelengths_of_the_bands(capsys, tmp_path):
    (tmp_path / "clear").mkdir()
    grey = np.full((3, 48, 48), 60, np.uint8)
    write_tif(tmp_path / "clear" / "1.tif", grey)
    words = ("data", "simulate", tmp_path / "clear", "-q", "--kind", "haze", "-o")
    for out, bands in (("a", "nir,swir16,swir22"), ("b", "coastal,blue,green")):
        assert run(capsys, *words, tmp_path / out, "--bands", bands)[0] == 0
    long, short = (read_tif(tmp_path / out / "train" / "cloud" / "1.tif").astype(int) for out in "ab")
    assert (long.mean((1, 2)) < short.mean((1, 2))).all()


def test_a_list_of_a_part_that_is_not_there_is_refused_before_an_image_is_read(capsys, tmp_path):
    write_pair(tmp_path / "set", "0", 0)
    (tmp_path / "set" / "cloud" / "0.png").write_bytes(b"no image")
    asked = ("data", "check", tmp_path / "set", "-q", "--write", tmp_path / "list.txt")
    code, out, err = run(capsys, *asked)
    assert code == 2 and out == "" and "set has only all; give --of all" in err
    (tmp_path / "set" / "split.txt").write_text("test/0\n")
    code, out, err = run(capsys, *asked, "--of", "all")
    assert code == 2 and out == "" and "set has only train and test; give --of train" in err


def test_check_goes_on_where_two_images_have_one_name(capsys, leaky, tmp_path):
    ground(9).save(leaky / "test" / "cloud" / "12.webp")
    code, out, _ = run(capsys, "data", "check", leaky, "-q", "--write", tmp_path / "list.txt")
    assert code == 2 and "12.png and " in out and "12.webp have one name; keep one of them" in out
    assert "3 pairs of images show the same ground: 2 between train and test, 1 within test" in out
    assert len((tmp_path / "list.txt").read_text().splitlines()) == 4  # a heading, and 12, 13, 14


def test_an_exclude_list_may_name_an_image_without_a_twin(capsys, leaky, tmp_path):
    (tmp_path / "list.txt").write_text("lonely\n13\n")
    ground(9).save(leaky / "test" / "cloud" / "lonely.png")
    words = ("evaluate", leaky, "--cloudy", "--exclude", tmp_path / "list.txt", "--out", tmp_path / "a.json", "-q")
    assert run(capsys, *words)[0] == 0
    assert len(json.loads((tmp_path / "a.json").read_text())["images"]) == 3
    (tmp_path / "list.txt").write_text("lonelier\nlonely\n")
    code, _, err = run(capsys, *words, "--overwrite")
    assert code == 2 and "names 'lonelier', which is not in the data" in err


def test_a_file_in_place_of_a_set_is_told_as_such(capsys, tmp_path):
    (tmp_path / "set").write_text("no folder")
    code, _, err = run(capsys, "data", "check", tmp_path / "set")
    assert code == 2 and "set is no folder; wanted" in err


def test_a_band_is_simulated_once(capsys, leaky, tmp_path):
    words = (
        "data",
        "simulate",
        leaky / "train" / "label",
        "-o",
        tmp_path / "made",
        "--bands",
        "red,red,blue",
        "-q",
    )
    code, _, err = run(capsys, *words)
    assert code == 2 and "bands are red, red, blue; name each once" in err and not (tmp_path / "made").exists()


def test_no_list_is_written_of_parts_that_a_damaged_split_list_hides(tmp_path, capsys):
    for number in range(2):
        write_pair(tmp_path / "set", str(number), number)
    (tmp_path / "set" / "split.txt").write_text("train/0\nelsewhere\n")
    wanted = tmp_path / "out.txt"
    code, _, told = run(capsys, "data", "check", tmp_path / "set", "--write", wanted, "--of", "train", "-q")
    assert code == 2 and "problems, told above" in told and not wanted.exists()


@pytest.mark.parametrize("text", ["inf", "0,inf", "nan", "1e-40", "-1e308,1e308", "much"])
@pytest.mark.parametrize("command", ["evaluate", "ablate"])
def test_a_range_that_is_none_is_refused_in_one_line(command, text, leaky, tmp_path, capsys):
    more = ("--cloudy", "-o", tmp_path / "a.json") if command == "evaluate" else ("-o", tmp_path / "a")
    code, _, told = run(capsys, command, leaky, *more, "--data-range", text)
    assert code == 2 and told.count("\n") == 1 and f"--data-range is {text!r}; give" in told
    assert not (tmp_path / "a").exists() and not (tmp_path / "a.json").exists()


def test_a_folder_for_scores_is_no_file(leaky, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for where in (".", "scores", "new/scores"):
        code, _, told = run(capsys, "evaluate", leaky, "--cloudy", "-o", where)
        assert code == 2 and f"{where} does not end in .json" in told
    for words in (("evaluate", "nowhere", "--cloudy", "-o", "new/a.json"), ("ablate", "nowhere", "-o", "new")):
        code, _, told = run(capsys, *words)
        assert code == 2 and not (tmp_path / "new").exists()
