"""Clouds removed from a whole scene: windows -> pipeline -> mosaic -> raster.

    report = remove_from_scene(Path("cloudy.tif"), Path("clear.tif"), pipeline, SceneOptions(steps=10))

The scene is read, restored and written window by window, so memory does not grow with its area. One scale
serves the whole scene. Samples without data (nodata, NaN, masked, transparent) stay as they are; before the
model sees a window they are filled from their neighbours. The diffusion's noise belongs to places in the
scene, not to
windows: overlapping windows start from the same noise and agree where they overlap.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from declouder.errors import ModelError, OptionError, RasterError
from declouder.mosaic import Mosaic, Piece, Window
from declouder.raster import RasterInfo, RasterReader, RasterWriter, create_raster, open_raster
from declouder.scaling import Scaling

log = logging.getLogger(__name__)

NOISE_TILE_PX = 64
_NOISE_STREAM = 0x6465636C6F756472  # keeps our numbers apart from other uses of the same seed


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is processed.

    Attributes:
        steps: steps of the diffusion; 0 writes the reference network's image, None takes the model's own
            number.
        seed: of the noise, 0 <= seed < 2^64.
        bands: 1-based numbers of the raster's bands that the model sees, in the model's order; None finds
            them.
        scale: the DN that are 0 and 1 to the model; None finds them.
        window_px: size of a window. 512 and its default overlap compute 30 % of the pixels twice; 256 with
            the same overlap would be 78 %.
        overlap_px: of neighbouring windows; None is an eighth of the window.
        batch: windows that go through the model at once.
        overwrite: replace an output that exists.
    """

    steps: int | None = None
    seed: int = 0
    bands: tuple[int, ...] | None = None
    scale: Scaling | None = None
    window_px: int = 512
    overlap_px: int | None = None
    batch: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 0:
            raise OptionError(f"steps is {self.steps}; give 0 (the reference image) or more")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed is {self.seed}; give a number from 0 to 2^64 - 1")
        if self.window_px < 1:
            raise OptionError(f"window is {self.window_px} px; give at least 1, such as 512")
        if not 0 <= self.overlap <= self.window_px // 2:
            raise OptionError(
                f"overlap is {self.overlap} px; give 0 to {self.window_px // 2}, "
                f"half of the window of {self.window_px} px"
            )
        if self.batch < 1:
            raise OptionError(f"batch is {self.batch}; give 1 window or more")
        if self.bands is not None and min(self.bands, default=0) < 1:
            raise OptionError(f"bands is {_listed(self.bands)}; bands are counted from 1, such as 3,2,1")
        if self.bands is not None and len(set(self.bands)) < len(self.bands):
            raise OptionError(f"bands is {_listed(self.bands)}; give each band once")

    @property
    def overlap(self) -> int:
        """The overlap in pixels, with its default filled in."""
        return self.window_px // 8 if self.overlap_px is None else self.overlap_px


@dataclass(frozen=True)
class BandChoice:
    """Which bands the model sees.

    Attributes:
        numbers: 1-based, in the model's order.
        names: the model's names for them.
        how: the reason, for the log.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class SceneReport:
    """What was done to a scene; `skipped` windows held no data and went past the model."""

    source: Path
    output: Path
    height: int
    width: int
    bands: BandChoice
    scale: Scaling
    windows: int
    skipped: int
    seconds: float

    @property
    def megapixels(self) -> float:
        """Size of the scene in millions of pixels."""
        return self.height * self.width / 1e6


def remove_from_scene(
    source: Path,
    output: Path,
    pipeline: Any,
    options: SceneOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> SceneReport:
    """Write `source` without its clouds to `output`; only valid pixels of the model's bands change.

    Args:
        source: a raster that `open_raster` reads.
        output: where the result goes; the file appears when it is complete.
        pipeline: a CloudRemovalPipeline, on the device where it shall run.
        options: see SceneOptions.
        progress: called with the numbers of finished windows and of all windows.

    Raises:
        DeclouderError: if something cannot be read, written or fitted together; then no output is left.
    """
    options = options or SceneOptions()
    started = time.perf_counter()
    with (
        open_raster(source) as reader,
        create_raster(output, reader.info, overwrite=options.overwrite) as writer,
    ):
        info = reader.info
        bands = choose_bands(info, tuple(pipeline.config.bands), options.bands)
        log.info("bands: %s = %s (%s)", _listed(bands.numbers), ", ".join(bands.names), bands.how)
        scale = options.scale or auto_scale(reader, bands.numbers)
        log.info("scale: %.6g,%.6g %s", scale.low, scale.high, "as given" if options.scale else "found")
        mosaic = Mosaic(
            info.height,
            info.width,
            len(bands.numbers),
            window_px=options.window_px,
            overlap_px=options.overlap,
        )
        skipped = 0
        for done, restored in enumerate(
            _restored(reader, mosaic.windows, pipeline, bands, scale, options), start=1
        ):
            skipped += restored is None
            _write_piece(writer, reader, mosaic.add(restored), bands, scale)
            if progress is not None:
                progress(done, len(mosaic.windows))
    return SceneReport(
        source=source,
        output=output,
        height=info.height,
        width=info.width,
        bands=bands,
        scale=scale,
        windows=len(mosaic.windows),
        skipped=skipped,
        seconds=time.perf_counter() - started,
    )


def choose_bands(info: RasterInfo, names: Sequence[str], numbers: Sequence[int] | None = None) -> BandChoice:
    """Find the model's bands `names` in a raster: by number, else by description or colour, else in order.

    Raises:
        RasterError: if the raster has not got them.
    """
    wanted = f"this model wants {len(names)} ({', '.join(names)})"
    if numbers is not None:
        if len(numbers) != len(names):
            raise OptionError(
                f"--bands {_listed(numbers)} names {len(numbers)} bands, {wanted}; give {len(names)} numbers"
            )
        if max(numbers) > info.count or min(numbers) < 1:
            raise RasterError(
                f"{info.path} has {_count(info.count)}, --bands {_listed(numbers)} asks for others; "
                f"give numbers from 1 to {info.count}"
            )
        return BandChoice(tuple(numbers), tuple(names), "as given")

    by_description = _found(names, [_spoken(text or "") for text in info.descriptions])
    by_color = _found(names, list(info.colors))
    found = by_color | by_description  # a description says more than a colour
    if len(set(found.values())) < len(found):
        found = by_description
    free = [k for k in range(1, info.count + 1) if info.colors[k - 1] != "alpha" and k not in found.values()]
    missing = [name for name in names if name not in found]
    if len(missing) > len(free):
        raise RasterError(
            f"{info.path} has {_count(info.count)}{_besides_alpha(info)}, {wanted}; "
            "give an image that has them, or a model for these bands"
        )
    in_order = dict(zip(missing, free, strict=False))
    hows = [
        ("by description", [name for name in names if name in by_description and name in found]),
        (
            "by colour interpretation",
            [name for name in names if name in found and name not in by_description],
        ),
        ("the first in order", missing),
    ]
    told = [(how, which) for how, which in hows if which]
    how = told[0][0] if len(told) == 1 else "; ".join(f"{', '.join(which)} {how}" for how, which in told)
    return BandChoice(tuple((found | in_order)[name] for name in names), tuple(names), how)


def auto_scale(reader: RasterReader, bands: Sequence[int]) -> Scaling:
    """Find the DN that are 0 and 1 to the model, once for the scene and jointly for its bands.

    uint8 is 0..255. Others are stretched between the 0.5 % and 99.5 % percentiles of the valid samples of all
    `bands` together (one scale for all keeps the colours), read at reduced size; floats that lie in [0, 1],
    as reflectance does, are 0..1.
    """
    if reader.info.dtype == "uint8":
        return Scaling.of_dtype("uint8")
    dn, valid = reader.read_reduced(bands)
    if reader.info.nodata is None and dn.dtype.kind == "u":
        # Landsat and others leave 0 around the ground without saying that it is nodata.
        valid = valid & (dn != 0).any(axis=0)
    values = dn[valid].astype(np.float64)
    if values.size == 0:
        return Scaling.of_dtype(reader.info.dtype)
    low, high = (float(v) for v in np.percentile(values, [0.5, 99.5]))
    # Percentiles again, as one hot pixel of 1.2 is still reflectance. A darker scene than 0.1 is in another
    # unit.
    if dn.dtype.kind == "f" and low >= -0.05 and 0.1 <= high <= 1.05:
        return Scaling(0.0, 1.0)
    if not low < high:
        # A flat scene: any width will do that keeps the value inside.
        width = max(abs(low), 1.0)
        return Scaling(low - width / 2, low + width / 2)
    return Scaling(low, high)


def scene_noise(seed: int, window: Window, bands: int) -> NDArray[np.float32]:
    """Return standard normal noise for a window, (bands, height, width), cut out of one endless field.

    The field is made of tiles of 64 px, each drawn by the counter-based generator Philox from (seed, tile
    row, tile column). So the noise at a place depends neither on how the scene is cut into windows nor on the
    batch.
    """
    size = NOISE_TILE_PX
    first_row, first_col = window.row // size, window.col // size
    rows = range(first_row, (window.row + window.height - 1) // size + 1)
    cols = range(first_col, (window.col + window.width - 1) // size + 1)
    field = np.empty((bands, len(rows) * size, len(cols) * size), np.float32)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            bits = np.random.Philox(key=[seed, _NOISE_STREAM], counter=[0, 0, row, col])
            tile = np.random.Generator(bits).standard_normal((bands, size, size), dtype=np.float32)
            field[:, i * size : (i + 1) * size, j * size : (j + 1) * size] = tile
    top, left = window.row - first_row * size, window.col - first_col * size
    return field[:, top : top + window.height, left : left + window.width]


def fill_invalid(x: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill samples without data smoothly from the valid ones around them, band by band.

    A pyramid: halve the image, averaging valid samples only, until none is missing; then take what is missing
    from the next coarser level, a little smoothed.

    Args:
        x: (C, H, W) float32.
        valid: (C, H, W); a band without any valid sample takes the mean of the other bands' valid ones.

    Returns:
        (C, H, W); valid samples unchanged.
    """
    if valid.all():
        return x
    x = np.where(valid, x, 0)
    empty = ~valid.any(axis=(1, 2))
    if empty.any():
        x[empty] = x[valid].mean() if valid.any() else 0
        valid = valid | empty.reshape(-1, 1, 1)
    return _filled(x, valid.astype(np.float32))


def _filled(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fill x (C, H, W) where weight (C, H, W) is 0; x is 0 there, and each band has some weight."""
    if weight.all():
        return x
    height, width = x.shape[1:]
    count = _quarter_sum(weight)
    mean = (_quarter_sum(x * weight) / np.maximum(count, 1)).astype(np.float32)
    coarse = _filled(mean, np.minimum(count, np.float32(1)))
    fine = _box_blurred(coarse.repeat(2, axis=1).repeat(2, axis=2))[:, :height, :width]
    return np.where(weight > 0, x, fine)


def _quarter_sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum 2 x 2 neighbours: (C, H, W) -> (C, ceil(H/2), ceil(W/2))."""
    bands, height, width = x.shape
    x = np.pad(x, ((0, 0), (0, height % 2), (0, width % 2)))
    quarters: NDArray[np.float32] = x.reshape(bands, -(-height // 2), 2, -(-width // 2), 2).sum(axis=(2, 4))
    return quarters


def _box_blurred(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean over 3 x 3 neighbours, (C, H, W)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    third = np.float32(1 / 3)
    x = (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) * third
    return (x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]) * third


def _restored(
    reader: RasterReader,
    windows: Sequence[Window],
    pipeline: Any,
    bands: BandChoice,
    scale: Scaling,
    options: SceneOptions,
) -> Iterator[NDArray[np.float32] | None]:
    """Yield each window's restored image in order, (C, h, w) in [-1, 1]; None where it holds no data."""
    for first in range(0, len(windows), options.batch):
        group = windows[first : first + options.batch]
        inputs = [_model_input(reader, window, bands, scale) for window in group]
        todo = [(window, x) for window, x in zip(group, inputs, strict=True) if x is not None]
        images = iter(_run(pipeline, todo, options) if todo else ())
        for x in inputs:
            yield None if x is None else next(images)


def _model_input(
    reader: RasterReader, window: Window, bands: BandChoice, scale: Scaling
) -> NDArray[np.float32] | None:
    """Return a window as the model sees it, (C, h, w) in [-1, 1], or None if it holds no data."""
    valid = reader.read_valid(window.rows, window.cols, bands.numbers)
    if not valid.any():
        return None
    dn = reader.read(window.rows, window.cols, bands.numbers)
    return fill_invalid(scale.to_model(np.where(valid, dn, 0)), valid)


def _run(
    pipeline: Any, todo: Sequence[tuple[Window, NDArray[np.float32]]], options: SceneOptions
) -> NDArray[np.float32]:
    """Send windows through the pipeline: (C, h, w) each in [-1, 1] -> (B, C, h, w) in [-1, 1]."""
    import torch

    cloudy = torch.from_numpy(np.stack([x for _, x in todo]))
    noise = np.stack([scene_noise(options.seed, window, cloudy.shape[1]) for window, _ in todo])
    first = todo[0][0]
    # For samplers that draw noise on the way; bound to the place, so that it does not depend on earlier
    # windows.
    place = np.random.SeedSequence([options.seed, first.row, first.col]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(place[0]) >> 1)
    try:
        with torch.inference_mode():
            images = pipeline(
                ((cloudy + 1) / 2).to(pipeline.device),
                num_inference_steps=options.steps,
                generator=generator,
                latents=torch.from_numpy(noise).to(pipeline.device),
                output_type="pt",
            ).images
            restored = (images * 2 - 1).float().cpu()
    except torch.OutOfMemoryError as error:
        raise OptionError(
            f"the device's memory does not hold {len(todo)} windows of {first.width} x {first.height} px; "
            "give a smaller --batch or --window"
        ) from error
    for (window, _), image in zip(todo, restored, strict=True):
        if not torch.isfinite(image).all():
            raise ModelError(
                f"the model gave NaN or infinity for the window at row {window.row}, column {window.col}; "
                "its weights are damaged, or do not fit the device's precision"
            )
    values: NDArray[np.float32] = restored.numpy()
    return values


def _write_piece(
    writer: RasterWriter, reader: RasterReader, piece: Piece, bands: BandChoice, scale: Scaling
) -> None:
    """Write a finished piece: the source's pixels, the valid samples of the model's bands replaced."""
    rows, cols = piece.window.rows, piece.window.cols
    chosen = [number - 1 for number in bands.numbers]
    dn = reader.read(rows, cols)
    valid = reader.read_valid(rows, cols, bands.numbers)
    if valid.any():
        restored = restored_dn(dn[chosen], piece.image, scale, reader.info.nodata)
        dn[chosen] = np.where(valid, restored, dn[chosen])
    writer.write(dn, rows, cols)
    if reader.info.has_mask:
        writer.write_mask(reader.read_mask(rows, cols), rows, cols)


def restored_dn(
    dn: NDArray[Any], restored: NDArray[np.float32], scale: Scaling, nodata: float | None
) -> NDArray[Any]:
    """Bring restored samples back to DN.

    The model sees DN beyond the scale clipped. Where it leaves such a sample at that end of the scale, what
    was clipped is put back; where it moves it away, the excess was the cloud's and is dropped, with a smooth
    passage over a tenth of the scale.

    Args:
        dn: what was there, (C, H, W).
        restored: the model's result, (C, H, W) in [-1, 1].
        scale: of the scene.
        nodata: a value that no result may have, or None.

    Returns:
        (C, H, W) in the dtype of `dn`.
    """
    kind = dn.dtype
    wide = dn.astype(np.float64)
    with np.errstate(invalid="ignore"):
        excess = wide - np.clip(wide, scale.low, scale.high)
    excess[~np.isfinite(excess)] = 0  # no data there
    kept = np.clip((restored * np.sign(excess) - 0.8) / 0.2, 0, 1)
    values = scale.to_dn(restored, np.float64) + kept * excess
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        result: NDArray[Any] = np.clip(np.rint(values), limits.min, limits.max).astype(kind)
        if nodata is not None and limits.min <= nodata <= limits.max:
            result[result == nodata] = nodata - 1 if nodata == limits.max else nodata + 1
        return result
    result = values.astype(kind)
    if nodata is not None:
        result[result == nodata] = np.nextafter(kind.type(nodata), kind.type(np.inf))
    return result


def _found(names: Sequence[str], said: Sequence[str]) -> dict[str, int]:
    """Return, for each of `names` that exactly one band says, that band's 1-based number."""
    wanted = {name: _spoken(name) or name for name in names}
    return {name: said.index(word) + 1 for name, word in wanted.items() if said.count(word) == 1}


# Band numbers with a leading zero are Sentinel-2's and HLS's, which agree on these. "B4" says nothing: it is
# red to Landsat 8 and near infrared to Landsat 5; neither does "B05": red edge or near infrared.
_SYNONYMS = {
    "red": ("red", "r", "b04"),
    "green": ("green", "g", "b03"),
    "blue": ("blue", "b", "b02"),
    "nir": ("nir", "nearinfrared", "nearir", "nir08", "b08"),
}
_COLOR_OF = {word: color for color, words in _SYNONYMS.items() for word in words}
# "red edge", "coastal blue", "short wave infrared": neighbours of our bands, not they.
_OTHER_BANDS = {"edge", "rededge", "coastal", "deep", "short", "shortwave", "mid", "thermal", "swir", "i"}


def _spoken(text: str) -> str:
    """Return the band a description speaks of: a colour of `_SYNONYMS`, else its letters in lower case."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    whole = "".join(words)
    if whole in _COLOR_OF or _OTHER_BANDS.intersection(words):
        return _COLOR_OF.get(whole, whole)
    if "infrared" in whole:
        return "nir" if "near" in whole else whole
    # "Band 4 - Red", "red (B4)": one colour among other words, the single letters left out.
    colors = {_COLOR_OF[word] for word in words if word in _COLOR_OF and len(word) > 1}
    return colors.pop() if len(colors) == 1 else whole


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(str(number) for number in numbers)


def _count(bands: int) -> str:
    return f"{bands} band" if bands == 1 else f"{bands} bands"


def _besides_alpha(info: RasterInfo) -> str:
    return " (one of them alpha)" if info.alpha else ""
