"""Scoring a method on a folder: what the file holds, that it repeats, and that a broken run goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from declouder import metrics
from declouder.data.clouds import simulate_clouds
from declouder.data.pairs import Pair
from declouder.errors import DataError, OptionError, OutputError
from declouder.evaluation import (
    SCORES,
    CloudyMethod,
    ModelMethod,
    OutputsMethod,
    evaluate,
    model_fingerprint,
    read_scores,
    regions,
    to_markdown,
)
from declouder.networks import CompactNet, Denoiser, WeightNet
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

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
        self.calls.append(pair.name)
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        return cloudy


def test_the_file_holds_means_intervals_and_images(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores" / "cloudy.json"
    seen: list[tuple[int, int]] = []
    evaluate(data, CloudyMethod(), out=out, on_image=lambda done, total, _: seen.append((done, total)))
    found = read_scores(out)
    assert [row["name"] for row in found["images"]] == list(NAMES)
    assert seen == [(1, 3), (2, 3), (3, 3)]
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
    assert table == to_markdown([result])
    assert f"{result['mean']['psnr']:.4f}" in table
    assert "FAKE/test (3)" in table


def test_a_pipelines_scores_are_those_of_its_saved_outputs(
    data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline
) -> None:
    method = ModelMethod(pipeline, num_inference_steps=2, seed=5)
    first = evaluate(data, method, out=tmp_path / "model.json")
    again = evaluate(data, method, out=tmp_path / "again.json")
    assert first["images"] == again["images"]
    assert first["method"]["sha256"] == model_fingerprint(pipeline)
    assert (first["method"]["num_inference_steps"], first["method"]["seed"]) == (2, 5)

    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in NAMES:
        with Image.open(data / "test" / "cloud" / f"{name}.png") as image:
            restored = pipeline(
                image, num_inference_steps=2, generator=torch.Generator().manual_seed(5), output_type="np"
            ).images[0]
        Image.fromarray(np.rint(restored * 255).astype(np.uint8)).save(outputs / f"{name}.png")
    scored = evaluate(data, OutputsMethod(outputs), out=tmp_path / "outputs.json")
    assert scored["images"] == first["images"]


def test_the_models_fingerprint_changes_with_its_weights(pipeline: CloudRemovalPipeline) -> None:
    before = model_fingerprint(pipeline)
    parameter = next(pipeline.reference.parameters())
    with torch.no_grad():
        parameter += 1
        assert model_fingerprint(pipeline) != before
        parameter -= 1


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
def test_an_interrupted_run_goes_on_with_the_images_that_are_left(data: Path, tmp_path: Path, torn: str) -> None:
    out = tmp_path / "cloudy.json"
    whole = evaluate(data, CloudyMethod(), out=tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=3), out=out)
    assert not out.exists()
    with (tmp_path / "cloudy.json.partial").open("a") as journal:
        journal.write(torn)
    rest = Counting()
    assert evaluate(data, rest, out=out)["images"] == whole["images"]
    assert rest.calls == ["101"]


def test_a_run_with_other_settings_does_not_go_on_from_a_partial_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(data, Counting(fail_at=2), out=tmp_path / "a.json")
    with pytest.raises(OutputError, match=r"a\.json\.partial"):
        evaluate(data, Counting(name="another"), out=tmp_path / "a.json")


def test_excluded_images_are_left_out(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.txt"
    listed.write_text("# in train too\n12\n")
    found = evaluate(data, CloudyMethod(), out=tmp_path / "a.json", exclude=listed)
    assert [row["name"] for row in found["images"]] == ["3", "101"]
    listed.write_text("999\n")
    with pytest.raises(DataError, match="999"):
        evaluate(data, CloudyMethod(), out=tmp_path / "b.json", exclude=listed)


def test_a_perfect_output_has_null_psnr_and_no_error(data: Path, tmp_path: Path) -> None:
    found = evaluate(data, OutputsMethod(data / "test" / "label"), out=tmp_path / "a.json")
    assert found["mean"]["psnr"] is None
    assert found["interval"]["psnr"] is None
    assert found["mean"]["mae"] == 0
    assert found["mean"]["ssim"] == pytest.approx(1)
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)


def test_regions_divide_the_image_by_thickness_and_the_edge_lies_on_the_border() -> None:
    clear = np.full((80, 80, 3), 50, np.uint8)
    cloudy = clear.copy()
    cloudy[:, 40:] += 20
    cloudy[:, 60:] += 60
    parts = regions(cloudy, clear, 255)
    assert (parts["outside"].astype(int) + parts["thin"] + parts["thick"] == 1).all()
    assert parts["outside"][:, :30].all()
    assert parts["thin"][:, 48:52].all()
    assert parts["thick"][:, 70:].all()
    assert parts["edge"][:, 38:42].all()
    assert not parts["edge"][:, :20].any()
    assert not parts["edge"][:, 60:].any()


def _break(data: Path, kind: str, image: NDArray[Any]) -> None:
    Image.fromarray(image).save(data / "test" / kind / "12.png")


def test_input_that_does_not_fit_is_an_error(data: Path, tmp_path: Path, pipeline: CloudRemovalPipeline) -> None:
    def run(method: Any = None, out: str = "a.json", band_names: Sequence[str] | None = None) -> None:
        evaluate(data, method or CloudyMethod(), out=tmp_path / out, band_names=band_names, overwrite=True)

    with pytest.raises(OptionError, match=r"\.json"):
        run(out="a.csv")
    with pytest.raises(OptionError, match="2 band names"):
        run(band_names=("red", "green"))
    (tmp_path / "a.json.partial").unlink()
    empty = tmp_path / "few"
    empty.mkdir()
    Image.new("RGB", (48, 40)).save(empty / "3.png")
    with pytest.raises(DataError, match="lacks 2 of 3 outputs"):
        run(OutputsMethod(empty))
    for name in NAMES:
        Image.new("RGB", (20, 20)).save(empty / f"{name}.png")
    with pytest.raises(DataError, match="same size"):
        run(OutputsMethod(empty), out="b.json")
    _break(data, "cloud", np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(DataError, match="its label"):
        run(out="c.json")
    for kind in ("cloud", "label"):
        _break(data, kind, np.zeros((40, 48, 4), np.uint8))
    with pytest.raises(DataError, match="4 bands, this model wants 3"):
        run(ModelMethod(pipeline), out="d.json")


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
