"""Where the cloud is: masks from files and of our own making, and how a mask becomes a share in [0, 1].

    choice = MaskChoice(Path("clouds.tif"), feather_px=8)
    with open_mask(choice, reader, bands=bands.numbers, names=bands.names, scale=scale) as mask:
        share = mask.share(rows, cols)      # 0: the pixel stays as it is, bit by bit; 1: it is restored

docs/python.md has the lines before it.

A mask says True where cloud is. It is grown by `feather_px`: with d the distance to the next cloud pixel,

    share = 1  for d <= feather / 2,    falling like cos^2 to 0 at d = feather

Only the neighbourhood of a place counts, so the share does not depend on how a scene is cut.

The estimate of `auto` (`Cloudiness`) is ours and simple. In the scale of the scene, [0, 1],

    veil = (mean(r, g, b) + b) / 2 - (max - min) / 4 - max(r - b, 0) / 2      smoothed with sigma = 2 px

is high where it is bright, blue rather than red (haze), and white; the smoothing leaves roofs and roads out, which
are bright but small. With d the 20 % and b the 98 % percentile of the scene's veil, cloud is where

    veil > d + max(0.08, 0.3 (b - d))

It knows neither height nor temperature, so snow, sand and white towns are cloud to it, and a scene that is all
cloud has no dark ground to compare with: docs/scenes.md has the figures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from declouder.arguments import whole_number
from declouder.errors import OptionError, RasterError
from declouder.raster import AlignedReader, RasterReader, open_aligned
from declouder.rgb import rgb_places
from declouder.scaling import Scaling

log = logging.getLogger(__name__)

NONE, AUTO = "none", "auto"
_DARK_PERCENTILE, _BRIGHT_PERCENTILE = 20, 98
_LEAST_ABOVE_DARK, _SHARE_ABOVE_DARK = 0.08, 0.3
_NEARLY_ALL = 0.9  # of a mask: where so much is cloud, and in several numbers, it is hardly a plain mask
_SMOOTH_PX = 2.0
_SMOOTH_REACH_PX = 6

_OF_NO_CLOUD = ("clear", "cloud free", "cloudfree", "valid")
"""Names of bands that are 1 where there is no cloud, as the first one of Planet's UDM2."""

Decoder = Callable[[NDArray[np.generic]], NDArray[np.bool_]]


@dataclass(frozen=True)
class MaskChoice:
    """Which mask, how it is read, how far it is grown.

    Attributes:
        source: a raster file, "auto" for an estimate of our own, or "none": everything counts as cloud.
        kind: one of `KINDS`, for a file.
        values: with kind "values": what means cloud; None is every number but 0.
        feather_px: the mask is grown by so much, and fades out over the outer half of that.
        allow_outside: a file that is a VRT may name files outside its own folder.
    """

    source: Path | str = NONE
    kind: str = "values"
    values: tuple[int, ...] | None = None
    feather_px: int = 8
    allow_outside: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.source, (str, Path)):
            raise OptionError(f"the mask is {self.source!r}; give a file, {AUTO!r} or {NONE!r}")
        object.__setattr__(self, "feather_px", whole_number(self.feather_px, "feather"))
        if self.values is not None:
            given = self.values if isinstance(self.values, Iterable) else (self.values,)
            object.__setattr__(self, "values", tuple(whole_number(value, "a mask value") for value in given))
        if self.kind not in KINDS:
            raise OptionError(f"mask kind is {self.kind!r}; give one of {', '.join(KINDS)}")
        if self.values is not None and self.kind != "values":
            raise OptionError(f"mask values are given for the kind {self.kind}; give them with the kind values")
        if self.source in (NONE, AUTO) and (self.kind != "values" or self.values is not None):
            raise OptionError(
                f"the mask is {self.source}, which has neither kind nor values; give the file that they are of"
            )
        if not 0 <= self.feather_px <= 512:
            raise OptionError(f"feather is {self.feather_px} px; give 0 to 512")


class MaskSource(Protocol):
    """Anything that can say where cloud is."""

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols); the slices lie inside the scene."""


class SceneMask:
    """A mask on a scene's grid, grown and feathered.

    Attributes:
        files: that it is read from; none where it is made of the scene itself.
        threshold: above which the scene's own cloudiness is cloud; None where it is read from files.
    """

    def __init__(
        self,
        source: MaskSource,
        *,
        height: int,
        width: int,
        feather_px: int,
        files: Sequence[Path] = (),
        threshold: float | None = None,
    ) -> None:
        self.files = tuple(files)
        self.threshold = threshold
        self._source = source
        self._size = height, width
        self._feather_px = feather_px

    def share(self, rows: slice, cols: slice) -> NDArray[np.float32]:
        """Return how much of each pixel is restored, (rows, cols) in [0, 1]."""
        margin = self._feather_px
        wide_rows, cut_rows = _widened(rows, margin, self._size[0])
        wide_cols, cut_cols = _widened(cols, margin, self._size[1])
        cloud = self._source.read(wide_rows, wide_cols)
        if margin == 0 or cloud.all() or not cloud.any():
            return cloud[cut_rows, cut_cols].astype(np.float32)
        share = np.zeros(cloud.shape, np.float32)
        # Beyond the margin around the cloud all is 0: distances are taken within it.
        near = tuple(_span(np.asarray(cloud.any(axis=axis)), margin) for axis in (1, 0))
        fall = np.clip(2 * ndimage.distance_transform_edt(~cloud[near]) / margin - 1, 0, 1)
        share[near] = np.where(fall < 1, np.cos(fall * (np.pi / 2)) ** 2, 0)
        return share[cut_rows, cut_cols]


@contextmanager
def open_mask(
    choice: MaskChoice,
    reader: RasterReader,
    *,
    bands: Sequence[int],
    names: Sequence[str],
    scale: Scaling,
) -> Iterator[SceneMask | None]:
    """Open the mask of a scene; None where everything counts as cloud.

    Args:
        choice: which mask.
        reader: the scene.
        bands: the 1-based numbers of its bands that the model sees, for "auto".
        names: what the model calls them.
        scale: the scene's, for "auto".

    Raises:
        RasterError: if the mask cannot be read or laid over the scene.
        OptionError: if it cannot be made of these bands, or holds no such values.
    """
    height, width = reader.info.height, reader.info.width
    if choice.source == NONE:
        yield None
    elif choice.source == AUTO:
        source = Cloudiness(reader, bands=bands, names=names, scale=scale)
        yield SceneMask(
            source, height=height, width=width, feather_px=choice.feather_px, threshold=source.threshold
        )
    else:
        with open_aligned(Path(choice.source), reader.info, allow_outside=choice.allow_outside) as aligned:
            further = aligned.info.count - 1 - (aligned.info.alpha is not None)
            if further > 0:
                log.warning("mask %s has %d bands; the first one is taken", choice.source, aligned.info.count)
            called = aligned.info.descriptions[0] or ""
            if choice.kind == "values" and choice.values is None and called.lower() in _OF_NO_CLOUD:
                log.warning(
                    "mask %s calls its first band %r, so cloud is where it is 0: give --mask-values 0",
                    *(choice.source, called),
                )
            if not aligned.says_anything():
                log.warning(
                    "mask %s holds no data over the scene, so nothing there is cloud; is it of another place?",
                    choice.source,
                )
            is_cloud = _decoder(choice, aligned)
            if choice.kind == "values" and choice.values is None:
                _tell_many_numbers(aligned, is_cloud)
                if "JPEG" in (aligned.info.driver, aligned.info.compression):
                    log.warning(
                        "mask %s is a JPEG, which has numbers of its own beside every edge, and any but 0 is cloud;"
                        " write masks as PNG or GeoTIFF, or give --mask-values",
                        choice.source,
                    )
            mask = FileMask(aligned, is_cloud)
            yield SceneMask(
                mask,
                height=height,
                width=width,
                feather_px=choice.feather_px,
                files=aligned.info.files,
            )


class FileMask:
    """A mask out of a file's first band; pixels where the file holds no data are clear."""

    def __init__(self, aligned: AlignedReader, is_cloud: Decoder) -> None:
        self._aligned = aligned
        self._is_cloud = is_cloud

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols)."""
        values, valid = self._aligned.read(rows, cols)
        return self._is_cloud(values) & valid


class Cloudiness:
    """The estimate of `auto`; see the head of this file."""

    def __init__(self, reader: RasterReader, *, bands: Sequence[int], names: Sequence[str], scale: Scaling) -> None:
        places = rgb_places(names)
        if places is None:
            raise OptionError(
                f"the cloudiness estimate wants red, green and blue, this model has {', '.join(names)}; "
                "give a mask file"
            )
        self._reader = reader
        self._bands = [bands[place] for place in places]
        self._scale = scale
        dn, valid = reader.read_reduced(self._bands)
        everywhere = valid.all(axis=0)
        dark, bright = 0.0, 0.0
        if everywhere.any():
            seen = veil(scale.to_model(dn))[everywhere]
            dark, bright = (float(v) for v in np.percentile(seen, [_DARK_PERCENTILE, _BRIGHT_PERCENTILE]))
        self.threshold = dark + max(_LEAST_ABOVE_DARK, _SHARE_ABOVE_DARK * (bright - dark))
        log.info("cloudiness: cloud is where the veil is above %.3f of the scale", self.threshold)

    def read(self, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Return True where cloud is, (rows, cols)."""
        info = self._reader.info
        wide_rows, cut_rows = _widened(rows, _SMOOTH_REACH_PX, info.height)
        wide_cols, cut_cols = _widened(cols, _SMOOTH_REACH_PX, info.width)
        valid = self._reader.read_valid(wide_rows, wide_cols, self._bands).all(axis=0)
        dn = self._reader.read(wide_rows, wide_cols, self._bands)
        # Averaged over valid pixels only, so that a collar of nodata does not darken its neighbours.
        seen = np.where(valid, veil(self._scale.to_model(dn)), 0)
        total, count = (_smoothed(np.asarray(x, np.float32)) for x in (seen, valid))
        cloudy = total > self.threshold * count
        return np.asarray((cloudy & valid)[cut_rows, cut_cols])


def veil(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much pixels look like cloud: red, green, blue (3, H, W) in [-1, 1] -> (H, W), about 0 to 1."""
    red, green, blue = unit = (x + 1) / 2
    colourful = unit.max(axis=0) - unit.min(axis=0)
    result: NDArray[np.float32] = (
        ((red + green + blue) / 3 + blue) / 2 - colourful / 4 - np.maximum(red - blue, 0) / 2
    )
    return result


def _smoothed(x: NDArray[Any]) -> NDArray[Any]:
    truncate = _SMOOTH_REACH_PX / _SMOOTH_PX
    return np.asarray(ndimage.gaussian_filter(x, _SMOOTH_PX, truncate=truncate))


def _decoder(choice: MaskChoice, aligned: AlignedReader) -> Decoder:
    if choice.kind == "values" and choice.values is not None:
        wanted = choice.values
        _check_can_hold(aligned, wanted)
        return lambda values: np.isin(values, wanted)
    return KINDS[choice.kind](aligned)


def _tell_many_numbers(aligned: AlignedReader, is_cloud: Decoder) -> None:
    """Warn of what is no plain mask, but a quality band, probabilities or an image: hardly a pixel of it is 0."""
    seen, valid = aligned.read_reduced()
    cloud = is_cloud(seen) & valid
    share = float(cloud.sum()) / max(float(valid.sum()), 1)
    if share >= _NEARLY_ALL and len(np.unique(seen[cloud])) > 1:
        log.warning(
            "mask %s is cloud on %.0f %% of itself, as any number but 0 counts; if it is more than a plain mask, "
            "give --mask-kind or --mask-values",
            aligned.info.path,
            100 * share,
        )


def _any_number(_aligned: AlignedReader) -> Decoder:
    return lambda values: (values != 0) & np.isfinite(values)


def _sentinel2_scl(aligned: AlignedReader) -> Decoder:
    """Sentinel-2's scene classification: 3 cloud shadow, 8 and 9 cloud, 10 thin cirrus."""
    _check_integers(aligned, "sentinel2-scl")
    return lambda values: np.isin(values, (3, 8, 9, 10))


def _landsat_qa(aligned: AlignedReader) -> Decoder:
    """Landsat's quality band of three generations: cloud of medium or high confidence, shadow and cirrus of high.

    They share one format and mean different bits. Collection 2 (QA_PIXEL) gives every pixel a confidence of cloud
    in bits 8-9 and of snow in bits 12-13, Landsat 4 to 7's as well, which end there. Of Collection 1, which has no
    bit above 12, only shadow under cirrus looks so; in the generation before it (BQA) bits 8-9 are 0. Smaller
    copies of such a band may hold means, which are no bits: the most of what is seen decides.
    """
    _check_integers(aligned, "landsat-qa")
    seen, valid = aligned.read_reduced()
    seen = seen[valid & (seen != 1)].astype(np.int64)  # 1 is outside the ground taken
    generation: Decoder
    if seen.size and ((_bits(seen, 8, 2) > 0) & (_bits(seen, 12, 2) > 0)).mean() > 0.5:
        generation, told = _collection_2, "Collection 2"
    elif seen.size == 0 or seen.max() < 1 << 13:
        generation, told = _collection_1, "Collection 1"
    else:
        generation, told = _before_collections, "before Collection 1"
    log.info("mask: Landsat quality band, %s", told)
    return lambda values: generation(values.astype(np.int64))


def _collection_2(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    dilated, cloud, shadow = (_bits(qa, bit, 1) == 1 for bit in (1, 3, 4))
    return np.asarray(dilated | cloud | shadow | (_bits(qa, 8, 2) >= 2) | (_bits(qa, 14, 2) == 3))


def _collection_1(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    cloud = (_bits(qa, 4, 1) == 1) | (_bits(qa, 5, 2) >= 2)
    return np.asarray(cloud | (_bits(qa, 7, 2) == 3) | (_bits(qa, 11, 2) == 3))


def _before_collections(qa: NDArray[np.generic]) -> NDArray[np.bool_]:
    return np.asarray((_bits(qa, 14, 2) >= 2) | (_bits(qa, 12, 2) == 3))


def _bits(qa: NDArray[np.generic], first: int, count: int) -> NDArray[np.int64]:
    return (qa.astype(np.int64) >> first) & ((1 << count) - 1)


def _check_can_hold(aligned: AlignedReader, wanted: Sequence[int]) -> None:
    kind = np.dtype(aligned.info.dtype)
    if kind.kind not in "iu":
        return
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    strange = [value for value in wanted if not low <= value <= high]
    if strange:
        raise OptionError(
            f"the mask value {strange[0]} is none that {aligned.info.path} can hold, which is {kind};"
            f" give values from {low} to {high}"
        )


def _check_integers(aligned: AlignedReader, kind: str) -> None:
    info = aligned.info
    if np.dtype(info.dtype).kind not in "iu":
        raise RasterError(
            f"mask {info.path} is {info.dtype}, {kind} is a band of integers; give that band itself, "
            "or another --mask-kind"
        )


def _span(line: NDArray[np.bool_], margin: int) -> slice:
    """Return where a line, (length,), is True, with a margin as far as it goes."""
    found = np.flatnonzero(line)
    return slice(max(0, int(found[0]) - margin), int(found[-1]) + 1 + margin)


def _widened(span: slice, margin: int, length: int) -> tuple[slice, slice]:
    """Return a span with a margin as far as the scene goes, and where the span lies in that."""
    start, stop = max(0, span.start - margin), min(length, span.stop + margin)
    return slice(start, stop), slice(span.start - start, span.stop - start)


KINDS: dict[str, Callable[[AlignedReader], Decoder]] = {
    "values": _any_number,
    "landsat-qa": _landsat_qa,
    "sentinel2-scl": _sentinel2_scl,
}
"""How a mask file is read, by the name of its kind."""
