"""A cloudy scene made clear: demo/{cloudy,truth,clear}.tif, demo/before_after.png and a line with the scores.

The scene is made here, so its clear truth is known: fields, forest, hills, a river, roads and farms from a
seeded generator, with nodata in one corner, then thin cloud over all of it (`declouder.data.clouds`). The
clouds are removed by the installed command, as anyone would run it:

    declouder remove demo/cloudy.tif -o demo/clear.tif --scale 0,10000 --overwrite
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from declouder.data.clouds import fractal_noise, simulate_clouds
from declouder.metrics import psnr, ssim

SIZE = 512
DN_PER_UNIT = 10_000
"""Reflectance 1 in digital numbers, as most 16-bit products have it."""
NODATA = 0
COLLAR_PX = 24


def main() -> None:
    """Make the scene, remove its clouds, show and score the result."""
    parser = argparse.ArgumentParser(description="A cloudy scene made clear.")
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the results go")
    parser.add_argument("--seed", type=int, default=120, help="of the scene")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)

    generator = np.random.default_rng(arguments.seed)
    ground = make_ground(generator)
    clouds = simulate_clouds(ground, np.random.default_rng([arguments.seed, 1]), kind="haze")
    valid = _collar()
    for name, image in (("truth", ground), ("cloudy", clouds.cloudy)):
        write_scene(folder / f"{name}.tif", image, valid)

    command = Path(sys.executable).with_name("declouder")
    options = ["--scale", f"0,{DN_PER_UNIT}", "--overwrite"]
    subprocess.run([command, "remove", folder / "cloudy.tif", "-o", folder / "clear.tif", *options], check=True)

    truth, cloudy, clear = (read_scene(folder / f"{name}.tif") for name in ("truth", "cloudy", "clear"))
    write_picture(folder / "before_after.png", [cloudy, clear, truth])
    before, after = (scores(image, truth) for image in (cloudy, clear))
    print(
        f"PSNR {before[0]:.2f} -> {after[0]:.2f} dB, SSIM {before[1]:.3f} -> {after[1]:.3f}"
        f" (cloudy -> declouded); look at {folder / 'before_after.png'}"
    )


def make_ground(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a clear scene as (3, SIZE, SIZE) float32 in [0, 1]: red, green, blue."""
    shape = (SIZE, SIZE)
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    relief = fractal_noise(shape, generator, beta=3.6, largest_px=0.8 * SIZE)
    fine = fractal_noise(shape, generator, beta=1.4, largest_px=40)

    image, borders = _fields(generator, rows, columns)
    wooded = _soft_step(relief + 0.25 * fine - 0.75, 0.08)
    image = _over(image, _forest(generator), wooded)

    river_row = _winding(generator, columns[0], amplitude=0.12 * SIZE) + 0.62 * SIZE
    distance = np.abs(rows - river_row[None, :])
    bank = _soft_step(17 + 3 * fine - distance, 2.0)
    water = _soft_step(10 + 2 * np.sin(columns / 60) - distance, 1.0)
    image = _over(image, np.array([0.47, 0.45, 0.36]), 0.7 * bank)  # gravel
    image = _over(image, np.array([0.17, 0.23, 0.25]) + 0.008 * fine[..., None], water)

    track = np.exp(-0.5 * (borders / 0.9) ** 2) * (1 - wooded) * (1 - bank)
    image = _over(image, np.array([0.55, 0.50, 0.42]), 0.55 * track)
    for start, slope in ((0.22, 0.28), (0.86, -1.9)):
        line = start * SIZE + slope * columns + _winding(generator, columns[0], amplitude=7)[None, :]
        road = _soft_step(1.9 - np.abs(rows - line) / np.hypot(1, slope), 0.6)
        image = _over(image, np.array([0.62, 0.61, 0.59]), road)
    image = _farms(generator, image, avoid=(water + bank + wooded) > 0.1)

    # Light from the north west: slopes that face it are brighter, mostly where the hills are.
    smooth = gaussian_filter(relief, 2.0)
    light = np.gradient(smooth, axis=0) + np.gradient(smooth, axis=1)
    image = image * (1 + np.clip(2.2 * light, -0.25, 0.25) * (1 - water))[..., None]
    image = image * (1 + 0.035 * fine * (1 - water))[..., None]
    image = gaussian_filter(image, (0.5, 0.5, 0))  # the sensor's blur
    image += generator.normal(0, 0.004, image.shape)
    return np.ascontiguousarray(np.clip(image, 0.02, 1).transpose(2, 0, 1), dtype=np.float32)


def write_scene(path: Path, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
    """Write (C, H, W) reflectance as a 16-bit GeoTIFF in UTM with 2 m pixels; nodata where not `valid`."""
    dn = np.where(valid, np.clip(np.rint(image * DN_PER_UNIT), 1, None), NODATA).astype(np.uint16)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=SIZE,
        height=SIZE,
        count=3,
        dtype="uint16",
        crs=CRS.from_epsg(32632),
        transform=from_origin(512_000, 5_406_000, 2, 2),
        nodata=NODATA,
        compress="deflate",
        predictor=2,
        photometric="rgb",
    ) as file:
        file.write(dn)
        file.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        for band, name in enumerate(("red", "green", "blue"), start=1):
            file.set_band_description(band, name)


def read_scene(path: Path) -> NDArray[Any]:
    """Return (H, W, C) in DN."""
    with rasterio.open(path) as file:
        return np.ascontiguousarray(file.read().transpose(1, 2, 0))


def scores(image: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """Return PSNR (dB) and SSIM of (H, W, C) scenes in DN, beside the columns that hold nodata."""
    inner = (image[:, COLLAR_PX:], truth[:, COLLAR_PX:])
    return psnr(*inner, data_range=DN_PER_UNIT), ssim(*inner, data_range=DN_PER_UNIT)


def write_picture(path: Path, images: list[NDArray[Any]]) -> None:
    """Write (H, W, 3) scenes in DN side by side: cloudy, declouded, truth."""
    gap = np.full((SIZE, 8, 3), 255, np.uint8)
    pixels = [(np.clip(image / DN_PER_UNIT, 0, 1) * 255).round().astype(np.uint8) for image in images]
    Image.fromarray(np.hstack([pixels[0], gap, pixels[1], gap, pixels[2]])).save(path)


def _fields(
    generator: np.random.Generator, rows: NDArray[np.float32], columns: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return farmland (H, W, 3) and each pixel's distance to the nearest field border in pixels, (H, W)."""
    # Fields are the cells of a warped, turned grid whose rows are cut into strips of their own widths.
    warp = [fractal_noise((SIZE, SIZE), generator, beta=4.2, largest_px=0.7 * SIZE) for _ in range(2)]
    angle = generator.uniform(0.2, 0.6)
    u = rows * np.cos(angle) + columns * np.sin(angle) + 7 * warp[0]
    v = columns * np.cos(angle) - rows * np.sin(angle) + 7 * warp[1]
    belts = np.cumsum(generator.uniform(45, 95, 40)) - 700
    belt = np.searchsorted(belts, u)
    field = np.zeros((SIZE, SIZE), int)
    for index in np.unique(belt):
        cuts = np.cumsum(generator.uniform(25, 110, 60)) - 1200
        inside = belt == index
        field[inside] = 100 * index + np.searchsorted(cuts, v[inside])
    palette = np.array(
        [
            [0.29, 0.36, 0.22],  # young crop
            [0.24, 0.30, 0.20],  # meadow
            [0.35, 0.39, 0.25],
            [0.57, 0.52, 0.38],  # ripe cereal
            [0.49, 0.45, 0.34],  # stubble
            [0.42, 0.35, 0.29],  # bare soil
            [0.36, 0.30, 0.25],
        ]
    )
    kinds = generator.choice(len(palette), int(field.max()) + 1, p=[0.22, 0.22, 0.14, 0.14, 0.1, 0.1, 0.08])
    shade = generator.normal(1, 0.08, int(field.max()) + 1)
    image = palette[kinds[field]] * shade[field][..., None]
    # Sowing rows run along the strips; their spacing and strength differ from field to field.
    spacing = generator.uniform(3.5, 7, int(field.max()) + 1)[field]
    strength = generator.uniform(0, 0.05, int(field.max()) + 1)[field]
    image *= (1 + strength * np.sin(2 * np.pi * v / spacing))[..., None]
    moisture = fractal_noise((SIZE, SIZE), generator, beta=3.0, largest_px=90)
    image *= (1 + 0.05 * moisture)[..., None]
    border = (np.diff(field, axis=0, prepend=field[:1]) != 0) | (np.diff(field, axis=1, prepend=field[:, :1]) != 0)
    return image, distance_transform_edt(~border)


def _forest(generator: np.random.Generator) -> NDArray[np.float64]:
    """Return dark crowns with shaded gaps, (H, W, 3)."""
    crowns = gaussian_filter(generator.standard_normal((SIZE, SIZE)), 1.3)
    crowns /= crowns.std()
    stands = fractal_noise((SIZE, SIZE), generator, beta=3.2, largest_px=120)
    brightness = 1 + 0.22 * np.tanh(crowns) + 0.10 * stands
    return np.asarray(np.array([0.13, 0.21, 0.11]) * brightness[..., None])


def _farms(
    generator: np.random.Generator, image: NDArray[np.float64], *, avoid: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Put hamlets of a few roofs, each with its shadow, on the (H, W, 3) image."""
    image = image.copy()
    for _ in range(9):
        centre = generator.integers(40, SIZE - 40, 2)
        for _ in range(int(generator.integers(4, 14))):
            y, x = (centre + generator.normal(0, 14, 2)).astype(int)
            height, width = generator.integers(4, 10, 2)
            spot = (slice(y, y + height), slice(x, x + width))
            if min(y, x) < 4 or max(y, x) > SIZE - 14 or avoid[spot].any():
                continue
            image[y + 2 : y + height + 2, x + 2 : x + width + 2] *= 0.55
            roof = np.array([[0.55, 0.32, 0.25], [0.60, 0.58, 0.56], [0.42, 0.40, 0.40]])[generator.integers(3)]
            ridge = np.where(np.arange(height) < height // 2, 1.12, 0.9)
            image[spot] = roof * ridge[:, None, None]
    return image


def _winding(
    generator: np.random.Generator, along: NDArray[np.float32], *, amplitude: float, knots_across: int = 5
) -> NDArray[np.float64]:
    """Return a smooth random line over `along` (W,), within about `amplitude`."""
    knots = generator.normal(0, 0.6, 12) * amplitude
    return np.asarray(map_coordinates(knots, [along / SIZE * knots_across + 1.5], order=3, mode="nearest"))


def _collar() -> NDArray[np.bool_]:
    """Return where the scene has data: all but a slanted corner, as at the edge of a satellite's swath."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.asarray(rows * 0.22 + columns >= COLLAR_PX)


def _soft_step(x: NDArray[Any], width: float) -> NDArray[np.float64]:
    """0 where x is well below 0, 1 where well above, smooth over `width`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x / width, -40, 40))), np.float64)


def _over(below: NDArray[Any], above: NDArray[Any], opacity: NDArray[Any]) -> NDArray[np.float64]:
    """Lay `above` over `below`, both (H, W, 3) or one colour, with `opacity` (H, W) in [0, 1]."""
    return np.asarray(below * (1 - opacity[..., None]) + above * opacity[..., None], np.float64)


if __name__ == "__main__":
    main()
