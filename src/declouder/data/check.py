"""What a data set on the disk is: pairs, sizes, ranges, cloud, damage and duplicates.

Nothing stops the check: what is wrong with a file is written down, with its path, and the check goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from declouder.breakdown import THIN_FROM, cloud_distance
from declouder.data.catalog import BandSet, Located, has_near_infrared, locate
from declouder.data.duplicates import Duplicate, Look, find_duplicates, look_of
from declouder.data.images import check_numbers, is_tiff, least_used, read_mask, scaling_of
from declouder.data.lists import SPLITS, read_split_list, split_list_of
from declouder.data.pairs import Pair, complete_pairs, holds_images, images_by_name, named_images, number_first
from declouder.errors import DataError
from declouder.scaling import Scaling

MISPLACED_PX = 0.5
"""Twins that say that they lie further apart do not show the same ground in the same pixels."""
ALL = "all"
"""Name of the one part of a set without a split."""


@dataclass
class PartReport:
    """One split of a set: what its readable pairs are."""

    pairs: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    """Such as "512 x 512", and how many pairs have it."""
    bands: Counter[int] = field(default_factory=Counter)
    first_of_bands: dict[int, Path] = field(default_factory=dict)
    """An image of each number of bands."""
    dtypes: Counter[str] = field(default_factory=Counter)
    low: float = float("inf")
    """Smallest DN of all images."""
    high: float = float("-inf")
    cloud_shares: list[float] = field(default_factory=list)
    masks: int = 0
    """Pairs whose cloud share comes from a mask; of the others it is estimated from |cloudy - clear|."""

    @property
    def cloud_share(self) -> float:
        """Mean share of cloud over the pairs, in [0, 1]."""
        return float(np.mean(self.cloud_shares)) if self.cloud_shares else float("nan")


@dataclass(frozen=True)
class Key:
    """A pair by its part and name."""

    part: str
    name: str

    def __str__(self) -> str:
        """Return such as test/12."""
        return f"{self.part}/{self.name}"


@dataclass
class SetReport:
    """A whole set."""

    found: Located
    parts: dict[str, PartReport] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the file's path."""
    notes: list[str] = field(default_factory=list)
    """What is odd, but no fault of a file."""
    duplicates: list[Duplicate] = field(default_factory=list)
    """Pairs of `Key` whose clear images show the same ground."""

    def to_leave_out(self, part: str) -> dict[str, str]:
        """Return name -> reason of the pairs of `part` that repeat another part, or an earlier pair of `part`."""
        reasons: dict[str, str] = {}
        for duplicate in self.duplicates:
            first, second = duplicate.first, duplicate.second
            if first.part != second.part:
                mine, other = (first, second) if first.part == part else (second, first)
            else:
                mine, other = second, first
            # A pair whose twin is left out already need not go too.
            gone = other.part == part and other.name in reasons
            if mine.part == part and not gone:
                how = f", {duplicate.way}" if duplicate.way else ""
                reasons.setdefault(mine.name, f"same ground as {other}{how}")
        return dict(sorted(reasons.items(), key=lambda item: number_first(item[0])))


def check_set(
    root: Path,
    *,
    name: str | None = None,
    bands: BandSet | None = None,
    dn_range: tuple[float, float] | None = None,
    on_pair: Callable[[int, int], None] | None = None,
) -> SetReport:
    """Read every image of a set and report what it is.

    Args:
        root, name, bands: as for `catalog.locate`.
        dn_range: DN that are black and white, by which cloud and duplicates are judged; None takes the dtype's.
        on_pair: called with pairs done and pairs in all.

    Raises:
        DataError: if no layout of the set fits the folder.
    """
    report = SetReport(locate(root, name, bands=bands))
    if bands is None and has_near_infrared(report.found):
        report.notes.append("its near infrared is there too, and was not looked at: --bands rgbn joins it")
    by_part = {part: _twins(report, part, bands) for part in _parts(report.found)}
    by_part = _split_by_list(report, by_part)
    total, done = sum(map(len, by_part.values())), 0
    looks: list[Look] = []
    for part, pairs in by_part.items():
        report.parts[part] = PartReport()
        for pair in pairs:
            look = _check_pair(report, report.parts[part], Key(part, pair.name), pair, dn_range)
            looks += [] if look is None else [look]
            done += 1
            if on_pair is not None:
                on_pair(done, total)
    _tell_odd_bands(report)
    report.duplicates = find_duplicates(looks)
    _compare_with_published(report)
    _tell_unused_range(report, dn_range)
    return report


def part_names(root: Path, *, name: str | None = None, bands: BandSet | None = None) -> tuple[str, ...]:
    """Return the parts that `check_set` will report of a set; no image is read.

    Args:
        root, name, bands: as for `catalog.locate`.

    Raises:
        DataError: if no layout of the set fits the folder.
    """
    found = locate(root, name, bands=bands)
    return SPLITS if not found.is_split and _split_list(found).exists() else _parts(found)


def _parts(found: Located) -> tuple[str, ...]:
    return tuple(s for s in SPLITS if found.folder(s, "cloud").is_dir()) if found.is_split else (ALL,)


def _split_list(found: Located) -> Path:
    return split_list_of(found.root)


def _twins(report: SetReport, part: str, bands: BandSet | None) -> list[Pair]:
    """Return the complete pairs of a part; what lacks a twin becomes a problem."""
    found = report.found
    kinds = {"cloudy": ("cloud", False), "clear": ("label", False)}
    if bands == "rgbn":
        kinds |= {"cloudy_nir": ("cloud", True), "clear_nir": ("label", True)}
    files: dict[str, dict[str, Path]] = {}
    for key, (kind, nir) in kinds.items():
        try:
            files[key], clashes = named_images(found.folder(part, kind, nir=nir))
            report.problems += clashes
        except DataError as error:
            report.problems.append(str(error))
            files[key] = {}
    names = sorted(set().union(*files.values()), key=number_first)
    for key, (kind, nir) in kinds.items():
        missing = [name for name in names if name not in files[key]]
        if missing and files[key]:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            report.problems.append(
                f"{found.folder(part, kind, nir=nir)} lacks {len(missing)} of {len(names)}: {shown}"
            )
    mask_folder = found.folder(part, "mask")
    try:
        masks = images_by_name(mask_folder) if found.row.has_mask and holds_images(mask_folder) else {}
    except DataError as error:
        report.problems.append(str(error))
        masks = {}
    infrared = [files["cloudy_nir"], files["clear_nir"]] if bands == "rgbn" else None
    return complete_pairs(files["cloudy"], files["clear"], nir=infrared, masks=masks)


def _split_by_list(report: SetReport, by_part: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    path = _split_list(report.found)
    if ALL not in by_part or not path.exists():
        return by_part
    try:
        split_of = read_split_list(path)
    except DataError as error:
        report.problems.append(str(error))
        return by_part
    unlisted = [pair.name for pair in by_part[ALL] if pair.name not in split_of]
    if unlisted:
        report.problems.append(f"{path} lacks {len(unlisted)} pairs, the first is {unlisted[0]}")
    unknown = sorted(split_of.keys() - {pair.name for pair in by_part[ALL]})
    if unknown:
        report.problems.append(f"{path} names {len(unknown)} pairs that are not there, the first is {unknown[0]}")
    return {split: [p for p in by_part[ALL] if split_of.get(p.name) == split] for split in SPLITS}


def _check_pair(
    report: SetReport, part: PartReport, key: Key, pair: Pair, dn_range: tuple[float, float] | None
) -> Look | None:
    try:
        cloudy, clear = pair.read_cloudy(), pair.read_clear()
        if cloudy.shape != clear.shape or cloudy.dtype != clear.dtype:
            shapes = [f"{i.shape[1]} x {i.shape[0]} x {i.shape[2]} {i.dtype}" for i in (cloudy, clear)]
            raise DataError(f"{pair.cloudy_path} is {shapes[0]}, its twin {pair.clear_path} {shapes[1]}")
        _check_place(pair)
        check_numbers(cloudy, pair.cloudy_path, dn_range, mend="--data-range LOW,HIGH")
        scaling = scaling_of(clear, pair.clear_path, dn_range, mend="--data-range LOW,HIGH")
        if pair.mask_path is None:
            cloud_share = float((cloud_distance(cloudy, clear, scaling.high - scaling.low) >= THIN_FROM).mean())
        else:
            cloud_share = _mask_share(pair.mask_path)
    except DataError as error:
        report.problems.append(str(error))
        return None
    part.pairs += 1
    part.sizes[f"{clear.shape[1]} x {clear.shape[0]}"] += 1
    part.bands[clear.shape[2]] += 1
    part.first_of_bands.setdefault(clear.shape[2], pair.clear_path)
    part.dtypes[str(clear.dtype)] += 1
    part.low = min(part.low, float(cloudy.min()), float(clear.min()))
    part.high = max(part.high, float(cloudy.max()), float(clear.max()))
    part.cloud_shares.append(cloud_share)
    part.masks += pair.mask_path is not None
    return look_of(key, clear, scaling)


def _check_place(pair: Pair) -> None:
    """Raise DataError if both twins say where on Earth they lie, and one lies elsewhere."""
    if not (is_tiff(pair.cloudy_path) and is_tiff(pair.clear_path)):
        return
    from declouder.raster import lie_alike, open_raster

    infos = []
    for path in (pair.cloudy_path, pair.clear_path):
        with open_raster(path) as reader:
            infos.append(reader.info)
    cloudy, clear = infos
    if cloudy.crs and clear.crs and not lie_alike(clear, cloudy, within_px=MISPLACED_PX):
        raise DataError(
            f"{pair.clear_path} lies elsewhere on Earth than its twin {pair.cloudy_path}; see that both show the"
            " same ground, pixel by pixel (gdalwarp brings one to the grid of the other)"
        )


def _mask_share(path: Path) -> float:
    return float((read_mask(path) > 0).mean())


def _tell_odd_bands(report: SetReport) -> None:
    """Name an image of each number of bands that most images have not."""
    counts: Counter[int] = sum((part.bands for part in report.parts.values()), Counter())
    if len(counts) < 2:
        return
    usual = counts.most_common(1)[0][0]
    for part in report.parts.values():
        for bands, path in part.first_of_bands.items():
            if bands != usual:
                more = f" and {part.bands[bands] - 1} more" if part.bands[bands] > 1 else ""
                report.problems.append(
                    f"{path}{more}: {bands} band{'s' * (bands > 1)}, most of the set have {usual}; a set has one"
                    f" number of bands"
                )


def _tell_unused_range(report: SetReport, dn_range: tuple[float, float] | None) -> None:
    """Note where the numbers fill little of their data type's range, as 12 bits in 16: all looks dark and alike."""
    for name, part in report.parts.items():
        ends = {dtype: Scaling.of_dtype(dtype).high for dtype in part.dtypes}
        if dn_range is not None:
            low, high = dn_range
            if ends and part.high - low < least_used(dn_range, "uint8") * (high - low):
                report.notes.append(
                    f"{name} goes up to {part.high:g}, hardly above the black of --data-range {low:g},{high:g}, by"
                    " which cloud and duplicates are judged; see whether it is the range of these numbers"
                )
        elif ends and part.high < max(least_used(None, dtype) * end for dtype, end in ends.items()):
            report.notes.append(
                f"{name} uses {part.high:g} of {max(ends.values()):g}, by which cloud and duplicates are judged;"
                f" give the range that counts with --data-range LOW,HIGH"
            )


def _compare_with_published(report: SetReport) -> None:
    row = report.found.row
    for split, published in row.counts.items():
        here = sum(part.pairs for part in report.parts.values()) if split == ALL else report.parts.get(split)
        count = here.pairs if isinstance(here, PartReport) else here
        if count is not None and count != published:
            which = "" if split == ALL else f" in {split}"
            report.notes.append(f"{row.name} has {published} pairs{which} as published, here are {count}")
    others = {size for part in report.parts.values() for size in part.sizes} - {f"{row.size_px} x {row.size_px}"}
    if row.size_px is not None and others:
        report.notes.append(
            f"{row.name} has {row.size_px} x {row.size_px} px as published, here are {' and '.join(sorted(others))}"
        )
