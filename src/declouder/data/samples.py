"""Training samples: the k-th sample of a run is a function of (recipe, seed, k) alone.

Nothing depends on loader processes, on their number or on where a run was interrupted; that is what lets a
resumed run end where an uninterrupted one does. Real pairs and synthetic clouds over clear images mix here; what
they are made of is training.py's matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from declouder.config import StageConfig
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
from declouder.data.resize import resize_bicubic
from declouder.data.training import PROCEDURAL_PX, Sample, TrainingData, signed
from declouder.data.transplant import Dimming, EvenHaze, move_cloud, move_hard_cloud
from declouder.errors import DataError

UNDIMMED = 0.3
"""Share of dry ground that is shown without the cloud that darkens it: it is to stay as it is."""


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


class StageSamples:
    """The endless samples of one stage, by number.

    Args:
        data: what they are made of.
        stage: how they are cut and varied.
        seed: of all that is drawn for them.

    Raises:
        DataError: if the data's sizes would not make a batch, or lack what the stage wants.
    """

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
        if draft.even_haze:  # other levels would be another law
            color = 0.0
        if cloudless:
            draft = self._without_cloud(draft, generator)
            color = color if augment.cloudless_color is None else augment.cloudless_color
        cloudy, clear = self._varied(draft, color, generator)
        cloudy, clear = zoom([cloudy, clear], augment.zoom, generator)
        cloudy, clear = flip([cloudy, clear], augment.flips, generator)
        seed = int(generator.integers(2**62))
        ambiguous = draft.relit if cloudless else draft.even_haze and not draft.relit
        return Sample(cloudy=signed(cloudy), clear=signed(clear), seed=seed, ambiguous=ambiguous)

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
            strength = generator.uniform(*augment.haze_strength)
            lay = haze.clean_over if _happens(augment.haze_clean, generator) else haze.over
            cloudy = lay(clear, strength=strength)
            return _Draft(cloudy, clear, relit=relit, even_haze=True)
        if _happens(augment.calm_below, generator):
            ground = make_calm(ground, generator)
            cloudy, _ = move_hard_cloud(cloudy, clear, ground, generator)
            return _Draft(cloudy, ground, made_up=True)
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

    def _without_cloud(self, draft: _Draft, generator: np.random.Generator) -> _Draft:
        """Return clear ground that is to stay as it is, perhaps calm or in another light."""
        augment, clear, relit = self.stage.augment, draft.clear, draft.relit
        if _happens(augment.calm, generator):
            clear, relit = make_calm(clear, generator), False
        elif _happens(augment.relight, generator):
            clear, relit = relight(clear, generator, band_names=self.data.band_names), True
        return replace(draft, cloudy=clear, clear=clear, made_up=True, relit=relit)

    def _varied(self, draft: _Draft, color: float, generator: np.random.Generator) -> Sequence[NDArray[np.float32]]:
        """Return the cloudy and the clear image as another sensor sees them, or of another strength and color."""
        augment = self.stage.augment
        if draft.made_up and _happens(augment.sensor, generator):
            return vary_sensor(draft.cloudy, draft.clear, generator)
        # An even haze has been given another strength already, by its law.
        strength = (1.0, 1.0) if draft.even_haze else augment.cloud_strength
        cloudy = vary_cloud_strength(draft.cloudy, draft.clear, strength, generator)
        return vary_color([cloudy, draft.clear], color, generator)

    def _ground_of(
        self, clear: NDArray[np.float32], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], bool]:
        """Return the ground that a pair's cloud goes over, its own or another, and whether it is another."""
        if not _happens(self.stage.augment.transplant, generator):
            return clear, False
        return self._cut([self.data.ground(generator)], generator)[0], True

    def _cut(self, images: list[NDArray[np.float32]], generator: np.random.Generator) -> list[NDArray[np.float32]]:
        """Cut a patch, so large that it has the stage's size once it is made smaller by the stage's factor."""
        factor, patch_px = self.stage.downscale, self.stage.patch_px
        images = crop_patch(images, patch_px and patch_px * factor, generator)
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
        for name, (height, width) in self.sizes():
            if wanted is not None and min(height, width) < wanted:
                raise DataError(
                    f"{name} is {width} x {height}, patches of {self.stage.patch_px} px made smaller by"
                    f" {self.stage.downscale} need {wanted}; set a smaller patch_px or downscale in its stage"
                )
            if wanted is None and min(height, width) < self.stage.downscale:
                raise DataError(
                    f"{name} is {width} x {height}, which cannot be made smaller by {self.stage.downscale}; set a"
                    " smaller downscale"
                )
            first = first or (height, width)
            if wanted is None and (height, width) != first:
                raise DataError(
                    f"{name} is {width} x {height}, others are {first[1]} x {first[0]}; whole images"
                    f" need one size: set patch_px"
                )
            turned = self.stage.batch > 1 and self.stage.augment.flips == "dihedral"
            if wanted is None and height != width and turned:
                raise DataError(
                    f"{name} is {width} x {height}, and turned it is {height} x {width}; a batch needs one size:"
                    f" set patch_px, or augment.flips: horizontal"
                )

    def sizes(self) -> Iterator[tuple[str, tuple[int, int]]]:
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
