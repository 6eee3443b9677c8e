import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from conftest import write_tif
from declouder.config import DataConfig, StageConfig
from declouder.data.augment import zoom
from declouder.data.clouds import simulate_clouds
from declouder.data.images import read_image
from declouder.data.lists import write_split_list
from declouder.data.pools import ImagePool
from declouder.data.resize import resize_bicubic
from declouder.data.samples import BatchNumbers, StageSamples
from declouder.data.training import TrainingData
from declouder.errors import DataError


def write_pairs(root: Path, count: int = 8, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Path:
    generator = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        folder = root / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(count):
            shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.png")
    return root


def data_of(root: Path, **fields) -> TrainingData:
    config = DataConfig(base=root, pairs=[Path("set")], hold_out_block=2, **fields)
    return TrainingData(config, band_names=["red", "green", "blue"], seed=0)


def stage(**fields) -> StageConfig:
    return StageConfig(**{"steps": 1, "batch": 1, **fields})


def test_ground_of_held_out_and_test_pairs_is_told_from_its_copies_too(tmp_path, caplog):
    caplog.set_level("INFO")
    for part in ("train", "test"):
        write_pairs(tmp_path / part)
    shutil.copytree(tmp_path / "test" / "set" / "train", tmp_path / "set" / "test")
    shutil.copytree(tmp_path / "train" / "set" / "train", tmp_path / "set" / "train")
    for path in (tmp_path / "set" / "test" / "label").iterdir():  # of the same size in bytes, and another
        path.write_bytes(path.read_bytes() + b"test")
    copies = tmp_path / "clear"
    copies.mkdir()
    for part in ("train", "test"):
        for path in (tmp_path / "set" / part / "label").iterdir():
            shutil.copy(path, copies / f"{part}_{path.name}")
    data = data_of(tmp_path, hold_out=0.25, clear=[Path("clear")])
    learnt = {f"train_{pair.name}.png" for pair in data.pairs}
    assert len(learnt) == 6 and {path.name for path in data.cloudless.paths} == learnt
    assert "10 clear images are of held-out, excluded or test pairs, and left out" in caplog.text
    # Of a set that is nobody's pairs here, nothing but the names of its folders tells.
    caplog.clear()
    config = DataConfig(base=tmp_path, pairs=[], clear=[Path("set/test/label"), Path("clear")], synthetic_share=1)
    assert len(TrainingData(config, band_names=["red", "green", "blue"], seed=0).cloudless.paths) == 24
    assert caplog.text.count("seems to be the test part of a set") == 1 and "set/test/label" in caplog.text


def test_ground_of_held_out_pairs_is_no_clear_ground_to_learn_from(tmp_path):
    write_pairs(tmp_path)
    data = data_of(tmp_path, hold_out=0.25, clear=[Path("set/train/label")])
    held = {pair.clear_path for pair in data.held_pairs}
    assert len(held) == 2
    assert {*data.cloudless.paths} == {*(tmp_path / "set" / "train" / "label").iterdir()} - held


def test_ground_of_test_and_excluded_pairs_is_no_clear_ground_to_learn_from(tmp_path, caplog):
    write_pairs(tmp_path)
    for kind in ("cloud", "label"):  # as RICE is published: one tree, parted by a list
        (tmp_path / "set" / "train" / kind).rename(tmp_path / "set" / kind)
    write_split_list(
        tmp_path / "set" / "split.txt", {str(n): "test" if n in (2, 3) else "train" for n in range(8)}, heading=""
    )
    (tmp_path / "exclude.txt").write_text("5\n")
    caplog.set_level("INFO")
    data = data_of(tmp_path, hold_out=0.25, clear=[Path("set/label")], exclude=Path("exclude.txt"))
    learnt = {pair.name for pair in data.pairs}
    assert len(learnt) < 6 and not {"2", "3", "5"} & learnt
    assert {path.stem for path in data.cloudless.paths} == learnt
    assert f"{8 - len(learnt)} clear images are of held-out, excluded or test pairs, and left out" in caplog.text
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "2.png").symlink_to(tmp_path / "set" / "label" / "2.png")
    with pytest.raises(DataError, match=r"all 1 images of data\.clear are those of held-out, excluded or test"):
        data_of(tmp_path, clear=[Path("tests")])


def test_what_one_entry_excludes_and_another_learns_from_is_clear_ground(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "exclude.txt").write_text("5\n")
    pairs = [{"root": "set", "exclude": "exclude.txt"}, "set"]
    config = DataConfig(base=tmp_path, pairs=pairs, hold_out=0, clear=[Path("set/train/label")])
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    assert len(data.cloudless) == 8


def test_sharp_edges_made_smaller_stay_in_range(tmp_path):
    (tmp_path / "clear").mkdir()
    for number in range(4):
        edges = np.kron(np.random.default_rng(number).integers(0, 2, (8, 8, 3)) * 255, np.ones((8, 8, 1)))
        Image.fromarray(edges.astype(np.uint8)).save(tmp_path / "clear" / f"{number}.png")
    config = DataConfig(base=tmp_path, clear=[Path("clear")], synthetic_share=1.0)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    samples = StageSamples(data, stage(downscale=4, augment={"flips": "none"}), seed=0)
    for number in range(8):
        clear = samples[number]["clear"]
        assert clear.shape == (3, 16, 16)
        assert clear.min() == -1 and clear.max() == 1


def test_a_set_that_is_named_twice_is_learnt_from_twice_and_scored_once(tmp_path):
    once = data_of(write_pairs(tmp_path), hold_out=0.3)
    config = DataConfig(base=tmp_path, pairs=["set", "set"], hold_out_block=2, hold_out=0.3)
    twice = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    assert twice.pairs == 2 * once.pairs
    assert twice.held_pairs == once.held_pairs and len(once.held_pairs) > 0


def test_what_one_entry_of_a_set_holds_out_no_other_learns_from(tmp_path):
    write_pairs(tmp_path, count=12)
    (tmp_path / "exclude.txt").write_text("0\n1\n5\n")
    entries = ["set", {"root": "set", "exclude": "exclude.txt"}]
    config = DataConfig(base=tmp_path, pairs=entries, hold_out_block=2, hold_out=0.3)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    held = [pair.cloudy_path for pair in data.held_pairs]
    assert len(held) == len(set(held)) > 0
    assert not set(held) & {pair.cloudy_path for pair in data.pairs}


def test_ground_that_one_set_holds_out_no_other_set_of_the_same_ground_learns_from(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "other" / "train").mkdir(parents=True)
    shutil.copytree(tmp_path / "set" / "train" / "cloud", tmp_path / "other" / "train" / "cloud")
    (tmp_path / "other" / "train" / "label").symlink_to(tmp_path / "set" / "train" / "label")
    (tmp_path / "exclude.txt").write_text("0\n1\n2\n")  # so that it holds out others
    entries = ["set", {"root": "other", "exclude": "exclude.txt"}]
    config = DataConfig(
        base=tmp_path, pairs=entries, hold_out_block=1, hold_out=0.25, clear=[Path("set/train/label")]
    )
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    held = {pair.clear_path.resolve() for pair in data.held_pairs}
    assert {pair.clear_path.parents[2].name for pair in data.held_pairs} == {"set", "other"}
    assert not held & {pair.clear_path.resolve() for pair in data.pairs}
    assert not held & {path.resolve() for path in data.cloudless.paths} and len(data.cloudless) == 8 - len(held)


def test_a_split_list_that_learns_from_the_test_folder_says_so(tmp_path, caplog):
    root = write_pairs(tmp_path, count=4) / "set"
    shutil.copytree(root / "train", root / "test")
    for path in sorted((root / "test").rglob("*.png")):
        path.rename(path.with_stem(f"t{path.stem}"))
    (tmp_path / "list.txt").write_text("train/0\ntrain/t1\ntest/1\n")
    config = DataConfig(base=tmp_path, pairs=[{"root": "set", "split": "list.txt"}], hold_out=0)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    assert [pair.name for pair in data.pairs] == ["0", "t1"]
    assert "puts 1 pairs" in caplog.text and "--split-list" in caplog.text


def test_floats_of_another_range_are_refused_until_it_is_given(tmp_path):
    for kind in ("cloud", "label"):
        folder = tmp_path / "set" / "train" / kind
        folder.mkdir(parents=True)
        for number in range(4):
            reflectance = np.random.default_rng(number).uniform(500, 3700, (3, 32, 32)).astype(np.float32)
            write_tif(folder / f"{number}.tif", reflectance)
    words = r"holds 5\d\d.* to 36\d\d.*, and floats are taken as 0 to 1; give data.range"
    with pytest.raises(DataError, match=words):
        data_of(tmp_path)
    seen = data_of(tmp_path, range=(0, 5000)).clear.unit(0)
    assert 0.09 < seen.min() < 0.11 and 0.7 < seen.max() < 0.75


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"batch": 2}, "is 40 x 32, and turned it is 32 x 40"),
        ({"batch": 2, "patch_px": 30, "augment": {"transplant": 0.5}}, "20 x 20"),
    ],
)
def test_sizes_that_would_not_make_a_batch_are_found_before(fields, words, tmp_path):
    (tmp_path / "clear").mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "clear" / "0.png")
    data = data_of(write_pairs(tmp_path), clear=["clear"])
    with pytest.raises(DataError, match=words):
        StageSamples(data, stage(**fields), seed=0)
    fine = fields | {"augment": {"flips": "horizontal"}}
    assert StageSamples(data, stage(**fine), seed=0)[0]["clear"].shape[0] == 3


def test_a_sample_is_a_function_of_seed_and_number(tmp_path):
    data = data_of(write_pairs(tmp_path), procedural=2, synthetic_share=0.5)
    settings = stage(patch_px=16, augment={"color": 0.5, "cloud_strength": (0.5, 1.1)})
    first, again, other = (StageSamples(data, settings, seed=seed) for seed in (1, 1, 2))
    for number in (0, 5, 1000):
        assert np.array_equal(first[number]["cloudy"], again[number]["cloudy"])
        assert first[number]["seed"] == again[number]["seed"] != other[number]["seed"]
    assert not np.array_equal(first[3]["cloudy"], other[3]["cloudy"])


def test_samples_are_in_the_models_range_and_size(tmp_path):
    data = data_of(write_pairs(tmp_path), procedural=2, synthetic_share=0.5)
    samples = StageSamples(data, stage(patch_px=16, augment={"color": 1.0}), seed=0)
    for number in range(20):
        for image in (samples[number]["cloudy"], samples[number]["clear"]):
            assert image.shape == (3, 16, 16)
            assert image.dtype == np.float32
            assert -1 <= image.min() <= image.max() <= 1


def test_every_pair_comes_once_a_round(tmp_path):
    data = data_of(write_pairs(tmp_path))
    samples = StageSamples(data, stage(augment={"flips": "none"}), seed=0)
    count = len(data.cloudy)
    whole = {data.real(index)[0].tobytes() for index in range(count)}
    for first in (0, count):
        images = {((samples[n]["cloudy"] + 1) / 2).sum().item() for n in range(first, first + count)}
        assert len(images) == len(whole) == count


def test_held_out_pairs_are_whole_and_in_no_training_sample(tmp_path):
    data = data_of(write_pairs(tmp_path))
    held = data.held_out(seed=0)
    assert len(held) == len(data.held_cloudy) == 2
    assert held[0]["cloudy"].shape == (3, 32, 40)
    assert not set(data.cloudy.paths) & set(data.held_cloudy.paths)
    assert len(data.cloudy) + len(held) == 8


def test_the_coarse_stage_sees_the_whole_width_at_a_quarter(tmp_path):
    data = data_of(write_pairs(tmp_path, size=(64, 64)))
    sample = StageSamples(data, stage(patch_px=16, downscale=4, augment={"flips": "none"}), seed=0)[0]
    clear = sample["clear"]
    assert clear.shape == (3, 16, 16)
    means = [data.real(index)[1].mean() * 2 - 1 for index in range(len(data.cloudy))]
    assert min(abs(clear.mean() - mean) for mean in means) < 0.01


def test_cloud_strength_zero_makes_cloudy_equal_clear(tmp_path):
    data = data_of(write_pairs(tmp_path))
    samples = StageSamples(data, stage(augment={"cloud_strength": (0, 0), "color": 0.7}), seed=0)
    assert np.array_equal(samples[4]["cloudy"], samples[4]["clear"])


def write_evenly_hazy_pairs(root: Path) -> Path:
    """Write pairs of 64 px whose haze keeps to its law, and return `root`."""
    write_pairs(root, size=(64, 64))
    for path in (root / "set" / "train" / "label").iterdir():
        clear = np.asarray(Image.open(path)) * 0.6
        cloudy = 255 * 0.75 - 0.5 * (255 - clear)
        Image.fromarray(clear.round().astype(np.uint8)).save(path)
        Image.fromarray(cloudy.round().astype(np.uint8)).save(path.parents[1] / "cloud" / path.name)
    return root


def law_of(sample) -> tuple[float, float, float]:
    """Return slope, white and what is left of cloudy = white - slope (1 - clear), in [0, 1]."""
    cloudy, dark = (sample["cloudy"].ravel() + 1) / 2, (1 - sample["clear"].ravel()) / 2
    slope, white = np.polyfit(dark, cloudy, 1)
    return -slope, white, float((cloudy - white - slope * dark).std())


def test_samples_under_an_even_haze_keep_to_its_law(tmp_path):
    data = data_of(write_evenly_hazy_pairs(tmp_path))
    fields = {"color": 0.8, "haze_color": 0.8, "transplant": 0.5, "cloud_strength": (0.9, 1.1), "sensor": 1.0}
    haze = {"even_haze": True, "haze_strength": (0.8, 1.25), "relight": 1.0}
    lawful = StageSamples(data, stage(augment={**fields, **haze}), seed=0)
    laws = np.array([law_of(lawful[number]) for number in range(20)])
    assert all(lawful[number]["ambiguous"] for number in range(20))
    assert np.abs(laws[:, 1] - 0.75).max() < 0.01
    assert laws[:, 2].max() < 0.01
    assert 0.39 < laws[:, 0].min() < 0.45 and 0.55 < laws[:, 0].max() < 0.64
    assert np.ptp([lawful[number]["clear"].mean() for number in range(20)]) > 0.1
    usual = StageSamples(data, stage(augment=fields), seed=0)
    assert np.ptp([law_of(usual[number])[1] for number in range(20)]) > 0.1
    assert not any(usual[number]["ambiguous"] for number in range(20))
    clean = StageSamples(data, stage(augment={**fields, **haze, "haze_clean": 1.0}), seed=0)
    bytes_ = np.concatenate([(clean[number]["cloudy"].ravel() + 1) * 127.5 for number in range(20)])
    assert np.abs(bytes_ - np.rint(bytes_)).max() < 1e-3
    relit = StageSamples(data, stage(augment={**haze, "haze_relight": 1.0}), seed=0)
    laws = np.array([law_of(relit[number]) for number in range(20)])
    assert np.abs(laws[:, 1] - 0.75).max() < 0.02 and laws[:, 2].max() < 0.01
    assert np.ptp([relit[number]["clear"].mean() for number in range(20)]) > 0.5
    assert not any(relit[number]["ambiguous"] for number in range(20))
    for relight, expected in ((0.0, False), (1.0, True)):
        augment = {**haze, "cloudless": 1.0, "relight": relight}
        cloudless = StageSamples(data, stage(augment=augment), seed=0)
        assert all(cloudless[number]["ambiguous"] == expected for number in range(20))


def test_pairs_of_a_cloud_that_darkens_give_dry_ground_with_it_and_without(tmp_path):
    write_pairs(tmp_path, size=(64, 64))
    for path in (tmp_path / "set" / "train" / "label").iterdir():
        clear = 110 + np.asarray(Image.open(path)) * 0.2
        Image.fromarray(clear.round().astype(np.uint8)).save(path)
        cloudy = 0.9 * clear - np.array([20, 15, 10])
        Image.fromarray(cloudy.round().astype(np.uint8)).save(path.parents[1] / "cloud" / path.name)
    data = data_of(tmp_path)
    assert data.dimmed == list(range(len(data.pairs)))
    samples = StageSamples(data, stage(augment={"dim": 1.0}), seed=0)
    darker = [float((samples[n]["clear"] - samples[n]["cloudy"]).mean() / 2) for n in range(40)]
    assert 5 < sum(x == 0 for x in darker) < 20
    assert all(0.05 < x < 0.16 for x in darker if x)
    assert np.ptp([samples[n]["clear"].mean() / 2 for n in range(40)]) > 0.1


def test_dimming_wants_pairs_of_a_cloud_that_darkens(tmp_path):
    with pytest.raises(DataError, match=r"wants pairs whose thin cloud darkens.* none of 8"):
        StageSamples(data_of(write_pairs(tmp_path), hold_out=0), stage(augment={"dim": 0.1}), seed=0)


def test_colors_vary_by_amounts_of_a_range(tmp_path):
    data = data_of(write_pairs(tmp_path))

    def gains(**augment: float) -> list[float]:
        samples = StageSamples(data, stage(augment={"flips": "none", **augment}), seed=0)
        means = [float(data.real(samples._pair_of(n))[1].mean()) for n in range(40)]
        return [(float(samples[n]["clear"].mean()) + 1) / 2 / mean for n, mean in enumerate(means)]

    few, many = gains(color=0.1), gains(color=0.1, color_most=1.0)
    assert np.std(few) < 0.03 < 0.06 < np.std(many)
    assert min(abs(gain - 1) for gain in many) < 0.01


def test_two_processes_take_together_what_one_with_a_doubled_batch_takes():
    def first_batches(batches: BatchNumbers, count: int) -> list[list[int]]:
        return [numbers for _, numbers in zip(range(count), batches, strict=False)]

    one = first_batches(BatchNumbers(4, start=3), 3)
    two = [first_batches(BatchNumbers(2, start=3, rank=rank, world=2), 3) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two, strict=True)] == one
    assert one[0][0] == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"patch_px": 64}, "need 64"), ({"patch_px": 16, "downscale": 4}, "made smaller by 4 need 64")],
)
def test_images_too_small_for_a_patch_are_named_before_training(tmp_path, settings, message):
    data = data_of(write_pairs(tmp_path))
    with pytest.raises(DataError, match=message):
        StageSamples(data, stage(**settings), seed=0)


def test_whole_images_of_different_sizes_are_refused(tmp_path):
    write_pairs(tmp_path)
    for kind in ("cloud", "label"):
        Image.new("RGB", (50, 50)).save(tmp_path / "set" / "train" / kind / "7.png")
    data = data_of(tmp_path)
    with pytest.raises(DataError, match="set patch_px"):
        StageSamples(data, stage(), seed=0)
    assert StageSamples(data, stage(patch_px=32), seed=0)[0]["clear"].shape == (3, 32, 32)


def test_twins_of_different_sizes_are_named(tmp_path):
    write_pairs(tmp_path)
    Image.new("RGB", (50, 50)).save(tmp_path / "set" / "train" / "cloud" / "7.png")
    with pytest.raises(DataError, match=r"7\.png is 50 x 50, its twin .* is 40 x 32"):
        data_of(tmp_path)


def test_another_number_of_bands_is_named(tmp_path):
    write_pairs(tmp_path, mode="L")
    with pytest.raises(DataError, match=r"has 1 bands \(grey\), the recipe's model.bands names 3"):
        data_of(tmp_path)


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("L", r"has 1 bands \(grey\), the recipe's model\.bands names 3"),
        ("RGBA", "has an alpha channel, which is no band; save it as grey or RGB"),
    ],
)
def test_grey_and_alpha_images_are_refused_by_name(tmp_path, mode, told):
    write_pairs(tmp_path)
    for kind in ("cloud", "label"):
        Image.new(mode, (40, 32)).save(tmp_path / "set" / "train" / kind / "3.png")
    with pytest.raises(DataError, match=rf"cloud/3\.png {told}"):
        data_of(tmp_path)


def test_whole_images_are_resized_as_the_paper_does(tmp_path):
    data = data_of(write_pairs(tmp_path, size=(64, 64)), size=32)
    clear = StageSamples(data, stage(augment={"flips": "none"}), seed=0)[0]["clear"]
    assert clear.shape == (3, 32, 32)
    paths = data.clear.paths
    wanted = [resize_bicubic(read_image(p).transpose(2, 0, 1).astype(np.float32), 32, 32) for p in paths]
    levels = (clear + 1) * 127.5
    assert min(np.abs(levels - np.clip(image, 0, 255)).max() for image in wanted) <= 0.51


def test_images_that_do_not_fit_into_memory_are_read_anew_and_are_the_same(tmp_path):
    write_pairs(tmp_path)
    kept, anew, half = (data_of(tmp_path, cache_gb=gb) for gb in (1, 0, 20e-6))
    assert (anew.cloudy.bytes, half.cloudy.bytes) == (0, 5 * 3 * 32 * 40)
    for number in range(6):
        for other in (anew, half):
            a, b = (StageSamples(data, stage(patch_px=16), seed=0)[number] for data in (kept, other))
            assert np.array_equal(a["cloudy"], b["cloudy"])
            assert np.array_equal(a["clear"], b["clear"])


def test_values_outside_the_range_given_are_black_and_white(tmp_path):
    data = data_of(write_pairs(tmp_path), range=(50, 150))
    image = read_image(data.clear.paths[0])[0, :, 0].astype(float)
    assert np.allclose(data.clear.unit(0)[0, 0], np.clip((image - 50) / 100, 0, 1), atol=1e-6)


def test_generated_images_of_another_size_than_whole_pairs_are_named(tmp_path):
    data = data_of(write_pairs(tmp_path), procedural=2, synthetic_share=0.5)
    with pytest.raises(DataError, match=r"is 40 x 32, others are 96 x 96; .* set patch_px"):
        StageSamples(data, stage(), seed=0)


def test_a_share_of_the_samples_has_another_pairs_ground(tmp_path):
    data = data_of(write_pairs(tmp_path))
    grounds = [data.clear.unit(k) for k in range(len(data.clear))]
    settings = {"flips": "none"}
    plain = StageSamples(data, stage(augment=settings), seed=0)
    moved = StageSamples(data, stage(augment={**settings, "transplant": 1.0}), seed=0)
    changed = 0
    for number in range(12):
        ground = ((moved[number]["clear"] + 1) / 2).astype(np.float32)
        assert any(np.allclose(ground, image, atol=1e-6) for image in grounds)
        changed += not np.array_equal(moved[number]["clear"], plain[number]["clear"])
    assert changed > 6


def test_a_share_of_the_samples_has_no_cloud(tmp_path):
    data = data_of(write_pairs(tmp_path))
    samples = StageSamples(data, stage(augment={"cloudless": 0.5, "color": 0.5}), seed=0)
    cloudless = [np.array_equal(samples[n]["cloudy"], samples[n]["clear"]) for n in range(60)]
    assert 15 < sum(cloudless) < 45


def test_only_samples_without_cloud_take_their_own_colors(tmp_path):
    data = data_of(write_pairs(tmp_path))
    plain = StageSamples(data, stage(augment={"cloudless": 0.5}), seed=0)
    colored = StageSamples(data, stage(augment={"cloudless": 0.5, "cloudless_color": 1.0}), seed=0)
    for number in range(20):
        without_cloud = np.array_equal(plain[number]["cloudy"], plain[number]["clear"])
        assert np.array_equal(colored[number]["cloudy"], colored[number]["clear"]) == without_cloud
        # Colors draw before flips do, so of the clear image only the set of values can be compared.
        same_values = np.array_equal(np.sort(plain[number]["clear"], None), np.sort(colored[number]["clear"], None))
        assert same_values != without_cloud


def test_a_share_of_the_samples_without_cloud_becomes_calm(tmp_path):
    data = data_of(write_pairs(tmp_path))
    plain = StageSamples(data, stage(augment={"cloudless": 0.5}), seed=0)
    calm = StageSamples(data, stage(augment={"cloudless": 0.5, "calm": 1.0}), seed=0)
    for number in range(20):
        without_cloud = np.array_equal(plain[number]["cloudy"], plain[number]["clear"])
        assert np.array_equal(calm[number]["cloudy"], calm[number]["clear"]) == without_cloud
        assert (calm[number]["clear"].std() < 0.6 * plain[number]["clear"].std()) == without_cloud


def test_cloud_over_calm_water_keeps_its_place_and_saturates(tmp_path):
    write_pairs(tmp_path, size=(64, 64))
    for path in (tmp_path / "set" / "train" / "label").iterdir():
        clear = np.asarray(Image.open(path)) // 4 + 20
        Image.fromarray(clear).save(path)
        cloudy = clear.copy()
        cloudy[:, :24] = 200
        Image.fromarray(cloudy).save(tmp_path / "set" / "train" / "cloud" / path.name)
    augment = {"calm_below": 1.0, "flips": "none"}
    samples = StageSamples(data_of(tmp_path), stage(augment=augment), seed=0)
    under, deviations = [], []
    for number in range(20):
        cloudy, clear = (samples[number][key] / 2 + 0.5 for key in ("cloudy", "clear"))
        under.append(float(cloudy[:, :, :16].mean()))
        deviations.append(float(clear.std(axis=(1, 2)).mean()))
        assert clear.mean(axis=(1, 2)).min() < 0.25
        # Away from the cloud's edge, over which its layer is smooth.
        assert np.abs(cloudy[:, :, 48:] - clear[:, :, 48:]).mean() < 0.03
    assert max(deviations) < 0.035 and min(under) > 0.6 and max(under) == pytest.approx(1, abs=0.01)


def test_relit_ground_keeps_its_cloud(tmp_path):
    write_pairs(tmp_path, size=(64, 64))
    for path in (tmp_path / "set" / "train" / "label").iterdir():
        clear = 0.3 * np.asarray(Image.open(path))
        cloudy = clear.copy()
        cloudy[:32] = 240
        Image.fromarray(clear.round().astype(np.uint8)).save(path)
        Image.fromarray(cloudy.round().astype(np.uint8)).save(path.parents[1] / "cloud" / path.name)
    data = data_of(tmp_path)
    relit = StageSamples(data, stage(augment={"flips": "none", "relight": 1.0}), seed=0)
    means = []
    for number in range(20):
        cloudy, clear = (relit[number][key] / 2 + 0.5 for key in ("cloudy", "clear"))
        # Away from the cloud's edge, over which its layer is smooth.
        assert abs(float(cloudy[:, :16].mean()) - 240 / 255) < 0.03
        assert np.abs(cloudy[:, 48:] - clear[:, 48:]).mean() < 0.03
        means.append(float(clear.mean()))
    assert min(means) < 0.25 and max(means) > 0.55


def test_without_cloud_relit_ground_keeps_its_black(tmp_path):
    write_pairs(tmp_path, size=(64, 64))
    for folder in ("cloud", "label"):
        for path in (tmp_path / "set" / "train" / folder).iterdir():
            image = np.asarray(Image.open(path)).copy()
            image[:8] = 0
            Image.fromarray(image).save(path)
    data = data_of(tmp_path)
    for augment, always in (({}, False), ({"cloudless": 1.0}, True)):
        relit = StageSamples(data, stage(augment={"flips": "none", "relight": 1.0, **augment}), seed=0)
        black = [float(relit[number]["clear"][:, :6].max()) < -0.95 for number in range(20)]
        assert any(black) and all(black) == always


def test_samples_without_cloud_may_be_relit_too(tmp_path):
    data = data_of(write_pairs(tmp_path))
    relit = StageSamples(data, stage(augment={"cloudless": 1.0, "relight": 1.0}), seed=0)
    plain = StageSamples(data, stage(augment={"cloudless": 1.0}), seed=0)
    for number in range(6):
        assert np.array_equal(relit[number]["cloudy"], relit[number]["clear"])
        assert not np.array_equal(relit[number]["clear"], plain[number]["clear"])


def test_only_made_up_samples_look_like_those_of_another_sensor(tmp_path):
    data = data_of(write_pairs(tmp_path))
    plain, moved = {"transplant": 0.0}, {"transplant": 0.5}
    for augment, changes in ((plain, False), (moved, True)):
        without = StageSamples(data, stage(augment={**augment, "flips": "none"}), seed=0)
        samples = StageSamples(data, stage(augment={**augment, "flips": "none", "sensor": 1.0}), seed=0)
        differ = [not np.array_equal(samples[n]["clear"], without[n]["clear"]) for n in range(40)]
        assert any(differ) == changes and not all(differ)


def test_with_nothing_held_out_all_pairs_are_learnt_from_and_some_are_shown(tmp_path):
    data = data_of(write_pairs(tmp_path, count=20), hold_out=0)
    assert len(data.cloudy) == 20 and len(data.held_pairs) == 0
    shown = data.held_out(seed=0)
    assert len(shown) == 7
    assert np.array_equal((shown[1]["clear"] + 1) / 2, data.real(3)[1])


def write_tifs(root: Path, dtype: str, *, scale: float = 1, names: tuple[str, ...] = (), labels: str = "") -> Path:
    generator = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        (root / "set" / "train" / kind).mkdir(parents=True)
        for number in range(4):
            kept = labels or dtype if kind == "label" else dtype
            dn = (generator.integers(0, 200, (3, 32, 32)) * scale).astype(kept)
            path = write_tif(root / "set" / "train" / kind / f"{number}.tif", dn)
            if names:
                with rasterio.open(path, "r+") as dataset:
                    dataset.descriptions = names
    return root


def test_twins_of_different_data_types_are_named(tmp_path):
    told = r"cloud/\d\.tif is uint8, its twin .*label/\d\.tif uint16; twins must have one data type"
    with pytest.raises(DataError, match=told):
        data_of(write_tifs(tmp_path, "uint8", labels="uint16"), range=(0, 2600))


def test_bands_that_a_file_names_in_another_order_are_refused(tmp_path):
    told = r"\d\.tif says that its bands are Blue, green, red, wanted are red, green, blue; .* -b 3 -b 2 -b 1 IN"
    with pytest.raises(DataError, match=told):
        data_of(write_tifs(tmp_path / "a", "uint8", names=("Blue", "green", "red")))
    data_of(write_tifs(tmp_path / "b", "uint8", names=("red", "green", "blue")))
    data_of(write_tifs(tmp_path / "c", "uint8", names=("B1", "B2", "B3")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_model_of_another_order_than_colours_and_near_infrared_come_in_is_refused(tmp_path, suffix):
    generator = np.random.default_rng(0)
    for tree in ("CUHK-CR1", "nir/CUHK-CR1"):
        for kind in ("cloud", "label"):
            for number in range(2):
                path = tmp_path / tree / "train" / kind / f"{number}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)

    def of_bands(names: str, *, nir: bool) -> TrainingData:
        source = {"set": "CUHK-CR1", "root": tmp_path, "bands": "rgbn" if nir else None}
        config = DataConfig(base=tmp_path, pairs=[source], hold_out=0)
        return TrainingData(config, band_names=names.split(), seed=0)

    told = rf"cloud/0\{suffix} has its bands in the order red, green, blue, nir, wanted are nir, red, green, blue;"
    with pytest.raises(DataError, match=told):
        of_bands("nir red green blue", nir=True)
    with pytest.raises(DataError, match="wanted are blue, green, red"):
        of_bands("blue green red", nir=False)
    for names in ("red green blue nir", "b1 b2 b3 b4"):
        assert of_bands(names, nir=True).real(0)[0].shape == (4, 16, 16)
    if suffix == ".png":  # what bands it holds as colours, nobody but its owner can know
        of_bands("nir red green", nir=False)


def test_images_that_use_little_of_their_range_are_told_until_it_is_given(tmp_path, caplog):
    data_of(write_tifs(tmp_path, "uint16"))
    assert "the images use 0.003 of their data type's range" in caplog.text
    caplog.clear()
    data_of(tmp_path, range=(0, 200))
    data_of(write_tifs(tmp_path / "full", "uint8"))
    assert "of the pairs are held out" in caplog.text and "of their data type" not in caplog.text
    data_of(tmp_path, range=(0, 50000))
    assert "the images use 0.004 of data.range, so all are dark" in caplog.text


def test_pairs_of_which_none_is_learnt_from_are_told(tmp_path, caplog):
    caplog.set_level("INFO")
    data_of(write_tifs(tmp_path, "uint8"))
    assert re.search(r"[1-9]\d* pairs to learn from", caplog.text) and "no pair is learnt from" not in caplog.text
    caplog.clear()
    data_of(tmp_path, synthetic_share=1, procedural=2)
    assert " 0 pairs to learn from" in caplog.text
    assert "data.synthetic_share is 1, so no pair is learnt from" in caplog.text


def test_each_set_whose_images_are_dark_is_told(tmp_path, caplog):
    write_tifs(tmp_path / "eight", "uint8")
    write_tifs(tmp_path / "sixteen", "uint16", scale=40)
    pairs = [Path("eight/set"), Path("sixteen/set")]
    for given, dark in ((None, "sixteen"), ((0, 10_000), "eight")):
        caplog.clear()
        config = DataConfig(base=tmp_path, pairs=pairs, range=given, hold_out_block=2)
        TrainingData(config, band_names=["red", "green", "blue"], seed=0)
        told = [text for text in caplog.messages if "so all are dark" in text]
        assert len(told) == 1 and f"the images of {tmp_path / dark}" in told[0] and "one for all sets" in told[0]


@pytest.mark.parametrize(("block", "told"), [(2, "whole blocks of 2 numbers"), (1, "the sets are too small")])
def test_far_more_held_out_than_asked_for_is_told(block, told, tmp_path, caplog):
    write_pairs(tmp_path, count=3)
    config = DataConfig(base=tmp_path, pairs=[Path("set")], hold_out_block=block, hold_out=0.1)
    TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    assert "% of the pairs are held out, data.hold_out is 0.1: " in caplog.text and told in caplog.text


def test_held_out_images_smaller_than_a_patch_are_named_before_training(tmp_path):
    write_pairs(tmp_path)
    for kind in ("cloud", "label"):
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "train" / kind / "100.png")
    data = data_of(tmp_path, hold_out=0.1)
    if not any(pair.name == "100" for pair in data.held_pairs):
        data.held_pairs, data.pairs = data.pairs, data.held_pairs
    with pytest.raises(DataError, match=r"100\.png is 8 x 8, patches of 16 px"):
        StageSamples(data, stage(patch_px=16), seed=0)


@pytest.mark.parametrize("factor", [200.0, 0.001])
def test_no_zoom_is_too_strong_for_a_small_image(factor):
    image = np.random.default_rng(0).random((3, 20, 30)).astype(np.float32)
    zoomed = zoom([image, image], (factor, factor * 1.01), np.random.default_rng(0))
    assert all(other.shape == image.shape and np.isfinite(other).all() for other in zoomed)


def test_inks_are_no_bands(tmp_path):
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "train" / kind).mkdir(parents=True)
        for number in range(4):
            Image.new("CMYK", (32, 32)).save(tmp_path / "set" / "train" / kind / f"{number}.jpg")
    config = DataConfig(base=tmp_path, pairs=[Path("set")], hold_out_block=2)
    with pytest.raises(DataError, match=r"\d\.jpg holds four inks \(CMYK\)"):
        TrainingData(config, band_names=["red", "green", "blue", "nir"], seed=0)


def test_held_out_pairs_are_made_when_they_are_asked_for(tmp_path, monkeypatch):
    data, made = data_of(write_pairs(tmp_path)), []
    real = ImagePool.unit
    monkeypatch.setattr(ImagePool, "unit", lambda pool, index: made.append(index) or real(pool, index))
    held = data.held_out(seed=0)
    assert len(held) == 2 and not made
    once, again = list(held), list(held)
    assert len(made) == 8
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one["cloudy"], other["cloudy"])
    assert [sample["seed"] for sample in held[::2]] == [0]


def test_zoom_shows_ground_at_another_resolution(tmp_path):
    data = data_of(write_pairs(tmp_path))
    plain, larger = (
        StageSamples(data, stage(augment={"flips": "none", "zoom": (factor, factor)}), seed=0)[0]["clear"]
        for factor in (1.0, 2.0)
    )
    assert plain.shape == larger.shape
    assert np.abs(np.diff(larger)).mean() < 0.7 * np.abs(np.diff(plain)).mean()


def test_clouds_are_made_in_the_models_bands(tmp_path, monkeypatch):
    named = []
    real = simulate_clouds
    monkeypatch.setattr(
        "declouder.data.training.simulate_clouds",
        lambda *given, **options: named.append(options["band_names"]) or real(*given, **options),
    )
    write_pairs(tmp_path)
    config = DataConfig(base=tmp_path, clear=[Path("set/train/label")], synthetic_share=1.0)
    data = TrainingData(config, band_names=["nir", "red", "green"], seed=0)
    StageSamples(data, stage(patch_px=16), seed=0)[0]
    assert named and all(names == ["nir", "red", "green"] for names in named)


def test_every_round_has_an_order_of_its_own(tmp_path):
    samples = StageSamples(data_of(write_pairs(tmp_path), hold_out=0), stage(), seed=0)
    rounds = [[samples._pair_of(8 * number + place) for place in range(8)] for number in range(3)]
    assert all(sorted(order) == list(range(8)) for order in rounds)
    assert len({tuple(order) for order in rounds}) == 3


def clear_folder(root: Path, count: int = 4, size: int = 64) -> Path:
    (root / "clear").mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(100 + number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "clear" / f"{number}.png")
    return root


def test_clouds_move_to_clear_images_as_well_as_to_those_of_pairs(tmp_path):
    data = data_of(clear_folder(write_pairs(tmp_path)), clear=[Path("clear")], hold_out=0)
    sizes = [data.ground(np.random.default_rng(seed)).shape for seed in range(60)]
    assert 5 < sizes.count((3, 64, 64)) < 40  # 4 of 12
    assert sizes.count((3, 64, 64)) + sizes.count((3, 32, 40)) == 60


def test_synthetic_clouds_lie_over_clear_and_generated_images_alike(tmp_path):
    config = DataConfig(base=clear_folder(tmp_path), clear=[Path("clear")], procedural=4, synthetic_share=1)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    made = [data.synthetic(np.random.default_rng(seed), lambda image: image)[1].shape[1] for seed in range(40)]
    assert 10 < made.count(64) < 30 and made.count(64) + made.count(96) == 40


def test_generated_images_and_what_is_shown_of_them_follow_from_the_seed():
    def of_seed(seed: int) -> TrainingData:
        config = DataConfig(procedural=3, synthetic_share=1)
        return TrainingData(config, band_names=["red", "green", "blue"], seed=seed)

    one, again, other = of_seed(0), of_seed(0), of_seed(1)
    grounds = [image.tobytes() for data in (one, again, other) for image in data.terrain]
    assert grounds[:3] == grounds[3:6] and len(set(grounds)) == 6
    shown = [sample["cloudy"].tobytes() for seed in (0, 0, 1) for sample in one.held_out(seed)]
    assert shown[:4] == shown[4:8] and len(set(shown)) == 8


def test_ground_under_an_even_haze_has_colours_of_its_own(tmp_path):
    data = data_of(write_evenly_hazy_pairs(tmp_path))
    spread = {}
    for color, haze_color in ((0.0, 0.8), (0.8, 0.0)):
        augment = {"even_haze": True, "color": color, "haze_color": haze_color, "flips": "none"}
        samples = StageSamples(data, stage(augment=augment), seed=0)
        spread[haze_color] = np.ptp([samples[number]["clear"].mean() for number in range(20)])
    assert spread[0.0] < 0.05 < spread[0.8]


def test_clear_images_too_small_for_a_patch_are_named_before_training(tmp_path):
    data = data_of(clear_folder(write_pairs(tmp_path), size=20), clear=[Path("clear")], synthetic_share=0.5)
    with pytest.raises(DataError, match=r"clear/\d\.png is 20 x 20, patches of 24 px .* need 24"):
        StageSamples(data, stage(patch_px=24), seed=0)
    unused = data_of(tmp_path, clear=[Path("clear")])
    assert StageSamples(unused, stage(patch_px=24), seed=0)[0]["clear"].shape == (3, 24, 24)


def test_each_set_leaves_out_what_its_own_list_names(tmp_path):
    write_pairs(tmp_path)
    (tmp_path / "exclude.txt").write_text("5\n")
    config = DataConfig(base=tmp_path, pairs=[{"root": "set", "exclude": "exclude.txt"}], hold_out=0)
    data = TrainingData(config, band_names=["red", "green", "blue"], seed=0)
    assert [pair.name for pair in data.pairs] == ["0", "1", "2", "3", "4", "6", "7"]


@pytest.mark.parametrize("excluded", ["", "5\nlonely\n"])
def test_a_test_image_without_a_twin_opens_no_way_to_the_others(excluded, tmp_path):
    write_pairs(tmp_path)
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "test" / kind).mkdir(parents=True)
        for path in (tmp_path / "set" / "train" / kind).iterdir():
            Image.eval(Image.open(path), lambda value: 255 - value).save(
                tmp_path / "set" / "test" / kind / path.name
            )
    one = tmp_path / "set" / "test" / "label" / "0.png"
    shutil.copy(one, one.with_name("without.png"))
    if excluded:
        shutil.copy(one, tmp_path / "set" / "train" / "label" / "lonely.png")
    (tmp_path / "exclude.txt").write_text(excluded)
    clear = [Path("set/train/label"), Path("set/test/label")]
    data = data_of(tmp_path, clear=clear, exclude=Path("exclude.txt"), hold_out=0)
    assert {*data.cloudless.paths} == {pair.clear_path for pair in data.pairs}
    assert all(path.parent.parent.name == "train" for path in data.cloudless.paths)
