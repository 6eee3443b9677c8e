"""One pair and what a method makes of it -> one row of the file of scores, with its notes (`doubts`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder import breakdown, metrics
from declouder.data.images import check_band_order, check_numbers, scaling_of
from declouder.data.pairs import Pair
from declouder.errors import DataError, OptionError
from declouder.evaluation.doubts import DOUBTS, doubts_of
from declouder.evaluation.methods import Method, Restored
from declouder.evaluation.selection import Selection, described
from declouder.kept import keep_images
from declouder.rgb import USUAL_BANDS
from declouder.scaling import Scaling

DEFAULT_BANDS: Mapping[int, tuple[str, ...]] = {
    1: ("grey",),
    **USUAL_BANDS,
}

_RANGE = "--data-range SPAN or LOW,HIGH"


@dataclass
class Scorer:
    """One image at a time to one row of the file's "images".

    Attributes:
        selection: reads the images.
        method: restores them.
        lpips: from `metrics.load_lpips`.
        band_lpips: whether LPIPS is taken of each band too.
        band_names: C names; None goes by `DEFAULT_BANDS`.
        data_range: DN that are black and white; None takes the dtype's.
        mask_of: cloud masks by name of the pair.
        keep: folder for the images to look at; None keeps none.
        owner: of that folder, see `kept.check_owner`.
    """

    selection: Selection
    method: Method
    lpips: metrics.Lpips | None
    band_lpips: bool
    band_names: Sequence[str] | None
    data_range: tuple[float, float] | None
    mask_of: Mapping[str, Path]
    keep: Path | None
    owner: str = ""

    def row(self, pair: Pair) -> dict[str, Any]:
        """Read, restore and score one pair.

        Raises:
            DataError: if the pair, its mask or the output do not fit each other.
            OptionError: if there is not one name a band.
        """
        cloudy, clear = self.selection.read(pair)
        check_numbers(cloudy, pair.cloudy_path, self.data_range, mend=_RANGE)
        scaling = scaling_of(clear, pair.clear_path, self.data_range, mend=_RANGE)
        span = scaling.high - scaling.low
        mask = self.selection.read_mask(self.mask_of[pair.name]) if pair.name in self.mask_of else None
        doubts = doubts_of(cloudy, clear, mask, span=span, data_range=self.data_range)
        try:
            parts = breakdown.regions(cloudy, clear, span, mask, graded=self._masks_are_graded)
        except DataError as misfit:
            raise DataError(f"{self.mask_of.get(pair.name, pair.name)}: {misfit}") from None
        restored = self._restored(pair, cloudy, scaling)
        names = self._checked_names(pair, clear.shape[2], restored.path)
        # Scores are of numbers from black on.
        seen, wanted, image = (_from_black(x, scaling) for x in (cloudy, clear, restored.image))
        try:
            scores = metrics.score(
                image, wanted, lpips=self.lpips, band_lpips=self.band_lpips, band_names=names, data_range=span
            )
        except DataError as reason:
            raise DataError(f"{pair.clear_path}: {reason}") from None
        error = np.abs(image.astype(np.float64) - wanted) / span
        change = np.abs(image.astype(np.float64) - seen) / span
        spread = restored.spread
        found: dict[str, Any] = {
            "name": pair.name,
            **_finite(scores.overall),
            "cover": float(parts["inside"].mean()),
            "thick_cover": float(parts["thick"].mean()),
            "flat": bool(wanted.mean(2).std() < breakdown.FLAT_BELOW * span),
            "bands": {name: _finite(band) for name, band in zip(names, scores.bands, strict=True)},
            "regions": breakdown.region_scores(parts, error, scores.ssim_map, metrics.SSIM_BORDER_PX),
            "changed": breakdown.change_scores(parts["outside"], change),
            "spread": (
                None if spread is None else breakdown.spread_scores(spread, np.sqrt(np.square(error).mean(2)))
            ),
            DOUBTS: doubts,
        }
        if self.keep is not None:
            reference = None if restored.reference is None else _from_black(restored.reference, scaling)
            pictures = {"cloudy": seen, "reference": reference, "restored": image, "clear": wanted}
            maps = {"error": error.mean(2), "w": restored.w, "spread": spread}
            found["kept"] = keep_images(
                self.keep, pair.name, _there(pictures), _there(maps), names, owner=self.owner
            )
        return found

    def _restored(self, pair: Pair, cloudy: NDArray[Any], scaling: Scaling) -> Restored:
        """Return what the method makes of a cloudy image; DataError if it is none of its size and type."""
        restored = self.method.restore(pair, cloudy, scaling)
        for what, image in (("image", restored.image), ("reference", restored.reference)):
            if image is not None and (image.shape, image.dtype) != (cloudy.shape, cloudy.dtype):
                raise DataError(
                    f"{type(self.method).__name__} gave for {pair.cloudy_path} a restored {what} of"
                    f" {described(image)}, the cloudy one has {described(cloudy)}; a method returns images in the"
                    " size, type and numbers of the cloudy one"
                )
        return restored

    def _checked_names(self, pair: Pair, bands: int, restored: Path | None) -> Sequence[str]:
        """Return the names of the bands; DataError if one of the files, `restored` among them, has others."""
        names = self._names(pair, bands)
        check_band_order(pair.cloudy_path, names, pair.cloudy_nir_path)
        check_band_order(pair.clear_path, names, pair.clear_nir_path)
        if restored is not None:
            check_band_order(restored, names)
        return names

    @cached_property
    def _masks_are_graded(self) -> bool:
        """Whether a mask of the set has several levels: then 255 is thick in the others too, and 128 is not."""
        return any(breakdown.is_graded(self.selection.read_mask(path)) for path in self.mask_of.values())

    def _names(self, pair: Pair, bands: int) -> Sequence[str]:
        names = self.band_names if self.band_names is not None else DEFAULT_BANDS.get(bands)
        if names is None:
            return [f"band {c + 1}" for c in range(bands)]
        if len(names) != bands:
            raise OptionError(f"{len(names)} band names for {bands} bands of {pair.clear_path}; give one a band")
        if len(set(names)) < len(names):
            raise OptionError(f"band names are {', '.join(names)}; give each once")
        return names


def _from_black(image: NDArray[Any], scaling: Scaling) -> NDArray[Any]:
    """Return an image in numbers from black on, as it is where black is 0."""
    return image.astype(np.float64) - scaling.low if scaling.low else image


def _finite(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON knows no infinity."""
    return {key: value if value is not None and math.isfinite(value) else None for key, value in scores.items()}


def _there(arrays: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
    return {kind: array for kind, array in arrays.items() if array is not None}
