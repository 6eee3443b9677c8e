"""A method x a data set -> scores that anyone can check: JSON, CSV and a Markdown table.

A method is a pipeline, a folder of finished outputs of any software, or the cloudy images themselves. All are
scored by the same code on the same pixels: for integer data the restored image is first rounded to the data's
own type, as a file would hold it. The file of scores carries what is needed to repeat it: fingerprints of
data and model, seed, steps, versions and the definition of every score.

An interrupted run goes on where it stopped: each image's scores are appended to OUT.partial as soon as they
are known.

    evaluate(Path("RICE1"), ModelMethod(pipeline, seed=0), out=Path("scores.json"), keep=Path("images"))
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown, metrics
from declouder.breakdown import REGIONS
from declouder.data.catalog import BandChoice, set_pairs
from declouder.data.pairs import Pair, find_images, fingerprint, images_by_name, read_image
from declouder.errors import DataError, OptionError, OutputError
from declouder.kept import FULL_SCALE, keep_images
from declouder.mosaic import Window
from declouder.noise import scene_noise
from declouder.scaling import Scaling

if TYPE_CHECKING:
    from declouder.pipeline import CloudRemovalPipeline

FORMAT = "declouder scores"
FORMAT_VERSION = 1
SCORES = tuple(metrics.DEFINITIONS)
GROUPS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "flat label": lambda row: bool(row["flat"]),
    "structured label": lambda row: not row["flat"],
    "hardly any cloud (cover under 1 %)": lambda row: row["cover"] < 0.01,
    "thin cloud (thick on under 10 %)": lambda row: row["cover"] >= 0.01 and row["thick_cover"] < 0.1,
    "thick cloud on 10 % or more": lambda row: row["thick_cover"] >= 0.1,
    "cover under 30 %": lambda row: row["cover"] < 0.3,
    "cover 30 to 70 %": lambda row: 0.3 <= row["cover"] < 0.7,
    "cover from 70 %": lambda row: row["cover"] >= 0.7,
}
"""Sets of images that are told apart; a row is one of the file's "images"."""
PACKAGES = ("declouder", "torch", "diffusers", "numpy", "scipy", "pillow")
DEFAULT_BANDS: Mapping[int, tuple[str, ...]] = {
    1: ("grey",),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "nir"),
}


@dataclass(frozen=True)
class Restored:
    """What a method makes of one image; the maps are those that it has.

    Attributes:
        image: (H, W, C) in the dtype and numbers of the cloudy image: this is scored.
        reference: the reference network's image, the same.
        w: (H, W) share of the reference at the last step, mean over bands.
        spread: (H, W) standard deviation over samples, root mean square over bands, as a share of the range.
    """

    image: NDArray[Any]
    reference: NDArray[Any] | None = None
    w: NDArray[np.float64] | None = None
    spread: NDArray[np.float64] | None = None


class Method(Protocol):
    """What is scored: it restores one image at a time, the same whatever the order."""

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what is needed to repeat it, fingerprint included; raise if it does not fit the pairs."""

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Return the restored image (H, W, C) in the dtype and numbers of `cloudy`."""


@dataclass(frozen=True)
class ModelMethod:
    """A pipeline. Every image starts from the noise of its seed and place alone, so that order does not matter.

    The noise is that of `declouder remove` with the same seed, so that an image of one window gets the same
    scores here and from the file that `remove` wrote.

    Attributes:
        pipeline: what restores.
        num_inference_steps, strength, w_bounds: as for the pipeline's call; None: as the model was saved.
        seed: of the noise.
        samples: draws of the noise; from two on their spread is told.
        average: score the mean of the samples in place of the first.
        name: how the table calls it.
    """

    pipeline: CloudRemovalPipeline
    num_inference_steps: int | None = None
    strength: float | None = None
    w_bounds: tuple[float, float] | None = None
    seed: int = 0
    samples: int = 1
    average: bool = False
    name: str = "model"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise OptionError(f"{self.samples} samples asked for; give 1 or more")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed is {self.seed}; give a number from 0 to 2^64 - 1")

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return kind, name, fingerprint, bands, steps, sampler and seed."""
        config = self.pipeline.config
        steps, strength, bounds = self.num_inference_steps, self.strength, self.w_bounds
        return {
            "kind": "model",
            "name": self.name,
            "sha256": model_fingerprint(self.pipeline),
            "bands": list(config.bands),
            "num_inference_steps": config.num_inference_steps if steps is None else steps,
            "strength": config.strength if strength is None else strength,
            "w_bounds": [float(bound) for bound in (config.w_bounds if bounds is None else bounds)],
            "sampler": type(self.pipeline.scheduler).__name__,
            "timestep_spacing": self.pipeline.scheduler.config.get("timestep_spacing"),
            "seed": self.seed,
            "samples": self.samples,
            "averaged": self.average,
            "device": self.pipeline.device.type,
        }

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Run the pipeline on one image, once a sample."""
        bands = len(self.pipeline.config.bands)
        if cloudy.shape[2] != bands:
            raise DataError(
                f"{pair.cloudy_path} has {cloudy.shape[2]} bands, this model wants {bands}"
                f" ({', '.join(self.pipeline.config.bands)}); choose a model of the data's bands"
                + (", or --bands rgbn" if bands == 4 else "")
            )
        results = [self._once(cloudy, scaling, sample) for sample in range(self.samples)]
        draws = np.stack([np.asarray(result.images[0], np.float64) for result in results])
        chosen = draws.mean(0) if self.average else draws[0]
        spread = np.sqrt(draws.var(0, ddof=1).mean(2)) if self.samples > 1 else None
        reference = results[0].reference[0]
        return Restored(
            scaling.to_dn(2 * chosen - 1, cloudy.dtype),
            scaling.to_dn(2 * np.asarray(reference) - 1, cloudy.dtype),
            np.asarray(results[0].weights[0], np.float64).mean(2),
            spread,
        )

    def _once(self, cloudy: NDArray[Any], scaling: Scaling, sample: int) -> Any:
        import torch

        height, width, bands = cloudy.shape
        unit = (scaling.to_model(cloudy) + 1) / 2
        noise = scene_noise(self.seed, Window(0, 0, height, width), bands, sample=sample)
        return self.pipeline(
            torch.from_numpy(unit.transpose(2, 0, 1)[None].copy()),
            num_inference_steps=self.num_inference_steps,
            strength=self.strength,
            w_bounds=self.w_bounds,
            latents=torch.from_numpy(noise[None].copy()),
            output_type="np",
        )


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

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Read the finished image."""
        path = self._by_name[pair.name]
        restored = read_image(path)
        if restored.shape != cloudy.shape or restored.dtype != cloudy.dtype:
            raise DataError(
                f"{path} is {_look(restored)}, its cloudy image {_look(cloudy)}; give outputs"
                f" of the same size, bands and type"
            )
        return Restored(restored)

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

    def restore(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Return the cloudy image."""
        return Restored(cloudy)


@dataclass(frozen=True)
class Selection:
    """Which images are scored.

    Attributes:
        data: the folder of the data set, see `data.catalog`.
        split: which part of it.
        set_name: its name in the catalog; None recognises it by the folder's name.
        bands: "rgb", or "rgbn" to join the near infrared's own tree.
        exclude: a text file of names to leave out, one a line; # begins a comment.
        limit: score so many images, spread evenly over the list; None scores all.
    """

    data: Path
    split: str = "test"
    set_name: str | None = None
    bands: BandChoice | None = None
    exclude: Path | None = None
    limit: int | None = None

    def pairs(self) -> list[Pair]:
        """Return the pairs to score.

        Raises:
            DataError: as `catalog.set_pairs`.
        """
        found = set_pairs(self.data, self.split, name=self.set_name, bands=self.bands, exclude=self.exclude)
        if self.limit is None or self.limit >= len(found):
            return found
        if self.limit < 1:
            raise OptionError(f"a limit of {self.limit} images leaves nothing to score; give 1 or more")
        return [found[int(position)] for position in np.linspace(0, len(found) - 1, self.limit).round()]

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what tells the data apart, wherever it lies."""
        excluded = None
        if self.exclude is not None:
            excluded = {
                "name": self.exclude.name,
                "sha256": hashlib.sha256(self.exclude.read_bytes()).hexdigest(),
            }
        return {
            "name": self.data.resolve().name,
            "split": self.split,
            "images": len(pairs),
            "limit": self.limit,
            "excluded": excluded,
            "sha256": fingerprint(pairs),
        }


def evaluate(
    data: Path | Selection,
    method: Method,
    *,
    out: Path,
    masks: Path | None = None,
    keep: Path | None = None,
    band_names: Sequence[str] | None = None,
    data_range: float | None = None,
    lpips_backbone: Path | None = None,
    download_backbone: bool = False,
    overwrite: bool = False,
    on_image: Callable[[int, int, Mapping[str, float | None]], None] | None = None,
) -> dict[str, Any]:
    """Score a method on a data set's test part and write `out` (JSON), and beside it .csv and .md.

    Args:
        data: what to score on; a path means all of its test part.
        method: `ModelMethod`, `OutputsMethod` or `CloudyMethod`.
        out: the JSON file to write; its folder is made.
        masks: folder of cloud masks named as the pairs, above 0 where cloud. None takes the data set's own, or
            tells cloud from how far the pair differs.
        keep: folder for the images that `declouder report` shows; see `kept`.
        band_names: C names; None takes the model's, else grey, RGB or RGB + NIR by the number of bands.
        data_range: span of the data's numbers; None takes the dtype's.
        lpips_backbone: AlexNet for LPIPS; see `metrics.load_lpips`.
        download_backbone: fetch the backbone if it is nowhere on this machine.
        overwrite: replace an existing `out`.
        on_image: called after each image with images done, images in all and the running means.

    Returns:
        What the JSON file holds: "mean", "interval" (bootstrap, 95 %), "images" and all that repeats them.

    Raises:
        DataError: if pairs, outputs, masks or sizes do not fit.
        OptionError: if an option has no meaning here.
        OutputError: if `out` exists, or OUT.partial belongs to another run.
    """
    if out.suffix != ".json":
        raise OptionError(f"{out} does not end in .json; the table and the list go beside it as .md and .csv")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite or another name")
    selection = data if isinstance(data, Selection) else Selection(data)
    pairs = selection.pairs()
    mask_of = _masks_of(pairs, masks)
    lpips, lpips_reason = metrics.load_lpips(lpips_backbone, download=download_backbone)
    described = method.describe(pairs)
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "data": {
            **selection.describe(pairs),
            "data_range": data_range,
            "masks": None if not mask_of else _files_fingerprint(sorted(mask_of.items())),
        },
        "method": described,
        "lpips": (
            {"available": False, "reason": lpips_reason}
            if lpips is None
            else {"available": True, "backbone_sha256": lpips.backbone_sha256}
        ),
        "kept": (
            None
            if keep is None
            # Seen from the file of scores, so that both can be moved together.
            else {"folder": Path(os.path.relpath(keep, out.parent)).as_posix(), "full_scale": dict(FULL_SCALE)}
        ),
        "definitions": {
            **metrics.DEFINITIONS,
            "interval": "95 % percentile bootstrap of the mean over images, 10000 draws, seed 0",
            "regions": dict(breakdown.DEFINITIONS),
            "null": "psnr of equal images is infinite: null here, and left out of the mean",
        },
        "versions": _versions(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    done = _begin(partial, head)
    rows: list[dict[str, Any]] = []
    scorer = _Scorer(method, lpips, band_names or described.get("bands"), data_range, mask_of, keep)
    with partial.open("a", encoding="utf-8") as journal:
        for pair in pairs:
            row = done.get(pair.name)
            if row is None:
                row = scorer.row(pair)
                journal.write(json.dumps(row) + "\n")
                journal.flush()
            rows.append(row)
            if on_image is not None:
                on_image(len(rows), len(pairs), _means(rows))
    samples, averaged = described.get("samples", 1), described.get("averaged", False)
    result = {**head, **summary(rows, samples=samples, averaged=averaged), "images": rows}
    _write_atomically(out, json.dumps(result, indent=1) + "\n")
    _write_atomically(out.with_suffix(".csv"), _csv(rows))
    _write_atomically(out.with_suffix(".md"), to_markdown([result]) + "\n" + breakdown_markdown(result))
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


def summary(rows: Sequence[Mapping[str, Any]], *, samples: int = 1, averaged: bool = False) -> dict[str, Any]:
    """Return mean, interval and the breakdowns by band, region and group of images, and the trust in them.

    Args:
        rows: one a image, as in the file's "images".
        samples: draws of the method, and whether their mean was scored: for the reliability of the spread.
        averaged: see `samples`.
    """
    bands = {
        band: {key: _mean(row["bands"][band][key] for row in rows if band in row["bands"]) for key in scores}
        for band, scores in rows[0]["bands"].items()
    }
    parts = {}
    for region in REGIONS:
        there = [row["regions"][region] for row in rows if row["regions"][region] is not None]
        parts[region] = {
            "images": len(there),
            **{key: _mean(found[key] for found in there) for key in ("psnr", "ssim", "mae")},
        }
    groups = {
        group: {"images": len(members), "mean": _means(members)}
        for group, members in {name: [row for row in rows if test(row)] for name, test in GROUPS.items()}.items()
    }
    changed = [row["changed"] for row in rows if row["changed"] is not None]
    spreads = [row["spread"] for row in rows if row["spread"] is not None]
    return {
        "mean": _means(rows),
        "interval": {name: bootstrap_interval(_values(rows, name)) for name in SCORES},
        "bands": bands,
        "regions": parts,
        "groups": groups,
        "changed": {"images": len(changed), **{key: _mean(c[key] for c in changed) for key in ("mean", "share")}},
        "spread": breakdown.pooled_spread(spreads, samples, averaged) if spreads else None,
    }


def bootstrap_interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the 95 % percentile bootstrap interval of the mean of (N,) values, or None where N is 0."""
    if not values.size:
        return None
    draws = np.random.default_rng(0).integers(0, values.size, (10_000, values.size))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return [float(low), float(high)]


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return one table, a row a result, with the interval under each mean."""
    lines = [
        "| data (images) | method | " + " | ".join(SCORES) + " |",
        "|---" * (len(SCORES) + 2) + "|",
    ]
    for result in results:
        data, method = result["data"], result["method"]
        cells = [f"{data['name']}/{data['split']} ({data['images']})", method["name"]]
        for name in SCORES:
            mean, interval = result["mean"][name], result["interval"][name]
            if mean is None or interval is None:
                cells.append("–")
            else:
                cells.append(f"{mean:.4f}<br>({interval[0]:.4f} to {interval[1]:.4f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def breakdown_markdown(result: Mapping[str, Any]) -> str:
    """Return three tables of one result: by band, by region, and by group of images."""

    def table(first: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
        head = f"| {first} | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|\n"
        return head + "".join(
            f"| {name} | " + " | ".join(_cell(row.get(column)) for column in columns) + " |\n"
            for name, row in rows.items()
        )

    groups = {name: {"images": group["images"], **group["mean"]} for name, group in result["groups"].items()}
    return "\n".join(
        [
            table("band", ("psnr", "ssim", "mae"), result["bands"]),
            table("region", ("images", "psnr", "ssim", "mae"), result["regions"]),
            table("images with", ("images", *SCORES), groups),
        ]
    )


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


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


@dataclass(frozen=True)
class _Scorer:
    """One image at a time to one row of the file's "images"."""

    method: Method
    lpips: metrics.Lpips | None
    band_names: Sequence[str] | None
    data_range: float | None
    mask_of: Mapping[str, Path]
    keep: Path | None

    def row(self, pair: Pair) -> dict[str, Any]:
        cloudy, clear = pair.read_cloudy(), pair.read_clear()
        if cloudy.shape != clear.shape or cloudy.dtype != clear.dtype:
            raise DataError(
                f"{pair.cloudy_path} is {_look(cloudy)}, its label {_look(clear)}; both must be of one size and"
                f" type"
            )
        scaling = Scaling.of_dtype(clear.dtype) if self.data_range is None else Scaling(0, self.data_range)
        span = scaling.high
        mask = read_image(self.mask_of[pair.name]) if pair.name in self.mask_of else None
        parts = breakdown.regions(cloudy, clear, span, mask)
        restored = self.method.restore(pair, cloudy, scaling)
        image = restored.image
        names = self._names(pair, clear.shape[2])
        scores = metrics.score(image, clear, lpips=self.lpips, band_names=names, data_range=span)
        error = np.abs(image.astype(np.float64) - clear) / span
        change = np.abs(image.astype(np.float64) - cloudy) / span
        found: dict[str, Any] = {
            "name": pair.name,
            **{key: _finite(value) for key, value in scores.overall.items()},
            "cover": float(parts["inside"].mean()),
            "thick_cover": float(parts["thick"].mean()),
            "flat": bool(clear.mean(2).std() < breakdown.FLAT_BELOW * span),
            "bands": {
                name: {key: _finite(value) for key, value in band.items()}
                for name, band in zip(names, scores.bands, strict=True)
            },
            "regions": breakdown.region_scores(parts, error, scores.ssim_map, metrics.SSIM_BORDER_PX),
            "changed": breakdown.change_scores(parts["outside"], change),
            "spread": None,
        }
        if restored.spread is not None:
            found["spread"] = breakdown.spread_scores(restored.spread, np.sqrt(np.square(error).mean(2)))
        if self.keep is not None:
            pictures = {
                "cloudy": cloudy,
                "reference": restored.reference,
                "restored": image,
                "clear": clear,
            }
            maps = {"error": error.mean(2), "w": restored.w, "spread": restored.spread}
            found["kept"] = keep_images(
                self.keep,
                pair.name,
                {kind: array for kind, array in pictures.items() if array is not None},
                {kind: array for kind, array in maps.items() if array is not None},
                names,
            )
        return found

    def _names(self, pair: Pair, bands: int) -> Sequence[str]:
        names = self.band_names if self.band_names is not None else DEFAULT_BANDS.get(bands)
        if names is None:
            return [f"band {c + 1}" for c in range(bands)]
        if len(names) != bands:
            raise OptionError(f"{len(names)} band names for {bands} bands of {pair.clear_path}; give one a band")
        return names


def _masks_of(pairs: Sequence[Pair], folder: Path | None) -> dict[str, Path]:
    """Return the cloud mask of each pair, by name: from the folder if given, else those of the data set."""
    if folder is None:
        return {pair.name: pair.mask_path for pair in pairs if pair.mask_path is not None}
    found = images_by_name(folder)
    missing = [pair.name for pair in pairs if pair.name not in found]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(pairs)} masks, the first is {missing[0]}; name each mask as its"
            f" cloudy image"
        )
    return {pair.name: found[pair.name] for pair in pairs}


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
    writer = csv.DictWriter(
        text, ["name", *SCORES, "cover", "thick_cover", "flat"], extrasaction="ignore", lineterminator="\n"
    )
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
