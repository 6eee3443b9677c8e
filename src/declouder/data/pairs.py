"""Folders of images to pairs, and pairs to pixels.

A cloudy image and its clear twin share a name without its ending. The numbers in the names matter: in the
benchmark sets neighbouring numbers show the same ground, so a part of train is held out in whole blocks of
numbers, never at random. Where a set keeps its folders is catalog.py's matter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from declouder.errors import DataError, RasterError
from declouder.raster.gdal import check_name
from declouder.scaling import Scaling

_FAR_BEYOND_UNIT = 5.0
"""Floats below are clipped to 0 and 1: reflectance of cloud and glint goes beyond. Above they are other numbers."""

LEAST_USED = 0.25
"""Images that use less of their data type's range all look dark and alike, as 12 bits in 16 do."""

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
    nir: tuple[Mapping[str, Path], ...] | None = None,
    masks: Mapping[str, Path] | None = None,
) -> list[Pair]:
    """Return the pairs of two folders, sorted by number, then by name.

    Args:
        cloudy_folder, clear_folder: twins have one name, without its ending.
        nir: near infrared of the cloudy and of the clear images by name; every image must have one.
        masks: cloud masks by name; an image may lack one.

    Raises:
        DataError: if a folder is missing or empty, or an image has no twin.
    """
    cloudy, clear = images_by_name(cloudy_folder), images_by_name(clear_folder)
    for found, other, folder in ((cloudy, clear, clear_folder), (clear, cloudy, cloudy_folder)):
        lonely = [name for name in found if name not in other]
        if lonely:
            raise DataError(
                f"{found[lonely[0]]} has no twin in {folder} ({len(lonely)} of {len(found)} images lack"
                f" one); give both the same name"
            )
    for images, infrared in zip((cloudy, clear), nir or (), strict=False):
        lonely = [name for name in images if name not in infrared]
        if lonely:
            raise DataError(
                f"{images[lonely[0]]} has no near infrared ({len(lonely)} of {len(images)} images lack it); give"
                f" it the same name in the tree of the near infrared"
            )
    return [
        Pair(
            name,
            cloudy[name],
            clear[name],
            nir[0][name] if nir else None,
            nir[1][name] if nir else None,
            (masks or {}).get(name),
        )
        for name in sorted(cloudy, key=number_first)
    ]


def holds_images(folder: Path) -> bool:
    """Return whether there is a folder with an image in it or its subfolders."""
    return folder.is_dir() and any(map(_is_image, folder.rglob("*")))


def find_images(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted by path.

    Raises:
        DataError: if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give a folder of images")
    images = sorted(filter(_is_image, folder.rglob("*")))
    if not images:
        raise DataError(f"{folder} holds no image; wanted {', '.join(sorted(IMAGE_SUFFIXES))}")
    for path in images:
        check_name(path, DataError)
    return images


def _is_image(path: Path) -> bool:
    # ._1.png, which macOS leaves on other file systems, is no image.
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def hold_out(pairs: Sequence[Pair], *, share: float, block: int) -> tuple[list[Pair], list[Pair]]:
    """Split off validation pairs by blocks of neighbouring numbers.

    Args:
        pairs: of one data set.
        share: of the pairs to hold out, in [0, 1); reached by the fewest blocks, spread over the numbers.
        block: numbers n with equal n // block stay together. Images without a number count by position.

    Returns:
        (training pairs, held-out pairs); the second is empty if `share` is 0 and only then.

    Raises:
        DataError: if all pairs lie in one block, so that nothing would be left on one side.
    """
    if share == 0:
        return list(pairs), []
    blocks: dict[int, list[Pair]] = {}
    for position, pair in enumerate(pairs):
        number = number_in(pair.name)
        blocks.setdefault((position if number is None else number) // block, []).append(pair)
    if len(pairs) == 1:
        raise DataError("there is one pair, so none can be held out; give more, or set data.hold_out: 0")
    if len(blocks) < 2:
        raise DataError(
            f"{len(pairs)} pairs lie in one block of {block} numbers, so none can be held out;"
            f" {mend_of_one_block([pair.name for pair in pairs], 'data.hold_out_block')}"
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


def mend_of_one_block(names: Sequence[str], option: str) -> str:
    """Return what helps where all names lie in one block of numbers."""
    numbers = {number_in(name) for name in names}
    if len(numbers) == 1 and None not in numbers:
        return f"all end in one number ({names[0]}): let the number that tells images apart come last"
    return f"give a lower {option}"


def read_bands(path: Path, nir_path: Path | None = None) -> NDArray[Any]:
    """Return an image, and as its last band the first channel of another: (H, W, C) in its own dtype and DN.

    Raises:
        DataError: if a file cannot be read or has an alpha channel, or the two differ in size or type.
    """
    image = read_image(path)
    if _has_alpha(path):
        raise DataError(f"{path} has an alpha channel, which is no band; save it as grey or RGB")
    if _is_of_inks(path):
        raise DataError(f"{path} holds four inks (CMYK), which are no bands; save it as RGB")
    if nir_path is None:
        return image
    nir = read_image(nir_path)[:, :, :1]
    if nir.shape[:2] != image.shape[:2] or nir.dtype != image.dtype:
        raise DataError(
            f"{nir_path} is {nir.shape[0]} x {nir.shape[1]} {nir.dtype}, its colours {path} are {image.shape[0]} x"
            f" {image.shape[1]} {image.dtype}; both must have one size and type"
        )
    return np.concatenate([image, nir], axis=2)


def read_image(path: Path) -> NDArray[Any]:
    """Return an image as (H, W, C) in its own dtype and DN; a TIFF may have any number of bands.

    Raises:
        DataError: if the file is missing, is no image, or a TIFF or 16-bit PNG has pixels without data.
    """
    if path.suffix.lower() in (".tif", ".tiff") or _is_deep_png(path):
        return _read_raster(path)
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode != "P" else image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; was it moved while the data set was read?") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove the file") from None
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def read_mask(path: Path) -> NDArray[Any]:
    """Return the numbers of a cloud mask, (H, W, 1), of a palette image those of its colours; 0 where no data is.

    Raises:
        DataError: if it cannot be read.
    """
    if path.suffix.lower() not in (".tif", ".tiff", ".png"):
        return read_image(path)[:, :, :1]
    from declouder.raster import read_numbers

    try:
        values, valid = read_numbers(path)
    except RasterError as error:
        raise DataError(f"{path} cannot be read as a mask ({error}); replace or remove the file") from None
    return np.where(valid, values, 0).astype(values.dtype)[:, :, None]


def scaling_of(image: NDArray[Any], path: Path, dn_range: tuple[float, float] | None, *, mend: str) -> Scaling:
    """Return the map of an image's numbers to the model's: of a given range, else of its data type.

    Args:
        image: any shape.
        path: where it is from.
        dn_range: DN that are black and white; None takes the data type's, of floats 0 and 1.
        mend: how a user gives the range here.

    Raises:
        DataError: if floats without a range go beyond 0 and 1: they are other numbers, such as reflectance in
            ten-thousandths, and all would be white.
    """
    if dn_range is not None:
        return Scaling(*dn_range)
    if image.dtype.kind == "f" and image.size:
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        if low < -_FAR_BEYOND_UNIT or high > _FAR_BEYOND_UNIT:
            raise DataError(f"{path} holds {low:g} to {high:g}, and floats are taken as 0 to 1; give {mend}")
    return Scaling.of_dtype(image.dtype)


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
        for kind, path in files.items():
            if path is not None:
                digest.update(f"{pair.name}/{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def images_by_name(folder: Path) -> dict[str, Path]:
    """Return the images below a folder by name: the path from there, without its ending.

    Raises:
        DataError: if the folder is missing or empty, or two images have one name.
    """
    images = find_images(folder)
    by_name: dict[str, Path] = {}
    for path in images:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in by_name:
            raise DataError(f"{by_name[name]} and {path} have one name; keep one of them")
        by_name[name] = path
    return by_name


def _has_alpha(path: Path) -> bool:
    """Return whether Pillow finds an alpha channel; in a GeoTIFF a fourth band is often called so that is none."""
    if path.suffix.lower() in (".tif", ".tiff"):
        return False
    if _is_deep_png(path):
        return _png_head(path)[25] in (4, 6)  # grey and alpha, RGB and alpha
    with Image.open(path) as image:
        return image.mode in ("RGBA", "LA", "PA")


def _is_of_inks(path: Path) -> bool:
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    with Image.open(path) as image:
        return image.mode == "CMYK"


def _is_deep_png(path: Path) -> bool:
    """Return whether a PNG holds 16 bits in several bands, of which Pillow would keep 8."""
    if path.suffix.lower() != ".png":
        return False
    try:
        head = _png_head(path)
    except OSError:
        return False
    return len(head) == 26 and head[12:16] == b"IHDR" and head[24] == 16 and head[25] != 0


def _png_head(path: Path) -> bytes:
    """Return signature; length and name of IHDR; width, height, bit depth, kind of colour: 26 bytes of a PNG."""
    with path.open("rb") as file:
        return file.read(26)


def _read_raster(path: Path) -> NDArray[Any]:
    from declouder.raster import MOST_PIXELS_IN_MEMORY, open_raster

    try:
        with open_raster(path, max_pixels=MOST_PIXELS_IN_MEMORY) as reader:
            rows, columns = slice(0, reader.info.height), slice(0, reader.info.width)
            pixels = reader.read(rows, columns)
            alpha = reader.info.alpha
            # GDAL calls the fourth of four bytes alpha, whatever it is: near infrared has more than two levels.
            see_through = alpha is not None and len(np.unique(pixels[alpha - 1])) <= 2
            valid = reader.read_valid(rows, columns, heed_alpha=see_through)
    except RasterError as error:
        raise DataError(f"{path} cannot be read as an image ({error}); replace or remove the file") from None
    if not valid.all():
        share = 100 * (1 - float(valid.mean()))
        raise DataError(
            f"{path} has {share:.1f} % of its pixels without data (nodata, NaN, mask or alpha); cut them off"
        )
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def check_band_order(path: Path, names: Sequence[str]) -> None:
    """Raise DataError if a GeoTIFF says, by descriptions or colours, that it has other bands or another order."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return
    from declouder.bands import choose_bands
    from declouder.raster import open_raster

    with open_raster(path) as reader:
        info = reader.info
    if info.count != len(names):
        return  # told elsewhere, with what may be wrong with it
    # GDAL calls the fourth of four bytes alpha, whatever it is.
    info = replace(info, colors=tuple("undefined" if color == "alpha" else color for color in info.colors))
    said = ", ".join(text or color for text, color in zip(info.descriptions, info.colors, strict=True))
    try:
        numbers = choose_bands(info, names).numbers
    except RasterError:
        raise DataError(
            f"{path} says that its bands are {said}, wanted are {', '.join(names)}; give images of these bands"
        ) from None
    if numbers != (*range(1, len(names) + 1),):
        order = " ".join(f"-b {number}" for number in numbers)
        raise DataError(
            f"{path} says that its bands are {said}, wanted are {', '.join(names)}; put them in that"
            f" order: gdal_translate {order} IN OUT.tif"
        )


def number_in(name: str) -> int | None:
    """Return the last number in a name, or None."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def number_first(name: str) -> tuple[int, str]:
    """Return what to sort names by: their number, then their letters."""
    number = number_in(name)
    return (-1 if number is None else number, name)
