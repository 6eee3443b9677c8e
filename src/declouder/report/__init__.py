"""Files of scores -> one HTML file to look at: it opens offline, asks nobody for anything, and carries its images.

    write_report([Path("scores.json"), Path("others.json")], Path("report.html"))

Files of scores of the same images are laid side by side: an image is one card, every method a layer of it. The
page is page.html, page.css and page.js of this folder, filled in by Jinja2, which escapes all that users name.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from PIL import Image

from declouder.errors import DataError, OptionError, OutputError
from declouder.evaluation import BAND_SCORES, SCORES, read_scores
from declouder.kept import MAPS, owner_of, read_kept
from declouder.report.plots import distribution, reliability
from declouder.version import __version__
from declouder.whole_files import check_new, write_text

BUDGET_BYTES = 28_000_000
"""What the images may take; finer steps of `QUALITIES` are tried first."""
QUALITIES = ((85, 512), (75, 512), (60, 384), (45, 256), (30, 192), (20, 128))
"""WebP quality and longest side in px."""
DIGITS = {name: 2 if name in ("psnr", "paper_psnr", "sam") else 4 for name in SCORES}
UNITS = {"psnr": "dB", "paper_psnr": "dB", "sam": "°"}
"""Of the scores that have one; the others are shares, or numbers without a unit."""
HIGHER_IS_BETTER = {name: name.endswith(("psnr", "ssim")) for name in SCORES}
# The maps' dark-to-light colours, told apart in grey and by the colour-blind too.
_RAMP = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))


def write_report(scores: Sequence[Path], out: Path, *, overwrite: bool = False, title: str | None = None) -> None:
    """Write the report of one or more files of scores.

    Args:
        scores: files that `evaluate` wrote. The first decides which images are worst.
        out: the HTML file.
        overwrite: replace an existing `out`.
        title: of the page; None names the data.

    Raises:
        DataError: if a file is no file of scores, or kept images are gone.
        OptionError: if nothing is given, or `out` is no .html.
        OutputError: if `out` exists or cannot be written.
    """
    if not scores:
        raise OptionError("no file of scores is given; `declouder evaluate` makes one")
    if out.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"{out} does not end in .html; the report is a page for a browser")
    check_new(out, overwrite=overwrite)
    results = [read_scores(path) for path in scores]
    page = render([(path, result) for path, result in zip(scores, results, strict=True)], title=title)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {out.parent} cannot be made ({error}); choose another -o") from error
    write_text(out, page, mend="choose another -o")


def render(files: Sequence[tuple[Path, Mapping[str, Any]]], *, title: str | None = None) -> str:
    """Return the page of files of scores: (path, what `read_scores` found there) each."""
    methods = _methods(files)
    sets = list(dict.fromkeys(method["data"] for method in methods))
    environment = Environment(
        loader=PackageLoader("declouder.report", ""),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["digits"] = lambda value, score: f"{value:.{DIGITS[score]}f}"
    environment.filters["head"] = _head
    environment.filters["shown"] = _shown
    environment.filters["error_by_spread"] = _error_by_spread
    here = Path(__file__).parent
    cards, images = _cards(files, methods)
    compared = {part: _compared(methods, part) for part in ("regions", "groups", "bands")}
    legends = [result["kept"].get("legend") for _, result in files if result["kept"]]
    return environment.get_template("page.html").render(
        title=title or f"Cloud removal on {', '.join(sets)}",
        version=__version__,
        css=(here / "page.css").read_text(encoding="utf-8"),
        js=(here / "page.js").read_text(encoding="utf-8"),
        methods=methods,
        many_sets=len(sets) > 1,
        scores=SCORES,
        band_scores=[s for s in BAND_SCORES if any(b.get(s) is not None for _, _, b in compared["bands"])],
        compared=compared,
        legend=legends[0] if legends else None,
        ramp=", ".join(f"rgb{colour}" for colour in _RAMP),
        higher=HIGHER_IS_BETTER,
        definitions=files[0][1]["definitions"],
        plots=_plots(methods),
        cards=cards,
        payload={
            "images": images,
            "cards": cards,
            "scores": SCORES,
            "higher": HIGHER_IS_BETTER,
            "digits": DIGITS,
            "methods": [m["label"] for m in methods],
        },
    )


def _shown(row: Mapping[str, Any], score: str) -> float | str | None:
    """Return a score of an image; "inf" where it is the PSNR of one without any error, None where there is none."""
    value: float | None = row[score]
    return "inf" if value is None and score in ("psnr", "paper_psnr") else value


def _error_by_spread(found: Mapping[str, Any]) -> float | None:
    """Return the error of all pixels together as a multiple of their spread, both root mean squares."""
    errors, spreads = (
        sum(row["pixels"] * row[name] ** 2 for row in found["reliability"]) for name in ("error", "spread")
    )
    return math.sqrt(errors / spreads) if spreads else None


def _head(score: str) -> str:
    """Return what a column or plot of a score is headed by: its name, its unit, and which way is better."""
    unit = f", {UNITS[score]}" if score in UNITS else ""
    return f"{score}{unit} {'↑' if HIGHER_IS_BETTER[score] else '↓'}"


def _methods(files: Sequence[tuple[Path, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return what the tables show of each file, with labels that differ."""
    methods: list[dict[str, Any]] = []
    measured = [_measured(result) for _, result in files]
    shared = set.intersection(*map(set, measured))
    sets = {(result["data"]["sha256"], *said) for (_, result), said in zip(files, measured, strict=True)}
    many_sets = len(sets) > 1
    called: dict[str, str] = {}  # fingerprints by name: two sets may be called alike
    for (path, result), said in zip(files, measured, strict=True):
        data, fingerprint = f"{result['data']['name']}/{result['data']['split']}", result["data"]["sha256"]
        if called.setdefault(data, fingerprint) != fingerprint:
            data += f" ({fingerprint[:8]})"
        if apart := [words for words in said if words not in shared]:
            data += f", {', '.join(apart)}"
        label = result["method"]["name"] + (f", {data}" if many_sets else "")
        taken = {method["label"] for method in methods}
        if label in taken:
            label = f"{label} ({path.stem})"
        while label in taken:
            label += "'"
        facts = {
            key: value if isinstance(value, (str, int, float)) else json.dumps(value)
            for key, value in result["method"].items()
            if key not in ("name", "kind")
        }
        facts = {"measured": "; ".join(said), **facts}
        known = {score: sum(row[score] is not None for row in result["images"]) for score in SCORES}
        methods.append({"label": label, "data": data, "result": result, "facts": facts, "known": known})
    return methods


def _measured(result: Mapping[str, Any]) -> list[str]:
    """Return what makes scores comparable or not, besides the images: size, range, and what says where cloud is."""
    data = result["data"]
    size, ends, masks = data.get("size_px"), data.get("data_range"), data.get("masks")
    low, high = ends if isinstance(ends, list) else (0, ends)
    names = next((list(row["bands"]) for row in result["images"]), [])  # LPIPS is of red, green and blue
    return [
        f"bands {', '.join(names)}",
        "as large as they are" if size is None else f"{size} px wide",
        "range of the data type" if ends is None else f"range {low:g} to {high:g}",
        "cloud by difference" if masks is None else f"cloud by masks ({masks[:8]})",
    ]


def _compared(methods: Sequence[Mapping[str, Any]], part: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (row, method's label, values) of one breakdown, with the methods of one row together."""
    names = dict.fromkeys(name for method in methods for name in method["result"][part])
    return [
        (name, method["label"], method["result"][part][name])
        for name in names
        for method in methods
        if name in method["result"][part]
    ]


def _plots(methods: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    plots = []
    for name in SCORES:
        values = {
            m["label"]: [row[name] for row in m["result"]["images"] if row[name] is not None] for m in methods
        }
        if any(values.values()):
            plots.append({"title": _head(name), "svg": distribution(name, values)})
    for method in methods:
        found = method["result"]["spread"]
        if found:
            plots.append({"title": f"reliability: {method['label']}", "svg": reliability(found)})
    return plots


def _cards(
    files: Sequence[tuple[Path, Mapping[str, Any]]], methods: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the cards, one an image, and the pictures as data URLs by key."""
    cards: dict[tuple[str, int | None, str], dict[str, Any]] = {}
    sources: dict[str, tuple[Path, str, str]] = {}
    for index, ((path, result), method) in enumerate(zip(files, methods, strict=True)):
        kept = result["kept"]
        if kept and kept.get("owner") not in (None, owner_of(path.parent / kept["folder"])):
            raise DataError(
                f"{path.parent / kept['folder']} does not hold the images of {path}; evaluate again, with a"
                f" --keep-images for each method"
            )
        for row in result["images"]:
            # Images are the same if their data set is, by its fingerprint and not by its name, and their size.
            key = (result["data"]["sha256"], result["data"].get("size_px"), row["name"])
            # What is cloud may be told by masks in one file and by difference in another: the first says it.
            card = cards.setdefault(
                key,
                {
                    "name": row["name"],
                    "data": method["data"],
                    "layers": [],
                    "scores": [None] * len(methods),
                    "cover": row["cover"],
                    "flat": row["flat"],
                },
            )
            card["scores"][index] = [_shown(row, name) for name in SCORES]
            for kind in row.get("kept") or ():
                shared = kind in ("cloudy", "clear")
                if shared and any(layer["kind"] == kind for layer in card["layers"]):
                    continue
                name = f"{len(sources)}"
                sources[name] = (path.parent / kept["folder"], row["name"], kind)
                label = kind if shared or len(methods) == 1 else f"{kind}: {method['label']}"
                card["layers"].append({"kind": kind, "label": label, "image": name})
    ordered = list(cards.values())
    if not sources:
        return ordered, {}
    return ordered, _encoded(sources)


def _encoded(sources: Mapping[str, tuple[Path, str, str]]) -> dict[str, str]:
    """Return data URLs, as fine as the budget allows."""
    for quality, side in QUALITIES:
        found: dict[str, str] = {}
        total = 0
        for key, (folder, name, kind) in sources.items():
            found[key] = _data_url(read_kept(folder, name, kind), kind, quality, side)
            total += len(found[key])
            if total > BUDGET_BYTES:
                break
        else:
            return found
    raise DataError(
        f"{len(sources)} images are more than one page of {BUDGET_BYTES // 10**6} MB can hold; report fewer files"
        f" of scores at a time, or evaluate with --limit"
    )


def _data_url(pixels: NDArray[np.uint8], kind: str, quality: int, side: int) -> str:
    image = Image.fromarray(_COLOURS[pixels] if kind in MAPS else pixels).convert("RGB")
    image.thumbnail((side, side), Image.Resampling.BOX)
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _colours() -> NDArray[np.uint8]:
    at = np.linspace(0, 1, len(_RAMP))
    wanted = np.linspace(0, 1, 256)
    columns = [np.interp(wanted, at, column) for column in np.array(_RAMP, np.float64).T]
    return np.stack(columns, 1).round().astype(np.uint8)


_COLOURS = _colours()
