"""Scenes with a cloud mask: only cloud is touched, clear windows cost nothing, and what was made up is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine

from conftest import FakePipeline, names_in, read_tif, write_tif
from declouder.errors import OptionError, OutputError, RasterError
from declouder.masks import MaskChoice
from declouder.mosaic import Window
from declouder.raster import RasterReader, reduced
from declouder.scaling import Scaling
from declouder.scene import SceneOptions, remove_from_scene
from declouder.scene.inference import Part, WindowModel, layers_of, unpacked

SMALL = SceneOptions(window_px=64, overlap_px=16)


def draws(cloudy: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Stand for a generative model: the image and some of the noise."""
    return (cloudy * 0.5 + 0.1 + 0.02 * latents).clamp(0, 1)


class Fused(FakePipeline):
    """Gives the share of the reference too, as the real pipeline does: 0.7 in the mean over bands."""

    def __call__(self, cloudy, *, latents, **_):
        images = super().__call__(cloudy, latents=latents).images
        weights = torch.tensor([0.5, 0.6, 1.0]).view(1, 3, 1, 1).expand_as(images)
        return SimpleNamespace(images=images, weights=weights, reference=cloudy)


@pytest.fixture
def blob(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A mask file with one cloud, and the mask."""
    cloud = np.zeros((200, 300), bool)
    cloud[90:120, 100:140] = True
    return write_tif(tmp_path / "mask.tif", cloud[None].astype(np.uint8)), cloud


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_outside_the_grown_mask_pixels_are_equal_bit_by_bit_and_inside_they_are_restored(
    dtype, blob, darker, tmp_path, rng
):
    path, cloud = blob
    dn = (rng.uniform(0, 1, (3, 200, 300)) * 250).astype(dtype)
    if dtype.startswith("float"):
        dn[:, 100:105, 110:120] = np.nan
    source = write_tif(tmp_path / "a.tif", dn)
    options = replace(SMALL, scale=Scaling(0, 250), mask=MaskChoice(path, feather_px=6))
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    result = read_tif(tmp_path / "b.tif")
    near = np.zeros_like(cloud)
    near[84:126, 94:146] = True
    assert result[:, ~near].tobytes() == dn[:, ~near].tobytes()
    np.testing.assert_allclose(result[:, cloud], dn[:, cloud] / 2, atol=0.01 if dtype.startswith("float") else 2)


def test_under_the_mask_auto_the_rows_of_a_wide_scene_in_strips_are_read_once(darker, tmp_path, rng, monkeypatch):
    dn = rng.integers(0, 120, (3, 100, 700), dtype=np.uint8)
    for col in range(20, 680, 60):
        dn[:, 30:60, col : col + 30] = 250
    source = write_tif(tmp_path / "a.tif", dn, blockysize=1)
    options = replace(SMALL, scale=Scaling(0, 255), mask=MaskChoice("auto"))
    remove_from_scene(source, tmp_path / "plain.tif", darker, options)
    reads: list[tuple[slice, slice]] = []
    reading = RasterReader._reading
    monkeypatch.setattr(reduced, "CACHE_BYTES", 2000)
    monkeypatch.setattr(RasterReader, "_reading", lambda *where: reads.append(where[1:]) or reading(*where))
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    assert (tmp_path / "b.tif").read_bytes() == (tmp_path / "plain.tif").read_bytes()
    assert all((cols.start, cols.stop) == (0, 700) for _, cols in reads)
    # First the scene at a smaller size, last the rows that are written, between them each row of windows.
    rows = [(rows.start, rows.stop) for rows, _ in reads[1:-1]]
    assert len(set(rows)) == len(rows) > 1


def test_windows_without_cloud_cost_no_inference_and_a_scene_without_any_is_copied(blob, darker, tmp_path, rng):
    path, _ = blob
    dn = rng.integers(1, 255, (3, 200, 300), dtype=np.uint8)
    source = write_tif(tmp_path / "a.tif", dn)
    choice = MaskChoice(path, feather_px=2)
    report = remove_from_scene(source, tmp_path / "b.tif", darker, replace(SMALL, mask=choice))
    assert 1 <= len(darker.seen) <= 6 and report.skipped == report.windows - len(darker.seen)
    darker.seen.clear()
    nothing = replace(SMALL, mask=MaskChoice(path, values=(9,)))
    report = remove_from_scene(source, tmp_path / "c.tif", darker, nothing)
    assert not darker.seen and report.skipped == report.windows
    np.testing.assert_array_equal(read_tif(tmp_path / "c.tif"), dn)


def test_a_pixel_under_the_mask_that_holds_no_data_stays(blob, darker, tmp_path):
    path, cloud = blob
    dn = np.full((3, 200, 300), 100, np.uint8)
    dn[:, 95:110, 105:130] = 7
    source = write_tif(tmp_path / "a.tif", dn, nodata=7)
    options = replace(SMALL, mask=MaskChoice(path, feather_px=0), provenance=tmp_path / "made_up.tif")
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    expected = np.where(cloud & (dn != 7), 50, dn)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), expected)
    np.testing.assert_array_equal(read_tif(tmp_path / "made_up.tif")[0] > 0, cloud & (dn[0] != 7))


def test_the_provenance_says_what_was_changed_by_how_much_of_the_reference_and_how_sure(blob, tmp_path):
    path, cloud = blob
    source = write_tif(tmp_path / "a.tif", np.full((3, 200, 300), 2000, np.uint16))
    options = replace(
        SMALL,
        mask=MaskChoice(path, feather_px=0),
        provenance=tmp_path / "made_up.tif",
        samples=24,
        seed=5,
        steps=3,
    )
    remove_from_scene(source, tmp_path / "b.tif", Fused(draws), options)
    with rasterio.open(tmp_path / "made_up.tif") as made_up, rasterio.open(source) as scene:
        assert (made_up.crs, made_up.transform, made_up.shape) == (scene.crs, scene.transform, scene.shape)
        assert made_up.descriptions == ("changed", "w", "spread")
        changed, w, spread = made_up.read()
        assert made_up.tags()["DECLOUDER_SEED"] == "5"
    np.testing.assert_array_equal(changed, cloud)
    np.testing.assert_allclose(w, cloud * 0.7, atol=0.003)
    assert (spread[~cloud] == 0).all()
    # 0.02 of the scale of a flat scene, which is as wide as its value.
    assert spread[cloud].mean() == pytest.approx(0.02 * 2000, rel=0.1)


def test_more_samples_do_not_change_the_output(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 255, (3, 200, 300), dtype=np.uint8))
    for samples, name in ((1, "b"), (3, "c")):
        said = tmp_path / f"said_{name}.tif"
        options = replace(SMALL, provenance=said, samples=samples)
        remove_from_scene(source, tmp_path / f"{name}.tif", Fused(draws), options)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), read_tif(tmp_path / "c.tif"))
    assert read_tif(tmp_path / "said_b.tif").shape[0] == 2


def test_the_mean_of_the_samples_is_written_where_that_is_asked_for(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 40, 50), 2000, np.float32))
    shares = iter((0.2, 0.5, 0.8, 0.5, 1.0))

    class Varied(FakePipeline):
        def __call__(self, cloudy, *, latents, **others):
            found = super().__call__(cloudy, latents=latents, **others)
            share = next(shares)
            return SimpleNamespace(
                images=found.images * share, weights=found.weights * share, reference=found.reference
            )

    said, options = tmp_path / "said.tif", replace(SMALL, scale=Scaling(0, 4000), average=True)
    pipeline = Varied(lambda cloudy, latents: cloudy)
    remove_from_scene(source, tmp_path / "b.tif", pipeline, replace(options, samples=3, provenance=said))
    np.testing.assert_allclose(read_tif(tmp_path / "b.tif"), 2000 * 0.5, rtol=1e-4)
    _, w, spread = read_tif(said)
    np.testing.assert_allclose(w, 0.5, atol=0.003)
    np.testing.assert_allclose(spread, 2000 * 0.3, rtol=1e-3)
    remove_from_scene(source, tmp_path / "c.tif", pipeline, replace(options, samples=2))  # no provenance
    np.testing.assert_allclose(read_tif(tmp_path / "c.tif"), 2000 * 0.75, rtol=1e-4)
    with rasterio.open(tmp_path / "c.tif") as dataset:
        tags = dataset.tags()
    assert (tags["DECLOUDER_SAMPLES"], tags["DECLOUDER_AVERAGED"]) == ("2", "yes")


@pytest.mark.parametrize("enlarge", [1, 2])
def test_further_samples_lean_on_the_reference_of_the_first(enlarge, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 60, 60), 9, np.uint8))
    pipeline = FakePipeline(lambda cloudy, latents: cloudy)
    options = replace(SMALL, provenance=tmp_path / "said.tif", samples=3, enlarge=enlarge)
    remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
    first, *others = (given["reference"] for given in pipeline.options)
    assert first is None and len(others) == 2
    assert all(given is (pipeline.seen[0] if enlarge == 1 else None) for given in others)


def test_the_outputs_tags_say_how_it_was_made_and_keep_what_was_there(blob, darker, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 200, 300), 9, np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(acquired="2020-01-01")
    options = replace(SMALL, mask=MaskChoice(blob[0]), seed=3, steps=7, least_painted=0.25, enlarge=2)
    remove_from_scene(source, tmp_path / "b.tif", darker, options)
    with rasterio.open(tmp_path / "b.tif") as dataset:
        tags = dataset.tags()
    assert tags["acquired"] == "2020-01-01"
    assert "synthesised" in tags["DECLOUDER_NOTE"] and "under the cloud mask" in tags["DECLOUDER_NOTE"]
    assert (tags["DECLOUDER_SEED"], tags["DECLOUDER_STEPS"], tags["DECLOUDER_BANDS"]) == ("3", "7", "1,2,3")
    assert (tags["DECLOUDER_LEAST_PAINTED"], tags["DECLOUDER_ENLARGE"]) == ("0.25", "2")
    assert tags["DECLOUDER_MODEL"].startswith("sha256:") and tags["DECLOUDER_VERSION"]
    assert (tags["DECLOUDER_SAMPLES"], tags["DECLOUDER_PRECISION"]) == ("1", "float32")
    assert tags["DECLOUDER_AVERAGED"] == "no"
    assert str(tmp_path) not in "".join(tags.values())


def test_the_tags_of_the_last_run_before_are_kept_as_such_and_it_is_said(darker, tmp_path, caplog):
    source = write_tif(tmp_path / "a.tif", np.full((3, 40, 50), 9, np.uint8))
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(acquired="2020-01-01")
    names = ["a.tif", "b.tif", "c.tif", "d.tif"]
    for run in range(3):
        assert ("a.tif was made" in caplog.text, "b.tif was made" in caplog.text) == (False, run == 2)
        said = tmp_path / "said.tif"
        options = replace(SMALL, seed=run, provenance=said, overwrite=True)
        remove_from_scene(tmp_path / names[run], tmp_path / names[run + 1], darker, options)
    for path in (tmp_path / "d.tif", said):
        with rasterio.open(path) as dataset:
            tags = dataset.tags()
        assert (tags["DECLOUDER_SEED"], tags["DECLOUDER_BEFORE_SEED"], tags["acquired"]) == ("2", "1", "2020-01-01")
        assert "synthesised" in tags["DECLOUDER_BEFORE_NOTE"]
        assert not any("BEFORE_BEFORE" in name for name in tags)


def test_the_digest_of_a_model_tells_models_apart_but_not_their_samplers(model_folder):
    from declouder.model_identity import model_digest
    from declouder.pipeline import CloudRemovalPipeline, make_scheduler

    one, other = (CloudRemovalPipeline.from_pretrained(model_folder) for _ in range(2))
    other.scheduler = make_scheduler("dpmsolver++")
    assert model_digest(one) == model_digest(other)
    with torch.no_grad():
        next(other.denoiser.parameters()).flatten()[0] += 1e-3
    assert model_digest(one) != model_digest(other)
    for change in ({"strength": 0.5}, {"w_bounds": [0.1, 0.5]}, {"bands": ["a", "b", "c"]}):
        other = CloudRemovalPipeline.from_pretrained(model_folder)
        other.register_to_config(**change)
        assert model_digest(one) != model_digest(other), change


def test_a_provenance_that_exists_or_is_the_input_is_refused_before_any_work(blob, darker, tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 20, 20), 9, np.uint8))
    (tmp_path / "there.tif").touch()
    for name, words in (("there.tif", "exists already"), ("a.tif", "is the input"), ("b.tif", "is the output")):
        with pytest.raises(OutputError, match=words):
            remove_from_scene(
                source, tmp_path / "b.tif", darker, replace(SMALL, provenance=tmp_path / name, overwrite=False)
            )
    assert not darker.seen and names_in(tmp_path) == ["a.tif", "mask.tif", "there.tif"]


@pytest.mark.parametrize(("field", "value"), [("samples", 0), ("samples", 2), ("max_pixels", 0)])
def test_options_outside_their_meaning_are_refused(field, value):
    with pytest.raises(OptionError, match=field.replace("_", "-")):
        SceneOptions(**{field: value})


def test_memory_that_is_too_small_halves_the_batch_says_so_and_gives_the_same_image(tmp_path, rng, caplog):
    source = write_tif(tmp_path / "a.tif", rng.integers(0, 255, (3, 200, 300), dtype=np.uint8))
    sizes = []

    def small_memory(cloudy, latents):
        sizes.append(len(cloudy))
        if len(cloudy) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draws(cloudy, latents)

    remove_from_scene(source, tmp_path / "b.tif", FakePipeline(small_memory), replace(SMALL, batch=8))
    assert sizes[:4] == [8, 4, 2, 2] and max(sizes[2:]) == 2
    assert "8 windows at once are too much" in caplog.text and "now 2" in caplog.text
    remove_from_scene(source, tmp_path / "c.tif", FakePipeline(draws), SMALL)
    np.testing.assert_array_equal(read_tif(tmp_path / "b.tif"), read_tif(tmp_path / "c.tif"))


def test_windows_of_several_sizes_go_through_the_model_in_groups_of_one_size_and_keep_their_order(rng):
    options, sizes = replace(SMALL, batch=8), []

    def small_memory(cloudy, latents):
        sizes.append(len(cloudy))
        if len(cloudy) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cloudy

    layers = layers_of(options, bands=3, dtype="uint8", scale=Scaling(0, 255))
    places = [Window(0, 0, 8, width) for width in (8, 8, 8, 16, 8)]
    parts = [Part(at, rng.uniform(-1, 1, (3, 8, at.width)).astype(np.float32), at) for at in places]
    found = WindowModel(FakePipeline(small_memory), options, layers).restore(parts)
    assert sizes == [3, 1, 1, 1, 1, 1], "half of the three that did not fit, not of the eight that might have gone"
    for part, kept in zip(parts, found, strict=True):
        np.testing.assert_allclose(unpacked(kept["image"]), part.x, atol=1e-4)


def test_one_window_that_does_not_fit_into_memory_is_an_error_that_names_the_mend(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 90, 90), 9, np.uint8))

    def no_memory(cloudy, latents):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes")

    with pytest.raises(OptionError, match="--window"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(no_memory), SMALL)
    assert names_in(tmp_path) == ["a.tif"]


def test_the_spread_of_two_draws_is_their_difference_by_the_root_of_two(tmp_path):
    source = write_tif(tmp_path / "a.tif", np.full((3, 40, 50), 2000, np.uint16))
    draws = iter((0.5, 0.7))
    pipeline = FakePipeline(lambda cloudy, latents: torch.full_like(cloudy, next(draws)))
    said = tmp_path / "said.tif"
    options = SceneOptions(scale=Scaling(0, 4000), provenance=said, samples=2)
    remove_from_scene(source, tmp_path / "b.tif", pipeline, options)
    # The standard deviation of a sample: by N - 1.
    np.testing.assert_allclose(read_tif(said)[2], 0.2 * 4000 / np.sqrt(2), rtol=2e-3)


@pytest.mark.parametrize("nodata", [0, None])
def test_a_frame_without_data_changes_no_pixel_under_a_mask(nodata, tmp_path, rng):
    dn = rng.integers(1, 256, (3, 200, 220), dtype=np.uint8)
    cloud = np.zeros((1, 200, 220), np.uint8)
    cloud[:, 3:40, 150:217] = 1
    seen = []

    def noted(cloudy, latents):
        seen.append(cloudy.numpy().copy())
        return cloudy / 2

    results = []
    for pad in (0, 256):  # as far as the grid of windows goes
        place = Affine(10, 0, 5e5 - 10 * pad, 0, -10, 4e6 + 10 * pad)
        around = (0, 0), (pad, pad), (pad, pad)
        source = write_tif(tmp_path / f"{pad}.tif", np.pad(dn, around), transform=place, nodata=nodata)
        mask = MaskChoice(write_tif(tmp_path / f"m{pad}.tif", np.pad(cloud, around), transform=place))
        options = SceneOptions(window_px=1024, mask=mask)
        remove_from_scene(source, tmp_path / f"o{pad}.tif", FakePipeline(noted), options)
        results.append(read_tif(tmp_path / f"o{pad}.tif")[:, pad : pad + 200, pad : pad + 220])
    assert [image.shape for image in seen] == [seen[0].shape] * 2
    np.testing.assert_array_equal(*seen)
    np.testing.assert_array_equal(*results)


def test_a_mask_that_is_written_over_while_the_scene_is_restored_is_told(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 256, (3, 90, 90), dtype=np.uint8))
    mask = write_tif(tmp_path / "m.tif", np.ones((1, 90, 90), np.uint8))

    def changes_it(cloudy, latents):
        with rasterio.open(mask, "r+") as dataset:
            dataset.write(np.zeros((1, 90, 90), np.uint8))
        return cloudy

    with pytest.raises(RasterError, match=r"m\.tif was changed while it was read"):
        remove_from_scene(
            source, tmp_path / "b.tif", FakePipeline(changes_it), replace(SMALL, mask=MaskChoice(mask))
        )
    assert names_in(tmp_path) == ["a.tif", "m.tif"]


def test_no_provenance_appears_where_the_output_cannot(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 256, (3, 90, 90), dtype=np.uint8))
    output = tmp_path / "b.tif"

    def another_comes(cloudy, latents):
        output.write_bytes(b"of another")
        return cloudy / 2

    with pytest.raises(OutputError, match=r"b\.tif exists already"):
        remove_from_scene(
            source, output, FakePipeline(another_comes), replace(SMALL, provenance=tmp_path / "said.tif")
        )
    assert names_in(tmp_path) == ["a.tif", "b.tif"] and output.read_bytes() == b"of another"


def test_a_mask_named_as_the_outputs_side_file_is_refused_and_stays(tmp_path, rng):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 256, (3, 90, 90), dtype=np.uint8))
    mask = write_tif(tmp_path / "b.tif.msk", np.ones((1, 90, 90), np.uint8))
    with pytest.raises(OutputError, match=r"b\.tif\.msk is named as a side file of .*b\.tif"):
        remove_from_scene(source, tmp_path / "b.tif", FakePipeline(draws), replace(SMALL, mask=MaskChoice(mask)))
    assert names_in(tmp_path) == ["a.tif", "b.tif.msk"]


def test_where_the_areas_that_are_written_meet_windows_that_were_passed_by_leave_their_share(darker, tmp_path, rng):
    dn = rng.integers(1, 255, (20, 40, 700), dtype=np.uint8)  # so many bands that an area is one block wide
    source = write_tif(tmp_path / "a.tif", dn)
    cloud = np.zeros((1, 40, 700), np.uint8)
    for column in range(240, 540, 23):
        cloud[:, 10:30, column : column + 3] = 1
    options = replace(
        SMALL, bands=(1, 2, 3), window_px=32, mask=MaskChoice(write_tif(tmp_path / "m.tif", cloud), feather_px=0)
    )
    report = remove_from_scene(source, tmp_path / "b.tif", darker, options)
    assert 0 < report.skipped < report.windows
    result, hit = read_tif(tmp_path / "b.tif"), cloud[0] > 0
    np.testing.assert_allclose(result[:3, hit], dn[:3, hit] / 2, atol=1)
    np.testing.assert_array_equal(result[:, ~hit], dn[:, ~hit])
    np.testing.assert_array_equal(result[3:], dn[3:])


def test_w_is_one_to_the_bit_where_the_reference_is_all(tmp_path, rng, darker):
    source = write_tif(tmp_path / "a.tif", rng.integers(1, 256, (3, 150, 170), dtype=np.uint8))
    remove_from_scene(source, tmp_path / "b.tif", darker, replace(SMALL, provenance=tmp_path / "said.tif"))
    assert (read_tif(tmp_path / "said.tif")[1] == 1).all()
