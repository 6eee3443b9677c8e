"""The data sets of the field as rows of one table, and where each keeps its files.

A row says what a set is; its layouts say where the files lie below the folder that a user names. Finding pairs
is the same code for all: the first layout whose folders exist is taken. To add a set, add a row.

Counts and split sizes are those that the literature gives; `declouder data check` compares them with what
lies on the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from declouder.data.lists import SPLITS, read_exclude_list, read_split_list, split_list_of
from declouder.data.pairs import Pair, holds_images, images_by_name, named_images, pair_up
from declouder.errors import DataError

log = logging.getLogger(__name__)

BandSet = Literal["rgb", "rgbn"]
GENERIC = "folders"
"""The row for any pair of folders."""


@dataclass(frozen=True)
class Layout:
    """Where files lie below a root; {set}, {split} and {kind} (cloud, label, mask) are filled in.

    A layout without {split} has one pair of folders for all, and a split list (ROOT/split.txt) parts them.
    """

    images: str
    nir: str | None = None
    """The near infrared's own tree: grey images whose first channel counts."""
    clear: str = "label"
    """What {kind} is for the clear images."""


@dataclass(frozen=True)
class DataSet:
    """One row.

    Attributes:
        name: what recipes call it.
        about: sensor, ground and kind of cloud, in a line.
        bands: what it offers; the first is meant where a recipe does not choose.
        counts: pairs by split, as published; "all" where no split was published.
        size_px: side of its images; None where they differ.
        source: where it is published, and under which terms.
        layouts: where its files lie, the most usual first.
        has_mask: whether it may bring cloud masks in {kind} = mask.
    """

    name: str
    about: str
    layouts: tuple[Layout, ...]
    source: str
    bands: tuple[BandSet, ...] = ("rgb",)
    counts: Mapping[str, int] = field(default_factory=dict)
    size_px: int | None = None
    has_mask: bool = False


@dataclass(frozen=True)
class Located:
    """A set found on the disk: its row, its root and the layout that fits."""

    row: DataSet
    root: Path
    layout: Layout

    def folder(self, split: str, kind: str, *, nir: bool = False) -> Path:
        """Return the folder of one kind of image (cloud, label or mask); it need not exist."""
        pattern = self.layout.nir if nir else self.layout.images
        assert pattern is not None
        called = self.layout.clear if kind == "label" else kind
        return self.root / pattern.format(set=self.row.name, split=split, kind=called)

    @property
    def is_split(self) -> bool:
        """Whether train and test lie in folders of their own."""
        return "{split}" in self.layout.images


_SPLIT = Layout("{split}/{kind}")
_SPLIT_BELOW = Layout("{set}/{split}/{kind}")
_WHOLE = Layout("{kind}")
_WHOLE_BELOW = Layout("{set}/{kind}")

_RICE_LAYOUTS = (_SPLIT, _SPLIT_BELOW, _WHOLE, _WHOLE_BELOW)
_RICE_SOURCE = "links at github.com/BUPTLdy/RICE_DATASET (no terms stated)"
_CUHK_LAYOUTS = (
    # The published archive, named by its top folder or by the set's own.
    Layout("{set}/{split}/{kind}", "nir/{set}/{split}/{kind}"),
    Layout("{split}/{kind}", "../nir/{set}/{split}/{kind}"),
    # What the authors' code reads: the near infrared inside each split.
    Layout("{split}/{kind}", "{split}/nir/{kind}"),
    Layout("{set}/{split}/{kind}", "{set}/{split}/nir/{kind}"),
)
_CUHK_SOURCE = "C-CUHK.rar at huggingface.co/littlebeen/DE (no licence stated)"

_ROWS = (
    DataSet(
        "RICE1",
        "Google Earth, thin and even cloud; 500 pairs, no published split",
        _RICE_LAYOUTS,
        _RICE_SOURCE,
        counts={"all": 500},
        size_px=512,
    ),
    DataSet(
        "RICE2",
        "Landsat 8, broken cloud and shadow, at most 15 days apart; 736 pairs with masks, no published split",
        _RICE_LAYOUTS,
        _RICE_SOURCE,
        counts={"all": 736},
        size_px=512,
        has_mask=True,
    ),
    DataSet(
        "CUHK-CR1",
        "Jilin-1, 0.5 m, thin cloud",
        _CUHK_LAYOUTS,
        _CUHK_SOURCE,
        bands=("rgb", "rgbn"),
        counts={"train": 534, "test": 134},
        size_px=512,
    ),
    DataSet(
        "CUHK-CR2",
        "Jilin-1, 0.5 m, thick cloud",
        _CUHK_LAYOUTS,
        _CUHK_SOURCE,
        bands=("rgb", "rgbn"),
        counts={"train": 448, "test": 111},
        size_px=512,
    ),
    DataSet(
        "T-Cloud",
        "Landsat 8, thin cloud",
        # The first two as the code of its authors reads it.
        (*(Layout(layout.images, clear="reference") for layout in (_SPLIT, _SPLIT_BELOW)), _SPLIT, _SPLIT_BELOW),
        "link at github.com/haidong-Ding/Cloud-Removal (no terms stated)",
        counts={"train": 2351, "test": 588},
        size_px=256,
    ),
    DataSet(
        GENERIC,
        "any pair of folders: images or GeoTIFFs of any number of bands, 8 or 16 bit or float",
        (_SPLIT, _WHOLE),
        "your own images",
        has_mask=True,
    ),
)
CATALOG: Mapping[str, DataSet] = {row.name: row for row in _ROWS}


def locate(root: Path, name: str | None = None, *, bands: BandSet | None = None) -> Located:
    """Find a data set's files below `root`.

    Args:
        root: the folder that a user names: the set, or the archive that holds it.
        name: the row in `CATALOG`; None recognises it by the folder's name, else takes the generic row.
        bands: "rgb" or "rgbn"; None means the row's first.

    Raises:
        DataError: if the row is unknown, lacks the bands, or no layout fits: says where the set is published
            and how to lay it out.
    """
    if name is not None and name not in CATALOG:
        raise DataError(f"there is no data set {name!r}; choose one of {', '.join(CATALOG)}")
    row = CATALOG[name] if name is not None else _recognised(root)
    wanted = bands or row.bands[0]
    if bands is not None and bands not in row.bands:
        raise DataError(f"{row.name} has no {bands} images, only {' and '.join(row.bands)}; leave bands out")
    fitting = [Located(row, root, layout) for layout in row.layouts]
    fitting = [found for found in fitting if _has_folder(found, "cloud")]
    # Layouts may differ in the name of the clear folder alone.
    fitting.sort(key=lambda found: not _has_folder(found, "label"))
    if not fitting:
        raise DataError(_how_to_lay_out(row, root))
    if wanted == "rgb":
        return fitting[0]
    for found in fitting:
        if any(found.folder(split, "cloud", nir=True).is_dir() for split in SPLITS):
            return found
    places = sorted({str(found.folder("{train,test}", "{cloud,label}", nir=True)) for found in fitting})
    raise DataError(
        f"{root} holds the colour images of {row.name} but not its near infrared; put it at"
        f" {' or '.join(places)}/NAME.png, or set bands: rgb"
    )


def has_near_infrared(found: Located) -> bool:
    """Return whether a set's near infrared lies there too, in a tree of its own."""
    others = [replace(found, layout=layout) for layout in found.row.layouts if layout.nir is not None]
    return any(each.folder(split, "cloud", nir=True).is_dir() for each in others for split in SPLITS)


def set_pairs(
    root: Path,
    split: str,
    *,
    name: str | None = None,
    bands: BandSet | None = None,
    exclude: Path | None = None,
    split_list: Path | None = None,
) -> list[Pair]:
    """Return the pairs of one split of a data set, sorted by number.

    Args:
        root, name, bands: as for `locate`.
        split: "train" or "test", or any other folder of a layout with splits.
        exclude: an exclude list; None leaves out nothing.
        split_list: a split list; None takes ROOT/split.txt where the layout has no splits.

    Raises:
        DataError: as `locate`; if twins are missing, a list names unknown pairs or nothing is left.
    """
    found = locate(root, name, bands=bands)
    left_out = set() if exclude is None else read_exclude_list(exclude)
    if found.is_split and split_list is None:
        there = [part for part in SPLITS if found.folder(part, "cloud").is_dir()]
        if there and not found.folder(split, "cloud").is_dir():
            missing = found.folder(split, "cloud")
            raise DataError(f"{root} has no part {split!r}: {missing} is missing; it has {' and '.join(there)}")
        pairs = _pairs_of(found, split, bands, may_lack=left_out)
    else:
        pairs = _listed_pairs(found, split, bands, split_list, may_lack=left_out)
    return pairs if exclude is None else _without(pairs, left_out, exclude, found)


def all_pairs(root: Path, *, name: str | None = None) -> list[Pair]:
    """Return the pairs of a set whose layout has no train and test folders, sorted by number.

    Raises:
        DataError: as `locate`; if the set is split already, or twins are missing.
    """
    found = locate(root, name)
    if found.is_split:
        there = next(split for split in ("train", "test") if found.folder(split, "cloud").exists())
        raise DataError(
            f"{root} is split into folders already: {found.folder(there, 'cloud')} exists; nothing is left to do"
        )
    return _pairs_of(found, "", None)


def _pairs_of(found: Located, split: str, bands: BandSet | None, *, may_lack: Container[str] = ()) -> list[Pair]:
    mask = found.folder(split, "mask")
    masks = images_by_name(mask) if found.row.has_mask and holds_images(mask) else None
    if bands == "rgbn":
        nir = tuple(images_by_name(found.folder(split, kind, nir=True)) for kind in ("cloud", "label"))
    else:
        nir = None
    return pair_up(
        found.folder(split, "cloud"), found.folder(split, "label"), nir=nir, masks=masks, may_lack=may_lack
    )


def _listed_pairs(
    found: Located, split: str, bands: BandSet | None, split_list: Path | None, *, may_lack: Container[str]
) -> list[Pair]:
    path = split_list or split_list_of(found.root)
    if split_list is None and not path.exists() and _called(found.root) in SPLITS:
        whole = found.root.parent if found.root.name else found.root.resolve().parent
        raise DataError(f"{found.root} is one part of a set; give {whole}")
    if split_list is None and not path.exists():
        raise DataError(
            f"{found.root} has no train and test folders and no split.txt; make one with: declouder data split"
            f" {found.root}"
        )
    split_of = read_split_list(path)
    parts = [part for part in SPLITS if found.folder(part, "cloud").is_dir()] if found.is_split else [""]
    pairs = [pair for part in parts for pair in _pairs_of(found, part, bands, may_lack=may_lack)]
    twice = [name for name, count in Counter(pair.name for pair in pairs).items() if count > 1 and name in split_of]
    if twice:
        raise DataError(
            f"{path} names {twice[0]!r}, which is in more than one part of {found.root} ({len(twice)} such names);"
            " a split list wants names of which there is one"
        )
    unknown = sorted(name for name in set(split_of) - {pair.name for pair in pairs} if name not in may_lack)
    if unknown:
        raise DataError(
            f"{path} names {unknown[0]!r}, which {found.root} does not hold ({len(unknown)} such names); is it the"
            f" list of another data set?"
        )
    kept = [pair for pair in pairs if split_of.get(pair.name) == split]
    if not kept:
        raise DataError(f"{path} names no pair of {split}; wanted lines such as {split}/12")
    if found.is_split and split == "train":
        tests = found.folder("test", "cloud")
        learnt = sum(pair.cloudy_path.is_relative_to(tests) for pair in kept)
        if learnt:
            log.warning("%s puts %d pairs of %s into train; score with --split-list %s", path, learnt, tests, path)
    return kept


def _without(pairs: list[Pair], names: set[str], exclude: Path, found: Located) -> list[Pair]:
    """Return the pairs that are not among the names of an exclude list.

    It may name images of other parts of the set too, and such as have no twin.
    """
    unknown = sorted(names - {pair.name for pair in pairs})
    for split, kind in itertools.product(SPLITS if found.is_split else ("",), ("cloud", "label")):
        with contextlib.suppress(DataError):  # a part that is not there
            others = named_images(found.folder(split, kind))[0] if unknown else {}
            unknown = [name for name in unknown if name not in others]
    if unknown:
        raise DataError(
            f"{exclude} names {unknown[0]!r}, which is not in the data ({len(unknown)} such names); write names"
            f" without their ending"
        )
    kept = [pair for pair in pairs if pair.name not in names]
    if not kept:
        raise DataError(f"{exclude} names all {len(pairs)} pairs, and leaves none; take some names out of it")
    return kept


def _called(root: Path) -> str:
    """Return the name of a folder, also of . and .., but not of what it links to."""
    return root.resolve().name if root.name in ("", "..") else root.name


def _recognised(root: Path) -> DataSet:
    """Return the row that a folder is named after, in small or capital letters, else the generic one."""
    by_name = {row.name.lower(): row for row in _ROWS}
    return by_name.get(_called(root).lower(), CATALOG[GENERIC])


def _has_folder(found: Located, kind: str) -> bool:
    return any(found.folder(split, kind).is_dir() for split in SPLITS)


def _how_to_lay_out(row: DataSet, root: Path) -> str:
    seen = "is no folder" if root.exists() else "does not exist"
    seen = "holds no images laid out as wanted" if root.is_dir() else seen
    patterns = dict.fromkeys(
        layout.images.format(set=row.name, split="{train,test}", kind=f"{{cloud,{layout.clear}}}")
        for layout in row.layouts
    )
    wanted = " or ".join(f"{root}/{pattern}/NAME.png" for pattern in patterns)
    inside = [other.name for other in _ROWS if other is not row and (root / other.name).is_dir()]
    inside = [name for name in inside if any(_has_folder(each, "cloud") for each in _places(root / name))]
    if inside:
        return f"{root} {seen} itself, but {', '.join(inside)}; give {root / inside[0]}"
    published = "" if row.name == GENERIC else f"; {row.name} is published: {row.source}"
    return f"{root} {seen}; wanted {wanted}{published}"


def _places(root: Path) -> list[Located]:
    """Return where the set that a folder is named after may lie in it."""
    row = _recognised(root)
    return [Located(row, root, layout) for layout in row.layouts]
