"""Folders of images to pairs: the layout of RICE, `ROOT/{train,test}/{cloud,label}/NAME`.

A cloudy image and its clear twin share a name without its ending. The numbers in the names matter: in the
benchmark sets neighbouring numbers show the same ground, so a part of train is held out in whole blocks of
numbers, never at random.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from declouder.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Pair:
    """A cloudy image and the same ground clear."""

    name: str
    """Unique among the pairs of one data set: the file's name without its ending."""
    cloudy_path: Path
    clear_path: Path


def find_pairs(root: Path, split: str) -> list[Pair]:
    """Return the pairs of `root/split/{cloud,label}`, sorted by number, then by name.

    Raises:
        DataError: if a folder is missing or empty, or an image has no twin.
    """
    folder = root / split
    cloudy, clear = (_images_by_name(folder / kind) for kind in ("cloud", "label"))
    for found, other, kind in ((cloudy, clear, "label"), (clear, cloudy, "cloud")):
        lonely = [name for name in found if name not in other]
        if lonely:
            raise DataError(
                f"{found[lonely[0]]} has no twin in {folder / kind} ({len(lonely)} of {len(found)} images lack"
                f" one); give both the same name"
            )
    return [Pair(name, cloudy[name], clear[name]) for name in sorted(cloudy, key=_number_first)]


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path.

    Raises:
        DataError: if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images")
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{folder} holds no image; wanted {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def hold_out(pairs: Sequence[Pair], *, share: float, block: int) -> tuple[list[Pair], list[Pair]]:
    """Split off validation pairs by blocks of neighbouring numbers.

    Args:
        pairs: of one data set.
        share: of the pairs to hold out, in (0, 1); reached by the fewest blocks, spread over the numbers.
        block: numbers n with equal n // block stay together. Images without a number count by position.

    Returns:
        (training pairs, held-out pairs), neither empty.

    Raises:
        DataError: if all pairs lie in one block, so that nothing would be left on one side.
    """
    blocks: dict[int, list[Pair]] = {}
    for position, pair in enumerate(pairs):
        number = _number(pair.name)
        blocks.setdefault((position if number is None else number) // block, []).append(pair)
    if len(blocks) < 2:
        raise DataError(
            f"{len(pairs)} pairs lie in one block of {block} numbers, so none can be held out;"
            f" set data.hold_out_block lower"
        )
    order = sorted(blocks)
    # Walks the blocks in strides, so that the held-out ones do not all come from one end of the set.
    stride = max(1, round(1 / share))
    visit = [number for start in range(stride) for number in order[stride // 2 + start :: stride]]
    visit += [number for number in order if number not in visit]
    held: list[int] = []
    for number in visit[: len(order) - 1]:
        if sum(len(blocks[chosen]) for chosen in held) >= share * len(pairs):
            break
        held.append(number)
    training = [pair for number in order if number not in held for pair in blocks[number]]
    return training, [pair for number in sorted(held) for pair in blocks[number]]


def read_image(path: Path) -> NDArray[Any]:
    """Return an image as (H, W, C) in its own dtype and DN.

    Raises:
        DataError: if the file is missing or is no image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode != "P" else image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; was it moved while the data set was read?") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove the file") from None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _images_by_name(folder: Path) -> dict[str, Path]:
    images = find_images(folder)
    by_name: dict[str, Path] = {}
    for path in images:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in by_name:
            raise DataError(f"{by_name[name]} and {path} have one name; keep one of them")
        by_name[name] = path
    return by_name


def _number(name: str) -> int | None:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def _number_first(name: str) -> tuple[int, str]:
    number = _number(name)
    return (-1 if number is None else number, name)
