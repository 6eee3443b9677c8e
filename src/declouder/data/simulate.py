"""Clear images to a paired set: OUT/SPLIT/{cloud,label,mask}/NAME, for training and tests.

Every image has a generator of its own, of the seed and the image's place in the sorted list, so that a set
can be made again to the bit.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from declouder.data.clouds import CloudKind, SimulatedClouds, simulate_clouds
from declouder.data.images import (
    check_band_order,
    check_no_alpha,
    is_tiff,
    least_used,
    read_image,
    scaling_of,
)
from declouder.data.lists import SPLITS
from declouder.data.pairs import images_by_name, number_first, number_in
from declouder.errors import DataError, OptionError, OutputError
from declouder.rgb import USUAL_BANDS
from declouder.scaling import Scaling, beside_nodata, stored_as
from declouder.whole_files import whole_file, whole_folder

log = logging.getLogger(__name__)


def simulate_set(
    clear: Path,
    out: Path,
    *,
    split: str = "train",
    per_image: int = 1,
    kind: CloudKind | None = None,
    cover: float | None = None,
    band_names: Sequence[str] | None = None,
    dn_range: tuple[float, float] | None = None,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> int:
    """Write a paired set of clear images under simulated clouds; return how many pairs.

    Args:
        clear: folder of clear images, subfolders too.
        out: the set's folder. An 8-bit image of 1 or 3 bands becomes PNG; any other becomes a GeoTIFF, which
            keeps the CRS and transform of a GeoTIFF.
        split: "train" or "test".
        per_image: how many cloudy images of each clear one; from two on their names begin with 1-, 2-, ..., so that
            the number that tells grounds apart stays the last; a name without one gets its place among all.
        kind, cover, band_names: as for `clouds.simulate_clouds`.
        dn_range: DN that are black and white; None takes the dtype's range.
        seed: equal seeds give equal sets.
        on_image: called with clear images done and in all.

    Raises:
        DataError: if there is no image, or one cannot be used.
        OptionError: if a band is named twice.
        OutputError: if `out/split` exists, cannot be written, or lies among the clear images; nothing is left then.
    """
    target = out / split
    if out.resolve().is_relative_to(clear.resolve()):
        raise OutputError(
            f"{out} {'is' if out.resolve() == clear.resolve() else 'lies in'} {clear}, where a later run would take"
            " cloudy images and masks for clear ground; give a folder outside of it with -o"
        )
    if target.exists():
        raise OutputError(f"{target} exists; give another folder with -o")
    if band_names is not None and len(set(band_names)) < len(band_names):
        raise OptionError(f"bands are {', '.join(band_names)}; name each once")
    images = images_by_name(clear)
    parts = [(out / part).resolve() for part in SPLITS]
    own = [path for path in images.values() if any(path.resolve().is_relative_to(part) for part in parts)]
    if own:
        raise OutputError(f"{own[0]} would be among the clear images; give another folder with -o")
    ordered = sorted(images, key=number_first)
    if per_image > 1:
        _check_names_of_repeats(ordered)
    written = 0
    most_used: dict[np.dtype[Any], float] = {}
    with _new_set(target) as unfinished:
        for place, name in enumerate(ordered):
            path = images[name]
            dn = _clear_image(path, band_names)
            scaling = scaling_of(dn, path, dn_range, mend="--data-range LOW,HIGH")
            unit = scaling.to_unit(dn.transpose(2, 0, 1))
            most_used[dn.dtype] = max(most_used.get(dn.dtype, 0.0), float(unit.max()))
            for repeat in range(per_image):
                generator = np.random.default_rng([seed, place, repeat])
                made = simulate_clouds(unit, generator, kind=kind, band_names=band_names, cover=cover)
                cloudy_dn = _cloudy_dn(dn, made, scaling)
                called = name if per_image == 1 else _name_of_repeat(name, repeat + 1, ground=place)
                for folder, image in (("cloud", cloudy_dn), ("label", dn)):
                    _write(unfinished / folder / called, image, path)
                mask = np.where(made.mask, 255, 0).astype(np.uint8)[:, :, None]
                _write(unfinished / "mask" / called, mask, path, as_png=True)
                written += 1
            if on_image is not None:
                on_image(place + 1, len(images))
    for dtype, used in most_used.items():
        if used < least_used(dn_range, dtype):
            log.warning(
                "the images of %s use %.2g of %s, so clouds are far brighter than they; give the range that counts:"
                " --data-range LOW,HIGH",
                *(dtype, used, "its range" if dn_range is None else "--data-range"),
            )
    return written


def _name_of_repeat(name: str, repeat: int, *, ground: int) -> str:
    """Return the name of one of several cloudy images, whose last number is the ground's: splits go by it."""
    path = Path(name)
    numbered = path.stem if number_in(path.stem) is not None else f"{path.stem}-{ground}"
    return str(path.with_name(f"{repeat}-{numbered}{path.suffix}"))


def _check_names_of_repeats(names: Sequence[str]) -> None:
    """Raise DataError if what a name without a number becomes is the name of another image too."""
    known: dict[str, str] = {}
    for place, name in enumerate(names):
        called = _name_of_repeat(name, 1, ground=place)
        if called in known:
            raise DataError(f"{known[called]} and {name} would both become {called}; rename one of them")
        known[called] = name


def _cloudy_dn(dn: NDArray[Any], made: SimulatedClouds, scaling: Scaling) -> NDArray[Any]:
    """Return the cloudy image, (H, W, C) in the numbers of the clear one, `dn`.

    Clouds know DN beyond the scale clipped. What was clipped passes them as all light of the ground does, so that
    ground without cloud or shadow stays as it is.
    """
    wide = dn.astype(np.float64)
    excess = wide - np.clip(wide, scaling.low, scaling.high)
    passes = made.transmission.transpose(1, 2, 0) * made.shadow.transpose(1, 2, 0)
    cloudy = scaling.unit_to_dn(made.cloudy, np.float64).transpose(1, 2, 0) + passes * excess
    return np.where(passes == 1, dn, stored_as(cloudy, dn.dtype))


@contextlib.contextmanager
def _new_set(target: Path) -> Iterator[Path]:
    """Yield a folder to fill that becomes `target` if the block ends well; else nothing is left of it."""
    is_new = not target.parent.exists()
    try:
        with whole_folder(target, mend="choose another -o") as unfinished:
            yield unfinished
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it holds the set
                target.parent.rmdir()


def _clear_image(path: Path, band_names: Sequence[str] | None) -> NDArray[Any]:
    """Return a clear image, (H, W, C); DataError if it is none that clouds can be put over."""
    dn = read_image(path)
    if not is_tiff(path) and dn.shape[2] not in (1, 3):
        raise DataError(
            f"{path} has {dn.shape[2]} bands, one of them an alpha or of ink; convert it to grey or RGB"
        )
    check_no_alpha(path, dn)
    check_band_order(path, band_names or USUAL_BANDS.get(dn.shape[2], ()))
    return dn


def _write(path: Path, dn: NDArray[Any], source: Path, *, as_png: bool = False) -> None:
    """Write (H, W, C) as PNG, or as a GeoTIFF that lies where its source lies."""
    # A name may hold dots; with_suffix would take the part after the last one for an ending.
    png = as_png or (dn.dtype == np.uint8 and dn.shape[2] in (1, 3) and not is_tiff(source))
    target = path.with_name(path.name + (".png" if png else ".tif"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if not png:
        _write_tiff(target, dn, source)
        return
    with whole_file(target, mend="free some room or choose another -o") as part:
        Image.fromarray(dn[:, :, 0] if dn.shape[2] == 1 else dn).save(part, format="PNG")


def _write_tiff(target: Path, dn: NDArray[Any], source: Path) -> None:
    from declouder.raster import create_raster, open_raster

    with open_raster(source) as reader, create_raster(target, like=reader.info) as writer:
        # Saturated cloud or dark shadow may be the number that means no data there.
        dn = beside_nodata(dn, reader.no_data)
        writer.write(dn.transpose(2, 0, 1), slice(0, dn.shape[0]), slice(0, dn.shape[1]))
