"""Folders of images to pairs.

A cloudy image and its clear twin share a name without its ending. The numbers in the names matter: in the
benchmark sets neighbouring numbers show the same ground, so sets are parted by whole blocks of numbers, never at
random (split.py). Where a set keeps its folders is catalog.py's matter, what a file holds images.py's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from declouder.data.images import read_bands
from declouder.errors import DataError
from declouder.raster import check_name

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Pair:
    """A cloudy image and the same ground clear."""

    name: str
    """Unique among the pairs of one data set: the file's name without its ending."""
    cloudy_path: Path
    clear_path: Path
    cloudy_nir_path: Path | None = None
    """The near infrared where it is a file of its own: a grey image, joined as the last band."""
    clear_nir_path: Path | None = None
    mask_path: Path | None = None
    """The cloud mask that some sets bring: above 0 where cloud."""

    def read_cloudy(self) -> NDArray[Any]:
        """Return the cloudy image, near infrared joined: (H, W, C) in its own dtype and DN."""
        return read_bands(self.cloudy_path, self.cloudy_nir_path)

    def read_clear(self) -> NDArray[Any]:
        """Return the clear image, near infrared joined: (H, W, C) in its own dtype and DN."""
        return read_bands(self.clear_path, self.clear_nir_path)


def pair_up(
    cloudy_folder: Path,
    clear_folder: Path,
    *,
    nir: Sequence[Mapping[str, Path]] | None = None,
    masks: Mapping[str, Path] | None = None,
    may_lack: Container[str] = (),
) -> list[Pair]:
    """Return the pairs of two folders, sorted by number, then by name.

    Args:
        cloudy_folder, clear_folder: twins have one name, without its ending.
        nir: near infrared of the cloudy and of the clear images by name; every image must have one.
        masks: cloud masks by name; an image may lack one.
        may_lack: names that are left out where they have no twin or no near infrared.

    Raises:
        DataError: if a folder is missing or empty, or an image has no twin.
    """
    cloudy, clear = images_by_name(cloudy_folder), images_by_name(clear_folder)
    for found, other, folder in ((cloudy, clear, clear_folder), (clear, cloudy, cloudy_folder)):
        lonely = [name for name in found if name not in other and name not in may_lack]
        if lonely:
            raise DataError(
                f"{found[lonely[0]]} has no twin in {folder} ({len(lonely)} of {len(found)} images lack"
                f" one); give both the same name"
            )
    for images, infrared in zip((cloudy, clear), nir or (), strict=False):
        lonely = [name for name in images if name not in infrared and name not in may_lack]
        if lonely:
            raise DataError(
                f"{images[lonely[0]]} has no near infrared ({len(lonely)} of {len(images)} images lack it); give"
                f" it the same name in the tree of the near infrared"
            )
    return complete_pairs(cloudy, clear, nir=nir, masks=masks)


def complete_pairs(
    cloudy: Mapping[str, Path],
    clear: Mapping[str, Path],
    *,
    nir: Sequence[Mapping[str, Path]] | None = None,
    masks: Mapping[str, Path] | None = None,
) -> list[Pair]:
    """Return the pairs of which every image is there, sorted by number; arguments by name, as for `pair_up`."""
    return [
        Pair(
            name,
            cloudy[name],
            clear[name],
            nir[0][name] if nir else None,
            nir[1][name] if nir else None,
            (masks or {}).get(name),
        )
        for name in sorted(set(cloudy).intersection(clear, *(nir or ())), key=number_first)
    ]


def holds_images(folder: Path) -> bool:
    """Return whether there is a folder with an image in it or its subfolders."""
    return folder.is_dir() and any(_is_image(path, folder) for path in folder.rglob("*"))


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, except hidden ones, sorted by path.

    Raises:
        DataError: if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images")
    images = sorted(path for path in folder.rglob("*") if _is_image(path, folder))
    if not images:
        raise DataError(f"{folder} holds no image; wanted {', '.join(sorted(IMAGE_SUFFIXES))}")
    for path in images:
        check_name(path, DataError)
    return images


def _is_image(path: Path, folder: Path) -> bool:
    # ._1.png, which macOS leaves on other file systems, is no image of a set, nor is what lies in .Trash-1000.
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def fingerprint(pairs: Sequence[Pair]) -> str:
    """Return the sha256 of the names and bytes of all images of all pairs."""
    digest = hashlib.sha256()
    for pair in pairs:
        files = {
            "cloud": pair.cloudy_path,
            "label": pair.clear_path,
            "cloud-nir": pair.cloudy_nir_path,
            "label-nir": pair.clear_nir_path,
        }
        read: dict[Path, str] = {}  # a clear image without a twin is both images of its pair
        for kind, path in files.items():
            if path is not None:
                if path not in read:
                    read[path] = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{pair.name}/{kind} {read[path]}\n".encode())
    return digest.hexdigest()


def images_by_name(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by name: the path from there, without its ending.

    Raises:
        DataError: if the folder is missing or empty, or two images have one name.
    """
    by_name, clashes = named_images(folder)
    if clashes:
        raise DataError(clashes[0])
    return by_name


def named_images(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return what `images_by_name` does, of images with one name the first, and what is wrong with the others.

    Raises:
        DataError: if the folder is missing or empty.
    """
    by_name: dict[str, Path] = {}
    clashes = []
    for path in find_images(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in by_name:
            clashes.append(f"{by_name[name]} and {path} have one name; keep one of them")
        else:
            by_name[name] = path
    return by_name, clashes


def number_in(name: str) -> int | None:
    """Return the last number in a name, or None."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def number_first(name: str) -> tuple[int, str]:
    """Return what to sort names by: their number, then their letters."""
    number = number_in(name)
    return (-1 if number is None else number, name)
