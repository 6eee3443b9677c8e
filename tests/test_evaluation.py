"""Scoring a method on a folder: what the file holds, that it repeats, and that a broken run goes on."""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from PIL import Image

from conftest import write_masks, write_tif
from declouder import metrics
from declouder.cli import main
from declouder.data.clouds import simulate_clouds
from declouder.data.pairs import Pair
from declouder.data.resize import resize_stored
from declouder.errors import DataError, ModelError, OptionError, OutputError
from declouder.evaluation import (
    GROUPS,
    SCORES,
    CloudyMethod,
    ModelMethod,
    OutputsMethod,
    Restored,
    Selection,
    bootstrap_interval,
    ends_of,
    evaluate,
    read_scores,
    to_markdown,
)
from declouder.evaluation.doubts import doubts_of
from declouder.kept import read_kept
from declouder.model_identity import model_digest, weights_stay
from declouder.mosaic import Window
from declouder.networks import CompactNet, Denoiser, WeightNet
from declouder.noise import scene_noise
from declouder.pipeline import CloudRemovalPipeline, make_scheduler
from declouder.scaling import Scaling

NAMES = ("3", "12", "101")


@pytest.fixture(autouse=True)
def no_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(metrics.BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pairs of 40 x 48 px in the layout of RICE."""
    root = tmp_path / "FAKE"
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        (root / "test" / kind).mkdir(parents=True)
    for name in NAMES:
        clear = rng.uniform(0.1, 0.5, (3, 40, 48)).astype(np.float32)
        cloudy = simulate_clouds(clear, rng, kind="broken", cover=0.4, strength=3).cloudy
        for kind, image in (("cloud", cloudy), ("label", clear)):
            pixels = (image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(root / "test" / kind / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def pipeline() -> CloudRemovalPipeline:
    torch.manual_seed(0)
    narrow: dict[str, Any] = {
        "widths": (8, 8),
        "attention_levels": (),
        "layers": 1,
        "norm_groups": 4,
        "heads": 1,
    }
    made = CloudRemovalPipeline(
        reference=CompactNet(widths=(4, 8), blocks=(1, 1)),
        denoiser=Denoiser(**narrow),
        weight_net=WeightNet(**narrow),
        scheduler=make_scheduler("ddim"),
        num_inference_steps=2,
    )
    made.set_progress_bar_config(disable=True)
    return made


@dataclass(frozen=True)
class Counting(CloudyMethod):
    """The cloudy image; counts its calls and fails at one of them."""

    fail_at: int = 100
    calls: list[str] = field(default_factory=list)

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        self.calls.append(pair.name)
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        return Restored(cloudy)


def _stop_at(images: int) -> Callable[..., None]:
    def stop(done: int, total: int, running: Any) -> None:
        if done == images:
            raise KeyboardInterrupt

    return stop


def test_the_file_holds_means_intervals_and_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores" / "cloudy.json"
    seen: list[tuple[int, int]] = []
    running: list[Mapping[str, float | None]] = []

    def note(done: int, total: int, means: Mapping[str, float | None]) -> None:
        seen.append((done, total))
        running.append(means)

    evaluate(data, CloudyMethod(), out=out, on_image=note)
    found = read_scores(out)
    assert [row["name"] for row in found["images"]] == list(NAMES)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for done, means in enumerate(running, 1):
        assert means["lpips"] is None
        assert means["psnr"] == pytest.approx(np.mean([row["psnr"] for row in found["images"][:done]]))
    for name in SCORES:
        if "lpips" in name:
            assert found["mean"][name] is None
            continue
        assert found["mean"][name] == pytest.approx(np.mean([row[name] for row in found["images"]]))
        low, high = found["interval"][name]
        assert low <= found["mean"][name] <= high
    assert "--lpips-backbone" in found["lpips"]["reason"]
    assert set(found["bands"]) == {"red", "green", "blue"}
    assert set(found["definitions"]) >= set(SCORES)
    assert found["versions"]["numpy"] == np.__version__
    assert not out.with_name("cloudy.json.partial").exists()


def test_csv_and_table_stand_beside_the_file(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "cloudy.json"
    result = evaluate(data, CloudyMethod(), out=out)
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(NAMES)
    assert float(rows[0]["psnr"]) == result["images"][0]["psnr"]
    table = out.with_suffix(".md").read_text()
    assert table.startswith(to_markdown([result]))
    assert f"{result['mean']['psnr']:.4f}" in table
    assert "FAKE/test (3)" in table
    assert "| thick |" in table and "| structured label |" in table and "| blue |" in table


def test_a_pipelines_scores_are_those_of_its_saved_outputs(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    method = ModelMethod(pipeline, num_inference_steps=2, seed=5)
    first = evaluate(data, method, out=tmp_path / "model.json")
    again = evaluate(data, method, out=tmp_path / "again.json")
    assert first["images"] == again["images"]
    assert first["method"]["sha256"] == model_digest(pipeline)
    assert (first["method"]["num_inference_steps"], first["method"]["seed"]) == (2, 5)

    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in NAMES:
        # The noise of `remove --seed 5` for a scene of one window.
        noise = torch.from_numpy(scene_noise(5, Window(0, 0, 40, 48), 3)[None].copy())
        with Image.open(data / "test" / "cloud" / f"{name}.png") as image:
            restored = pipeline(image, num_inference_steps=2, latents=noise, output_type="np").images[0]
        Image.fromarray(np.rint(restored * 255).astype(np.uint8)).save(outputs / f"{name}.png")
    scored = evaluate(data, OutputsMethod(outputs), out=tmp_path / "outputs.json")
    assert scored["images"] == first["images"]


def test_images_that_were_hardly_painted_take_no_step(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, everywhere = (
        evaluate(data, ModelMethod(pipeline, num_inference_steps=steps), out=tmp_path / f"{steps}.json")
        for steps in (0, 2)
    )
    shares = iter([0.0, *[1.0] * (len(NAMES) - 1)])  # of the first image nothing, of the others all
    monkeypatch.setattr("declouder.pipeline.painted_share", lambda *_: torch.tensor([next(shares)]))
    method = ModelMethod(pipeline, num_inference_steps=2, least_painted=0.5)
    found = evaluate(data, method, out=tmp_path / "fast.json")
    assert found["method"]["least_painted"] == 0.5
    expected = [reference["images"][0], *everywhere["images"][1:]]
    assert [image["psnr"] for image in found["images"]] == [image["psnr"] for image in expected]


def test_blocks_in_which_weights_stay_may_lie_within_each_other(pipeline: CloudRemovalPipeline) -> None:
    with weights_stay(pipeline):
        with weights_stay(pipeline):
            before = model_digest(pipeline)
        pipeline.reference.register_to_config(filling=9)
        assert model_digest(pipeline) == before  # still within the outer one
    assert model_digest(pipeline) != before


def test_the_models_fingerprint_changes_with_its_weights(pipeline: CloudRemovalPipeline) -> None:
    before = model_digest(pipeline)
    parameter = next(pipeline.reference.parameters())
    saved = parameter.detach().clone()
    with torch.no_grad():
        parameter += 1
        assert model_digest(pipeline) != before
        parameter.copy_(saved)
    assert model_digest(pipeline) == before
    pipeline.reference.register_to_config(filling=7)  # changes what it does, and no tensor
    assert model_digest(pipeline) != before


def test_the_datas_fingerprint_changes_with_a_pixel_and_not_with_the_folder(data: Path, tmp_path: Path) -> None:
    first = evaluate(data, CloudyMethod(), out=tmp_path / "1.json")["data"]["sha256"]
    moved = data.rename(tmp_path / "MOVED")
    assert evaluate(moved, CloudyMethod(), out=tmp_path / "2.json")["data"]["sha256"] == first
    path = moved / "test" / "label" / "12.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    assert evaluate(moved, CloudyMethod(), out=tmp_path / "3.json")["data"]["sha256"] != first


@pytest.mark.parametrize("torn", ["", '{"name": "101", "psn'])
def test_an_interrupted_run_goes_on_with_the_images_that_are_left(
    data: Path, tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "cloudy.json"
    whole = evaluate(data, CloudyMethod(), out=tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=3), out=out)
    assert f"2 of 3 images are scored, in {out}.partial" in caplog.text
    assert not out.exists()
    with (tmp_path / "cloudy.json.partial").open("a") as journal:
        journal.write(torn)
    rest = Counting()
    assert evaluate(data, rest, out=out)["images"] == whole["images"]
    assert rest.calls == ["101"]


def test_a_run_that_goes_on_warns_of_the_same_as_one_that_was_never_stopped(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("cloud", "label"):  # all but the last are bright, so the range is used
        path = data / "test" / kind / "101.png"
        Image.fromarray(np.asarray(Image.open(path)) // 8).save(path)
    framed = data / "test" / "cloud" / "3.png"
    pixels = np.maximum(np.asarray(Image.open(framed)), 9)
    pixels[:6] = pixels[-6:] = 0
    Image.fromarray(pixels).save(framed)

    def warnings() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [line for line in found if "goes on" not in line]

    whole = evaluate(data, CloudyMethod(), out=tmp_path / "whole.json")
    expected = warnings()
    assert len(expected) == 1 and "1 images, the first is 3, have a frame of 0" in expected[0]
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=3), out=tmp_path / "cloudy.json")
    warnings()
    assert evaluate(data, Counting(), out=tmp_path / "cloudy.json")["images"] == whole["images"]
    assert warnings() == expected
    assert "doubts" not in whole["images"][0]


def test_a_run_with_other_settings_does_not_go_on_from_a_partial_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=2), out=tmp_path / "a.json")
    with pytest.raises(OutputError, match=r"a\.json\.partial"):
        evaluate(data, Counting(name="another"), out=tmp_path / "a.json")
    with pytest.raises(OutputError, match=r"settings \(method\); give --overwrite"):
        evaluate(data, Counting(name="another"), out=tmp_path / "a.json")
    found = evaluate(data, Counting(name="another"), out=tmp_path / "a.json", overwrite=True)
    assert found["method"]["name"] == "another" and not (tmp_path / "a.json.partial").exists()


@pytest.mark.parametrize("replaced", ["label", "output"])
def test_a_run_begins_anew_where_nothing_but_images_has_changed(
    replaced: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when one could not be read, and was replaced."""
    made = shutil.copytree(data / "test" / "cloud", tmp_path / "made")
    last = Selection(data).pairs()[-1]
    damaged = last.clear_path if replaced == "label" else made / last.cloudy_path.name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:60])
    with pytest.raises(DataError, match=rf"{damaged.name} cannot be read"):
        evaluate(data, OutputsMethod(made, name="made"), out=tmp_path / "a.json")
    assert (tmp_path / "a.json.partial").exists()
    damaged.write_bytes(whole)
    found = evaluate(data, OutputsMethod(made, name="made"), out=tmp_path / "a.json")
    assert "begun anew" in caplog.text and found == evaluate(
        data, OutputsMethod(made, name="made"), out=tmp_path / "b.json"
    )


def test_neither_another_noise_schedule_nor_other_band_names_go_on_from_a_partial_run(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    out = tmp_path / "a.json"

    with pytest.raises(KeyboardInterrupt):
        evaluate(data, ModelMethod(pipeline), out=out, band_names=["red", "green", "blue"], on_image=_stop_at(1))
    steeper = CloudRemovalPipeline(**pipeline.components, num_inference_steps=2)
    steeper.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, beta_end=0.005)
    for other, names in ((steeper, ["red", "green", "blue"]), (pipeline, ["x", "y", "z"])):
        with pytest.raises(OutputError, match="is from a run with other data, model or settings"):
            evaluate(data, ModelMethod(other), out=out, band_names=names)
    found = evaluate(data, ModelMethod(pipeline), out=out, band_names=["red", "green", "blue"])
    assert found["method"]["sampler_settings"]["beta_end"] == 0.02


def test_a_stopped_run_does_not_go_on_with_scores_of_other_kinds(
    data: Path, tmp_path: Path, backbone: Path
) -> None:
    settings = {"out": tmp_path / "a.json", "lpips_backbone": backbone}
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, CloudyMethod(), **settings, on_image=_stop_at(1))  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"settings \(lpips\)"):
        evaluate(data, CloudyMethod(), **settings, band_lpips=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["no json\n", '{"half": 1}\n[3]\n', "\xff\xfe\n"])
def test_a_damaged_journal_is_named(data: Path, tmp_path: Path, damage: str) -> None:
    (tmp_path / "a.json.partial").write_bytes(damage.encode("latin-1"))
    with pytest.raises(OutputError, match=r"a\.json\.partial is damaged .* remove it to begin anew"):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json")


@pytest.mark.parametrize("suffix", [".json", ".csv", ".md"])
def test_no_file_is_replaced_unasked(data: Path, tmp_path: Path, suffix: str) -> None:
    mine = tmp_path / f"a{suffix}"
    mine.write_text("mine")
    with pytest.raises(OutputError, match=rf"a\{suffix} exists; give --overwrite"):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    assert mine.read_text() == "mine" and list(tmp_path.glob("a*")) == [mine]
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", overwrite=True)
    assert mine.read_text() != "mine"


def test_numbers_of_numpy_are_numbers(data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline) -> None:
    method = ModelMethod(pipeline, enlarge=np.int64(2), seed=np.uint8(3))  # type: ignore[arg-type]
    found = evaluate(data, method, out=tmp_path / "a.json")
    assert found["method"]["enlarge"] == 2 and read_scores(tmp_path / "a.json")["method"]["seed"] == 3
    with pytest.raises(OptionError, match=r"samples is 1\.5; give a whole number"):
        ModelMethod(pipeline, samples=1.5)  # type: ignore[arg-type]


def test_two_evaluations_do_not_share_a_folder_of_kept_images(data: Path, tmp_path: Path) -> None:
    keep = tmp_path / "images"
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", keep=keep)
    before = (keep / "3" / "restored.png").read_bytes()
    other = OutputsMethod(data / "test" / "label")
    with pytest.raises(OutputError, match="holds the images of another evaluation"):
        evaluate(data, other, out=tmp_path / "b.json", keep=keep)
    assert (keep / "3" / "restored.png").read_bytes() == before
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", keep=keep, overwrite=True)  # its own
    evaluate(data, other, out=tmp_path / "b.json", keep=keep, overwrite=True)
    assert (keep / "3" / "restored.png").read_bytes() != before
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=1), out=tmp_path / "none.json", keep=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    # Nothing else that lies there is touched, and what is called so is no claim.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "evaluation.txt").write_text("my notes")
    (tmp_path / "mine" / "thesis.tex").touch()
    evaluate(data, other, out=tmp_path / "c.json", keep=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_run_whose_kept_images_another_wrote_over_scores_them_again(data: Path, tmp_path: Path) -> None:
    keep = tmp_path / "images"
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json", keep=keep, on_image=_stop_at(2))
    other = OutputsMethod(data / "test" / "label")
    (tmp_path / "few").mkdir()
    with pytest.raises(DataError):  # one that comes to nothing leaves the images whose they are
        evaluate(data, OutputsMethod(tmp_path / "few"), out=tmp_path / "b.json", keep=keep, overwrite=True)
    evaluate(data, other, out=tmp_path / "b.json", keep=keep, overwrite=True)
    with pytest.raises(KeyboardInterrupt):  # after this one the folder is its own again, but most images are not
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json", keep=keep, overwrite=True, on_image=_stop_at(1))
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", keep=keep, overwrite=True)
    for name in NAMES:
        assert (keep / name / "restored.png").read_bytes() == (keep / name / "cloudy.png").read_bytes()
    assert (keep / "3" / "restored.png").read_bytes() == (keep / "3" / "cloudy.png").read_bytes()


def test_a_range_that_is_hardly_used_is_told(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in NAMES:
        for kind in ("cloud", "label"):
            path = data / "test" / kind / f"{name}.png"
            pixels = np.asarray(Image.open(path))[..., 0].astype(np.uint16) * 16
            Image.fromarray(pixels).save(path)
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    assert "of their data type's range" in caplog.text and "--data-range SPAN" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(), out=tmp_path / "c.json", on_image=_stop_at(3), data_range=4080)
    caplog.clear()
    evaluate(data, Counting(), out=tmp_path / "c.json", data_range=4080)  # all of it out of the journal
    evaluate(data, CloudyMethod(), out=tmp_path / "b.json", data_range=4080)
    assert caplog.text == ""


def test_a_set_is_called_by_its_name_in_the_catalog_where_that_is_given(data: Path, tmp_path: Path) -> None:
    found = evaluate(Selection(data, set_name="RICE1"), CloudyMethod(), out=tmp_path / "a.json")
    assert found["data"]["name"] == "RICE1"
    assert evaluate(data, CloudyMethod(), out=tmp_path / "b.json")["data"]["name"] == "FAKE"


def test_excluded_images_are_left_out(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.txt"
    listed.write_text("# in train too\n12\n")
    found = evaluate(Selection(data, exclude=listed), CloudyMethod(), out=tmp_path / "a.json")
    assert [row["name"] for row in found["images"]] == ["3", "101"]
    listed.write_text("999\n")
    with pytest.raises(DataError, match="999"):
        evaluate(Selection(data, exclude=listed), CloudyMethod(), out=tmp_path / "b.json")


def test_a_perfect_output_has_null_psnr_and_no_error(data: Path, tmp_path: Path) -> None:
    found = evaluate(data, OutputsMethod(data / "test" / "label"), out=tmp_path / "a.json")
    assert found["mean"]["psnr"] is None
    assert found["interval"]["psnr"] is None
    assert found["mean"]["mae"] == 0
    assert found["mean"]["ssim"] == pytest.approx(1)
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)


def test_a_folder_of_masks_overrides_the_pair(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for name in NAMES:
        mask = np.zeros((40, 48), np.uint8)
        mask[:10] = 255
        Image.fromarray(mask).save(folder / f"{name}.png")
    found = evaluate(data, CloudyMethod(), out=tmp_path / "a.json", masks=folder)
    assert [row["cover"] for row in found["images"]] == [0.25] * 3
    assert found["data"]["masks"] is not None
    (folder / "12.png").unlink()
    with pytest.raises(DataError, match="lacks 1 of 3 masks, the first is 12"):
        evaluate(data, CloudyMethod(), out=tmp_path / "b.json", masks=folder)
    Image.fromarray(mask[:20]).save(folder / "12.png")
    with pytest.raises(DataError, match=r"masks/12\.png: the mask is 48 x 20 px, its image 48 x 40"):
        evaluate(data, CloudyMethod(), out=tmp_path / "b.json", masks=folder)


def test_samples_tell_spread_and_its_reliability(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    one = evaluate(data, ModelMethod(pipeline, w_bounds=(0, 0)), out=tmp_path / "1.json")
    three = evaluate(data, ModelMethod(pipeline, w_bounds=(0, 0), samples=3), out=tmp_path / "3.json")
    assert three["mean"] == one["mean"], "the first sample is the one that is scored"
    assert one["spread"] is None
    assert three["spread"]["mean"] > 0
    assert sum(row["pixels"] for row in three["spread"]["reliability"]) == 3 * 40 * 48
    assert -1 <= three["spread"]["correlation"] <= 1
    mean = ModelMethod(pipeline, w_bounds=(0, 0), samples=3, average=True)
    assert evaluate(data, mean, out=tmp_path / "mean.json")["mean"]["psnr"] != one["mean"]["psnr"]
    alike = evaluate(data, ModelMethod(pipeline, num_inference_steps=0, samples=2), out=tmp_path / "0.json")
    assert alike["spread"]["correlation"] is None, "the reference draws no noise"


def test_the_cloudy_image_changes_no_clear_area_and_the_label_hardly(data: Path, tmp_path: Path) -> None:
    assert evaluate(data, CloudyMethod(), out=tmp_path / "a.json")["changed"]["mean"] == 0
    changed = evaluate(data, OutputsMethod(data / "test" / "label"), out=tmp_path / "b.json")["changed"]
    assert 0 < changed["mean"] < 0.03


def test_kept_images_are_those_of_the_run_and_move_with_the_scores(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    method = ModelMethod(pipeline, samples=2)
    found = evaluate(data, method, out=tmp_path / "s" / "a.json", keep=tmp_path / "s" / "images")
    assert found["kept"]["folder"] == "images"
    kinds = ["cloudy", "reference", "restored", "clear", "error", "w", "spread"]
    assert found["images"][0]["kept"] == kinds
    for kind in kinds:
        assert read_kept(tmp_path / "s" / "images", "12", kind).shape[:2] == (40, 48)
    clear = np.asarray(Image.open(data / "test" / "label" / "12.png"))
    assert (read_kept(tmp_path / "s" / "images", "12", "clear") == clear).all()
    with pytest.raises(DataError, match="cannot be read"):
        read_kept(tmp_path / "s" / "images", "13", "clear")


def test_a_limit_spreads_over_the_images_and_is_written_down(data: Path, tmp_path: Path) -> None:
    found = evaluate(Selection(data, limit=2), CloudyMethod(), out=tmp_path / "a.json")
    assert [row["name"] for row in found["images"]] == ["3", "101"]
    assert (found["data"]["images"], found["data"]["limit"]) == (2, 2)
    with pytest.raises(OptionError, match="limit of 0"):
        Selection(data, limit=0).pairs()


def test_numbers_of_numpy_are_written_as_others_and_words_are_refused(data, pipeline, tmp_path):
    chosen = Selection(data, limit=np.int64(1), size_px=np.int32(32))
    method = ModelMethod(
        pipeline, strength=np.float32(0.5), consistency=np.float64(0), least_painted=np.float32(0.5)
    )
    assert ModelMethod(pipeline, samples=2, average=np.True_).average is True
    assert ends_of(np.array([0, 255])) == ends_of([0, 255]) == ends_of(np.array(255.0)) == (0.0, 255.0)
    found = evaluate(chosen, method, out=tmp_path / "a.json", data_range=np.float32(255))
    assert json.loads((tmp_path / "a.json").read_text())["method"] == found["method"]
    assert found["method"]["strength"] == found["method"]["least_painted"] == 0.5
    with pytest.raises(OptionError, match="size is 'large'; give a whole number"):
        Selection(data, size_px="large")
    with pytest.raises(OptionError, match="strength is 'strong'; give a number"):
        ModelMethod(pipeline, strength="strong")


def test_a_size_resizes_images_and_masks_before_anything_is_scored(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    (tmp_path / "masks").mkdir()
    for name in NAMES:
        half = np.zeros((40, 48), np.uint8)
        half[:, :24] = 255
        Image.fromarray(half).save(tmp_path / "masks" / f"{name}.png")
    small = tmp_path / "small"
    for path in data.rglob("*.png"):
        target = small / path.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(resize_stored(np.asarray(Image.open(path)), 32)).save(target)
    sized = evaluate(
        Selection(data, size_px=32), ModelMethod(pipeline), out=tmp_path / "sized.json", masks=tmp_path / "masks"
    )
    by_hand = evaluate(small, ModelMethod(pipeline), out=tmp_path / "small.json")
    assert sized["mean"] == by_hand["mean"]
    assert sized["data"]["size_px"] == 32
    assert [row["cover"] for row in sized["images"]] == [0.5] * 3
    with pytest.raises(OptionError, match="size of 0 px"):
        Selection(data, size_px=0).pairs()


def test_the_near_infrared_of_its_own_tree_is_scored_as_a_fourth_band(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for tree, bands in (("", 3), ("nir/", 3)):
        for kind in ("cloud", "label"):
            folder = tmp_path / "C-CUHK" / f"{tree}CUHK-CR1" / "test" / kind
            folder.mkdir(parents=True)
            for name in ("1", "2"):
                Image.fromarray(rng.integers(0, 255, (40, 40, bands), dtype=np.uint8)).save(folder / f"{name}.png")
    chosen = Selection(tmp_path / "C-CUHK", set_name="CUHK-CR1", bands="rgbn", size_px=32)
    found = evaluate(chosen, CloudyMethod(), out=tmp_path / "rgbn.json")
    assert list(found["bands"]) == ["red", "green", "blue", "nir"]
    cloudy, clear = chosen.read(chosen.pairs()[0])
    assert cloudy.shape == (32, 32, 4)
    row = found["images"][0]
    assert row["bands"]["nir"]["psnr"] == metrics.psnr(cloudy[..., 3:], clear[..., 3:])
    assert row["psnr"] == metrics.psnr(cloudy, clear)


def test_a_model_of_three_bands_names_what_four_bands_need(data: Path, pipeline: CloudRemovalPipeline) -> None:
    pair = Selection(data).pairs()[0]
    with pytest.raises(DataError, match="has 4 bands, this model wants 3"):
        ModelMethod(pipeline).restore(pair, np.zeros((8, 8, 4), np.uint8), Scaling.of_dtype(np.dtype(np.uint8)))


def test_without_steps_there_is_neither_reference_nor_w_beside_the_image(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    method = ModelMethod(pipeline, num_inference_steps=0)
    found = evaluate(data, method, out=tmp_path / "0.json", keep=tmp_path / "kept")
    assert found["images"][0]["kept"] == ["cloudy", "restored", "clear", "error"]


def _break(data: Path, kind: str, image: NDArray[Any]) -> None:
    Image.fromarray(image).save(data / "test" / kind / "12.png")


def test_input_that_does_not_fit_is_an_error(data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline) -> None:
    def run(method: Any = None, out: str = "a.json", band_names: Sequence[str] | None = None) -> None:
        evaluate(data, method or CloudyMethod(), out=tmp_path / out, band_names=band_names, overwrite=True)

    with pytest.raises(OptionError, match=r"\.json"):
        run(out="a.csv")
    with pytest.raises(OptionError, match="2 band names"):
        run(band_names=("red", "green"))
    with pytest.raises(OptionError, match="band names are red, red, blue; give each once"):
        run(band_names=("red", "red", "blue"))
    empty = tmp_path / "few"
    empty.mkdir()
    Image.new("RGB", (48, 40)).save(empty / "3.png")
    with pytest.raises(DataError, match="lacks 2 of 3 outputs"):
        run(OutputsMethod(empty))
    for name in NAMES:
        Image.new("RGB", (20, 20)).save(empty / f"{name}.png")
    with pytest.raises(DataError, match="same size"):
        run(OutputsMethod(empty), out="b.json")
    Image.new("RGB", (20, 20)).save(empty / "3.bmp")
    with pytest.raises(DataError, match="have one name"):
        run(OutputsMethod(empty), out="b.json")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        run(out="file/a.json")
    _break(data, "cloud", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match="its label"):
        run(out="c.json")
    for kind in ("cloud", "label"):
        _break(data, kind, np.zeros((40, 48, 4), np.uint8))
    with pytest.raises(DataError, match="has an alpha channel, which is no band"):
        run(out="d.json")
    for kind in ("cloud", "label"):
        _break(data, kind, np.zeros((40, 48), np.uint8))
    with pytest.raises(DataError, match="1 bands, this model wants 3"):
        run(ModelMethod(pipeline), out="g.json")
    with pytest.raises(DataError, match=r"12\.png has 1 bands, the images before it 3"):
        run(out="e.json")
    with pytest.raises(OptionError, match="--data-range is 0; give the span"):
        evaluate(data, CloudyMethod(), out=tmp_path / "f.json", data_range=0)


def test_a_run_that_scored_nothing_stands_in_no_ones_way(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=1), out=tmp_path / "a.json")
    found = evaluate(Selection(data, limit=2), CloudyMethod(), out=tmp_path / "a.json")
    assert len(found["images"]) == 2


def test_two_runs_on_one_file_of_scores_are_kept_apart(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"

    class Other(CloudyMethod):
        """Before its first image is done another run wants the same file."""

        def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
            if pair.name == NAMES[0]:
                for overwrite in (False, True):
                    with pytest.raises(OutputError, match=r"another run is scoring to .*a\.json at this moment"):
                        evaluate(Selection(data, limit=2), CloudyMethod(), out=out, overwrite=overwrite)
            return super().restore(pair, cloudy, scaling)

    assert len(evaluate(data, Other(), out=out)["images"]) == 3
    assert not list(tmp_path.glob(".*"))


def test_scores_that_another_run_has_finished_meanwhile_stay(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.json"

    def slow(*arguments: Any, real: Any = metrics.load_lpips, **options: Any) -> Any:
        if not out.exists():  # while the weights are read another run begins, and ends
            out.write_text("scores")
        return real(*arguments, **options)

    monkeypatch.setattr(metrics, "load_lpips", slow)
    with pytest.raises(OutputError, match=r"a\.json exists"):
        evaluate(data, CloudyMethod(), out=out)
    assert out.read_text() == "scores"


@pytest.mark.parametrize("names", [["blue", "green", "red"], ["nir", "red", "green"], ["B02", "B03", "B04"]])
def test_a_model_is_not_scored_on_bands_that_are_said_to_be_others(
    names: list[str], data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    with pytest.raises(OptionError, match="the model takes bands for red,green,blue; give images in its order"):
        evaluate(data, ModelMethod(pipeline, 0), out=tmp_path / "a.json", band_names=names)
    assert not (tmp_path / "a.json.partial").exists()


def test_floats_beyond_0_and_1_want_a_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        (tmp_path / "set" / "test" / kind).mkdir(parents=True)
        reflectance = rng.uniform(0, 9000, (3, 40, 48)).astype(np.float32)
        write_tif(tmp_path / "set" / "test" / kind / "1.tif", reflectance)
    with pytest.raises(DataError, match="floats are taken as 0 to 1; give --data-range SPAN"):
        evaluate(tmp_path / "set", CloudyMethod(), out=tmp_path / "a.json")
    found = evaluate(tmp_path / "set", CloudyMethod(), out=tmp_path / "a.json", data_range=10000)
    assert 5 < found["mean"]["psnr"] < 12


def test_a_split_list_says_what_is_test_whatever_the_folders_are(data: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("train/3\ntrain/12\ntest/101\n")
    selection = Selection(data, split_list=tmp_path / "list.txt")
    found = evaluate(selection, CloudyMethod(), out=tmp_path / "a.json")
    assert [image["name"] for image in found["images"]] == ["101"]
    assert found["data"]["split_list"]["name"] == "list.txt"


def test_the_masks_that_any_set_brings_are_used(data: Path, tmp_path: Path) -> None:
    masks = data / "test" / "mask"
    masks.mkdir()
    for name in NAMES:
        mask = np.zeros((40, 48), np.uint8)
        mask[:10] = 255
        Image.fromarray(mask).save(masks / f"{name}.png")
    found = evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    assert found["data"]["masks"] is not None
    assert [image["cover"] for image in found["images"]] == [0.25] * 3


def test_an_existing_result_is_kept_unless_told_otherwise(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    evaluate(data, CloudyMethod(), out=out)
    with pytest.raises(OutputError, match="--overwrite"):
        evaluate(data, CloudyMethod(), out=out)
    evaluate(data, CloudyMethod(), out=out, overwrite=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "no file of scores"),
        ("[]", "no file of scores"),
        ('{"format": "declouder scores", "version": 99}', "version 99"),
    ],
)
def test_a_file_that_is_none_of_ours_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_scores(path)
    with pytest.raises(DataError, match="does not exist"):
        read_scores(tmp_path / "none.json")
    with pytest.raises(
        DataError, match=rf"is a folder; give the files of scores in it, such as {tmp_path}/\*\.json"
    ):
        read_scores(tmp_path)


def _deep(folder: Path, *, low: int) -> Path:
    """Write pairs of 12 bits above `low`, in 16."""
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        (folder / "test" / kind).mkdir(parents=True)
        for name in ("1", "2"):
            dn = (low + rng.integers(0, 4096, (3, 40, 40))).astype(np.uint16)
            write_tif(folder / "test" / kind / f"{name}.tif", dn)
    return folder


def test_a_range_that_does_not_begin_at_zero_counts_from_there(tmp_path, pipeline, backbone):
    at_zero = evaluate(
        _deep(tmp_path / "a", low=0), ModelMethod(pipeline), out=tmp_path / "a.json", data_range=4095,
        lpips_backbone=backbone, keep=tmp_path / "kept_a",
    )  # fmt: skip
    above = evaluate(
        _deep(tmp_path / "b", low=7000), ModelMethod(pipeline), out=tmp_path / "b.json", data_range=(7000, 11095),
        lpips_backbone=backbone, keep=tmp_path / "kept_b",
    )  # fmt: skip
    assert above["data"]["data_range"] == [7000, 11095] and at_zero["data"]["data_range"] == 4095
    for name in ("psnr", "ssim", "lpips", "mae", "sam", "paper_psnr", "paper_ssim", "paper_lpips"):
        assert above["mean"][name] == pytest.approx(at_zero["mean"][name], rel=1e-4), name
    images = sorted((tmp_path / "kept_a").rglob("*.png"))
    assert images
    for kept in images:
        twin = tmp_path / "kept_b" / kept.relative_to(tmp_path / "kept_a")
        difference = np.asarray(Image.open(kept), int) - np.asarray(Image.open(twin), int)
        assert abs(difference).max() <= 1, kept.name


@pytest.mark.parametrize("given", ["9,5", "5,5", "a", "1,2,3", "0"])
def test_a_range_that_is_none_is_refused(given, data, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(data), "--cloudy", "-o", str(tmp_path / "a.json"), "--data-range", given])
    assert caught.value.code == 2 and capfd.readouterr().err.startswith("error: --data-range is ")


def test_a_model_that_learnt_another_range_says_so(data, tmp_path, model_folder, caplog):
    shutil.copytree(model_folder, tmp_path / "model")
    record = {"recipe": {"data": {"range": [7000, 9600]}}}
    (tmp_path / "model" / "training.json").write_text(json.dumps(record))
    words = ["evaluate", str(data), "--model", str(tmp_path / "model"), "--steps", "0", "-q", "-o"]
    ranges = (([], True), (["--data-range", "7000,9600"], False), (["--data-range", "0,9600"], True))
    for number, (options, told) in enumerate(ranges):
        caplog.clear()
        with contextlib.suppress(SystemExit):
            main([*words, str(tmp_path / f"{number}.json"), *options])
        assert ("learnt numbers from 7000 to 9600 (data.range); give --data-range 7000,9600" in caplog.text) == told


def test_bands_that_a_file_names_in_another_order_are_no_colours_to_score(tmp_path):
    folder = _deep(tmp_path / "a", low=0)
    with rasterio.open(folder / "test" / "label" / "2.tif", "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red")
    with pytest.raises(DataError, match=r"label/2\.tif says that its bands are blue, green, red"):
        evaluate(folder, CloudyMethod(), out=tmp_path / "a.json", data_range=4095)


def test_a_model_of_another_order_is_not_scored_on_images_that_hold_red_green_and_blue(data, tmp_path):
    for number, names in enumerate((("blue", "green", "red"), ("b", "G", "r"), ("B02", "B03", "B04"))):
        told = f"cloud/.* has its bands in the order red, green, blue, wanted are {', '.join(names)}"
        with pytest.raises(DataError, match=told):
            evaluate(data, CloudyMethod(), out=tmp_path / f"{number}.json", band_names=names)
    evaluate(data, CloudyMethod(), out=tmp_path / "right.json", band_names=("B04", "B03", "B02"))


@pytest.mark.parametrize("change", [lambda x: x / 255, lambda x: x.astype(np.uint16) * 257, lambda x: x[1:]])
@pytest.mark.parametrize("what", ["image", "reference"])
def test_a_method_that_gives_images_of_another_size_or_type_is_refused(change, what, data, tmp_path):
    class Mine(CloudyMethod):
        def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
            return replace(Restored(cloudy, cloudy), **{what: change(cloudy)})

    with pytest.raises(
        DataError, match=f"Mine gave for .*3.png a restored {what} of .* the cloudy one has 48 x 40"
    ):
        evaluate(data, Mine(), out=tmp_path / "a.json")


def test_one_mask_of_several_levels_says_for_all_of_a_set_what_is_thick(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    masks = {name: np.zeros((40, 48), np.uint8) for name in NAMES}
    masks["3"][:20], masks["12"][:20], masks["101"][:20] = 255, 128, 255
    for name, thick in (("several", {"3": 0.5, "12": 0.0, "101": 0.25}), ("one", {})):
        if name == "several":
            masks["101"][:10] = 128
        else:
            masks["101"][:10] = 255
        for key, mask in masks.items():
            Image.fromarray(mask).save(folder / f"{key}.png")
        found = evaluate(data, CloudyMethod(), out=tmp_path / f"{name}.json", masks=folder)
        covers = {row["name"]: row["thick_cover"] for row in found["images"]}
        assert covers == thick if thick else covers != {"3": 0.5, "12": 0.0, "101": 0.25}


def test_bands_in_another_order_are_refused_however_a_file_says_so(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    def pairs(root: Path, *, names: tuple[str, ...] = (), colors: tuple[str, ...] = ()) -> Path:
        for kind in ("cloud", "label", "out"):
            folder = root / "test" / kind if kind != "out" else root / "out"
            folder.mkdir(parents=True, exist_ok=True)
            is_said = kind != "out" or root.name == "outputs"
            path = write_tif(folder / "1.tif", rng.integers(1, 255, (3, 20, 20), dtype=np.uint8))
            with rasterio.open(path, "r+") as dataset:
                if names and (is_said if root.name != "outputs" else kind == "out"):
                    dataset.descriptions = names
                if colors:
                    dataset.colorinterp = [rasterio.enums.ColorInterp[color] for color in colors]
        return root

    wanted = "wanted are red, green, blue; put them in that order: gdal_translate -b 3 -b 2 -b 1 IN"
    mend = r"OUT\.tif \(to score another method, --band-names blue,green,red does\)"
    for root in (
        pairs(tmp_path / "numbers", names=("B02", "B03", "B04")),
        pairs(tmp_path / "colors", colors=("blue", "green", "red")),
    ):
        with pytest.raises(DataError, match=rf"cloud/1\.tif says that its bands are .*, {wanted} {mend}"):
            evaluate(root, CloudyMethod(), out=tmp_path / f"{root.name}.json")
    outputs = pairs(tmp_path / "outputs", names=("blue", "green", "red"))
    with pytest.raises(DataError, match=rf"out/1\.tif says that its bands are blue, green, red, {wanted}"):
        evaluate(outputs, OutputsMethod(outputs / "out"), out=tmp_path / "o.json")
    other = pairs(tmp_path / "other", names=("nir", "red", "green"))
    with pytest.raises(DataError, match="wanted are red, green, blue; give images of these bands"):
        evaluate(other, CloudyMethod(), out=tmp_path / "p.json")
    for root in (
        pairs(tmp_path / "right", names=("B04", "B03", "B02")),
        pairs(tmp_path / "unknown", names=("one", "two", "three")),
    ):
        evaluate(root, CloudyMethod(), out=tmp_path / f"{root.name}.json")


@pytest.mark.parametrize("kind", ["palette", "nodata", "transparent"])
def test_masks_are_read_by_their_numbers_and_hold_no_cloud_without_data(
    kind: str, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    half = np.zeros((40, 48), np.uint8)
    half[:, :24] = 1
    for name in NAMES:
        if kind == "palette":
            image = Image.fromarray(half, "P")
            image.putpalette([0, 0, 0, 0, 200, 255])
            image.save(folder / f"{name}.png")
        elif kind == "nodata":
            write_tif(folder / f"{name}.tif", np.where(half, 1, 7).astype(np.uint8)[None], nodata=7)
        else:
            shown = np.stack([np.full_like(half, 255), 255 * half], axis=2)
            Image.fromarray(shown, "LA").save(folder / f"{name}.png")
    found = evaluate(data, CloudyMethod(), out=tmp_path / "a.json", masks=folder)
    assert [row["cover"] for row in found["images"]] == [0.5] * 3


def test_masks_that_can_say_nothing_of_thick_cloud_and_pairs_without_one_are_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    classes = np.zeros((40, 48), np.uint8)
    classes[:20], classes[:10] = 1, 2
    for top, told in ((1, True), (127, False)):
        for name in NAMES:
            Image.fromarray(classes * np.uint8(top)).save(folder / f"{name}.png")
        caplog.clear()
        evaluate(data, CloudyMethod(), out=tmp_path / f"{top}.json", masks=folder)
        assert ("masks go up to 0.0078 of their data type's range, so none" in caplog.text) == told
    shutil.copytree(data, tmp_path / "RICE2")
    (tmp_path / "RICE2" / "test" / "mask").mkdir()
    shutil.copy(folder / f"{NAMES[0]}.png", tmp_path / "RICE2" / "test" / "mask")
    evaluate(tmp_path / "RICE2", CloudyMethod(), out=tmp_path / "partly.json")
    assert f"2 of 3 pairs have no cloud mask in the data set, the first is {NAMES[1]}" in caplog.text


def test_a_disk_that_is_full_a_name_that_is_no_text_and_an_image_too_large_are_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, line: Any) -> int:
            raise OSError(28, "No space left on device")

    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "open", lambda path, mode="r", **how: Full() if mode == "ab" else opened(path, mode, **how)
        )
        with pytest.raises(
            OutputError, match=r"partial cannot be written \(.*No space left.*\); make room, and go on"
        ):
            evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    folder = tmp_path / "set" / "test"
    for kind in ("cloud", "label"):
        (folder / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / kind / os.fsdecode(b"caf\xe9 1.png"))
    with pytest.raises(DataError, match="is no UTF-8; rename"):
        evaluate(tmp_path / "set", CloudyMethod(), out=tmp_path / "b.json")
    large = tmp_path / "large" / "test"
    for kind in ("cloud", "label"):
        (large / kind).mkdir(parents=True)
        with rasterio.open(
            large / kind / "1.tif",
            "w",
            "GTiff",
            90000,
            90000,
            1,
            dtype="uint8",
            tiled=True,
            SPARSE_OK=True,
            blockxsize=4096,
            blockysize=4096,
        ):
            pass
    with pytest.raises(DataError, match=r"claims 90000 x 90000 px"):
        evaluate(tmp_path / "large", CloudyMethod(), out=tmp_path / "c.json")


def test_scores_that_lack_a_part_are_refused(data: Path, tmp_path: Path) -> None:
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    whole = json.loads((tmp_path / "a.json").read_text())
    for part in ("definitions", "regions", "groups", "bands", "spread", "interval", "versions"):
        (tmp_path / "b.json").write_text(json.dumps({key: value for key, value in whole.items() if key != part}))
        with pytest.raises(DataError, match=rf"b\.json lacks {part}; evaluate again"):
            read_scores(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("images", 0, "psnr"), math.nan, r"images\.0\.psnr: .*finite"),
        (("changed",), {}, r"changed\.mean: .*required"),
        (("kept",), {}, r"kept\.folder: .*required"),
        (("definitions",), {}, r"definitions\.regions: .*required"),
        (("spread",), {"reliability": [{}]}, r"spread\.correlation: .*required"),
        (("data", "images"), "x", r"data\.images: .*integer"),
        (("data", "data_range"), "x", r"data\.data_range.*: .*"),
        (("mean", "psnr"), math.inf, r"mean\.psnr: .*finite"),
        (("images",), [], r"images: .*at least 1"),
        (("images", 0, "psnr"), "33 dB", r"images\.0\.psnr: .*number"),
        (("images", 1, "bands"), None, r"images\.1\.bands: .*dictionary"),
        (("images",), {}, "images: .*list"),
        (("mean", "ssim"), [], r"mean\.ssim: .*number"),
        (("data",), {"name": "RICE1"}, r"data\.split: .*required"),
        (("interval", "psnr"), [1], r"interval\.psnr: .*2 items"),
        (("images", 0, "cover"), "0.5", r"images\.0\.cover: .*number"),
    ],
)
def test_scores_that_were_edited_are_refused(
    data: Path, tmp_path: Path, place: tuple[str | int, ...], value: object, told: str
) -> None:
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())
    holder = found
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    (tmp_path / "a.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=rf"a\.json is not as .* writes it \({told}.*\); evaluate again"):
        read_scores(tmp_path / "a.json")


def test_a_journal_whose_rows_were_edited_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json", on_image=_stop_at(2))
    journal = tmp_path / "a.json.partial"
    head, first, second = journal.read_text().splitlines()
    row = json.loads(second)
    del row["cover"]
    journal.write_text("\n".join([head, first, json.dumps(row), ""]))
    with pytest.raises(OutputError, match=r"partial is damaged \(line 3, cover: .*required\); remove it"):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: row.replace('"psnr": ', '"psnr": NaN, "was": ', 1),
        lambda row: row.replace('"cover": ', '"cover": 1e999, "was": ', 1),
        lambda row: row.replace('"regions": {', '"regions": {}, "was": {'),
        lambda row: row.replace('"changed": {', '"changed": {}, "was": {'),
        lambda row: row.replace('"doubts": {', '"doubts": {}, "was": {'),
        lambda row: row.replace('"spread": null', '"spread": {"x": 1}'),
        lambda row: row.replace('"bands": {', '"bands": {}, "was": {'),
        lambda row: "[" * 100_000,
        lambda row: row + "\n" + row,
    ],
)
def test_whatever_is_damaged_in_a_journal_is_told_before_anything_is_scored(
    spoil: Callable[[str], str], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json", on_image=_stop_at(2))
    journal = tmp_path / "a.json.partial"
    head, first, second = journal.read_text().splitlines()
    assert spoil(second) != second
    journal.write_text("\n".join([head, first, spoil(second), ""]))
    with pytest.raises(OutputError, match=r"partial is damaged \(.*\); remove it to begin anew") as raised:
        evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    assert "\n" not in str(raised.value)


def test_a_frame_that_holds_no_data_is_told(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json")
    assert "frame" not in caplog.text
    shutil.copytree(data, tmp_path / "framed")
    for kind in ("cloud", "label"):
        path = tmp_path / "framed" / "test" / kind / f"{NAMES[1]}.png"
        image = np.array(Image.open(path))
        image[:, :5] = 0
        Image.fromarray(image).save(path)
    evaluate(tmp_path / "framed", CloudyMethod(), out=tmp_path / "b.json")
    assert f"1 images, the first is {NAMES[1]}, have a frame of 0" in caplog.text


def test_a_range_far_beyond_the_numbers_is_told(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", data_range=[0, 100000])
    assert "of --data-range, so errors look small" in caplog.text
    caplog.clear()
    for top in (300, 2000):  # who gives a range may mean one that clouds alone would fill
        evaluate(data, CloudyMethod(), out=tmp_path / f"{top}.json", data_range=[0, top])
    assert "errors look small" not in caplog.text


@pytest.mark.parametrize("bright", ["cloudy", "clear"])
def test_the_brighter_image_of_a_pair_says_how_much_of_the_range_is_used(bright: str) -> None:
    images = {kind: np.full((8, 8, 3), 200 if kind == bright else 20, np.uint8) for kind in ("cloudy", "clear")}
    noted = doubts_of(**images, mask=None, span=255, data_range=None)
    assert noted["used"] == pytest.approx(200 / 255)


def test_a_mask_of_cloud_and_no_cloud_alone_says_nothing_of_thickness() -> None:
    image, mask = np.full((8, 8, 3), 200, np.uint8), np.zeros((8, 8), np.uint8)
    mask[:4] = 1
    assert doubts_of(image, image, mask, span=255, data_range=None)["thickest"] is None
    mask[:2] = 51
    assert doubts_of(image, image, mask, span=255, data_range=None)["thickest"] == pytest.approx(0.2)


def test_opaque_alpha_is_not_scored_as_near_infrared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        folder = tmp_path / "set" / "test" / kind
        folder.mkdir(parents=True)
        write_tif(folder / "1.tif", rng.integers(1, 200, (4, 40, 48), dtype=np.uint8))
    (tmp_path / "out").mkdir()
    pixels = rng.integers(1, 200, (40, 48, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "out" / "1.png")  # near infrared where others have alpha
    scored = evaluate(tmp_path / "set", OutputsMethod(tmp_path / "out"), out=tmp_path / "a.json")
    assert list(scored["images"][0]["bands"]) == ["red", "green", "blue", "nir"]
    pixels[:, :, 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "out" / "1.png")
    with pytest.raises(DataError, match="alpha channel, which is no band"):
        evaluate(tmp_path / "set", OutputsMethod(tmp_path / "out"), out=tmp_path / "b.json")


def test_band_names_say_where_red_green_and_blue_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        folder = tmp_path / "set" / "test" / kind
        folder.mkdir(parents=True)
        path = write_tif(folder / "1.tif", rng.integers(1, 200, (4, 40, 48), dtype=np.uint8))
        with rasterio.open(path, "r+") as dataset:
            dataset.descriptions = ("blue", "green", "red", "nir")
    with pytest.raises(DataError, match="wanted are red, green, blue, nir"):
        evaluate(tmp_path / "set", CloudyMethod(), out=tmp_path / "a.json")
    names = ["blue", "green", "red", "nir"]
    scored = evaluate(tmp_path / "set", CloudyMethod(), out=tmp_path / "a.json", band_names=names)
    assert list(scored["images"][0]["bands"]) == names


@pytest.mark.parametrize(
    ("cover", "thick_cover", "group"),
    [
        (0.0, 0.0, "hardly any cloud (cover under 1 %)"),
        (0.0099, 0.0099, "hardly any cloud (cover under 1 %)"),
        (0.01, 0.0, "thin cloud (thick on under 10 %)"),
        (1.0, 0.099, "thin cloud (thick on under 10 %)"),
        (0.1, 0.1, "thick cloud on 10 % or more"),
    ],
)
def test_an_image_counts_in_one_group_of_thickness(cover, thick_cover, group):
    row = {"flat": False, "cover": cover, "thick_cover": thick_cover}
    assert [name for name in list(GROUPS)[2:5] if GROUPS[name](row)] == [group]
    assert sum(GROUPS[name](row) for name in list(GROUPS)[5:]) == 1


def test_a_range_that_begins_far_below_the_numbers_is_used_from_there(data, tmp_path, caplog):
    evaluate(data, CloudyMethod(), out=tmp_path / "a.json", data_range=[-100_000, 300])
    assert "errors look small" not in caplog.text


def test_a_model_that_gives_no_numbers_has_no_scores(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    damaged = CloudRemovalPipeline(**{**pipeline.components, "reference": copy.deepcopy(pipeline.reference)})
    next(damaged.reference.parameters()).data.fill_(float("nan"))
    for method in (ModelMethod(damaged, num_inference_steps=0), ModelMethod(damaged, 1, samples=2)):
        with pytest.raises(ModelError, match=r"gave NaN or infinity for .*cloud.*; its weights are damaged"):
            evaluate(data, method, out=tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_an_image_that_memory_does_not_hold_is_named(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CloudRemovalPipeline, "__call__", no_memory)
    with pytest.raises(OptionError, match=r"memory does not hold .*cloud.* px, 3 bands, uint8; .* --outputs"):
        evaluate(data, ModelMethod(pipeline), out=tmp_path / "a.json")


def test_two_images_have_an_interval_and_one_has_none():
    low, high = bootstrap_interval(np.array([20.0, 30.0]))
    assert (low, high) == (20, 30)
    assert bootstrap_interval(np.array([20.0])) is None


def test_the_interval_is_that_of_95_percent(rng):
    values = rng.normal(20, 3, 400)
    low, high = bootstrap_interval(values)
    wanted = 2 * 1.96 * values.std() / 20
    assert high - low == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize(("cover", "group"), [(0.299, "cover under 30 %"), (0.3, "cover 30 to 70 %"),
                                              (0.699, "cover 30 to 70 %"), (0.7, "cover from 70 %")])  # fmt: skip
def test_an_image_counts_in_one_group_of_cover(cover, group):
    row = {"flat": False, "cover": cover, "thick_cover": 0.0}
    assert [name for name in list(GROUPS)[5:] if GROUPS[name](row)] == [group]


def test_flat_labels_are_told_from_structured_ones_by_their_share_of_the_range(plain, tmp_path):
    rows, _ = np.mgrid[:40, :48]
    labels = {"3": np.uint8(6 * (rows % 2)), "12": np.uint8(14 * (rows % 2))}  # deviations of 3 and 7; 5.1 is flat
    for name, label in labels.items():
        coloured = label[..., None] + np.array([10, 100, 200], np.uint8)
        for kind in ("cloud", "label"):
            Image.fromarray(coloured).save(plain / "test" / kind / f"{name}.png")
    found = evaluate(plain, CloudyMethod(), out=tmp_path / "a.json")
    assert [row["flat"] for row in found["images"]] == [True, False, False]
    assert found["groups"]["flat label"]["images"] == 1 and found["groups"]["structured label"]["images"] == 2


def test_a_table_stands_a_bar_in_a_name_and_a_score_that_is_missing(plain, tmp_path):
    result = evaluate(plain, CloudyMethod(name="a|b"), out=tmp_path / "a.json")
    head, _, line = to_markdown([result]).splitlines()
    cells = re.split(r"(?<!\\)\|", line)
    assert len(cells) == head.count("|") + 1
    assert cells[2] == r" a\|b " and cells[5] == " – ", "there is no LPIPS"


def test_the_list_says_how_much_cloud_and_thick_cloud_there_is(plain, tmp_path):
    mask = np.zeros((40, 48), np.uint8)
    mask[:20], mask[:4] = 100, 255
    found = evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", masks=write_masks(tmp_path / "masks", mask))
    assert [(row["cover"], row["thick_cover"]) for row in found["images"]] == [(0.5, 0.1)] * 3
    with (tmp_path / "a.csv").open() as file:
        assert [(row["cover"], row["thick_cover"]) for row in csv.DictReader(file)] == [("0.5", "0.1")] * 3


def test_images_that_are_all_cloud_say_nothing_of_the_change_of_clear_areas(plain, tmp_path):
    everywhere = write_masks(tmp_path / "masks", np.full((40, 48), 255, np.uint8))
    found = evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", masks=everywhere)
    assert found["changed"] == {"images": 0, "mean": None, "share": None}
    assert found["regions"]["outside"] == {"images": 0, "psnr": None, "ssim": None, "mae": None}
    assert found["regions"]["inside"]["images"] == 3


def test_lpips_of_bands_is_averaged_over_images(plain, tmp_path, backbone):
    found = evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", lpips_backbone=backbone, band_lpips=True)
    of_blue = [row["bands"]["blue"]["lpips"] for row in found["images"]]
    assert found["bands"]["blue"]["lpips"] == pytest.approx(np.mean(of_blue)) and min(of_blue) > 0
    (of_band,) = [line for line in (tmp_path / "a.md").read_text().splitlines() if line.startswith("| blue |")]
    assert f"| {np.mean(of_blue):.4f} |" in of_band


def test_the_error_is_a_root_mean_square_beside_a_spread_and_a_mean_in_its_map(plain, tmp_path):
    class Spread(CloudyMethod):
        def restore(self, pair: Any, cloudy: np.ndarray, scaling: Scaling) -> Restored:
            return Restored(cloudy, spread=np.full(cloudy.shape[:2], 0.05))

    found = evaluate(plain, Spread(), out=tmp_path / "a.json", keep=tmp_path / "kept")
    (row,) = found["spread"]["reliability"]
    assert row["error"] == pytest.approx(30 / 255 / math.sqrt(3)) and row["spread"] == pytest.approx(0.05)
    shown = round(255 * math.sqrt(10 / 255 / 0.2))
    assert (read_kept(tmp_path / "kept", "3", "error") == shown).all()


def test_a_result_is_kept_beside_a_run_that_was_stopped_too(plain, tmp_path):
    out = tmp_path / "a.json"
    evaluate(plain, CloudyMethod(), out=out)
    before = out.read_bytes()
    (tmp_path / "a.json.partial").touch()
    with pytest.raises(OutputError, match=r"a\.json exists; give --overwrite"):
        evaluate(plain, CloudyMethod(), out=out)
    assert out.read_bytes() == before


@pytest.mark.parametrize("given", [math.inf, math.nan, -3, (-math.inf, 5), (0, math.nan)])
def test_a_range_without_an_end_is_refused(given, plain, tmp_path):
    with pytest.raises(OptionError, match="--data-range is "):
        evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", data_range=given)


def test_the_names_that_are_given_count_before_the_methods(plain, tmp_path):
    class Named(CloudyMethod):
        def describe(self, pairs: Any) -> dict[str, Any]:
            return {**super().describe(pairs), "bands": ["red", "green", "blue"]}

    assert list(evaluate(plain, Named(), out=tmp_path / "a.json")["bands"]) == ["red", "green", "blue"]
    given = ["a", "b", "c"]
    assert list(evaluate(plain, Named(), out=tmp_path / "b.json", band_names=given)["bands"]) == given


def test_a_line_of_the_journal_that_was_taken_in_part_is_an_error(plain, tmp_path, monkeypatch):
    class NearlyFull:
        def write(self, line: bytes) -> int:
            return len(line) - 1

        def __enter__(self) -> NearlyFull:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, mode="r", **how: NearlyFull() if mode == "ab" else opened(path, mode, **how)
    )
    with pytest.raises(OutputError, match=r"partial cannot be written \(only a part of a line was taken\)"):
        evaluate(plain, CloudyMethod(), out=tmp_path / "a.json")


class _Noisy:
    """Stands for a pipeline: 0.5 and a twentieth of the noise; w differs between bands."""

    config = SimpleNamespace(bands=["red", "green", "blue"])

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.references: list[Any] = []

    def __call__(self, cloudy: torch.Tensor, *, latents: torch.Tensor, generator: Any, **options: Any) -> Any:
        self.seeds.append(generator.initial_seed())
        self.references.append(options["reference"])
        images = (0.5 + 0.05 * latents).permute(0, 2, 3, 1).numpy()
        return SimpleNamespace(images=images, reference=images, weights=np.ones_like(images) * [0.2, 0.4, 0.9])


def test_spread_and_w_are_what_they_say(plain):
    pair = Selection(plain).pairs()[0]
    scaling = Scaling.of_dtype(np.dtype(np.uint8))
    method = ModelMethod(_Noisy(), num_inference_steps=1, seed=5, samples=3)
    found = method.restore(pair, pair.read_cloudy(), scaling)
    draws = np.stack([0.05 * scene_noise(5, Window(0, 0, 40, 48), 3, sample=s) for s in range(3)])
    variance = ((draws - draws.mean(0)) ** 2).sum(0) / 2
    np.testing.assert_allclose(found.spread, np.sqrt(variance.mean(0)), rtol=1e-4)
    np.testing.assert_allclose(found.w, 0.5)


@pytest.mark.parametrize("enlarge", [1, 2])
def test_further_samples_lean_on_the_reference_of_the_first(plain, enlarge):
    pair = Selection(plain).pairs()[0]
    pipeline = _Noisy()
    method = ModelMethod(pipeline, num_inference_steps=1, samples=3, enlarge=enlarge)
    found = method.restore(pair, pair.read_cloudy(), Scaling.of_dtype(np.dtype(np.uint8)))
    assert found.reference is not None
    assert [given is None for given in pipeline.references] == [True, enlarge > 1, enlarge > 1]


def test_each_sample_draws_noise_of_its_own_on_the_way_and_the_same_again(plain):
    pair = Selection(plain).pairs()[0]
    scaling = Scaling.of_dtype(np.dtype(np.uint8))
    pipeline = _Noisy()
    for seed in (5, 6, 5):
        method = ModelMethod(pipeline, num_inference_steps=1, seed=seed, samples=2)
        method.restore(pair, pair.read_cloudy(), scaling)
    assert len(set(pipeline.seeds[:4])) == 4 and pipeline.seeds[4:] == pipeline.seeds[:2]


def test_the_mean_of_samples_is_off_by_less_than_one_of_them(plain, tmp_path):
    class Averaged(CloudyMethod):
        def describe(self, pairs: Any) -> dict[str, Any]:
            return {**super().describe(pairs), "samples": 4, "averaged": True}

        def restore(self, pair: Any, cloudy: np.ndarray, scaling: Scaling) -> Restored:
            return Restored(cloudy, spread=np.full(cloudy.shape[:2], 0.05))

    found = evaluate(plain, Averaged(), out=tmp_path / "a.json")
    assert found["spread"]["calibrated"] == pytest.approx(math.sqrt(1.25))


def test_a_limit_takes_the_first_and_the_last(plain):
    for kind in ("cloud", "label"):
        for name in ("200", "201"):
            Image.new("RGB", (48, 40)).save(plain / "test" / kind / f"{name}.png")
    names = [pair.name for pair in Selection(plain).pairs()]
    assert [pair.name for pair in Selection(plain, limit=2).pairs()] == [names[0], names[-1]]
    assert [pair.name for pair in Selection(plain, limit=3).pairs()] == [names[0], names[2], names[4]]


@pytest.mark.parametrize("given", [(1, 2, 3), (4,), ()])
def test_a_range_of_other_than_two_numbers_is_refused(given, plain, tmp_path):
    with pytest.raises(OptionError, match="give one number, or the two that are black and white"):
        evaluate(plain, CloudyMethod(), out=tmp_path / "a.json", data_range=given)


def test_a_line_break_in_a_name_leaves_the_table_whole(plain, tmp_path):
    table = to_markdown([evaluate(plain, CloudyMethod(name="two\nlines | a bar"), out=tmp_path / "a.json")])
    assert len(table.splitlines()) == 3 and r"| two lines \| a bar |" in table


def test_outputs_of_the_cloudy_images_size_do_not_fit_another_size_that_is_scored(plain, tmp_path):
    with pytest.raises(DataError, match="of the size that is scored, 32 x 27 px"):
        evaluate(Selection(plain, size_px=32), OutputsMethod(plain / "test" / "label"), out=tmp_path / "a.json")
