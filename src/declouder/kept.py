"""The images that an evaluation keeps for people to look at: small 8-bit PNG files, DIR/NAME/KIND.png.

    cloudy, reference, restored, clear   grey or RGB; all of one image stretched alike
    error, w, spread                     grey, 255 being `FULL_SCALE`; error and spread by their square root

They are for looking only: every score comes from the full data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declouder.errors import DataError, OutputError
from declouder.rgb import rgb_places
from declouder.whole_files import write_text

OWNER = "evaluation.txt"
"""The file in a folder of kept images that says whose they are."""
_HEADING = "Images kept by declouder evaluate, of the run"
MAPS = ("error", "w", "spread")
FULL_SCALE: Mapping[str, float] = {"error": 0.2, "w": 1.0, "spread": 0.1}
"""What white is in a map; error and spread are shares of the data's range."""
LEGEND = (
    f"error from 0 to {FULL_SCALE['error']:g} of the range and spread from 0 to {FULL_SCALE['spread']:g}, both by"
    " their square root so that small ones show; w from 0 to 1"
)


def check_owner(folder: Path, owner: str, *, overwrite: bool) -> None:
    """Raise OutputError if a folder holds images of another evaluation, unless `overwrite`.

    Args:
        folder: of all kept images of one evaluation; it need not exist.
        owner: what tells the evaluation from others, one line.
        overwrite: images of another one may be written over; what is not written over stays.
    """
    found = owner_of(folder)
    kept = found is not None or any(folder.rglob("restored.png"))
    if kept and found != owner and not overwrite:
        raise OutputError(
            f"{folder} holds the images of another evaluation; choose another --keep-images, or give --overwrite"
        )


def owner_of(folder: Path) -> str | None:
    """Return whose images a folder holds, as `keep_images` noted it; None if it holds none, or does not say."""
    try:
        heading, owner = (folder / OWNER).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return owner if heading == _HEADING else None


def keep_images(
    folder: Path,
    name: str,
    pictures: Mapping[str, NDArray[Any]],
    maps: Mapping[str, NDArray[np.float64]],
    band_names: Sequence[str],
    *,
    owner: str,
) -> list[str]:
    """Write the images of one pair and return the kinds that were written.

    Args:
        folder: of all kept images of one evaluation.
        name: of the pair; may hold slashes.
        pictures: (H, W, C) each in the data's own numbers, by kind; "clear" must be there.
        maps: (H, W) each, among `MAPS`.
        band_names: C names; they say where red, green and blue are.
        owner: of the folder, see `check_owner`; it is noted there.

    Raises:
        OutputError: if they cannot be written.
    """
    place = folder / name
    low, high = _stretch(pictures["clear"])
    try:
        place.mkdir(parents=True, exist_ok=True)
        if owner_of(folder) != owner:
            write_text(folder / OWNER, f"{_HEADING}\n{owner}\n", mend="make room, or choose another --keep-images")
        for kind, image in pictures.items():
            unit = (_shown(image, band_names).astype(np.float32) - low) / (high - low)
            _save(place / f"{kind}.png", unit)
        for kind, values in maps.items():
            unit = values / FULL_SCALE[kind]
            _save(place / f"{kind}.png", unit if kind == "w" else np.sqrt(unit))
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{place} cannot be written ({reason}); make room, or choose another --keep-images"
        ) from error
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
    if rgb := rgb_places(band_names):
        return image[..., rgb]
    return image[..., :3] if image.shape[2] >= 3 else image[..., 0]


def _save(path: Path, unit: NDArray[Any]) -> None:
    Image.fromarray((unit * 255).round().clip(0, 255).astype(np.uint8)).save(path, compress_level=1)
