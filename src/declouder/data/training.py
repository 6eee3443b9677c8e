"""What a training learns from: pairs of a recipe's sets, those held out, and clear ground for synthetic clouds."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from declouder.config import DataConfig, PairSource
from declouder.data.catalog import locate, set_pairs
from declouder.data.clouds import simulate_clouds
from declouder.data.images import least_used
from declouder.data.lists import SPLITS
from declouder.data.pairs import Pair, find_images, fingerprint
from declouder.data.pools import ImagePool, check_twins
from declouder.data.split import hold_out
from declouder.data.terrain import make_terrain
from declouder.data.transplant import Dimming
from declouder.data.withheld import Withheld
from declouder.errors import DataError
from declouder.scaling import Scaling

log = logging.getLogger(__name__)

PROCEDURAL_PX = 96
"""Side of a generated terrain image."""
_FAR_BEYOND = 2.0
"""From so many times `data.hold_out` on, what whole blocks hold out is told as more than was meant."""
_SHOWN_PAIRS = 8
"""So many of the pairs that are learnt from are shown where none is held out."""


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


class TrainingData:
    """What a recipe learns from: pairs for training, pairs held out, and clear images for synthetic clouds.

    Args:
        data: the recipe's `data`.
        band_names: the model's bands, in order.
        seed: of the generated terrain.

    Attributes:
        pairs, held_pairs: those that are learnt from, and those that are held out; a set that is named twice
            stands twice among the former.
        cloudy, clear: the images of `pairs`.
        held_cloudy, held_clear: those of `held_pairs`.
        cloudless: clear images without a cloudy twin.
        terrain: generated clear images, (C, H, W) in [0, 1].

    Raises:
        DataError: if a folder is missing or empty, twins are missing or of different sizes, or an image
            has another number of bands than the model.
    """

    def __init__(self, data: DataConfig, *, band_names: Sequence[str], seed: int) -> None:
        self.band_names = list(band_names)
        self.synthetic_share = data.synthetic_share
        self.pairs, self.held_pairs, withheld = _parted(data)
        self._bands = len(self.band_names)
        self._data = data
        self._room = data.cache_gb * 1e9
        self._fingerprint: str | None = None
        self.cloudy, self.clear = self._pools(self.pairs)
        self.held_cloudy, self.held_clear = self._pools(self.held_pairs)
        self.cloudless = self._pool(_clear_images(data, withheld))
        self._tell_dark_sets()
        if self.pairs:
            learnt = len(self.pairs) if self.synthetic_share < 1 else 0
            log.info("%d pairs to learn from, %d held out", learnt, len(self.held_pairs))
            if not learnt:
                log.warning("data.synthetic_share is 1, so no pair is learnt from; set it lower to learn from them")
            share = len(self.held_pairs) / (len(self.pairs) + len(self.held_pairs))
            if share > _FAR_BEYOND * data.hold_out:
                mend = "the sets are too small for a smaller share"
                if data.hold_out_block > 1:
                    mend = (
                        f"they go by whole blocks of {data.hold_out_block} numbers; a lower data.hold_out_block"
                        " comes nearer, where neighbours do not show one ground"
                    )
                held = 100 * share, data.hold_out, mend
                log.warning("%.0f %% of the pairs are held out, data.hold_out is %g: %s", *held)
        self.terrain = [
            make_terrain(np.random.default_rng([seed, number]), PROCEDURAL_PX, PROCEDURAL_PX, bands=self._bands)
            for number in range(data.procedural)
        ]

    def _tell_dark_sets(self) -> None:
        """Warn of each set whose images use little of their range."""
        used: dict[tuple[str, np.dtype[Any]], float] = {}
        clear = "data.clear" if self.pairs else ""
        for pool, places in (
            (self.cloudy, [str(pair.cloudy_path.parent) for pair in self.pairs]),
            (self.clear, [str(pair.cloudy_path.parent) for pair in self.pairs]),
            (self.cloudless, [clear] * len(self.cloudless)),
        ):
            for place, dtype, share in zip(places, pool.dtypes, pool.used, strict=True):
                used[place, dtype] = max(used.get((place, dtype), 0.0), share)
        for (place, dtype), share in used.items():
            if 0 < share < least_used(self._data.range, dtype):
                log.warning(
                    "the images%s use %.2g of %s, so all are dark and scores look good; give data.range:"
                    " [LOW, HIGH]%s",
                    f" of {place}" if len(used) > 1 else "",
                    share,
                    "their data type's range" if self._data.range is None else "data.range",
                    ", which is one for all sets" if len(used) > 1 else "",
                )

    def fingerprint(self) -> str:
        """Return the sha256 of all pairs and clear images, names and bytes, as they were when first asked for."""
        if self._fingerprint is None:  # of large sets it takes minutes
            clear = [Pair(path.name, path, path) for path in self.cloudless.paths]
            self._fingerprint = fingerprint([*self.pairs, *self.held_pairs, *clear])
        return self._fingerprint

    def _pools(self, pairs: Sequence[Pair]) -> tuple[ImagePool, ImagePool]:
        cloudy = self._pool([pair.cloudy_path for pair in pairs], [pair.cloudy_nir_path for pair in pairs])
        clear = self._pool([pair.clear_path for pair in pairs], [pair.clear_nir_path for pair in pairs])
        check_twins(cloudy, clear)
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

    def held_out_sizes(self) -> list[tuple[str, tuple[int, int]]]:
        """Return name and (height, width) of the images on disk that `held_out` is made of."""
        pool = next((pool for pool in (self.held_cloudy, self.cloudy, self.cloudless) if len(pool)), None)
        return [] if pool is None else [(str(path), pool.shape(i)) for i, path in enumerate(pool.paths)]

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
        return Sample(cloudy=signed(cloudy), clear=signed(clear), seed=seed)


def _parted(data: DataConfig) -> tuple[list[Pair], list[Pair], Withheld]:
    """Return the pairs to learn from, those held out, and the clear images that nothing may be learnt from."""
    learnt: list[Pair] = []
    known: set[Path] = set()
    # What one entry holds out is scored once, and no other entry, which may leave out other pairs and so hold out
    # others, learns from it.
    held: dict[Path, Pair] = {}
    for source in data.pairs:
        found = set_pairs(
            data.base / source.root,
            "train",
            name=source.set,
            bands=source.bands,
            exclude=_below(data.base, source.exclude or data.exclude),
            split_list=_below(data.base, source.split),
        )
        known |= _grounds_of(data.base, source)
        kept, out = hold_out(found, share=data.hold_out, block=data.hold_out_block)
        learnt += kept
        held |= {pair.cloudy_path.resolve(): pair for pair in out}
    # Sets may share their clear images: what is ground of a held-out pair in one is not learnt in another.
    grounds = Withheld(pair.clear_path for pair in held.values())
    # A set that is named twice is learnt from twice as often.
    learnt = [
        pair for pair in learnt if pair.cloudy_path.resolve() not in held and not grounds.holds(pair.clear_path)
    ]
    return learnt, list(held.values()), Withheld(known - {pair.clear_path.resolve() for pair in learnt})


def _grounds_of(base: Path, source: PairSource) -> set[Path]:
    """Return the clear images of all parts of a set: excluded or not, with a cloudy twin or without."""
    found = locate(base / source.root, source.set, bands=source.bands)
    grounds: set[Path] = set()
    for split in SPLITS if found.is_split else ("",):
        with contextlib.suppress(DataError):  # a set may have no test part
            grounds |= {path.resolve() for path in find_images(found.folder(split, "label"))}
    return grounds


def _clear_images(data: DataConfig, withheld: Withheld) -> list[Path]:
    """Return the images of the clear folders, without the ground of pairs that nothing may be learnt from."""
    found: list[Path] = []
    kept: list[Path] = []
    for folder in data.clear:
        images = find_images(data.base / folder)
        own = [path for path in images if not withheld.holds(path)]
        if own and "test" in (data.base / folder).resolve().parts[-2:]:
            log.warning(
                "data.clear: %s seems to be the test part of a set; scores there will not be of unseen ground",
                folder,
            )
        found += images
        kept += own
    if left_out := len(found) - len(kept):
        verb = "image is" if left_out == 1 else "images are"
        log.info("%d clear %s of held-out, excluded or test pairs, and left out", left_out, verb)
    if found and not kept:
        raise DataError(
            f"all {len(found)} images of data.clear are those of held-out, excluded or test pairs; give others"
        )
    return kept


def _below(base: Path, path: Path | None) -> Path | None:
    return None if path is None else base / path


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
        return Sample(cloudy=signed(cloudy), clear=signed(clear), seed=number)


def signed(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring an image, (C, H, W) in [0, 1], into the model's range, [-1, 1]."""
    return np.ascontiguousarray(Scaling(0, 1).to_model(unit))
