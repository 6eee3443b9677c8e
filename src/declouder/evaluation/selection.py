"""Which images are scored, and what is read of each."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.arguments import whole_number
from declouder.data.catalog import GENERIC, BandSet, set_pairs
from declouder.data.images import read_mask
from declouder.data.pairs import Pair, fingerprint, images_by_name
from declouder.data.resize import resize_nearest, resize_stored
from declouder.errors import DataError, OptionError

log = logging.getLogger(__name__)


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
        size_px: width that whole images are resized to, as `data.size` of a recipe does; None leaves them.
        split_list: a list of train/NAME and test/NAME; None goes by the folders, or by ROOT/split.txt.
    """

    data: Path
    split: str = "test"
    set_name: str | None = None
    bands: BandSet | None = None
    exclude: Path | None = None
    limit: int | None = None
    size_px: int | None = None
    split_list: Path | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "size_px"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(value, name.removesuffix("_px")))

    def pairs(self) -> list[Pair]:
        """Return the pairs to score.

        Raises:
            DataError: as `catalog.set_pairs`.
            OptionError: if the limit or the size leaves nothing to score.
        """
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"a limit of {self.limit} images leaves nothing to score; give 1 or more")
        if self.size_px is not None and self.size_px < 1:
            raise OptionError(f"a size of {self.size_px} px leaves nothing to score; the paper's is 256")
        found = set_pairs(
            self.data,
            self.split,
            name=self.set_name,
            bands=self.bands,
            exclude=self.exclude,
            split_list=self.split_list,
        )
        if self.limit is None or self.limit >= len(found):
            return found
        return [found[int(position)] for position in np.linspace(0, len(found) - 1, self.limit).round()]

    def read(self, pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the cloudy and the clear image: (H, W, C) in their own dtype and DN.

        Raises:
            DataError: if one cannot be read, or the two differ in size, bands or type.
        """
        cloudy, clear = pair.read_cloudy(), pair.read_clear()
        if cloudy.shape != clear.shape or cloudy.dtype != clear.dtype:
            raise DataError(
                f"{pair.cloudy_path} is {described(cloudy)}, its label {described(clear)};"
                " both must be of one size and type"
            )
        if self.size_px is None:
            return cloudy, clear
        return resize_stored(cloudy, self.size_px), resize_stored(clear, self.size_px)

    def read_mask(self, path: Path) -> NDArray[Any]:
        """Return a cloud mask, (H, W, 1), of the size of the images that are scored; 0 where it holds no data.

        Raises:
            DataError: if it cannot be read.
        """
        mask = read_mask(path)
        return mask if self.size_px is None else resize_nearest(mask, self.size_px)

    def describe(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Return what tells the data apart, wherever it lies."""
        return {
            "name": self.set_name if self.set_name not in (None, GENERIC) else self.data.resolve().name,
            "split": self.split,
            "images": len(pairs),
            "limit": self.limit,
            "size_px": self.size_px,
            "excluded": _file(self.exclude),
            "split_list": _file(self.split_list),
            "sha256": fingerprint(pairs),
        }


def _file(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def masks_of(pairs: Sequence[Pair], folder: Path | None) -> dict[str, Path]:
    """Return the cloud mask of each pair, by name: from the folder if given, else those of the data set.

    Raises:
        DataError: if the folder lacks one.
    """
    if folder is None:
        given = {pair.name: pair.mask_path for pair in pairs if pair.mask_path is not None}
        if given and len(given) < len(pairs):
            lacking = next(pair.name for pair in pairs if pair.name not in given)
            log.warning(
                "%d of %d pairs have no cloud mask in the data set, the first is %s: what is cloud in these, the"
                " difference between cloudy and clear image says",
                len(pairs) - len(given),
                len(pairs),
                lacking,
            )
        return given
    found = images_by_name(folder)
    missing = [pair.name for pair in pairs if pair.name not in found]
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} of {len(pairs)} masks, the first is {missing[0]}; name each mask as its"
            f" cloudy image"
        )
    return {pair.name: found[pair.name] for pair in pairs}


def described(image: NDArray[Any]) -> str:
    """Return size, bands and type of an image (H, W, C), for messages."""
    return f"{image.shape[1]} x {image.shape[0]} px, {image.shape[2]} bands, {image.dtype}"
