"""The table of settings: every row is there, a stopped run goes on, and the answer follows from the numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from declouder import metrics
from declouder.ablation import GROUP_NAMES, Row, ablate, answer, rows, to_markdown
from declouder.ablation.settings import AS_SAVED, slug
from declouder.ablation.tables import plot
from declouder.ablation.verdict import _verdicts, best_that_loses_nothing, plus
from declouder.breakdown import REGIONS
from declouder.errors import DataError, OptionError, OutputError
from declouder.evaluation import SCORES, Selection
from declouder.networks import CompactNet, Denoiser, WeightNet
from declouder.pipeline import SAMPLERS, CloudRemovalPipeline, make_scheduler


@pytest.fixture(autouse=True)
def no_backbone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(metrics.BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture
def selection(tmp_path: Path) -> Selection:
    rng = np.random.default_rng(0)
    for kind in ("cloud", "label"):
        folder = tmp_path / "FAKE" / "test" / kind
        folder.mkdir(parents=True)
        for name in ("1", "2"):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return Selection(tmp_path / "FAKE")


@pytest.fixture(scope="module")
def pipeline() -> CloudRemovalPipeline:
    torch.manual_seed(0)
    narrow: dict[str, Any] = {"widths": (8, 8), "attention_levels": (), "layers": 1, "norm_groups": 4, "heads": 1}
    made = CloudRemovalPipeline(
        CompactNet(widths=(4, 8), blocks=(1, 1)),
        Denoiser(**narrow),
        WeightNet(**narrow),
        make_scheduler("ddim"),
        num_inference_steps=2,
    )
    made.set_progress_bar_config(disable=True)
    return made


def test_the_table_covers_what_the_paper_leaves_open() -> None:
    found = rows()
    assert {row.group for row in found} == set(GROUP_NAMES)
    assert {0, 1, 2, 4, 10, 25, 50} <= {row.steps for row in found}
    assert {row.sampler for row in found if row.group == "sampler"} == set(SAMPLERS)
    assert len({(row.group, row.label) for row in found}) == len(found)
    assert any(row.samples > 1 for row in found)
    with pytest.raises(OptionError, match="'speed'"):
        rows(["speed"])


def test_settings_that_differ_in_a_far_digit_do_not_share_a_file_of_scores() -> None:
    settings = {"sampler": None, "steps": 1, "w_bounds": (0.0, 1.0), "consistency": 0.8, "seed": 0, "samples": 1}
    near, same, other = (slug({**settings, "strength": strength}) for strength in (0.75, 3 / 4, 0.7500001))
    assert near == same == "own-1steps-w0_1-start0.75-held0.8-seed0-of1"
    assert other != near


def test_every_row_is_sampled_and_written_as_table_and_plot(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("declouder.ablation.settings.STEPS", (1, 2))
    out = tmp_path / "out"
    scheduler = pipeline.scheduler
    found = ablate(selection, pipeline, out=out)
    assert pipeline.scheduler is scheduler
    assert json.loads((out / "ablation.json").read_text()) == found
    with (out / "ablation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found["rows"])
    (bounded,) = (line for line in lines if line["label"] == "learned w in [0, 0.7]")
    assert (float(bounded["w_low"]), float(bounded["w_high"])) == (0, 0.7)
    assert found["answer"]["sentence"] in (out / "ablation.md").read_text()
    for suffix in ("png", "svg"):
        assert (out / f"ablation.{suffix}").stat().st_size > 1000
    by_label = {(row["group"], row["label"]): row for row in found["rows"]}
    assert by_label["reference", "reference alone"]["evaluations"] == 0
    assert by_label["seed", "mean of 4 draws"]["evaluations"] == 8
    for row in found["rows"]:
        method = json.loads((out / row["scores"]).read_text())["method"]
        sampled = {
            name: method[name]
            for name in ("strength", "seed", "samples", "w_bounds", "consistency", "num_inference_steps")
        }
        wanted = {name: row[name] for name in ("strength", "seed", "samples", "w_bounds", "consistency")}
        assert sampled == {**wanted, "num_inference_steps": row["steps"]}, row["label"]
        assert method["averaged"] == (row["samples"] > 1)
        chosen = make_scheduler(row["label"]) if row["group"] == "sampler" else scheduler
        assert (method["sampler"], method["timestep_spacing"]) == (
            type(chosen).__name__,
            chosen.config.get("timestep_spacing"),
        ), row["label"]
    own = by_label["weight", "learned w, as saved"]
    assert own["scores"] == by_label["steps", "2 steps"]["scores"], "equal settings are sampled once"
    assert own["mean"] == by_label["sampler", "ddim"]["mean"]
    assert own["mean"] != by_label["diffusion", "diffusion alone (w = 0)"]["mean"]
    gain = own["mean"]["psnr"] - by_label["reference", "reference alone"]["mean"]["psnr"]
    assert gain != 0 and found["answer"]["psnr"]["mean"] == pytest.approx(gain)


def test_the_sampler_is_put_back_however_an_ablation_ends(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path
) -> None:
    scheduler = pipeline.scheduler

    def stop(place: int, total: int, row: Row) -> None:
        if place == 3:  # after a row of another sampler
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(selection, pipeline, out=tmp_path / "out", only=["sampler"], on_row=stop)
    assert pipeline.scheduler is scheduler
    ablate(selection, pipeline, out=tmp_path / "out", only=["sampler"])
    assert pipeline.scheduler is scheduler


def test_the_best_setting_has_the_lowest_lpips_of_those_that_keep_the_psnr() -> None:
    reference = _file([0.5] * 6, [30.0] * 6)
    results = {
        "loses": _file([0.3] * 6, [29.0] * 6),
        "keeps": _file([0.48] * 6, [30.0] * 6),
        "gains": _file([0.45] * 6, [30.1] * 6),
    }
    for name, lpips in (("loses", 0.3), ("keeps", 0.48), ("gains", 0.45)):
        results[name]["mean"]["lpips"] = lpips
    reference["mean"]["lpips"] = 0.5
    scored = [
        ({"group": "steps", "label": name, "scores": name, "mean": found["mean"]}, found)
        for name, found in results.items()
    ]
    best = best_that_loses_nothing(scored, reference)
    assert best is not None and best["label"] == "steps: gains"


def test_a_setting_loses_psnr_only_where_the_images_tell_it() -> None:
    """By the same rule as the verdict: what the images cannot tell is no loss."""
    generator = np.random.default_rng(0)
    psnr = 30 + generator.normal(0, 2, 12)
    reference = _file([0.5] * 12, psnr.tolist())
    found = {"untold": _file([0.3] * 12, (psnr - 0.05 + generator.normal(0, 0.5, 12)).tolist())}
    found["told"] = _file([0.2] * 12, (psnr - 0.5).tolist())
    for name, lpips in (("untold", 0.3), ("told", 0.2)):
        found[name]["mean"]["lpips"] = lpips
    scored = [
        ({"group": "g", "label": name, "scores": name, "mean": each["mean"]}, each) for name, each in found.items()
    ]
    best = best_that_loses_nothing(scored, reference)
    assert best is not None and best["label"] == "g: untold"
    assert (
        "beats the reference in LPIPS, and these images tell no loss of PSNR"
        in answer(found["untold"], reference)["sentence"]
    )


@pytest.mark.parametrize(("settings", "told"), [(1, True), (40, False)])
def test_the_lowest_lpips_of_many_settings_is_told_with_more_doubt(settings: int, told: bool) -> None:
    generator = np.random.default_rng(1)
    gain = np.abs(generator.normal(0.02, 0.02, 10)) * np.where(np.arange(10) < 1, -1, 1)  # p is about 0.01
    reference, better = _file([0.5] * 10, [30.0] * 10), _file((0.5 - gain).tolist(), [30.0] * 10)
    others = [_file([0.5] * 10, [30.0] * 10) for _ in range(settings - 1)]
    scored = [
        ({"group": "g", "label": str(i), "scores": str(i), "mean": {"lpips": 0.5}}, each)
        for i, each in enumerate(others, 1)
    ]
    best = best_that_loses_nothing(
        [({"group": "g", "label": "0", "scores": "0", "mean": {"lpips": 0.48}}, better), *scored], reference
    )
    assert best is not None and best["label"] == "g: 0"
    assert ("do not tell the two LPIPS apart, as it is the lowest of 40" in best["sentence"]) == (not told)


def test_an_ablation_refuses_other_masks(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablate(selection, pipeline, out=tmp_path / "out", only=["diffusion"])
    monkeypatch.setattr("declouder.ablation.files_fingerprint", lambda files: "others")
    with pytest.raises(OutputError, match="another masks"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["diffusion"])


def test_a_stopped_ablation_goes_on_and_refuses_another_model(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen: list[str] = []

    def stop(place: int, total: int, row: Row) -> None:
        if place == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(selection, pipeline, out=out, only=["weight"], on_row=stop)
    written = {path.name: path.stat().st_mtime_ns for path in (out / "scores").glob("*.json")}
    assert len(written) == 2
    ablate(selection, pipeline, out=out, only=["diffusion"], on_row=lambda *row: seen.append(row[2].label))
    assert seen == ["reference alone", "diffusion alone (w = 0)"]
    assert all((out / "scores" / name).stat().st_mtime_ns == time for name, time in written.items())
    parameter = next(pipeline.reference.parameters())
    with torch.no_grad():
        parameter += 1
        with pytest.raises(OutputError, match="another model"):
            ablate(selection, pipeline, out=out, only=["diffusion"])
        parameter -= 1


def _file(lpips: Sequence[float | None], psnr: Sequence[float | None]) -> dict[str, Any]:
    rest = {**dict.fromkeys(SCORES, 0.0), "regions": dict.fromkeys(REGIONS)}
    images = [
        {**rest, "name": str(i), "lpips": a, "psnr": b, "flat": i < 3, "cover": 0.5, "thick_cover": 0.0}
        for i, (a, b) in enumerate(zip(lpips, psnr, strict=True))
    ]
    return {"images": images, "mean": {"lpips": 0.0}}


@pytest.mark.parametrize(
    ("lpips", "psnr", "verdict"),
    [
        (-0.1, 0.5, "claim holds here"),
        (-0.1, -0.5, "holds by half"),
        (0.1, -0.5, "does not hold: the fused image has a higher LPIPS than the reference and loses PSNR ("),
        (0.1, 0.5, "does not hold: the fused image has a higher LPIPS than the reference ("),
    ],
)
def test_the_answer_to_the_papers_claim_follows_from_the_paired_differences(
    lpips: float, psnr: float, verdict: str
) -> None:
    before = [0.1 * i for i in range(1, 11)], [20.0 + i for i in range(10)]
    reference = _file(*before)
    fused = _file([value + lpips for value in before[0]], [value + psnr for value in before[1]])
    found = answer(fused, reference)
    assert verdict in found["sentence"]
    assert found["lpips"]["mean"] == pytest.approx(lpips)
    assert found["where"]["flat label"]["images"] == 3
    assert f"{psnr:+.2f}" in found["sentence"]
    if verdict == "claim holds here":
        assert "holds for images with: thin cloud" in found["sentence"]
        assert "label" not in found["sentence"]  # there are 3 and 7 of them
        assert "is worse" not in found["sentence"]
    else:
        worse = lpips > 0 or psnr < 0
        assert ("is worse, in LPIPS or PSNR, for images with: thin cloud" in found["sentence"]) == worse


@pytest.mark.parametrize(("against", "verdict"), [(1, "holds"), (2, "")])
def test_the_error_of_a_group_is_shared_out_among_its_two_scores(against: int, verdict: str) -> None:
    # By chance as far from 0: 0.005 and 0.037, of which half the error, 0.025, lies between.
    reference = _file([0.5] * 12, [30.0] * 12)
    fused = _file([0.6] * against + [0.4] * (12 - against), [30.0] * 12)
    found = answer(fused, reference)
    groups = {"all": (fused["images"], reference["images"])}
    assert _verdicts(groups, {"all": {**found, "images": 12}}) == {"all": verdict}


def test_few_images_are_no_ground_for_a_verdict() -> None:
    found = answer(_file([0.1] * 4, [30] * 4), _file([0.2] * 4, [29] * 4))
    assert "too few to judge" in found["sentence"]
    found = answer(_file([0.1], [30]), _file([0.2], [29]))
    assert found["lpips"]["interval"] is None
    assert "too few to judge the paper's claim (LPIPS -0.1000, PSNR +1.00 dB," in found["sentence"]


def test_images_without_any_error_are_not_counted_as_judged() -> None:
    reference = _file([0.1] * 12, [None] * 11 + [30.0])
    found = answer(_file([0.1] * 12, [None] * 11 + [29.0]), reference)
    assert found["sentence"].startswith("1 images are too few to judge")


def test_places_are_compared_on_images_that_have_a_psnr_there_with_both() -> None:
    reference, fused = _file([0.1] * 3, [30.0] * 3), _file([0.1] * 3, [30.0] * 3)
    # One image's clear ground is right to the bit with the reference alone: infinite, so none.
    for file, found in ((reference, (None, 30.0, 20.0)), (fused, (60.0, 29.0, 20.0))):
        for row, psnr in zip(file["images"], found, strict=True):
            row["regions"] = {**row["regions"], "outside": {"psnr": psnr}}
    assert answer(fused, reference)["regions"] == {**dict.fromkeys(REGIONS), "outside": -0.5}


def test_a_single_image_does_not_tell_two_settings_apart() -> None:
    reference, better = _file([0.5], [30.0]), _file([0.4], [30.1])
    reference["mean"]["lpips"] = 0.5
    best = best_that_loses_nothing(
        [({"group": "g", "label": "l", "scores": "l", "mean": {"lpips": 0.4}}, better)], reference
    )
    assert best is not None and "do not tell the two LPIPS apart" in best["sentence"]
    assert best_that_loses_nothing([], reference) is None


def test_an_ablation_refuses_another_sampler_and_scores_again_what_lacked_lpips(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path, backbone: Path
) -> None:
    out = tmp_path / "out"
    found = ablate(selection, pipeline, out=out, only=["diffusion"])
    assert not found["lpips"]["available"] and found["rows"][0]["mean"]["lpips"] is None
    found = ablate(selection, pipeline, out=out, only=["diffusion"], lpips_backbone=backbone)
    assert found["lpips"]["available"] and all(row["mean"]["lpips"] > 0 for row in found["rows"])
    kept = {path: path.stat().st_mtime_ns for path in (out / "scores").glob("*.json")}
    again = ablate(selection, pipeline, out=out, only=["diffusion"])
    assert again["rows"] == found["rows"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    saved, pipeline.scheduler = pipeline.scheduler, make_scheduler("ddim-trailing")
    try:
        with pytest.raises(OutputError, match="another sampler"):
            ablate(selection, pipeline, out=out, only=["diffusion"])
    finally:
        pipeline.scheduler = saved


def test_rows_of_another_network_for_lpips_or_of_other_versions_are_scored_again(
    selection, pipeline, tmp_path, backbone, monkeypatch
):
    out = tmp_path / "out"
    ablate(selection, pipeline, out=out, only=["reference"], lpips_backbone=backbone)
    state = torch.load(backbone)
    other = tmp_path / "other.pth"
    torch.save({name: 2 * value for name, value in state.items()}, other)
    found = ablate(selection, pipeline, out=out, only=["diffusion"], lpips_backbone=other)
    written = [json.loads((out / row["scores"]).read_text()) for row in found["rows"]]
    assert len({each["lpips"]["backbone_sha256"] for each in written}) == 1
    monkeypatch.setattr("declouder.evaluation.package_versions", lambda names: {"declouder": "another"})
    monkeypatch.setattr("declouder.ablation.package_versions", lambda names: {"declouder": "another"})
    found = ablate(selection, pipeline, out=out, only=["reference"], lpips_backbone=other)
    assert json.loads((out / found["rows"][0]["scores"]).read_text())["versions"] == {"declouder": "another"}


def test_an_ablation_refuses_another_precision(
    selection: Selection, pipeline: CloudRemovalPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablate(selection, pipeline, out=tmp_path / "out", only=["diffusion"])
    monkeypatch.setattr(pipeline, "steps_in_bfloat16", True)
    with pytest.raises(OutputError, match="another precision; choose another -o"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["diffusion"])


def test_groups_that_differ_by_chance_alone_are_hardly_ever_judged() -> None:
    generator = np.random.default_rng(5)
    judged = 0
    for _ in range(100):
        signs = generator.choice([-1, 1], (2, 24))
        sizes = generator.lognormal(0, 1, (2, 24))
        reference = _file([0.3] * 24, [30.0] * 24)
        fused = _file((0.3 + 0.01 * signs[0] * sizes[0]).tolist(), (30 + 0.1 * signs[1] * sizes[1]).tolist())
        for file in (reference, fused):
            for number, row in enumerate(file["images"]):
                row["flat"], row["cover"] = number < 12, (0.2, 0.5)[number % 2]
        said = answer(fused, reference)["sentence"]
        judged += "is worse, in LPIPS or PSNR, for images" in said or "holds for images with" in said
    assert judged <= 10  # of 100; five are allowed for in the mean


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "[" * 100_000])
def test_an_ablation_whose_record_is_damaged_is_told(text, selection, pipeline, tmp_path) -> None:
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])
    (tmp_path / "out" / "ablation-of.json").write_text(text)
    with pytest.raises(OutputError, match=r"ablation-of\.json .*; choose another -o, or remove that folder"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])


def test_scores_of_other_images_are_no_row_of_an_ablation(selection, pipeline, tmp_path) -> None:
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference", "diffusion"])
    path = next((tmp_path / "out" / "scores").glob("*.json"))
    found = json.loads(path.read_text())
    found["images"][0]["name"] = "another"
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"is not of the images of .*; remove the one that was changed"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["reference", "diffusion"])


def test_an_ablation_refuses_another_range(selection, pipeline, tmp_path):
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference"], data_range=255)
    for other in (None, 510, (0.0, 510.0)):
        with pytest.raises(OutputError, match="holds the ablation of another data_range; choose another -o"):
            ablate(selection, pipeline, out=tmp_path / "out", only=["reference"], data_range=other)


def test_rows_without_lpips_beside_others_of_an_earlier_call_that_have_it(
    selection, pipeline, tmp_path, monkeypatch, backbone
):
    monkeypatch.setattr("declouder.ablation.settings.STEPS", (1, 2))
    monkeypatch.setenv(metrics.BACKBONE_VARIABLE, str(backbone))
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])
    monkeypatch.delenv(metrics.BACKBONE_VARIABLE)  # on another machine, say
    found = ablate(selection, pipeline, out=tmp_path / "out", only=["steps"])
    assert found["rows"][0]["mean"]["lpips"] is not None and found["rows"][1]["mean"]["lpips"] is None
    assert (tmp_path / "out" / "ablation.json").exists()


def test_the_same_table_gives_the_same_figures(selection, pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("declouder.ablation.settings.STEPS", (1, 2))
    for name in ("a", "b"):
        ablate(selection, pipeline, out=tmp_path / name, only=["steps"])
    for figure in ("ablation.png", "ablation.svg"):
        assert (tmp_path / "a" / figure).read_bytes() == (tmp_path / "b" / figure).read_bytes()


def test_every_row_is_sampled_as_its_label_says() -> None:
    saved = {"steps": 3, "strength": 0.6, "w_bounds": [0.1, 0.9], "consistency": 0.7}
    own = {"num_inference_steps": saved["steps"], **saved}
    found = {row.label: row.settings(own) for row in rows()}
    for label, differs in (
        (AS_SAVED, {}),
        ("diffusion alone (w = 0)", {"w_bounds": [0, 0]}),
        ("w fixed at 0.25", {"w_bounds": [0.25, 0.25]}),
        ("learned w in [0, 0.7]", {"w_bounds": [0, 0.7]}),
        ("data consistency 0", {"consistency": 0}),
        ("data consistency 0.5", {"consistency": 0.5}),
        ("w fixed at 1: the reference, held as saved", {"w_bounds": [1, 1]}),
        ("10 steps", {"steps": 10}),
        ("unipc", {"sampler": "unipc"}),
        ("from noise", {"strength": 1}),
        ("from the reference, strength 0.25", {"strength": 0.25}),
        ("seed 2", {"seed": 2}),
        ("mean of 4 draws", {"samples": 4}),
    ):
        assert found[label] == {**saved, "sampler": None, "seed": 0, "samples": 1, **differs}, label


@pytest.mark.parametrize("shift", [-0.01, 0.01])
@pytest.mark.parametrize(
    ("psnr", "verdict"),
    [
        (0.0, "is not borne out: the fused image does not beat the reference in LPIPS ("),
        (-0.5, "does not hold: the fused image loses PSNR and does not beat the reference's LPIPS ("),
    ],
)
def test_a_difference_in_lpips_that_the_images_do_not_tell_is_neither_gain_nor_loss(shift, psnr, verdict) -> None:
    lpips = [0.5 + shift + 0.1 * (-1) ** number for number in range(12)]
    found = answer(_file(lpips, [30.0 + psnr] * 12), _file([0.5] * 12, [30.0] * 12))
    assert f"The paper's claim {verdict}LPIPS {shift:+.4f} (-" in found["sentence"]
    low, high = found["lpips"]["interval"]
    assert low < 0 < high and f"({low:+.4f} to {high:+.4f})" in found["sentence"]


def test_images_are_held_against_those_of_their_name() -> None:
    reference, fused = ([0.1 * i + shift for i in range(1, 13)] for shift in (0, -0.05))
    ours = _file(fused, [30.0] * 12)
    ours["images"].reverse()
    found = answer(ours, _file(reference, [30.0] * 12))
    assert found["lpips"]["interval"] == pytest.approx([-0.05, -0.05])


def test_no_setting_is_the_best_where_all_lose_psnr_and_none_is_sought_without_lpips() -> None:
    row = {"group": "steps", "label": "1 step", "scores": "1 step", "mean": {"lpips": 0.4}}
    reference, worse = _file([0.5] * 12, [30.0] * 12), _file([0.4] * 12, [29.0] * 12)
    reference["mean"]["lpips"] = 0.5
    best = best_that_loses_nothing([(row, worse)], reference)
    assert best == {"label": None, "sentence": "All settings lose PSNR against the reference."}
    lacking = _file([None] * 12, [31.0] * 12)
    assert best_that_loses_nothing([(row | {"mean": {"lpips": None}}, lacking)], reference) is None
    reference["mean"]["lpips"] = None
    assert best_that_loses_nothing([(row, worse)], reference) is None


def test_one_setting_under_several_labels_is_one_among_those_that_are_chosen_from() -> None:
    generator = np.random.default_rng(1)
    gain = np.abs(generator.normal(0.02, 0.02, 10)) * np.where(np.arange(10) < 1, -1, 1)  # p is about 0.01
    reference, better = _file([0.5] * 10, [30.0] * 10), _file((0.5 - gain).tolist(), [30.0] * 10)
    reference["mean"]["lpips"] = 0.5
    rows_of_one = [
        ({"group": "g", "label": str(i), "scores": "scores/same.json", "mean": {"lpips": 0.48}}, better)
        for i in range(40)
    ]
    best = best_that_loses_nothing(rows_of_one, reference)
    assert best is not None and best["label"] == "g: 0" and "do not tell" not in best["sentence"]


def test_what_is_drawn_in_some_panel_is_in_the_legend(tmp_path: Path) -> None:
    def row(group: str, lpips: float | None) -> dict[str, Any]:
        return {"group": group, "evaluations": 1, "mean": {"psnr": 30.0, "ssim": 0.9, "lpips": lpips}}

    plot({"rows": [row("reference", 0.5), row("steps", None), row("sampler", 0.4)]}, tmp_path)
    drawn = (tmp_path / "ablation.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("reference alone", "steps", "sampler"))


@pytest.mark.parametrize(("value", "text"), [(0.006, "+0.01"), (-0.006, "-0.01"), (-0.004, "0.00"), (0.0, "0.00")])
def test_what_rounds_to_nothing_has_no_sign(value: float, text: str) -> None:
    assert plus(value, 2) == text


def test_an_ablation_in_a_range_goes_on_and_all_its_scores_are_in_it(selection, pipeline, tmp_path) -> None:
    seen: list[int] = []
    for calls in (1, 2):
        found = ablate(
            selection,
            pipeline,
            out=tmp_path / "out",
            only=["diffusion"],
            data_range=(0.0, 510.0) if calls == 1 else 510,  # which is the same
            on_image=lambda done, total, running: seen.append(done),
        )
        if calls == 1:
            scored = len(seen)
    assert len(seen) == scored >= 4, "two rows of two images, once"
    for row in found["rows"]:
        assert len(row["interval"]["mae"]) == 2
        scores = json.loads((tmp_path / "out" / row["scores"]).read_text())
        assert scores["data"]["data_range"] == 510


def test_an_ablation_refuses_other_data_and_another_device(selection, pipeline, tmp_path, monkeypatch) -> None:
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])
    with monkeypatch.context() as patch:
        patch.setattr(CloudRemovalPipeline, "computing_device", torch.device("cuda"))
        with pytest.raises(OutputError, match="another device; choose another -o"):
            ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])
    Image.new("RGB", (32, 32)).save(selection.data / "test" / "cloud" / "1.png")
    with pytest.raises(OutputError, match="another data; choose another -o"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])


def test_a_folder_in_which_nothing_was_scored_yet_takes_another_ablation(selection, pipeline, tmp_path) -> None:
    def stop(place: int, total: int, row: Row) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(selection, pipeline, out=tmp_path / "out", data_range=510, on_row=stop)
    assert not any((tmp_path / "out" / "scores").iterdir())
    ablate(selection, pipeline, out=tmp_path / "out", only=["reference"])
    with pytest.raises(OutputError, match="another data_range"):
        ablate(selection, pipeline, out=tmp_path / "out", only=["reference"], data_range=510)


def test_each_row_is_scored_by_the_network_for_lpips_that_is_asked_for(
    selection, pipeline, tmp_path, monkeypatch
) -> None:
    asked: list[dict[str, Any]] = []

    def evaluate(*given: Any, **options: Any) -> None:
        asked.append(options)
        raise KeyboardInterrupt

    def load_lpips(backbone: Path | None, *, download: bool) -> tuple[None, str]:
        asked.append({"lpips_backbone": backbone, "download_backbone": download})
        return None, "none here"

    monkeypatch.setattr("declouder.ablation.evaluate", evaluate)
    monkeypatch.setattr("declouder.ablation.load_lpips", load_lpips)
    wanted = {"lpips_backbone": tmp_path / "a.pth", "download_backbone": True}
    with pytest.raises(KeyboardInterrupt):
        ablate(selection, pipeline, out=tmp_path / "out", **wanted)
    assert [{name: each[name] for name in wanted} for each in asked] == [wanted, wanted]


def test_the_tables_below_say_by_how_much_kinds_of_image_and_places_differ() -> None:
    reference, fused = _file([0.5] * 12, [30.0] * 12), _file([0.4] * 12, [30.5] * 12)
    for file, psnr in ((reference, 25.0), (fused, 26.0)):
        for row in file["images"]:
            row["regions"] = {**row["regions"], "outside": {"psnr": psnr}}
    data = {"name": "FAKE", "split": "test", "images": 12}
    text = to_markdown({"data": data, "answer": answer(fused, reference), "best": None, "rows": []})
    assert text.startswith("FAKE/test, 12 images, seed 0 where no other is named.\n")
    assert "| images with | images | lpips | psnr |" in text
    assert "| flat label | 3 | -0.1000 (-0.1000 to -0.1000) | +0.50 (+0.50 to +0.50) |" in text
    assert text.endswith("PSNR in dB:\n\n| outside |\n|---|\n| +1.00 |\n")
