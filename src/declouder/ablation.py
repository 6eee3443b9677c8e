"""Which part of a model brings what: one model, sampled in many ways, scored by the same code on the same images.

    ablate(Selection(Path("RICE1")), pipeline, out=Path("ablation"))

    reference   the reference network alone (0 steps)
    diffusion   the diffusion alone (w = 0)
    weight      w fixed at one value everywhere, w learned, and bounds of the learned w
    steps       1, 2, 4, 10, 25, 50 evaluations of the denoiser
    sampler     every sampler of `pipeline.SAMPLERS`
    start       from noise, or from the reference noised to a part of the way (strength)
    seed        other noise, and the mean of several draws

A row's scores are a file of `evaluate` in OUT/scores, so that a broken run goes on with the image where it
stopped; rows that come to the same settings share one file. Beside them: ablation.json, .csv, .md, .png, .svg.
The paper claims that the fused image is nearer to the truth for the eye than the reference and loses no PSNR
(Sui et al., IEEE TGRS 2024); `answer` says whether that holds here, image by image against the reference.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown
from declouder.errors import OptionError, OutputError
from declouder.evaluation import (
    GROUPS,
    SCORES,
    ModelMethod,
    Selection,
    bootstrap_interval,
    evaluate,
    read_scores,
)
from declouder.evaluation.files import make_folder
from declouder.metrics import load_lpips
from declouder.pipeline import SAMPLERS, make_scheduler
from declouder.provenance import model_digest, sampler_of
from declouder.whole_files import whole_file, write_text

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

GROUP_NAMES = ("reference", "diffusion", "weight", "steps", "sampler", "start", "seed")
STEPS = (1, 2, 4, 10, 25, 50)
FIXED_W = (0.25, 0.5, 0.75)
W_BOUNDS = ((-1e3, 1e3), (0.0, 1.0), (0.3, 1.0), (0.0, 0.7))
"""The first is the learned w as it is; (0.3, 1) are the authors'."""
STRENGTHS = (1.0, 0.75, 0.5, 0.25)
SEEDS = (1, 2, 3)
MEAN_OF = 4
FEWEST_JUDGED = 10
"""Images from which a verdict is given: a bootstrap interval of fewer is too narrow."""
ERROR = 0.05
"""Share of cases without a difference in which a verdict may still find one, over all groups together."""
SIGN_FLIPS = 10_000


@dataclass(frozen=True)
class Row:
    """One way to sample; None is as the model was saved.

    Attributes:
        group: one of `GROUP_NAMES`.
        label: how the table calls it.
        steps, strength, w_bounds, sampler, seed, samples: what differs from the model's own setting.
    """

    group: str
    label: str
    steps: int | None = None
    strength: float | None = None
    w_bounds: tuple[float, float] | None = None
    sampler: str | None = None
    seed: int = 0
    samples: int = 1

    def settings(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is sampled with, given the model's `own` setting; equal settings give equal images."""
        steps = own["num_inference_steps"] if self.steps is None else self.steps
        if steps == 0:
            # The reference network draws no noise and has no w: all its rows are one.
            return {"steps": 0, "strength": 1.0, "w_bounds": [1.0, 1.0], "sampler": None, "seed": 0, "samples": 1}
        return {
            "steps": steps,
            "strength": own["strength"] if self.strength is None else self.strength,
            "w_bounds": [float(b) for b in (own["w_bounds"] if self.w_bounds is None else self.w_bounds)],
            "sampler": self.sampler,
            "seed": self.seed,
            "samples": self.samples,
        }


def rows(only: Sequence[str] = ()) -> list[Row]:
    """Return the rows of the table, of all groups or of those named; the reference always comes along.

    Raises:
        OptionError: if there is no such group.
    """
    for name in only:
        if name not in GROUP_NAMES:
            raise OptionError(f"there is no ablation {name!r}; choose among {', '.join(GROUP_NAMES)}")
    found = [
        Row("reference", "reference alone", steps=0),
        Row("diffusion", "diffusion alone (w = 0)", w_bounds=(0.0, 0.0)),
        Row("weight", "learned w, as saved"),
        *(Row("weight", f"w fixed at {w:g}", w_bounds=(w, w)) for w in FIXED_W),
        Row("weight", "learned w without bounds", w_bounds=W_BOUNDS[0]),
        *(Row("weight", f"learned w in [{a:g}, {b:g}]", w_bounds=(a, b)) for a, b in W_BOUNDS[1:]),
        *(Row("steps", f"{n} step{'s' * (n > 1)}", steps=n) for n in STEPS),
        *(Row("sampler", name, sampler=name) for name in SAMPLERS),
        *(
            Row("start", "from noise" if s == 1 else f"from the reference, strength {s:g}", strength=s)
            for s in STRENGTHS
        ),
        *(Row("seed", f"seed {seed}", seed=seed) for seed in SEEDS),
        Row("seed", f"mean of {MEAN_OF} draws", samples=MEAN_OF),
    ]
    return [row for row in found if not only or row.group in (*only, "reference")]


def ablate(
    selection: Selection,
    pipeline: CloudRemovalPipeline,
    *,
    out: Path,
    only: Sequence[str] = (),
    data_range: float | tuple[float, float] | None = None,
    lpips_backbone: Path | None = None,
    download_backbone: bool = False,
    on_row: Callable[[int, int, Row], None] | None = None,
    on_image: Callable[[int, int, Mapping[str, float | None]], None] | None = None,
) -> dict[str, Any]:
    """Score every row and write the table, the plot and the answer into `out`.

    Rows whose scores lie there already, of the same model, data and settings, are taken from there; those that
    were scored without LPIPS are scored again where it is to be had now.

    Args:
        selection: the images.
        pipeline: the model; its sampler is put back afterwards.
        out: a folder; it is made.
        only: groups of rows, see `rows`.
        data_range: as for `evaluate`.
        lpips_backbone, download_backbone: see `metrics.load_lpips`.
        on_row: called before each row with its place from 0, how many there are, and the row.
        on_image: as for `evaluate`.

    Returns:
        What ablation.json holds: "rows" with settings, evaluations, mean and interval; "answer"; and "lpips", as
        `evaluate` tells it.

    Raises:
        OutputError: if `out` holds the ablation of another model or of other data.
    """
    wanted = rows(only)
    own = dict(pipeline.config)
    make_folder(out / "scores")
    has_lpips = load_lpips(lpips_backbone, download=download_backbone)[0] is not None
    _check_same(out / "ablation-of.json", selection, pipeline, data_range)
    saved = pipeline.scheduler
    table: list[dict[str, Any]] = []
    results: dict[str, dict[str, Any]] = {}
    try:
        for place, row in enumerate(wanted):
            if on_row is not None:
                on_row(place, len(wanted), row)
            settings = row.settings(own)
            path = out / "scores" / f"{_slug(settings)}.json"
            earlier = read_scores(path) if path.exists() else None
            if earlier is not None and (earlier["lpips"]["available"] or not has_lpips):
                result = earlier
            else:
                pipeline.scheduler = saved if row.sampler is None else make_scheduler(row.sampler)
                method = ModelMethod(
                    pipeline,
                    num_inference_steps=settings["steps"],
                    strength=settings["strength"],
                    w_bounds=(settings["w_bounds"][0], settings["w_bounds"][1]),
                    seed=settings["seed"],
                    samples=settings["samples"],
                    average=settings["samples"] > 1,
                    name=_slug(settings),
                )
                result = evaluate(
                    selection,
                    method,
                    out=path,
                    data_range=data_range,
                    lpips_backbone=lpips_backbone,
                    download_backbone=download_backbone,
                    overwrite=True,
                    on_image=on_image,
                )
            results[path.stem] = result
            table.append(
                {
                    "group": row.group,
                    "label": row.label,
                    "scores": f"scores/{path.name}",
                    "evaluations": settings["steps"] * settings["samples"],
                    **settings,
                    "mean": result["mean"],
                    "interval": result["interval"],
                }
            )
    finally:
        pipeline.scheduler = saved
    reference = results[Path(table[0]["scores"]).stem]
    fused = next((entry for entry in table if entry["label"] == "learned w, as saved"), None)
    best = _best_that_loses_nothing(table, reference, results)
    found = {
        "data": reference["data"],
        "model": reference["method"]["sha256"],
        "lpips": reference["lpips"],
        "rows": table,
        "answer": None if fused is None else answer(results[Path(fused["scores"]).stem], reference),
        "best": best,
    }
    write_text(out / "ablation.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(out / "ablation.csv", _csv(table))
    write_text(out / "ablation.md", to_markdown(found))
    plot(found, out)
    return found


def answer(fused: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the fused images against the reference's, image by image.

    Args:
        fused, reference: what `evaluate` gave for the same images.

    Returns:
        "lpips" and "psnr": mean difference, fused less reference, with its 95 % interval; "where": the same by
        group of images; "regions": by region, PSNR; "sentence": the verdict.
    """
    overall = _differences(fused["images"], reference["images"])
    where = {}
    for name, test in GROUPS.items():
        members = [row["name"] for row in reference["images"] if test(row)]
        if members:
            chosen = [[row for row in file["images"] if row["name"] in members] for file in (fused, reference)]
            where[name] = {"images": len(members), **_differences(*chosen)}
    regions: dict[str, float | None] = {}
    for region in breakdown.REGIONS:
        ours, theirs = (file["regions"][region]["psnr"] for file in (fused, reference))
        regions[region] = None if ours is None or theirs is None else ours - theirs
    verdicts = _verdicts(fused, reference, where)
    return {**overall, "where": where, "regions": regions, "sentence": _sentence(overall, verdicts)}


def _verdicts(
    fused: Mapping[str, Any], reference: Mapping[str, Any], where: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Return "holds", "worse" or "" of each group that can be judged.

    The more groups are looked at, the more of them differ by chance: the error is shared out among them, and among
    the two scores of each.
    """
    judged = [
        name for name, each in where.items() if each["lpips"] and each["psnr"] and each["images"] >= FEWEST_JUDGED
    ]
    most = ERROR / max(1, 2 * len(judged))
    verdicts = {}
    for name in judged:
        members = {row["name"] for row in reference["images"] if GROUPS[name](row)}
        ours, theirs = ([row for row in file["images"] if row["name"] in members] for file in (fused, reference))
        # Above 0 is better, of both.
        better = {"lpips": -_paired(ours, theirs, "lpips"), "psnr": _paired(ours, theirs, "psnr")}
        is_told = {score: _by_chance(values) <= most for score, values in better.items()}
        if any(is_told[score] and values.mean() < 0 for score, values in better.items()):
            verdicts[name] = "worse"
        else:
            verdicts[name] = "holds" if is_told["lpips"] else ""
    return verdicts


def _by_chance(differences: NDArray[np.float64]) -> float:
    """Return how often paired differences (N,), were their signs random, would have a mean as far from 0.

    The sign-flip test: unlike a bootstrap interval it keeps its error for ten images too.
    """
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (SIGN_FLIPS, differences.size))
    # What rounding makes of equal means must not differ.
    as_far = np.abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)
    return float((as_far.sum() + 1) / (SIGN_FLIPS + 1))


def to_markdown(found: Mapping[str, Any]) -> str:
    """Return the table, above it the answer and below it where the answer holds."""
    data = found["data"]
    lines = [f"{data['name']}/{data['split']}, {data['images']} images, seed 0 where no other is named.", ""]
    if found["answer"] is not None:
        lines += [found["answer"]["sentence"], ""]
    if found["best"] is not None:
        lines += [found["best"]["sentence"], ""]
    lines += [
        "| what | setting | network evaluations | " + " | ".join(SCORES) + " |",
        "|---" * (len(SCORES) + 3) + "|",
    ]
    for row in found["rows"]:
        cells = ["–" if row["mean"][name] is None else f"{row['mean'][name]:.4f}" for name in SCORES]
        lines.append(f"| {row['group']} | {row['label']} | {row['evaluations']} | " + " | ".join(cells) + " |")
    if found["answer"] is not None:
        lines += ["", *_where_lines(found["answer"])]
    return "\n".join(lines) + "\n"


def _where_lines(answer: Mapping[str, Any]) -> list[str]:
    """Return two tables: fused less reference by kind of image, and by place in the image."""
    lines = ["The learned w less the reference, by kind of image:", "", "| images with | images | lpips | psnr |"]
    lines.append("|---|---|---|---|")
    for name, each in answer["where"].items():
        cells = [
            _signed(each[score], digits) if each[score] else "–" for score, digits in (("lpips", 4), ("psnr", 2))
        ]
        lines.append(f"| {name} | {each['images']} | {' | '.join(cells)} |")
    regions = {name: value for name, value in answer["regions"].items() if value is not None}
    lines += [
        "",
        "And by place in the image, PSNR in dB:",
        "",
        "| " + " | ".join(regions) + " |",
        "|---" * len(regions) + "|",
    ]
    lines.append("| " + " | ".join(_plus(value, 2) for value in regions.values()) + " |")
    return lines


def plot(found: Mapping[str, Any], out: Path) -> None:
    """Draw quality against network evaluations as ablation.png and ablation.svg in `out`."""
    from matplotlib.figure import Figure

    names = [name for name in ("psnr", "ssim", "lpips") if found["rows"][0]["mean"][name] is not None]
    figure = Figure(figsize=(4.2 * len(names), 3.9), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        base = found["rows"][0]["mean"][name]
        axes.axhline(base, color="0.5", linestyle="--", linewidth=1, label="reference alone")
        for group, marker in zip(GROUP_NAMES[1:], "ox^sDv", strict=True):
            members = [row for row in found["rows"] if row["group"] == group and row["mean"][name] is not None]
            members.sort(key=lambda row: row["evaluations"])
            if members:
                line = "-" if group == "steps" else "none"
                x = [row["evaluations"] for row in members]
                y = [row["mean"][name] for row in members]
                axes.plot(x, y, linestyle=line, marker=marker, label=group, alpha=0.85)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("denoiser evaluations an image")
        axes.set_ylabel({"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS (lower is better)"}[name])
        axes.set_xticks([1, 2, 4, 10, 25, 50], ["1", "2", "4", "10", "25", "50"])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8)
    for suffix in ("png", "svg"):
        with whole_file(out / f"ablation.{suffix}", mend="choose another -o") as part:
            # Without a date the same table gives the same file.
            figure.savefig(part, format=suffix, dpi=130, metadata={"Date": None} if suffix == "svg" else None)


def _differences(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and interval of fused less reference, of LPIPS and PSNR; None where there is none."""
    found: dict[str, Any] = {}
    for name in ("lpips", "psnr"):
        values = _paired(ours, theirs, name)
        found[name] = None
        if values.size:
            interval = bootstrap_interval(values)
            found[name] = {"images": int(values.size), "mean": float(values.mean()), "interval": interval}
    return found


def _paired(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], score: str
) -> NDArray[np.float64]:
    """Return a score of ours less that of theirs, image by image, of those that have it: (N,)."""
    by_name = {row["name"]: row[score] for row in theirs}
    pairs = [(row[score], by_name[row["name"]]) for row in ours]
    return np.array([a - b for a, b in pairs if a is not None and b is not None], np.float64)


def _sentence(overall: Mapping[str, Any], verdicts: Mapping[str, str]) -> str:
    lpips, psnr = overall["lpips"], overall["psnr"]
    if lpips is None or psnr is None:
        return "The paper's claim cannot be judged: LPIPS or PSNR is missing."
    numbers = f"LPIPS {_signed(lpips, 4)}, PSNR {_signed(psnr, 2)} dB, mean differences with 95 % intervals"
    if lpips["images"] < FEWEST_JUDGED:
        return f"{lpips['images']} images are too few to judge the paper's claim ({numbers})."
    # "Beats" and "loses" mean that the whole interval lies on that side of 0.
    beats, loses = lpips["interval"][1] < 0, psnr["interval"][1] < 0
    if beats and not loses:
        verdict = "The paper's claim holds here: the fused image beats the reference in LPIPS without losing PSNR"
    elif beats:
        verdict = "The paper's claim holds by half: the fused image beats the reference in LPIPS but loses PSNR"
    elif loses:
        verdict = (
            "The paper's claim does not hold: the fused image loses PSNR and does not beat the reference's LPIPS"
        )
    else:
        verdict = "The paper's claim is not borne out: the fused image does not beat the reference in LPIPS"
    won, lost = ([name for name, each in verdicts.items() if each == kind] for kind in ("holds", "worse"))
    if won:
        places = f" It holds for images with: {', '.join(won)}."
    else:
        places = f" It holds for no group of {FEWEST_JUDGED} images or more by itself."
    if lost:
        places += f" The fused image is worse, in LPIPS or PSNR, for images with: {', '.join(lost)}."
    return f"{verdict} ({numbers}).{places}"


def _best_that_loses_nothing(
    table: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the row of the lowest LPIPS whose PSNR is not below the reference's."""
    if reference["mean"]["lpips"] is None:
        return None
    candidates = []
    for row in table[1:]:
        found = _differences(results[Path(row["scores"]).stem]["images"], reference["images"])
        if found["psnr"] and found["psnr"]["mean"] >= 0:
            candidates.append((row["mean"]["lpips"], row, found))
    if not candidates:
        return {"label": None, "sentence": "No setting keeps the reference's PSNR."}
    _, row, found = min(candidates, key=lambda each: each[0])
    gain = f"LPIPS {_signed(found['lpips'], 4)}, PSNR {_signed(found['psnr'], 2)} dB"
    interval = found["lpips"]["interval"]
    if interval is None or interval[0] <= 0 <= interval[1]:
        gain += "; these images do not tell the two LPIPS apart"
    return {
        "label": f"{row['group']}: {row['label']}",
        "sentence": f"Of the settings that keep the reference's PSNR, {row['group']} “{row['label']}” has the"
        f" lowest LPIPS; against the reference: {gain}.",
    }


def _signed(found: Mapping[str, Any], digits: int) -> str:
    mean, interval = _plus(found["mean"], digits), found["interval"]
    return mean if interval is None else f"{mean} ({_plus(interval[0], digits)} to {_plus(interval[1], digits)})"


def _plus(value: float, digits: int) -> str:
    """Return a number with its sign; nothing has the sign plus."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _slug(settings: Mapping[str, Any]) -> str:
    if settings["steps"] == 0:
        return "reference"
    low, high = settings["w_bounds"]
    return (
        f"{settings['sampler'] or 'own'}-{settings['steps']}steps-w{low:g}_{high:g}-start{settings['strength']:g}"
        f"-seed{settings['seed']}-of{settings['samples']}"
    )


def _check_same(
    path: Path,
    selection: Selection,
    pipeline: CloudRemovalPipeline,
    data_range: float | tuple[float, float] | None,
) -> None:
    """Write what is ablated, or check that it is what was ablated before."""
    now: dict[str, Any] = {
        "data": selection.describe(selection.pairs()),
        "model": model_digest(pipeline),
        "sampler": sampler_of(pipeline),
    }
    if data_range is not None:
        now["data_range"] = list(data_range) if isinstance(data_range, tuple) else data_range
    if not any((path.parent / "scores").glob("*.json")):  # nothing was scored of what it may name
        write_text(path, json.dumps(now, indent=1, allow_nan=False) + "\n")
    elif not path.exists() or json.loads(path.read_text(encoding="utf-8")) != now:
        raise OutputError(f"{path.parent} holds the ablation of another model or of other data; choose another -o")


def _csv(table: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    settings = ["evaluations", "steps", "strength", "w_low", "w_high", "sampler", "seed", "samples"]
    writer = csv.DictWriter(
        text, ["group", "label", *settings, *SCORES], lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for row in table:
        low, high = row["w_bounds"]
        writer.writerow({**row, "w_low": low, "w_high": high, **row["mean"]})
    return text.getvalue()
