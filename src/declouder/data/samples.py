"""Training samples: the k-th sample of a run is a function of (recipe, seed, k) alone.

Nothing depends on loader processes, on their number or on where a run was interrupted; that is what lets a
resumed run end where an uninterrupted one does. Real pairs and synthetic clouds over clear images mix here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from declouder.config import DataConfig, StageConfig
from declouder.data.augment import crop_patch, flip, vary_cloud_strength, vary_color
from declouder.data.clouds import simulate_clouds
from declouder.data.pairs import Pair, find_images, find_pairs, hold_out, read_image
from declouder.data.resize import resize_bicubic
from declouder.data.terrain import make_terrain
from declouder.errors import DataError
from declouder.scaling import Scaling

PROCEDURAL_PX = 96
"""Side of a generated terrain image."""


class Sample(TypedDict):
    """One training or validation sample."""

    cloudy: NDArray[np.float32]
    """(C, H, W) in [-1, 1]."""
    clear: NDArray[np.float32]
    """(C, H, W) in [-1, 1]."""
    seed: int
    """Seeds what the training step draws for this sample: its time step and its noise."""


class ImagePool:
    """Images in memory, in their own dtype, read once: (C, H, W) arrays.

    Loader processes that are forked share what was read before.
    """

    def __init__(self, paths: Sequence[Path], bands: int) -> None:
        self.paths = list(paths)
        self._images = [self._read(path, bands) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def unit(self, index: int) -> NDArray[np.float32]:
        """Return image `index` as float32 in [0, 1]."""
        image = self._images[index]
        return (Scaling.of_dtype(image.dtype).to_model(image) + np.float32(1)) / np.float32(2)

    def shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of image `index`."""
        height, width = self._images[index].shape[-2:]
        return height, width

    @staticmethod
    def _read(path: Path, bands: int) -> NDArray[Any]:
        image = read_image(path)
        if image.shape[2] != bands:
            raise DataError(
                f"{path} has {image.shape[2]} bands, the recipe's model.bands names {bands}; convert the image"
                f" or change model.bands"
            )
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
        train: list[Pair] = []
        held: list[Pair] = []
        for root in data.pairs:
            kept, out = hold_out(
                find_pairs(data.base / root, "train"), share=data.hold_out, block=data.hold_out_block
            )
            train += kept
            held += out
        bands = len(self.band_names)
        self.cloudy = ImagePool([pair.cloudy_path for pair in train], bands)
        self.clear = ImagePool([pair.clear_path for pair in train], bands)
        self.held_cloudy = ImagePool([pair.cloudy_path for pair in held], bands)
        self.held_clear = ImagePool([pair.clear_path for pair in held], bands)
        for cloudy, clear in ((self.cloudy, self.clear), (self.held_cloudy, self.held_clear)):
            _check_twin_sizes(cloudy, clear)
        self.cloudless = ImagePool([p for folder in data.clear for p in find_images(data.base / folder)], bands)
        self.terrain = [
            make_terrain(np.random.default_rng([seed, number]), PROCEDURAL_PX, PROCEDURAL_PX, bands=bands)
            for number in range(data.procedural)
        ]

    def held_out(self, seed: int) -> list[Sample]:
        """Return the validation samples: whole held-out pairs, or a few synthetic ones where no pairs are."""
        if len(self.held_cloudy):
            return [
                Sample(cloudy=_signed(self.held_cloudy.unit(i)), clear=_signed(self.held_clear.unit(i)), seed=i)
                for i in range(len(self.held_cloudy))
            ]
        return [self._synthetic(np.random.default_rng([seed, 2**31, i]), i) for i in range(4)]

    def real(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return training pair `index`: (cloudy, clear), each (C, H, W) in [0, 1]."""
        return self.cloudy.unit(index), self.clear.unit(index)

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

    def __getitem__(self, number: int) -> Sample:
        """Return sample `number`; equal numbers give equal samples."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        if generator.random() < self.data.synthetic_share:
            cloudy, clear = self.data.synthetic(generator, lambda image: self._cut([image], generator)[0])
        else:
            cloudy, clear = self._cut(list(self.data.real(self._pair_of(number))), generator)
        augment = self.stage.augment
        cloudy = vary_cloud_strength(cloudy, clear, augment.cloud_strength, generator)
        cloudy, clear = vary_color([cloudy, clear], augment.color, generator)
        cloudy, clear = flip([cloudy, clear], augment.flips, generator)
        return Sample(cloudy=_signed(cloudy), clear=_signed(clear), seed=int(generator.integers(2**62)))

    def _cut(self, images: list[NDArray[np.float32]], generator: np.random.Generator) -> list[NDArray[np.float32]]:
        """Make images smaller by the stage's factor and cut a patch; the factor first, so a patch is full size."""
        factor, patch_px = self.stage.downscale, self.stage.patch_px
        if patch_px is None or factor == 1:
            images = crop_patch(images, patch_px, generator)
        else:
            images = crop_patch(images, patch_px * factor, generator)
        height, width = images[0].shape[-2:]
        return [resize_bicubic(image, height // factor, width // factor) for image in images]

    def _pair_of(self, number: int) -> int:
        """Every pair comes once before one comes again, in an order that changes each round."""
        round_, position = divmod(number, len(self.data.cloudy))
        order = np.random.default_rng([self.seed, round_]).permutation(len(self.data.cloudy))
        return int(order[position])

    def _check_sizes(self) -> None:
        """A batch needs images of one size: found now, not in the middle of a run."""
        pools = [self.data.cloudy] if self.data.synthetic_share < 1 else []
        if self.data.synthetic_share > 0:
            pools.append(self.data.cloudless)
        wanted = self.stage.patch_px and self.stage.patch_px * self.stage.downscale
        first: tuple[int, int] | None = None
        for pool in pools:
            for index, path in enumerate(pool.paths):
                shape = pool.shape(index)
                if wanted is not None and min(shape) < wanted:
                    raise DataError(
                        f"{path} is {shape[0]} x {shape[1]}, patches of {self.stage.patch_px} px made smaller by"
                        f" {self.stage.downscale} need {wanted}; set a smaller patch_px"
                    )
                first = first or shape
                if wanted is None and shape != first:
                    raise DataError(
                        f"{path} is {shape[0]} x {shape[1]}, others are {first[0]} x {first[1]}; whole images"
                        f" need one size: set patch_px"
                    )


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


def _signed(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(Scaling(0, 1).to_model(unit))


def _check_twin_sizes(cloudy: ImagePool, clear: ImagePool) -> None:
    for index, path in enumerate(cloudy.paths):
        if cloudy.shape(index) != clear.shape(index):
            raise DataError(
                f"{path} is {cloudy.shape(index)[0]} x {cloudy.shape(index)[1]}, its twin {clear.paths[index]} is"
                f" {clear.shape(index)[0]} x {clear.shape(index)[1]}; twins must have one size"
            )
