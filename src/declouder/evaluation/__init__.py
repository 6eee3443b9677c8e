"""A method x a data set -> scores that anyone can check: JSON, CSV and a Markdown table.

    selection.py   which images, and what is read of each
    methods.py     what is scored: a pipeline, a folder of finished outputs of any software, the cloudy images
    scoring.py     one pair -> one row
    doubts.py      what makes scores doubtful, noted of each image and told in the end
    summary.py     all rows -> means, intervals, breakdowns and tables
    files.py       the file of scores and its journal

All methods are scored by the same code on the same pixels: for integer data the restored image is first rounded
to the data's own type, as a file would hold it. The file of scores carries what is needed to repeat it:
fingerprints of data and model, seed, steps, versions and the definition of every score.

An interrupted run goes on where it stopped: each image's scores are appended to OUT.partial as soon as they
are known.

    evaluate(Path("RICE1"), ModelMethod(pipeline, seed=0), out=Path("scores.json"), keep=Path("images"))
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown, metrics
from declouder.data.pairs import Pair
from declouder.errors import DataError, OptionError, OutputError
from declouder.evaluation.doubts import DOUBTS, tell_doubts, without_doubts
from declouder.evaluation.files import (
    FORMAT,
    FORMAT_VERSION,
    SCORING_PACKAGES,
    alone_at,
    begin_journal,
    files_fingerprint,
    make_folder,
    read_scores,
)
from declouder.evaluation.methods import (
    CloudyMethod,
    Method,
    ModelMethod,
    OutputsMethod,
    Restored,
)
from declouder.evaluation.scoring import Scorer
from declouder.evaluation.selection import Selection, masks_of
from declouder.evaluation.summary import (
    BAND_SCORES,
    GROUPS,
    SCORES,
    RunningMeans,
    bootstrap_interval,
    breakdown_markdown,
    summary,
    to_csv,
    to_markdown,
)
from declouder.kept import LEGEND, check_owner, owner_of
from declouder.packages import package_versions
from declouder.rgb import RGBN, spoken_colors
from declouder.whole_files import check_new, write_text

__all__ = [
    "BAND_SCORES",
    "GROUPS",
    "SCORES",
    "CloudyMethod",
    "Method",
    "ModelMethod",
    "OnImage",
    "OutputsMethod",
    "Restored",
    "Selection",
    "bootstrap_interval",
    "breakdown_markdown",
    "ends_of",
    "evaluate",
    "read_scores",
    "summary",
    "to_markdown",
]

log = logging.getLogger(__name__)

OnImage = Callable[[int, int, Mapping[str, float | None]], None]
"""Called after each image with images done, images in all and the running means."""

_DEFINITIONS = {
    **metrics.DEFINITIONS,
    "interval": "95 % percentile bootstrap of the mean over images, 10000 draws, seed 0; of fewer than ten images"
    " it is too narrow, of a single one there is none",
    "regions": dict(breakdown.DEFINITIONS),
    "null": "psnr of equal images is infinite: null here, and left out of the mean",
}


def evaluate(
    data: Path | Selection,
    method: Method,
    *,
    out: Path,
    masks: Path | None = None,
    keep: Path | None = None,
    band_names: Sequence[str] | None = None,
    data_range: float | Sequence[float] | None = None,
    lpips_backbone: Path | None = None,
    download_backbone: bool = False,
    band_lpips: bool = False,
    overwrite: bool = False,
    on_image: OnImage | None = None,
) -> dict[str, Any]:
    """Score a method on a data set's test part and write `out` (JSON), and beside it .csv and .md.

    If the same call was stopped before, it continues from OUT.partial.

    Args:
        data: folder of the data set, of which all of the test part is scored; or a `Selection` for less, or another
            part.
        method: `ModelMethod`, `OutputsMethod` or `CloudyMethod`.
        out: the file to write, which must end in .json; its folder is made.
        masks: folder of cloud masks named as the pairs, above 0 where cloud. None takes the data set's own, or
            tells cloud from how far the pair differs.
        keep: folder for the images that `declouder report` shows; see `kept`.
        band_names: C names; None takes the model's, else grey, RGB or RGB + NIR by the number of bands.
        data_range: span of the data's numbers, or the two that are black and white; None takes the dtype's, of
            floats 0 to 1.
        lpips_backbone: file of AlexNet's weights for LPIPS; None looks where `metrics.load_lpips` looks. If there
            are none, LPIPS is None, and the file says why.
        download_backbone: fetch the weights if they are nowhere on this machine.
        band_lpips: take LPIPS of each band too, about 25 ms of CPU a band of 256 px.
        overwrite: replace existing files.
        on_image: see `OnImage`.

    Returns:
        What the JSON file holds: "mean" and "interval" (95 % bootstrap) of each score, "images" (a row an image),
        and all that is needed to repeat them.

    Raises:
        DataError: if pairs, outputs, masks or sizes do not fit.
        OptionError: if an option has no meaning here.
        OutputError: if one of the files exists or cannot be written, or OUT.partial belongs to another run.
    """
    if out.suffix != ".json":
        raise OptionError(f"{out} does not end in .json; the table and the list go beside it as .md and .csv")
    csv, markdown, partial = out.with_suffix(".csv"), out.with_suffix(".md"), out.with_name(f"{out.name}.partial")
    _check_places(out, (csv, markdown), partial, overwrite=overwrite)
    ends = ends_of(data_range)
    selection = data if isinstance(data, Selection) else Selection(data)
    pairs = selection.pairs()
    mask_of = masks_of(pairs, masks)
    lpips, lpips_reason = metrics.load_lpips(lpips_backbone, download=download_backbone)
    described = method.describe(pairs)
    _check_names_of_model(band_names, described)
    run = {
        "data": {
            **selection.describe(pairs),
            "data_range": None if ends is None else list(ends) if ends[0] else ends[1],
            "band_names": None if band_names is None else list(band_names),
            "masks": None if not mask_of else files_fingerprint(sorted(mask_of.items())),
        },
        "method": described,
    }
    owner = "" if keep is None else _owner(run)
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **run,
        "lpips": (
            {"available": False, "reason": lpips_reason}
            if lpips is None
            else {"available": True, "backbone_sha256": lpips.backbone_sha256, "by_band": band_lpips}
        ),
        "kept": None if keep is None else _kept(keep, out, owner),
        "definitions": _DEFINITIONS,
        "versions": package_versions(SCORING_PACKAGES),
    }
    make_folder(out.parent)
    with alone_at(out):
        check_new(out, overwrite=overwrite)  # another run may have finished it since
        done = _begun(partial, head, keep, owner, overwrite=overwrite)
        scorer = Scorer(
            selection=selection,
            method=method,
            lpips=lpips,
            band_lpips=band_lpips,
            band_names=band_names or described.get("bands"),
            data_range=ends,
            mask_of=mask_of,
            keep=keep,
            owner=owner,
        )
        rows = _rows(scorer, pairs, done, partial, on_image)
        tell_doubts({row["name"]: row[DOUBTS] for row in rows if DOUBTS in row}, data_range=ends)
        rows = without_doubts(rows)
        samples, averaged = described.get("samples", 1), described.get("averaged", False)
        result = {**head, **summary(rows, samples=samples, averaged=averaged), "images": rows}
        write_text(csv, to_csv(rows))
        write_text(markdown, to_markdown([result]) + "\n" + breakdown_markdown(result))
        write_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
        partial.unlink(missing_ok=True)
    return result


def _check_names_of_model(given: Sequence[str] | None, described: Mapping[str, Any]) -> None:
    """Raise OptionError if bands are said to be others than a model takes them for: it would see wrong colours."""
    own = described.get("bands") if described.get("kind") == "model" else None
    if given is None or own is None:
        return
    said, wanted = spoken_colors(given), spoken_colors(own)
    moved = any(band in said and band in wanted and said.index(band) != wanted.index(band) for band in RGBN)
    others = any(one != other and {one, other} <= set(RGBN) for one, other in zip(said, wanted, strict=False))
    if moved or others:
        raise OptionError(
            f"--band-names is {','.join(given)}, and the model takes bands for {','.join(own)}; give images in its"
            " order, such as by gdal_translate -b"
        )


def _begun(
    partial: Path, head: Mapping[str, Any], keep: Path | None, owner: str, *, overwrite: bool
) -> dict[str, dict[str, Any]]:
    """Begin the journal, or go on with it; return the rows that a stopped run has left, by name.

    None count if another evaluation has written over their kept images since.
    """
    if keep is None:
        return begin_journal(partial, head, anew_if_other=overwrite)
    check_owner(keep, owner, overwrite=overwrite)
    done = begin_journal(partial, head, anew_if_other=overwrite)
    if done and owner_of(keep) != owner:
        partial.unlink()  # or the next run would take them for ours
        done = begin_journal(partial, head)
    return done


def _check_places(out: Path, beside: Sequence[Path], partial: Path, *, overwrite: bool) -> None:
    """Raise before hours of work what would be raised after them: that the files cannot have these names."""
    for path in (out, *beside):
        # Beside an unfinished run they are its own: it was stopped while it wrote the last of them.
        if path == out or not partial.exists():
            check_new(path, overwrite=overwrite)


def _rows(
    scorer: Scorer,
    pairs: Sequence[Pair],
    done: Mapping[str, dict[str, Any]],
    partial: Path,
    on_image: OnImage | None,
) -> list[dict[str, Any]]:
    """Return a row for each pair; one that is not among `done` is scored now, and noted in `partial` at once."""
    rows: list[dict[str, Any]] = []
    so_far = RunningMeans()
    try:
        # Without a buffer: closing the file would try once more to write what a full disk did not take.
        with partial.open("ab", buffering=0) as journal:
            for pair in pairs:
                row = done.get(pair.name)
                if row is None:
                    row = scorer.row(pair)
                    if rows and len(row["bands"]) != len(rows[0]["bands"]):
                        raise DataError(
                            f"{pair.clear_path} has {len(row['bands'])} bands, the images before it"
                            f" {len(rows[0]['bands'])}; a set has one number of bands"
                        )
                    _note(journal, partial, row)
                rows.append(row)
                means = so_far.add(row)
                if on_image is not None:
                    on_image(len(rows), len(pairs), means)
    except KeyboardInterrupt:
        scored = {*done, *(row["name"] for row in rows)}
        if scored:
            log.warning(
                "%d of %d images are scored, in %s; the same command goes on from there",
                *(len(scored), len(pairs), partial),
            )
        raise
    finally:
        if not (rows or done):
            partial.unlink(missing_ok=True)  # nothing to go on with: it would only stand in the way
    return rows


def _note(journal: io.FileIO, partial: Path, row: Mapping[str, Any]) -> None:
    line = json.dumps(row).encode() + b"\n"
    try:
        if journal.write(line) == len(line):
            return
        reason = "only a part of a line was taken"
    except OSError as error:
        reason = error.strerror or str(error)
    raise OutputError(f"{partial} cannot be written ({reason}); make room, and go on with the same command")


def ends_of(data_range: float | Sequence[float] | NDArray[Any] | None) -> tuple[float, float] | None:
    """Return the numbers that are black and white; a single one is the second, and black is 0."""
    if data_range is None:
        return None
    if isinstance(data_range, np.ndarray):
        data_range = cast("float | Sequence[float]", data_range.tolist())
    if isinstance(data_range, Sequence) and len(data_range) != 2:
        raise OptionError(f"data_range is {list(data_range)}; give one number, or the two that are black and white")
    low, high = data_range if isinstance(data_range, Sequence) else (0.0, data_range)
    if not -math.inf < low < high < math.inf:
        given = f"{low:g},{high:g}" if isinstance(data_range, Sequence) else f"{high:g}"
        raise OptionError(
            f"--data-range is {given}; give the span of the data's numbers, such as 4095, or LOW,HIGH"
        )
    return float(low), float(high)


def _owner(run: Mapping[str, Any]) -> str:
    """Return what tells the folder of a run's images from those of others."""
    return hashlib.sha256(json.dumps([run["data"], run["method"]], sort_keys=True).encode()).hexdigest()


def _kept(keep: Path, out: Path, owner: str) -> dict[str, str]:
    """Return what the file of scores says of the folder of kept images."""
    # Seen from the file of scores, so that both can be moved together.
    folder = Path(os.path.relpath(keep, out.parent)).as_posix()
    return {"folder": folder, "legend": LEGEND, "owner": owner}
