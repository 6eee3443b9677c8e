"""A method x a data set -> scores that anyone can check: JSON, CSV and a Markdown table.

A method is a pipeline, a folder of finished outputs of any software, or the cloudy images themselves. All are
scored by the same code on the same pixels: for integer data the restored image is first rounded to the data's
own type, as a file would hold it. The file of scores carries what is needed to repeat it: fingerprints of
data and model, seed, steps, versions and the definition of every score.

An interrupted run goes on where it stopped: each image's scores are appended to OUT.partial as soon as they
are known.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from declouder import metrics
from declouder.data.pairs import Pair, find_images, find_pairs, read_image
from declouder.errors import DataError, OptionError, OutputError
from declouder.scaling import Scaling

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

FORMAT = "declouder scores"
FORMAT_VERSION = 1
SCORES = tuple(metrics.DEFINITIONS)
PACKAGES = ("declouder", "torch", "diffusers", "numpy", "scipy", "pillow")
DEFAULT_BANDS: Mapping[int, tuple[str, ...]] = {
    1: ("grey",),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "nir"),
}

THIN_FROM = 0.03
"""Share of the range from which the mean |cloudy - clear| over bands, blurred by 4 px, is thin cloud."""
THICK_FROM = 0.15
"""The same from which it is thick cloud: on RICE2's training part this separates haze from white cloud."""
EDGE_PX = 8
"""Half width of the ring around the border of cloud."""
FLAT_BELOW = 0.02
"""Standard deviation of the clear image's band mean, as a share of the range, below which it is flat."""
REGIONS = ("outside", "thin", "thick", "edge")
SMALLEST_REGION = 0.01
"""Share of the image that a region must have to be scored."""

REGION_DEFINITIONS = {
    "outside": f"blurred mean |cloudy - clear| under {THIN_FROM:g} of the range",
    "thin": f"from {THIN_FROM:g} to {THICK_FROM:g}",
    "thick": f"from {THICK_FROM:g}",
    "edge": f"within {EDGE_PX} px of the border between outside and cloud",
}


class Method(Protocol):
    """What is scored: it restores one image at a time, the same whatever the order."""

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what is needed to repeat it, fingerprint included; raise if it does not fit the pairs."""

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
        """Return the restored image (H, W, C) in the dtype and numbers of `cloudy`."""


@dataclass(frozen=True)
class ModelMethod:
    """A pipeline. Every image starts from a generator of the same seed, so that order does not matter."""

    pipeline: CloudRemovalPipeline
    num_inference_steps: int | None = None
    seed: int = 0
    name: str = "model"
    """How the table calls it."""

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind, name, fingerprint, bands, steps, sampler and seed."""
        config = self.pipeline.config
        steps = config.num_inference_steps if self.num_inference_steps is None else self.num_inference_steps
        return {
            "kind": "model",
            "name": self.name,
            "sha256": model_fingerprint(self.pipeline),
            "bands": list(config.bands),
            "num_inference_steps": steps,
            "strength": config.strength,
            "w_bounds": list(config.w_bounds),
            "sampler": type(self.pipeline.scheduler).__name__,
            "seed": self.seed,
            "device": str(self.pipeline.device),
        }

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
        """Run the pipeline on one image."""
        import torch

        bands = len(self.pipeline.config.bands)
        if cloudy.shape[2] != bands:
            raise DataError(
                f"{pair.cloudy_path} has {cloudy.shape[2]} bands, this model wants {bands}"
                f" ({', '.join(self.pipeline.config.bands)}); choose a model of the data's bands"
            )
        unit = (scaling.to_model(cloudy) + 1) / 2
        result = self.pipeline(
            torch.from_numpy(unit.transpose(2, 0, 1)[None].copy()),
            num_inference_steps=self.num_inference_steps,
            generator=torch.Generator().manual_seed(self.seed),
            output_type="np",
        )
        return scaling.to_dn(2 * np.asarray(result.images[0]) - 1, cloudy.dtype)


@dataclass(frozen=True)
class OutputsMethod:
    """A folder with one finished image a pair, named as the pair, in any image format."""

    folder: Path
    name: str = "outputs"

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind, name and the outputs' fingerprint.

        Raises:
            DataError: if an output is missing.
        """
        found = self._by_name
        missing = [pair.name for pair in pairs if pair.name not in found]
        if missing:
            raise DataError(
                f"{self.folder} lacks {len(missing)} of {len(pairs)} outputs, the first is {missing[0]};"
                f" name each output as its cloudy image, or leave the images out with --exclude"
            )
        files = _files_fingerprint((pair.name, found[pair.name]) for pair in pairs)
        return {"kind": "outputs", "name": self.name, "sha256": files}

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
        """Read the finished image."""
        path = self._by_name[pair.name]
        restored = read_image(path)
        if restored.shape != cloudy.shape or restored.dtype != cloudy.dtype:
            raise DataError(
                f"{path} is {_look(restored)}, its cloudy image {_look(cloudy)}; give outputs"
                f" of the same size, bands and type"
            )
        return restored

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        return {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in find_images(self.folder)}


@dataclass(frozen=True)
class CloudyMethod:
    """The cloudy image itself: the floor that every method must beat."""

    name: str = "the cloudy image itself"

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind and name."""
        return {"kind": "cloudy", "name": self.name}

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
        """Return the cloudy image."""
        return cloudy


def evaluate(
    data: Path,
    method: Method,
    *,
    out: Path,
    split: str = "test",
    exclude: Path | None = None,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
    lpips_backbone: Path | None = None,
    download_backbone: bool = False,
    overwrite: bool = False,
    on_image: Callable[[int, int, Mapping[str, float | None]], None] | None = None,
) -> dict[str, Any]:
    """Score a method on the pairs of `data/split` and write `out` (JSON), and beside it .csv and .md.

    Args:
        data: folder that holds `split`/{cloud,label}.
        method: `ModelMethod`, `OutputsMethod` or `CloudyMethod`.
        out: the JSON file to write; its folder is made.
        split: which part of the data.
        exclude: a text file of names to leave out, one a line; # begins a comment.
        band_names: C names; None takes the model's, else grey, RGB or RGB + NIR by the number of bands.
        data_range: span of the data's numbers; None takes the dtype's.
        lpips_backbone: AlexNet for LPIPS; see `metrics.load_lpips`.
        download_backbone: fetch the backbone if it is nowhere on this machine.
        overwrite: replace an existing `out`.
        on_image: called after each image with images done, images in all and the running means.

    Returns:
        What the JSON file holds: "mean", "interval" (bootstrap, 95 %), "images" and all that repeats them.

    Raises:
        DataError: if pairs, outputs or sizes do not fit.
        OptionError: if an option has no meaning here.
        OutputError: if `out` exists, or OUT.partial belongs to another run.
    """
    if out.suffix != ".json":
        raise OptionError(f"{out} does not end in .json; the table and the list go beside it as .md and .csv")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite or another name")
    pairs = _without(find_pairs(data, split), exclude)
    lpips, lpips_origin = metrics.load_lpips(lpips_backbone, download=download_backbone)
    described = method.describe(pairs)
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "data": {
            "path": str(data),
            "split": split,
            "images": len(pairs),
            "excluded": None if exclude is None else str(exclude),
            "sha256": data_fingerprint(pairs),
            "data_range": data_range,
        },
        "method": described,
        "lpips": (
            {"available": False, "reason": lpips_origin}
            if lpips is None
            else {"available": True, "backbone_sha256": lpips.backbone_sha256}
        ),
        "definitions": {
            **metrics.DEFINITIONS,
            "interval": "95 % percentile bootstrap of the mean over images, 10000 draws, seed 0",
            "regions": REGION_DEFINITIONS,
            "null": "psnr of equal images is infinite: null here, and left out of the mean",
        },
        "versions": _versions(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    done = _begin(partial, head)
    rows: list[dict[str, Any]] = []
    names = band_names if band_names is not None else described.get("bands")
    with partial.open("a", encoding="utf-8") as journal:
        for pair in pairs:
            row = done.get(pair.name)
            if row is None:
                row = _score_pair(pair, method, lpips, names, data_range)
                journal.write(json.dumps(row) + "\n")
                journal.flush()
            rows.append(row)
            if on_image is not None:
                on_image(len(rows), len(pairs), _means(rows))
    result = {**head, **summary(rows), "images": rows}
    _write_atomically(out, json.dumps(result, indent=1) + "\n")
    _write_atomically(out.with_suffix(".csv"), _csv(rows))
    _write_atomically(out.with_suffix(".md"), to_markdown([result]))
    partial.unlink()
    return result


def read_scores(path: Path) -> dict[str, Any]:
    """Read a file that `evaluate` wrote.

    Raises:
        DataError: if it is missing, no file of scores, or one of another version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; `declouder evaluate` makes it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no file of scores ({error}); `declouder evaluate` makes one") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(f"{path} is no file of scores; `declouder evaluate` makes one")
    if found.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path} is of version {found.get('version')}, this declouder reads {FORMAT_VERSION}; evaluate again"
        )
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, interval and the breakdowns by band, region and group of images.

    Args:
        rows: one a image, as in the file's "images".
    """
    interval: dict[str, list[float] | None] = {}
    for name in SCORES:
        values = _values(rows, name)
        if values.size:
            draws = np.random.default_rng(0).integers(0, values.size, (10_000, values.size))
            low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
            interval[name] = [float(low), float(high)]
        else:
            interval[name] = None
    bands = {
        band: {key: _mean(row["bands"][band][key] for row in rows if band in row["bands"]) for key in scores}
        for band, scores in rows[0]["bands"].items()
    }
    regions = {}
    for region in REGIONS:
        there = [row["regions"][region] for row in rows if row["regions"][region] is not None]
        regions[region] = {"images": len(there), **{k: _mean(r[k] for r in there) for k in ("psnr", "mae")}}
    groups = {
        group: {"images": len(members), "mean": _means(members)}
        for group, members in {
            "flat label": [row for row in rows if row["flat"]],
            "structured label": [row for row in rows if not row["flat"]],
            "cover under 30 %": [row for row in rows if row["cover"] < 0.3],
            "cover 30 to 70 %": [row for row in rows if 0.3 <= row["cover"] < 0.7],
            "cover from 70 %": [row for row in rows if row["cover"] >= 0.7],
        }.items()
    }
    return {"mean": _means(rows), "interval": interval, "bands": bands, "regions": regions, "groups": groups}


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one table, a row a result, with the interval under each mean."""
    lines = [
        "| data (images) | method | " + " | ".join(SCORES) + " |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for result in results:
        data, method = result["data"], result["method"]
        cells = [f"{Path(data['path']).name}/{data['split']} ({data['images']})", method["name"]]
        for name in SCORES:
            mean, interval = result["mean"][name], result["interval"][name]
            if mean is None or interval is None:
                cells.append("–")
            else:
                cells.append(f"{mean:.4f}<br>({interval[0]:.4f} to {interval[1]:.4f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def regions(cloudy: NDArray[Any], clear: NDArray[Any], data_range: float) -> dict[str, NDArray[np.bool_]]:
    """Return where cloud is, and how thick, from how far the pair differs: (H, W) masks by `REGIONS`' names.

    outside, thin and thick divide the image; edge lies across them.
    """
    difference = (cloudy.astype(np.float32) - clear) / np.float32(data_range)
    # The blur takes noise and small shifts of the ground for what they are: no cloud.
    distance = np.abs(gaussian_filter(difference, (4, 4, 0))).mean(2)
    cloud = distance >= THIN_FROM
    box = np.ones((2 * EDGE_PX + 1, 2 * EDGE_PX + 1), bool)
    edge = binary_dilation(cloud, box) & binary_dilation(~cloud, box)
    thick = distance >= THICK_FROM
    return {"outside": ~cloud, "thin": cloud & ~thick, "thick": thick, "edge": edge}


def data_fingerprint(pairs: Sequence[Pair]) -> str:
    """Return the sha256 of the names and bytes of all images."""
    files = [
        (f"{pair.name}/{kind}", path)
        for pair in pairs
        for kind, path in (("cloud", pair.cloudy_path), ("label", pair.clear_path))
    ]
    return _files_fingerprint(files)


def model_fingerprint(pipeline: CloudRemovalPipeline) -> str:
    """Return the sha256 of every tensor and of the configuration, the same wherever the model lies."""
    from torch import nn

    digest = hashlib.sha256()
    for name, component in sorted(pipeline.components.items()):
        digest.update(f"\n{name} {type(component).__name__}".encode())
        if isinstance(component, nn.Module):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(f"\n{key} {tuple(tensor.shape)} ".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    settings = {key: pipeline.config[key] for key in ("bands", "w_bounds", "num_inference_steps", "strength")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def _score_pair(
    pair: Pair,
    method: Method,
    lpips: metrics.Lpips | None,
    band_names: Sequence[str] | None,
    data_range: float | None,
) -> dict[str, Any]:
    """Return one row of the file's "images"."""
    cloudy, clear = read_image(pair.cloudy_path), read_image(pair.clear_path)
    if cloudy.shape != clear.shape or cloudy.dtype != clear.dtype:
        raise DataError(
            f"{pair.cloudy_path} is {_look(cloudy)}, its label {_look(clear)}; both must be of one size and type"
        )
    scaling = Scaling.of_dtype(clear.dtype) if data_range is None else Scaling(0, data_range)
    restored = method.restore(pair, cloudy, scaling)
    bands = clear.shape[2]
    names = band_names if band_names is not None else DEFAULT_BANDS.get(bands)
    if names is None:
        names = [f"band {c + 1}" for c in range(bands)]
    if len(names) != bands:
        raise OptionError(f"{len(names)} band names for {bands} bands of {pair.clear_path}; give one a band")
    scores = metrics.score(restored, clear, lpips=lpips, band_names=names, data_range=scaling.high)
    parts = regions(cloudy, clear, scaling.high)
    error = np.abs(restored.astype(np.float64) - clear) / scaling.high
    return {
        "name": pair.name,
        **{key: _finite(value) for key, value in scores.overall.items()},
        "cover": float(1 - parts["outside"].mean()),
        "flat": bool(clear.mean(2).std() < FLAT_BELOW * scaling.high),
        "bands": {
            name: {key: _finite(value) for key, value in band.items()}
            for name, band in zip(names, scores.bands, strict=True)
        },
        "regions": {
            region: _region_scores(error[mask]) if mask.mean() >= SMALLEST_REGION else None
            for region, mask in parts.items()
        },
    }


def _region_scores(error: NDArray[np.float64]) -> dict[str, float | None]:
    mse = float(np.mean(error**2))
    return {"psnr": None if mse == 0 else -10 * math.log10(mse), "mae": float(error.mean())}


def _without(pairs: list[Pair], exclude: Path | None) -> list[Pair]:
    """Leave out the pairs that the list names."""
    if exclude is None:
        return pairs
    if not exclude.is_file():
        raise DataError(f"{exclude} does not exist; give a text file with one name a line")
    lines = (line.split("#")[0].strip() for line in exclude.read_text(encoding="utf-8").splitlines())
    names = {line for line in lines if line}
    unknown = names - {pair.name for pair in pairs}
    if unknown:
        raise DataError(
            f"{exclude} names {min(unknown)!r}, which is not in the data ({len(unknown)} such names);"
            f" write names without their ending"
        )
    kept = [pair for pair in pairs if pair.name not in names]
    if not kept:
        raise DataError(f"{exclude} leaves nothing to score")
    return kept


def _begin(partial: Path, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of an interrupted run by name, or begin a new journal whose first line is `head`."""
    if not partial.exists():
        partial.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return {}
    text = partial.read_text(encoding="utf-8")
    # A killed run may have left half a line at the end.
    whole = text[: text.rfind("\n") + 1]
    lines = whole.splitlines()
    if lines and json.loads(lines[0]) != head:
        raise OutputError(
            f"{partial} is from a run with other data, model or settings; remove it or choose another --out"
        )
    if not lines:
        partial.unlink()
        return _begin(partial, head)
    if whole != text:
        partial.write_text(whole, encoding="utf-8")
    return {row["name"]: row for row in map(json.loads, lines[1:])}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    return {name: _mean(row[name] for row in rows) for name in SCORES}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([row[name] for row in rows if row[name] is not None], np.float64)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _look(image: NDArray[Any]) -> str:
    return f"{image.shape[0]} x {image.shape[1]} px, {image.shape[2]} bands, {image.dtype}"


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", *SCORES, "cover", "flat"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _files_fingerprint(files: Any) -> str:
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _write_atomically(path: Path, text: str) -> None:
    """Write beside the target and rename, so that a killed run leaves no half file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error}); choose another --out") from error
