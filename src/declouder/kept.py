"""The images that an evaluation keeps for people to look at: small 8-bit PNG files, DIR/NAME/KIND.png.

    cloudy, reference, restored, clear   grey or RGB; all of one image stretched alike
    error, w, spread                     grey, 255 being `FULL_SCALE`; error and spread by their square root

They are for looking only: every score comes from the full data.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declouder.errors import DataError, OutputError
from declouder.whole_files import write_text

OWNER = "evaluation.txt"
"""The file in a folder of kept images that says whose they are."""
PICTURES = ("cloudy", "reference", "restored", "clear")
MAPS = ("error", "w", "spread")
FULL_SCALE: Mapping[str, float] = {"error": 0.2, "w": 1.0, "spread": 0.1}
"""What white is in a map; error and spread are shares of the data's range."""
LEGEND = (
    f"error from 0 to {FULL_SCALE['error']:g} of the range and spread from 0 to {FULL_SCALE['spread']:g}, both by"
    " their square root so that small ones show; w from 0 to 1"
)


def claim(folder: Path, owner: str, *, overwrite: bool) -> None:
    """Make the folder of an evaluation's kept images, or see that it is its own.

    Args:
        folder: of all kept images of one evaluation.
        owner: what tells the evaluation from others, one line; it is written to `folder/OWNER`.
        overwrite: take it over from another one, whose images are removed.

    Raises:
        OutputError: if it holds images of another evaluation, or other files, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds_files = any(folder.iterdir())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error}); choose another --keep-images") from error
    found = owner_of(folder)
    if holds_files and found is None:
        raise OutputError(f"{folder} holds other files; choose another --keep-images")
    if found not in (None, owner):
        if not overwrite:
            raise OutputError(
                f"{folder} holds the images of another evaluation; choose another --keep-images or --overwrite"
            )
        shutil.rmtree(folder)
        folder.mkdir()
    write_text(folder / OWNER, f"{owner}\n")


def give_up(folder: Path) -> None:
    """Remove a folder that was claimed and into which nothing came."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [OWNER]:
            shutil.rmtree(folder)


def owner_of(folder: Path) -> str | None:
    """Return what `claim` wrote there; None if nothing."""
    try:
        return (folder / OWNER).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def keep_images(
    folder: Path,
    name: str,
    pictures: Mapping[str, NDArray[Any]],
    maps: Mapping[str, NDArray[np.float64]],
    band_names: Sequence[str],
) -> list[str]:
    """Write the images of one pair and return the kinds that were written.

    Args:
        folder: of all kept images of one evaluation.
        name: of the pair; may hold slashes.
        pictures: (H, W, C) each in the data's own numbers, among `PICTURES`; "clear" must be there.
        maps: (H, W) each, among `MAPS`.
        band_names: C names; they say where red, green and blue are.

    Raises:
        OutputError: if they cannot be written.
    """
    place = folder / name
    low, high = _stretch(pictures["clear"])
    try:
        place.mkdir(parents=True, exist_ok=True)
        for kind, image in pictures.items():
            unit = (_shown(image, band_names).astype(np.float32) - low) / (high - low)
            _save(place / f"{kind}.png", unit)
        for kind, values in maps.items():
            unit = values / FULL_SCALE[kind]
            _save(place / f"{kind}.png", unit if kind == "w" else np.sqrt(unit))
    except OSError as error:
        raise OutputError(f"{place} cannot be written ({error}); choose another --keep-images") from error
    return [*pictures, *maps]


def read_kept(folder: Path, name: str, kind: str) -> NDArray[np.uint8]:
    """Return one kept image, (H, W) or (H, W, 3).

    Raises:
        DataError: if it is gone or damaged.
    """
    path = folder / name / f"{kind}.png"
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); keep the images beside their scores, or evaluate again"
        ) from None


def _stretch(clear: NDArray[Any]) -> tuple[float, float]:
    """Return the numbers that are shown black and white."""
    if clear.dtype == np.uint8:
        return 0.0, 255.0
    # Sixteen bits are seldom used to the full; the clear image says which part is.
    low, high = (float(value) for value in np.percentile(clear, (0.5, 99.5)))
    return low, max(high, low + 1e-6)


def _shown(image: NDArray[Any], band_names: Sequence[str]) -> NDArray[Any]:
    names = [name.lower() for name in band_names]
    if {"red", "green", "blue"} <= set(names):
        return image[..., [names.index("red"), names.index("green"), names.index("blue")]]
    return image[..., :3] if image.shape[2] >= 3 else image[..., 0]


def _save(path: Path, unit: NDArray[Any]) -> None:
    Image.fromarray((unit * 255).round().clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
