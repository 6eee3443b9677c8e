"""Many images of one kind as arrays, checked once and kept in memory as far as they may."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.data.images import check_band_order, check_numbers, read_bands, scaling_by
from declouder.data.resize import resize_stored
from declouder.errors import DataError


class ImagePool:
    """Images in their own dtype, (C, H, W) arrays, kept in memory once read as far as they may.

    Loader processes that are forked share what was read before.

    Args:
        paths: the images.
        bands: how many each must have.
        nir_paths: the near infrared of each where it is a file of its own.
        size_px: width that whole images are resized to; None leaves them as they are.
        dn_range: DN that are black and white; None takes the dtype's range.
        keep_bytes: images beyond this much memory are read anew each time.
        band_names: of their bands, in order; images that have another are refused.

    Attributes:
        dtypes: of the images.
        used: the share that each uses of `dn_range`, or of its data type's range.
        bytes: of the images that are kept in memory.

    Raises:
        DataError: if an image cannot be read, is of another number of bands, or holds NaN.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        bands: int,
        *,
        nir_paths: Sequence[Path | None] | None = None,
        size_px: int | None = None,
        dn_range: tuple[float, float] | None = None,
        keep_bytes: float = float("inf"),
        band_names: Sequence[str] = (),
    ) -> None:
        self.paths = list(paths)
        self._nir_paths = list(nir_paths) if nir_paths is not None else [None] * len(self.paths)
        self._bands = bands
        self._size_px = size_px
        self._dn_range = dn_range
        self._images: dict[int, NDArray[Any]] = {}
        self._shapes: list[tuple[int, int]] = []
        self.dtypes: list[np.dtype[Any]] = []
        self.used: list[float] = []
        self.bytes = 0
        # Every image is read once now: one that cannot be used is found before hours of training.
        for index in range(len(self.paths)):
            image = self._read(index)
            check_band_order(self.paths[index], band_names, self._nir_paths[index])
            self._shapes.append((image.shape[1], image.shape[2]))
            self.dtypes.append(image.dtype)
            self.used.append(float(scaling_by(self._dn_range, image.dtype).to_unit(image.max())))
            if self.bytes + image.nbytes <= keep_bytes:
                self._images[index] = image
                self.bytes += image.nbytes

    def __len__(self) -> int:
        return len(self.paths)

    def unit(self, index: int) -> NDArray[np.float32]:
        """Return image `index` as float32 in [0, 1]."""
        image = self._images.get(index)
        if image is None:
            image = self._read(index)
        return scaling_by(self._dn_range, image.dtype).to_unit(image)

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index`."""
        return self._shapes[index]

    def _read(self, index: int) -> NDArray[Any]:
        path = self.paths[index]
        image = read_bands(path, self._nir_paths[index])
        if image.shape[2] != self._bands:
            raise DataError(
                f"{path} has {image.shape[2]} bands{_kind_of(image.shape[2])}, the recipe's model.bands names"
                f" {self._bands}; convert the image or change model.bands"
            )
        check_numbers(image, path, self._dn_range, mend="data.range: [LOW, HIGH]")
        if self._size_px is not None:
            image = resize_stored(image, self._size_px)
        return np.ascontiguousarray(image.transpose(2, 0, 1))


def check_twins(cloudy: ImagePool, clear: ImagePool) -> None:
    """Raise DataError unless images of equal number are of one size and data type."""
    for index, path in enumerate(cloudy.paths):
        if cloudy.shape(index) != clear.shape(index):
            raise DataError(
                f"{path} is {cloudy.shape(index)[1]} x {cloudy.shape(index)[0]}, its twin {clear.paths[index]} is"
                f" {clear.shape(index)[1]} x {clear.shape(index)[0]}; twins must have one size: resize"
                " or remove one"
            )
        if cloudy.dtypes[index] != clear.dtypes[index]:
            raise DataError(
                f"{path} is {cloudy.dtypes[index]}, its twin {clear.paths[index]} {clear.dtypes[index]}; twins must"
                " have one data type: convert one"
            )


def _kind_of(bands: int) -> str:
    return {1: " (grey)", 2: " (grey and alpha)", 4: " (an alpha or near infrared)"}.get(bands, "")
