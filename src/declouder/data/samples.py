"""Training samples: the k-th sample of a run is a function of (recipe, seed, k) alone.

Nothing depends on loader processes, on their number or on where a run was interrupted; that is what lets a
resumed run end where an uninterrupted one does. Real pairs and synthetic clouds over clear images mix here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from declouder.config import DataConfig, PairSource, StageConfig
from declouder.data.augment import (
    crop_patch,
    flip,
    make_arid,
    make_calm,
    relight,
    vary_cloud_strength,
    vary_color,
    vary_sensor,
    zoom,
)
from declouder.data.catalog import set_pairs
from declouder.data.clouds import simulate_clouds
from declouder.data.images import LEAST_USED, check_band_order, check_finite, read_bands, scaling_of
from declouder.data.lists import SPLITS
from declouder.data.pairs import Pair, find_images, fingerprint
from declouder.data.resize import resize_bicubic, resize_stored
from declouder.data.split import hold_out
from declouder.data.terrain import make_terrain
from declouder.data.transplant import Dimming, EvenHaze, move_cloud
from declouder.errors import DataError
from declouder.scaling import Scaling

log = logging.getLogger(__name__)

PROCEDURAL_PX = 96
"""Side of a generated terrain image."""
_SHOWN_PAIRS = 8
UNDIMMED = 0.3
"""Share of dry ground that is shown without the cloud that darkens it: it is to stay as it is."""


class Sample(TypedDict):
    """One training or validation sample."""

    cloudy: NDArray[np.float32]
    """(C, H, W) in [-1, 1]."""
    clear: NDArray[np.float32]
    """(C, H, W) in [-1, 1]."""
    seed: int
    """Seeds what the training step draws for this sample: its time step and its noise."""
    ambiguous: NotRequired[bool]
    """Whether haze and bright ground look alike: ground of a pair under an even haze that kept to its law, or relit
    ground without cloud. A stage's own samples say so."""


@dataclass(frozen=True)
class _Draft:
    """A sample on its way, (C, H, W) in [0, 1].

    Attributes:
        cloudy: with cloud.
        clear: without.
        made_up: whether cloud and ground are of different images, so that it may look like another sensor's.
        relit: whether its ground is in another light.
        even_haze: whether it lies under an even haze and keeps to its law.
    """

    cloudy: NDArray[np.float32]
    clear: NDArray[np.float32]
    made_up: bool = False
    relit: bool = False
    even_haze: bool = False


class ImagePool:
    """Images in their own dtype, (C, H, W) arrays, kept in memory once read as far as they may.

    Loader processes that are forked share what was read before.

    Args:
        paths: the images.
        bands: how many each must have.
        nir_paths: the near infrared of each where it is a file of its own.
        size_px: side that whole images are resized to; None leaves them as they are.
        dn_range: DN that are black and white; None takes the dtype's range.
        keep_bytes: images beyond this much memory are read anew each time.
        band_names: of their bands, in order; a GeoTIFF that says otherwise is refused.

    Attributes:
        dtypes: of the images.
        most_used: the largest share of its data type's range that an image uses.

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
        self.most_used = 0.0
        self.bytes = 0
        # Every image is read once now: one that cannot be used is found before hours of training.
        for index in range(len(self.paths)):
            image = self._read(index)
            check_band_order(self.paths[index], band_names)
            self._shapes.append((image.shape[1], image.shape[2]))
            self.dtypes.append(image.dtype)
            self.most_used = max(self.most_used, float(image.max()) / Scaling.of_dtype(image.dtype).high)
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
        scaling = Scaling.of_dtype(image.dtype) if self._dn_range is None else Scaling(*self._dn_range)
        return scaling.to_unit(image)

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
        check_finite(image, path)
        scaling_of(image, path, self._dn_range, mend="data.range: [LOW, HIGH]")
        if self._size_px is not None:
            image = resize_stored(image, self._size_px)
        return np.ascontiguousarray(image.transpose(2, 0, 1))


class TrainingData:
    """What a recipe learns from: pairs for training, pairs held out, and clear images for synthetic clouds.

    Raises:
        DataError: if a folder is missing or empty, twins are missing or of different sizes, or an image
            has another number of bands than the model.
    """

    def __init__(self, data: DataConfig, *, band_names: Sequence[str], seed: int) -> None:
        self.band_names = list(band_names)
        self.synthetic_share = data.synthetic_share
        self.pairs: list[Pair] = []
        self.held_pairs: list[Pair] = []
        known: list[Pair] = []
        for source in data.pairs:
            found = set_pairs(
                data.base / source.root,
                "train",
                name=source.set,
                bands=source.bands,
                exclude=_below(data.base, source.exclude or data.exclude),
                split_list=_below(data.base, source.split),
            )
            known += _all_of(data.base, source)
            kept, out = hold_out(found, share=data.hold_out, block=data.hold_out_block)
            self.pairs += kept
            self.held_pairs += out
        # A set that is named twice is learnt from twice as often. What one entry holds out is scored once, and no
        # other entry, which may leave out other pairs and so hold out others, learns from it.
        held = {pair.cloudy_path.resolve(): pair for pair in self.held_pairs}
        self.held_pairs = list(held.values())
        self.pairs = [pair for pair in self.pairs if pair.cloudy_path.resolve() not in held]
        learnt = {pair.clear_path.resolve() for pair in self.pairs}
        self._withheld = {pair.clear_path.resolve() for pair in (*known, *self.held_pairs)} - learnt
        self._bands = len(self.band_names)
        self._data = data
        self._room = data.cache_gb * 1e9
        self._fingerprint: str | None = None
        self.cloudy, self.clear = self._pools(self.pairs)
        self.held_cloudy, self.held_clear = self._pools(self.held_pairs)
        self.cloudless = self._pool(self._clear_images(data))
        used = max(pool.most_used for pool in (self.cloudy, self.clear, self.cloudless))
        if data.range is None and 0 < used < LEAST_USED:
            log.warning(
                "the images use %.2g of their data type's range, so all are dark and scores look good; give"
                " data.range: [LOW, HIGH]",
                used,
            )
        self.terrain = [
            make_terrain(np.random.default_rng([seed, number]), PROCEDURAL_PX, PROCEDURAL_PX, bands=self._bands)
            for number in range(data.procedural)
        ]

    def _clear_images(self, data: DataConfig) -> list[Path]:
        """Return the images of the clear folders, without the ground of pairs that nothing may be learnt from."""
        found = [path for folder in data.clear for path in find_images(data.base / folder)]
        kept = [path for path in found if path.resolve() not in self._withheld]
        if len(kept) < len(found):
            log.info(
                "%d clear images are of held-out, excluded or test pairs, and left out", len(found) - len(kept)
            )
        if found and not kept:
            raise DataError(
                f"all {len(found)} images of data.clear are those of held-out, excluded or test pairs; give others"
            )
        return kept

    def fingerprint(self) -> str:
        """Return the sha256 of all pairs and clear images, names and bytes, as they were when first asked for."""
        if self._fingerprint is None:  # of large sets it takes minutes
            clear = [Pair(path.name, path, path) for path in self.cloudless.paths]
            self._fingerprint = fingerprint([*self.pairs, *self.held_pairs, *clear])
        return self._fingerprint

    def _pools(self, pairs: Sequence[Pair]) -> tuple[ImagePool, ImagePool]:
        cloudy = self._pool([pair.cloudy_path for pair in pairs], [pair.cloudy_nir_path for pair in pairs])
        clear = self._pool([pair.clear_path for pair in pairs], [pair.clear_nir_path for pair in pairs])
        _check_twins(cloudy, clear)
        return cloudy, clear

    def _pool(self, paths: Sequence[Path], nir_paths: Sequence[Path | None] | None = None) -> ImagePool:
        pool = ImagePool(
            paths,
            self._bands,
            nir_paths=nir_paths,
            size_px=self._data.size,
            dn_range=self._data.range,
            keep_bytes=self._room,
            band_names=self.band_names,
        )
        self._room -= pool.bytes
        return pool

    def held_out(self, seed: int) -> Sequence[Sample]:
        """Return the validation samples: whole held-out pairs, or a few synthetic ones where no pairs are.

        With pairs of which none is held out, some that are learnt from: they tell a run that fails, no more.
        """
        if len(self.held_cloudy):
            return _WholePairs(self.held_cloudy, self.held_clear)
        if len(self.cloudy):
            return _WholePairs(self.cloudy, self.clear, step=math.ceil(len(self.cloudy) / _SHOWN_PAIRS))
        return [self._synthetic(np.random.default_rng([seed, 2**31, i]), i) for i in range(4)]

    def real(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return training pair `index`: (cloudy, clear), each (C, H, W) in [0, 1]."""
        return self.cloudy.unit(index), self.clear.unit(index)

    @cached_property
    def dimmed(self) -> list[int]:
        """The training pairs of a thin cloud that darkens what lies under it."""
        return [i for i in range(len(self.cloudy)) if Dimming.of_pair(*self.real(i)) is not None]

    def ground(self, generator: np.random.Generator) -> NDArray[np.float32]:
        """Return any clear image on disk, with or without a cloudy twin: (C, H, W) in [0, 1]."""
        number = int(generator.integers(len(self.clear) + len(self.cloudless)))
        paired = number < len(self.clear)
        return self.clear.unit(number) if paired else self.cloudless.unit(number - len(self.clear))

    def synthetic(
        self, generator: np.random.Generator, cut: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return a clear image, cut by `cut`, under simulated clouds: (cloudy, clear), (C, h, w) in [0, 1]."""
        number = int(generator.integers(len(self.cloudless) + len(self.terrain)))
        on_disk = number < len(self.cloudless)
        whole = self.cloudless.unit(number) if on_disk else self.terrain[number - len(self.cloudless)]
        clear = cut(whole)
        return simulate_clouds(clear, generator, band_names=self.band_names).cloudy, clear

    def _synthetic(self, generator: np.random.Generator, seed: int) -> Sample:
        cloudy, clear = self.synthetic(generator, lambda image: image)
        return Sample(cloudy=_signed(cloudy), clear=_signed(clear), seed=seed)


class StageSamples:
    """The endless samples of one stage, by number."""

    def __init__(self, data: TrainingData, stage: StageConfig, *, seed: int) -> None:
        self.data = data
        self.stage = stage
        self.seed = seed
        self._check_sizes()
        if stage.augment.dim > 0 and not data.dimmed:
            raise DataError(
                f"augment.dim wants pairs whose thin cloud darkens bright ground, and none of {len(data.pairs)} is"
                " such; leave it out"
            )

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`; equal numbers give equal samples."""
        augment = self.stage.augment
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        color = augment.color
        if augment.color_most is not None:
            color = float(generator.uniform(color, augment.color_most))
        is_synthetic = generator.random() < self.data.synthetic_share
        cloudless = _happens(augment.cloudless, generator)
        if is_synthetic:
            cloudy, clear = self.data.synthetic(generator, lambda image: self._cut([image], generator)[0])
            draft = _Draft(cloudy, clear, made_up=True)
        elif _happens(augment.dim, generator):
            draft = self._dimmed(generator)
        else:
            draft = self._of_pair(self._pair_of(number), generator, cloudless=cloudless)
        cloudy, clear = draft.cloudy, draft.clear
        made_up, relit = draft.made_up, draft.relit
        if cloudless:
            cloudy, made_up = clear, True
            if _happens(augment.calm, generator):
                cloudy = clear = make_calm(clear, generator)
                relit = False
            elif _happens(augment.relight, generator):
                cloudy = clear = relight(clear, generator, band_names=self.data.band_names)
                relit = True
        if draft.even_haze:  # other levels would be another law
            color, strength = 0.0, (1.0, 1.0)
        else:
            strength = augment.cloud_strength
        if cloudless and augment.cloudless_color is not None:
            color = augment.cloudless_color
        if made_up and _happens(augment.sensor, generator):
            cloudy, clear = vary_sensor(cloudy, clear, generator)
        else:
            cloudy = vary_cloud_strength(cloudy, clear, strength, generator)
            cloudy, clear = vary_color([cloudy, clear], color, generator)
        cloudy, clear = zoom([cloudy, clear], augment.zoom, generator)
        cloudy, clear = flip([cloudy, clear], augment.flips, generator)
        seed = int(generator.integers(2**62))
        ambiguous = relit if cloudless else draft.even_haze and not relit
        return Sample(cloudy=_signed(cloudy), clear=_signed(clear), seed=seed, ambiguous=ambiguous)

    def _of_pair(self, pair: int, generator: np.random.Generator, *, cloudless: bool) -> _Draft:
        """Return a real pair, its cloud perhaps over other ground, its ground perhaps in another light."""
        augment = self.stage.augment
        cloudy, clear = self._cut(list(self.data.real(pair)), generator)
        haze = EvenHaze.of_pair(cloudy, clear) if augment.even_haze else None
        ground, moved = self._ground_of(clear, generator)
        if haze is not None:
            relit = _happens(augment.haze_relight, generator)
            if relit:
                ground = relight(ground, generator, band_names=self.data.band_names)
            (clear,) = vary_color([ground], augment.haze_color, generator)
            cloudy = haze.over(clear, strength=generator.uniform(*augment.haze_strength))
            return _Draft(cloudy, clear, relit=relit, even_haze=True)
        relit = _happens(augment.relight, generator)
        if relit:
            ground = relight(
                ground,
                generator,
                band_names=self.data.band_names,
                lifts=0.0 if cloudless else augment.relight_lifts,
            )
        if not (moved or relit):
            return _Draft(cloudy, clear)
        return _Draft(move_cloud(cloudy, clear, ground), ground, made_up=True, relit=relit)

    def _dimmed(self, generator: np.random.Generator) -> _Draft:
        """Return dry ground under a thin cloud that darkens it, or, now and then, as it is."""
        pair = self.data.dimmed[int(generator.integers(len(self.data.dimmed)))]
        cloudy, clear = self._cut(list(self.data.real(pair)), generator)
        ground, moved = self._ground_of(clear, generator)
        cloud = Dimming.of_pair(cloudy, clear)
        if cloud is None:  # of the whole pair, but not of this patch
            return _Draft(cloudy, clear)
        ground = make_arid(ground, clear, generator)
        return _Draft(ground if _happens(UNDIMMED, generator) else cloud.over(ground), ground, made_up=moved)

    def _ground_of(
        self, clear: NDArray[np.float32], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], bool]:
        """Return the ground that a pair's cloud goes over, its own or another, and whether it is another."""
        if not _happens(self.stage.augment.transplant, generator):
            return clear, False
        return self._cut([self.data.ground(generator)], generator)[0], True

    def _cut(self, images: list[NDArray[np.float32]], generator: np.random.Generator) -> list[NDArray[np.float32]]:
        """Make images smaller by the stage's factor and cut a patch; the factor first, so a patch is full size."""
        factor, patch_px = self.stage.downscale, self.stage.patch_px
        if patch_px is None or factor == 1:
            images = crop_patch(images, patch_px, generator)
        else:
            images = crop_patch(images, patch_px * factor, generator)
        height, width = images[0].shape[-2:]
        # A bicubic kernel overshoots beside sharp edges.
        return [np.clip(resize_bicubic(image, height // factor, width // factor), 0, 1) for image in images]

    def _pair_of(self, number: int) -> int:
        """Return the pair of a sample: numbers go through all pairs in rounds, each in an order of its own."""
        round_, position = divmod(number, len(self.data.cloudy))
        order = np.random.default_rng([self.seed, round_]).permutation(len(self.data.cloudy))
        return int(order[position])

    def _check_sizes(self) -> None:
        """A batch needs images of one size: found now, not in the middle of a run."""
        wanted = self.stage.patch_px and self.stage.patch_px * self.stage.downscale
        first: tuple[int, int] | None = None
        for name, (height, width) in self._sizes():
            if wanted is not None and min(height, width) < wanted:
                raise DataError(
                    f"{name} is {height} x {width}, patches of {self.stage.patch_px} px made smaller by"
                    f" {self.stage.downscale} need {wanted}; set a smaller patch_px"
                )
            first = first or (height, width)
            if wanted is None and (height, width) != first:
                raise DataError(
                    f"{name} is {height} x {width}, others are {first[0]} x {first[1]}; whole images"
                    f" need one size: set patch_px"
                )
            turned = self.stage.batch > 1 and self.stage.augment.flips == "dihedral"
            if wanted is None and height != width and turned:
                raise DataError(
                    f"{name} is {height} x {width}, and turned it is {width} x {height}; a batch needs one size:"
                    f" set patch_px, or augment.flips: horizontal"
                )

    def _sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Return name and (height, width) of every image that samples are cut from."""
        synthetic = self.data.synthetic_share
        pools = [self.data.cloudy] if synthetic < 1 else []
        if synthetic > 0 or self.stage.augment.transplant > 0:
            pools.append(self.data.cloudless)
        if self.stage.patch_px:  # they are scored in parts of that size
            pools.append(self.data.held_cloudy)
        if synthetic > 0 and self.data.terrain:
            yield "a generated image (data.procedural)", (PROCEDURAL_PX, PROCEDURAL_PX)
        for pool in pools:
            yield from ((str(path), pool.shape(index)) for index, path in enumerate(pool.paths))


class BatchNumbers:
    """Which samples each batch of each process holds, from batch `start` on, without an end.

    Together the `world` processes take, in batch b, the samples from b * world * batch on: what one process
    with a batch that many times larger would take.
    """

    def __init__(self, batch: int, *, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.batch, self.start, self.rank, self.world = batch, start, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for number in itertools.count(self.start):
            first = (number * self.world + self.rank) * self.batch
            yield list(range(first, first + self.batch))


def _happens(share: float, generator: np.random.Generator) -> bool:
    """Draw from the generator only where there is something to draw, so that other samples stay the same."""
    return share > 0 and generator.random() < share


def _signed(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(Scaling(0, 1).to_model(unit))


class _WholePairs(Sequence[Sample]):
    """Every `step`-th pair as it is, made when it is asked for: as floats they take four times the memory."""

    def __init__(self, cloudy: ImagePool, clear: ImagePool, step: int = 1) -> None:
        self._cloudy, self._clear = cloudy, clear
        self._numbers = range(0, len(cloudy), step)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> list[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | list[Sample]:
        if isinstance(place, slice):
            return [self._sample(number) for number in self._numbers[place]]
        return self._sample(self._numbers[place])

    def _sample(self, number: int) -> Sample:
        cloudy, clear = self._cloudy.unit(number), self._clear.unit(number)
        return Sample(cloudy=_signed(cloudy), clear=_signed(clear), seed=number)


def _all_of(base: Path, source: PairSource) -> list[Pair]:
    """Return the pairs of a set that are for training or testing, excluded or not."""
    root, split_list = base / source.root, _below(base, source.split)
    parts: list[Pair] = []
    for split in SPLITS:
        with contextlib.suppress(DataError):  # a set may have no test part, or one that is not whole
            parts += set_pairs(root, split, name=source.set, bands=source.bands, split_list=split_list)
    return parts


def _below(base: Path, path: Path | None) -> Path | None:
    return None if path is None else base / path


def _kind_of(bands: int) -> str:
    return {1: " (grey)", 2: " (grey and alpha)", 4: " (an alpha or near infrared)"}.get(bands, "")


def _check_twins(cloudy: ImagePool, clear: ImagePool) -> None:
    for index, path in enumerate(cloudy.paths):
        if cloudy.shape(index) != clear.shape(index):
            raise DataError(
                f"{path} is {cloudy.shape(index)[0]} x {cloudy.shape(index)[1]}, its twin {clear.paths[index]} is"
                f" {clear.shape(index)[0]} x {clear.shape(index)[1]}; twins must have one size"
            )
        if cloudy.dtypes[index] != clear.dtypes[index]:
            raise DataError(
                f"{path} is {cloudy.dtypes[index]}, its twin {clear.paths[index]} {clear.dtypes[index]}; twins must"
                " have one data type"
            )
