"""Whether the paper's claim holds: fused images against the reference's, image by image.

The claim is that the fused image is nearer to the truth for the eye and loses no PSNR (Sui et al., IEEE TGRS 2024).
Over all images a bootstrap interval decides; over groups of few of them the sign-flip test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown
from declouder.evaluation import GROUPS, bootstrap_interval

Rows = Sequence[Mapping[str, Any]]
"""Of a file of scores, one an image."""

FEWEST_JUDGED = 10
"""Images from which a verdict is given: a bootstrap interval of fewer is too narrow."""
ERROR = 0.05
"""Share of cases without a difference in which a verdict may still find one, over all groups or settings together.

Where differences are symmetric. Those of LPIPS, where a few images gain most, are not, and find one more often."""
SIGN_FLIPS = 10_000


def answer(fused: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the fused images against the reference's, image by image.

    Args:
        fused, reference: what `evaluate` gave for the same images.

    Returns:
        "lpips" and "psnr": mean difference, fused less reference, with its 95 % interval; "where": the same by
        group of images; "regions": by region, PSNR; "sentence": the verdict.
    """
    overall = _differences(fused["images"], reference["images"])
    groups = {name: pair for name in GROUPS if (pair := _of_group(name, fused, reference))[1]}
    where = {name: {"images": len(theirs), **_differences(ours, theirs)} for name, (ours, theirs) in groups.items()}
    regions: dict[str, float | None] = {}
    for region in breakdown.REGIONS:
        # Only of images where both have one: what is right to the last bit has none, in one of them perhaps.
        ours, theirs = ([_of_region(row, region) for row in file["images"]] for file in (fused, reference))
        differences = _paired(ours, theirs, "psnr")
        regions[region] = float(differences.mean()) if differences.size else None
    sentence = _sentence(overall, _verdicts(groups, where))
    return {**overall, "where": where, "regions": regions, "sentence": sentence}


def best_that_loses_nothing(
    scored: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], reference: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the row of the lowest LPIPS that loses no PSNR which the images can tell.

    Args:
        scored: rows of the table, but the reference's, and what `evaluate` gave for each.
        reference: what `evaluate` gave for the reference.

    Returns:
        "label" of the row, None if there is no such row, and "sentence"; None if no row can be held against the
        reference in PSNR and LPIPS.
    """
    if reference["mean"]["lpips"] is None:
        return None
    candidates: dict[str, tuple[float, Mapping[str, Any], Rows, dict[str, Any]]] = {}
    any_judged = False
    for row, result in scored:
        found = _differences(result["images"], reference["images"])
        # Scored on another machine a row may lack LPIPS where the reference has it.
        if found["psnr"] and found["lpips"]:
            any_judged = True
            if not _loses(found["psnr"]):  # of rows of one setting, which share a file, the first
                candidates.setdefault(row["scores"], (row["mean"]["lpips"], row, result["images"], found))
    if not candidates:
        sentence = "All settings lose PSNR against the reference."
        return {"label": None, "sentence": sentence} if any_judged else None
    _, row, images, found = min(candidates.values(), key=lambda each: each[0])
    gain = f"LPIPS {signed(found['lpips'], 4)}, PSNR {signed(found['psnr'], 2)} dB"
    # The lowest of many is low by chance too: the error is shared out among those that it was chosen from.
    if _by_chance(_paired(images, reference["images"], "lpips")) > ERROR / len(candidates):
        gain += "; these images do not tell the two LPIPS apart"
        gain += f", as it is the lowest of {len(candidates)}" if len(candidates) > 1 else ""
    return {
        "label": f"{row['group']}: {row['label']}",
        "sentence": f"Of the settings that lose no PSNR which these images can tell, {row['group']}"
        f" “{row['label']}” has the lowest LPIPS; against the reference: {gain}.",
    }


def _loses(psnr: Mapping[str, Any]) -> bool:
    """Return whether the whole interval of a difference in PSNR, or a single one, lies below 0."""
    return bool((psnr["mean"] if psnr["interval"] is None else psnr["interval"][1]) < 0)


def _of_group(name: str, fused: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[Rows, Rows]:
    """Return the rows of a group of images in both files, by what the reference's says of them."""
    names = {row["name"] for row in reference["images"] if GROUPS[name](row)}
    ours, theirs = ([row for row in file["images"] if row["name"] in names] for file in (fused, reference))
    return ours, theirs


def _verdicts(groups: Mapping[str, tuple[Rows, Rows]], where: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return "holds", "worse" or "" of each group that can be judged.

    The more groups are looked at, the more of them differ by chance: the error is shared out among them, and among
    the two scores of each.

    Args:
        groups: the rows of the fused images and of the reference's, by group.
        where: what `answer` tells of these groups.
    """
    judged = [
        name for name, each in where.items() if each["lpips"] and each["psnr"] and each["images"] >= FEWEST_JUDGED
    ]
    most = ERROR / max(1, 2 * len(judged))
    verdicts = {}
    for name in judged:
        ours, theirs = groups[name]
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

    The sign-flip test: where differences are symmetric it keeps its error for ten images too, as a bootstrap
    interval does not.
    """
    generator = np.random.default_rng(0)
    # What rounding makes of equal means must not differ.
    far = abs(differences.sum()) * (1 - 1e-9)
    as_far = 0
    for _ in range(SIGN_FLIPS // 100):  # at once, those of thousands of images would fill gigabytes
        signs = generator.choice([-1.0, 1.0], (100, differences.size))
        as_far += int((np.abs(signs @ differences) >= far).sum())
    return (as_far + 1) / (SIGN_FLIPS + 1)


def _differences(ours: Rows, theirs: Rows) -> dict[str, Any]:
    """Return mean and interval of fused less reference, of LPIPS and PSNR; None where there is none."""
    found: dict[str, Any] = {}
    for name in ("lpips", "psnr"):
        values = _paired(ours, theirs, name)
        found[name] = None
        if values.size:
            interval = bootstrap_interval(values)
            found[name] = {"images": int(values.size), "mean": float(values.mean()), "interval": interval}
    return found


def _of_region(row: Mapping[str, Any], region: str) -> dict[str, Any]:
    """Return the name of an image and the PSNR of one of its regions."""
    return {"name": row["name"], "psnr": (row["regions"][region] or {}).get("psnr")}


def _paired(ours: Rows, theirs: Rows, score: str) -> NDArray[np.float64]:
    """Return a score of ours less that of theirs, image by image, of those that have it: (N,)."""
    by_name = {row["name"]: row[score] for row in theirs}
    pairs = [(row[score], by_name[row["name"]]) for row in ours]
    return np.array([a - b for a, b in pairs if a is not None and b is not None], np.float64)


def _sentence(overall: Mapping[str, Any], verdicts: Mapping[str, str]) -> str:
    lpips, psnr = overall["lpips"], overall["psnr"]
    if lpips is None or psnr is None:
        return "The paper's claim cannot be judged: LPIPS or PSNR is missing."
    numbers = f"LPIPS {signed(lpips, 4)}, PSNR {signed(psnr, 2)} dB, mean differences with 95 % intervals"
    images = min(lpips["images"], psnr["images"])
    if images < FEWEST_JUDGED:
        return f"{images} images are too few to judge the paper's claim ({numbers})."
    # "Beats" and "loses" mean that the whole interval lies on that side of 0.
    beats, loses, loses_lpips = lpips["interval"][1] < 0, _loses(psnr), lpips["interval"][0] > 0
    if beats and not loses:
        verdict = (
            "The paper's claim holds here: the fused image beats the reference in LPIPS, and these images tell no"
            " loss of PSNR"
        )
    elif loses_lpips:
        verdict = "The paper's claim does not hold: the fused image has a higher LPIPS than the reference"
        verdict += " and loses PSNR" if loses else ""
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


def signed(found: Mapping[str, Any], digits: int) -> str:
    """Return a mean difference with its sign, and its interval if there is one."""
    mean, interval = plus(found["mean"], digits), found["interval"]
    return mean if interval is None else f"{mean} ({plus(interval[0], digits)} to {plus(interval[1], digits)})"


def plus(value: float, digits: int) -> str:
    """Return a number with its sign; what rounds to nothing has none."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
