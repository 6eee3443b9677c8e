"""Image files to pixels, (H, W, C) in their own dtype and DN, and what those numbers mean.

Whatever would be taken for another image than it is, is refused: alpha and inks are no bands, NaN is no number, and
bands that call themselves something else are not those of a recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image, UnidentifiedImageError

from declouder.errors import DataError, RasterError
from declouder.rgb import RGB, spoken_colors
from declouder.scaling import LEAST_USED, Scaling

_FAR_BEYOND_UNIT = 5.0
"""Floats below are clipped to 0 and 1: reflectance of cloud and glint goes beyond. Above they are other numbers."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG = b"\x89PNG\r\n\x1a\n"
_BY_PILLOW = ("PNG", "JPEG", "WEBP", "BMP")
"""All others that it knows are none of the formats of a data set; some hold floats, and NaN among them."""
_HELD_AS = {"P": "RGB", "1": "L"}
"""Modes of Pillow whose numbers are places in a palette, or yes and no, and those that hold them as levels."""


def least_used(dn_range: tuple[float, float] | None, dtype: DTypeLike) -> float:
    """Return of which share of their data type's range, or of a given one, images must make use.

    Those that use less all look dark and alike, as 12 bits in 16 do. Signed integers hardly ever go up to their
    end: in them reflectance goes from 0 to 10000, of 32767.
    """
    if dn_range is not None:
        return LEAST_USED
    return 0.6 if np.dtype(dtype).kind == "i" else 0.25


def read_bands(path: Path, nir_path: Path | None = None) -> NDArray[Any]:
    """Return an image, and as its last band the first channel of another: (H, W, C) in its own dtype and DN.

    Raises:
        DataError: if a file cannot be read or has an alpha channel, or the two differ in size or type.
    """
    image = read_image(path)
    check_no_alpha(path, image)
    if _is_of_inks(path):
        raise DataError(f"{path} holds four inks (CMYK), which are no bands; save it as RGB")
    if nir_path is None:
        return image
    nir = read_image(nir_path)[:, :, :1]
    if nir.shape[:2] != image.shape[:2] or nir.dtype != image.dtype:
        raise DataError(
            f"{nir_path} is {nir.shape[1]} x {nir.shape[0]} {nir.dtype}, its colours {path} are {image.shape[1]} x"
            f" {image.shape[0]} {image.dtype}; both must have one size and type"
        )
    return np.concatenate([image, nir], axis=2)


def is_tiff(path: Path) -> bool:
    """Return whether an image is a TIFF, by its first bytes; False where it cannot be opened."""
    return _head(path).startswith(_TIFF)


def read_image(path: Path) -> NDArray[Any]:
    """Return an image as (H, W, C) in its own dtype and DN; a TIFF may have any number of bands.

    Raises:
        DataError: if the file is missing, is no image, or a TIFF or 16-bit PNG has pixels without data.
    """
    if is_tiff(path) or _is_deep_png(path):
        return _read_raster(path)
    try:
        with Image.open(path, formats=_BY_PILLOW) as image:
            pixels = np.asarray(image.convert(_HELD_AS[image.mode]) if image.mode in _HELD_AS else image)
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
    if not is_tiff(path) and not _head(path).startswith(_PNG):
        return read_image(path)[:, :, :1]
    from declouder.raster import read_numbers

    try:
        values, valid = read_numbers(path)
    except RasterError as error:  # it names the file and the mend
        raise DataError(str(error)) from None
    return np.where(valid, values, 0).astype(values.dtype)[:, :, None]


def scaling_of(image: NDArray[Any], path: Path, dn_range: tuple[float, float] | None, *, mend: str) -> Scaling:
    """Return the map of an image's numbers to the model's, as `scaling_by` does, where its numbers suit it.

    Arguments and errors as for `check_numbers`.
    """
    check_numbers(image, path, dn_range, mend=mend)
    return scaling_by(dn_range, image.dtype)


def scaling_by(dn_range: tuple[float, float] | None, dtype: DTypeLike) -> Scaling:
    """Return the map of numbers to the model's: of a given range, else of their data type, of floats of 0 to 1."""
    return Scaling.of_dtype(dtype) if dn_range is None else Scaling(*dn_range)


def check_numbers(image: NDArray[Any], path: Path, dn_range: tuple[float, float] | None, *, mend: str) -> None:
    """See that floats without a range are about 0 to 1, or go not far beyond (`_FAR_BEYOND_UNIT`).

    Args:
        image: any shape.
        path: where it is from.
        dn_range: DN that are black and white; None takes the data type's, of floats 0 and 1.
        mend: how a user gives the range here.

    Raises:
        DataError: if they go beyond: they are other numbers, such as reflectance in ten-thousandths, and all would
            be white.
    """
    if dn_range is None and image.dtype.kind == "f" and image.size:
        low, high = float(np.nanmin(image)), float(np.nanmax(image))
        if low < -_FAR_BEYOND_UNIT or high > _FAR_BEYOND_UNIT:
            raise DataError(f"{path} holds {low:g} to {high:g}, and floats are taken as 0 to 1; give {mend}")


def check_band_order(path: Path, names: Sequence[str], nir_path: Path | None = None) -> None:
    """Raise DataError if an image has its bands in another order than `names`.

    A GeoTIFF says so by descriptions or colours. All other formats hold red, green, blue, and a near infrared of
    its own file comes last. Names that lack one of these, as a false-colour image's do, are taken as they are.
    """
    if nir_path is not None or not is_tiff(path):
        _check_fixed_order(path, names, RGB if nir_path is None else (*RGB, "nir"))
    if not is_tiff(path):
        return
    if nir_path is not None:
        names = names[: len(RGB)]
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
        as_they_are = ",".join(name for _, name in sorted(zip(numbers, names, strict=True)))
        raise DataError(
            f"{path} says that its bands are {said}, wanted are {', '.join(names)}; put them in that"
            f" order: gdal_translate {order} IN OUT.tif (to score another method, --band-names {as_they_are} does)"
        )


def _check_fixed_order(path: Path, names: Sequence[str], order: Sequence[str]) -> None:
    spoken = spoken_colors(names)
    if set(order) <= set(spoken) and spoken[: len(order)] != list(order):
        raise DataError(
            f"{path} has its bands in the order {', '.join(order)}, wanted are {', '.join(names)}; name the model's"
            " bands in that order, or give GeoTIFFs of the model's"
        )


def check_no_alpha(path: Path, image: NDArray[Any]) -> None:
    """Raise DataError if one of the bands of an image, (H, W, C), is its transparency."""
    if _has_alpha(path, image):
        raise DataError(f"{path} has an alpha channel, which is no band; save it as grey or RGB")


def _has_alpha(path: Path, image: NDArray[Any]) -> bool:
    """Return whether an image has an alpha channel."""
    if is_tiff(path):
        from declouder.raster import open_raster

        with open_raster(path) as reader:
            alpha = reader.info.alpha
        return alpha is not None and _is_transparency(image[:, :, alpha - 1])
    if _is_deep_png(path):
        return _head(path)[25] in (4, 6)  # grey and alpha, RGB and alpha
    with Image.open(path) as opened:
        return opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info


def _is_transparency(band: NDArray[Any]) -> bool:
    """Return whether a band that is called alpha is one.

    GDAL calls the fourth of four bytes so, whatever it is; near infrared has other levels than none and full.
    """
    return bool(np.isin(band, (0, Scaling.of_dtype(band.dtype).high)).all())


def _is_of_inks(path: Path) -> bool:
    if is_tiff(path):
        return False
    with Image.open(path) as image:
        return image.mode == "CMYK"


def _is_deep_png(path: Path) -> bool:
    """Return whether a PNG holds 16 bits in several bands, of which Pillow would keep 8."""
    head = _head(path)
    return len(head) == 26 and head.startswith(_PNG) and head[24] == 16 and head[25] != 0


def _head(path: Path) -> bytes:
    """Return a file's first 26 bytes, none if it cannot be opened: names may say what it is not.

    Of a PNG they are signature; length and name of IHDR; width, height, bit depth, kind of colour.
    """
    try:
        with path.open("rb") as file:
            return file.read(26)
    except OSError:
        return b""


def _read_raster(path: Path) -> NDArray[Any]:
    from declouder.raster import MOST_PIXELS_IN_MEMORY, open_raster

    try:
        with open_raster(path, max_pixels=MOST_PIXELS_IN_MEMORY) as reader:
            rows, columns = slice(0, reader.info.height), slice(0, reader.info.width)
            pixels = reader.read(rows, columns)
            alpha = reader.info.alpha
            see_through = alpha is not None and _is_transparency(pixels[alpha - 1])
            valid = reader.read_valid(rows, columns, heed_alpha=see_through)
    except RasterError as error:  # it names the file and the mend
        raise DataError(str(error)) from None
    if not valid.all():
        share = 100 * (1 - float(valid.mean()))
        told = f"{share:.1f}" if share >= 0.1 else "less than 0.1"
        raise DataError(
            f"{path} has {told} % of its pixels without data (nodata, NaN, mask or alpha); cut them off"
        )
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
