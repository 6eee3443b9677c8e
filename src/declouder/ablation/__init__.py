"""Which part of a model brings what: one model, sampled in many ways, scored by the same code on the same images.

    ablate(Selection(Path("RICE1")), pipeline, out=Path("ablation"))

    reference   the reference network alone (0 steps)
    diffusion   the diffusion alone (w = 0)
    weight      w fixed at one value everywhere, w learned, and bounds of the learned w
    consistency how much of the finest detail is held to the law of an even haze
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

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from declouder.ablation.settings import AS_SAVED, GROUP_NAMES, Row, rows, slug
from declouder.ablation.tables import plot, to_csv, to_markdown
from declouder.ablation.verdict import answer, best_that_loses_nothing
from declouder.errors import DataError, OutputError
from declouder.evaluation import ModelMethod, OnImage, Selection, ends_of, evaluate, read_scores
from declouder.evaluation.files import SCORING_PACKAGES, files_fingerprint, make_folder
from declouder.metrics import load_lpips
from declouder.model_identity import model_digest, precision_of, sampler_of
from declouder.packages import package_versions
from declouder.pipeline import make_scheduler
from declouder.whole_files import write_text

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

__all__ = ["GROUP_NAMES", "Row", "ablate", "answer", "rows", "to_markdown"]


def ablate(
    selection: Selection,
    pipeline: CloudRemovalPipeline,
    *,
    out: Path,
    only: Sequence[str] = (),
    data_range: float | Sequence[float] | None = None,
    lpips_backbone: Path | None = None,
    download_backbone: bool = False,
    on_row: Callable[[int, int, Row], None] | None = None,
    on_image: OnImage | None = None,
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
    lpips = load_lpips(lpips_backbone, download=download_backbone)[0]
    backbone = None if lpips is None else lpips.backbone_sha256
    _check_same(out / "ablation-of.json", selection, pipeline, data_range)
    scored: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with _sampler_put_back(pipeline) as saved:
        for place, row in enumerate(wanted):
            if on_row is not None:
                on_row(place, len(wanted), row)
            settings = row.settings(own)
            path = out / "scores" / f"{slug(settings)}.json"
            pipeline.scheduler = saved if row.sampler is None else make_scheduler(row.sampler)
            result = _earlier(path, backbone)
            if result is None:
                result = evaluate(
                    selection,
                    _method(pipeline, settings),
                    out=path,
                    data_range=data_range,
                    lpips_backbone=lpips_backbone,
                    download_backbone=download_backbone,
                    overwrite=True,
                    on_image=on_image,
                )
            evaluations = settings["samples"] * pipeline.evaluations(settings["steps"])
            scored.append((_entry(row, settings, path, result, evaluations), result))
    _check_same_images([(out / entry["scores"], result) for entry, result in scored])
    (_, reference), *others = scored
    fused = next((result for entry, result in others if entry["label"] == AS_SAVED), None)
    found = {
        "data": reference["data"],
        "model": reference["method"]["sha256"],
        "lpips": reference["lpips"],
        "rows": [entry for entry, _ in scored],
        "answer": None if fused is None else answer(fused, reference),
        "best": best_that_loses_nothing(others, reference),
    }
    write_text(out / "ablation.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(out / "ablation.csv", to_csv(found["rows"]))
    write_text(out / "ablation.md", to_markdown(found))
    plot(found, out)
    return found


@contextlib.contextmanager
def _sampler_put_back(pipeline: CloudRemovalPipeline) -> Iterator[Any]:
    """Yield the pipeline's sampler, and put it back however the block ends."""
    saved = pipeline.scheduler
    try:
        yield saved
    finally:
        pipeline.scheduler = saved


def _earlier(path: Path, backbone: str | None) -> dict[str, Any] | None:
    """Return scores that lie there already, if they are what would be found now.

    None if there are none, or if they are of other versions, or of another network for LPIPS than the one with this
    sha256: rows are compared with each other. Where there is none now, what was found with one stays.
    """
    if not path.exists():
        return None
    result = read_scores(path)
    if result["versions"] != package_versions(SCORING_PACKAGES):
        return None
    return result if backbone in (None, result["lpips"].get("backbone_sha256")) else None


def _check_same_images(files: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raise DataError if files of scores, one of which may have been edited, are not of the same images."""
    names = [[row["name"] for row in result["images"]] for _, result in files]
    for (path, _), found in zip(files, names, strict=True):
        if found != names[0]:
            raise DataError(f"{path} is not of the images of {files[0][0]}; remove the one that was changed")


def _method(pipeline: CloudRemovalPipeline, settings: Mapping[str, Any]) -> ModelMethod:
    low, high = settings["w_bounds"]
    return ModelMethod(
        pipeline,
        num_inference_steps=settings["steps"],
        strength=settings["strength"],
        w_bounds=(low, high),
        consistency=settings["consistency"],
        seed=settings["seed"],
        samples=settings["samples"],
        average=settings["samples"] > 1,
        name=slug(settings),
    )


def _entry(
    row: Row, settings: Mapping[str, Any], path: Path, result: Mapping[str, Any], evaluations: int
) -> dict[str, Any]:
    """Return what the table holds of a row."""
    return {
        "group": row.group,
        "label": row.label,
        "scores": f"scores/{path.name}",
        "evaluations": evaluations,
        **settings,
        "mean": result["mean"],
        "interval": result["interval"],
    }


def _ablated_before(path: Path) -> dict[str, Any]:
    """Return what was ablated, as `_check_same` wrote it."""
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another -o, or remove that folder") from None
    if not isinstance(before, dict):
        raise OutputError(f"{path} says nothing of an ablation; choose another -o, or remove that folder")
    return before


def _check_same(
    path: Path,
    selection: Selection,
    pipeline: CloudRemovalPipeline,
    data_range: float | Sequence[float] | None,
) -> None:
    """Write what is ablated, or check that it is what was ablated before."""
    pairs = selection.pairs()
    now: dict[str, Any] = {
        "data": selection.describe(pairs),
        "masks": files_fingerprint((pair.name, pair.mask_path) for pair in pairs if pair.mask_path is not None),
        "model": model_digest(pipeline),
        "sampler": sampler_of(pipeline),
        "device": pipeline.computing_device.type,
        "precision": precision_of(pipeline),
    }
    if (ends := ends_of(data_range)) is not None:
        low, high = ends
        now["data_range"] = [low, high] if low else high
    make_folder(path.parent / "scores")
    if not any((path.parent / "scores").glob("*.json")):  # nothing was scored of what it may name
        write_text(path, json.dumps(now, indent=1, allow_nan=False) + "\n")
        return
    before = _ablated_before(path)
    others = [name for name in (*now, *(before.keys() - now)) if before.get(name) != now.get(name)]
    if others:
        raise OutputError(f"{path.parent} holds the ablation of another {', '.join(others)}; choose another -o")
