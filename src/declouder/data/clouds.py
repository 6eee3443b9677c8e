"""Synthetic clouds: a clear image and a generator in, a cloudy image, its mask and transmission out.

The single-layer model of an image seen through cloud, for each band c:

    cloudy_c = clear_c * shadow_c * T_c + A_c * (1 - T_c),    T_c = exp(-tau_c)

`tau` is the optical thickness, a random field with the power-law spectrum of turbulence (1 / f^beta; beta =
11/3 for a field seen through its depth), `A` the brightness of the cloud itself, `shadow` the light that
reaches the ground. Thin cloud and haze scatter long wavelengths less (the law of Angstrom,
tau_c = tau (lambda_c / 0.55 um)^-alpha); thick cloud is neutral. The haze's strength, brightness and evenness
follow the hazy images of RICE1's training part: T 0.25 to 0.6, A 0.4 to 0.7 and darker where T is high, tau
even within a few per cent.

No torch; everything random comes from the generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from declouder.errors import OptionError
from declouder.rgb import RGBN

CloudKind = Literal["haze", "broken", "mixed"]
KINDS: tuple[CloudKind, ...] = ("haze", "broken", "mixed")
"""haze: thin and nearly even. broken: separate thick clouds and their shadows. mixed: both."""

WAVELENGTH_UM = {
    "coastal": 0.44,
    "blue": 0.48,
    "green": 0.56,
    "red": 0.66,
    "rededge": 0.73,
    "nir": 0.85,
    "nir08": 0.85,
    "swir16": 1.61,
    "swir22": 2.20,
}
"""Centre of each band by name; bands of other names count as 0.55 um, where tau is given."""

MASK_TAU = 0.1
"""Thickness from which a pixel counts as cloud: one tenth of the ground's light is lost."""

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedClouds:
    """A cloudy image and what it was made of.

    Attributes:
        cloudy: (C, H, W) float32 in [0, 1].
        mask: (H, W) bool, True where cloud or haze (tau above `MASK_TAU`; shadow is not cloud).
        transmission: (C, H, W) float32 in (0, 1]; the share of the ground's light that passes.
        shadow: (C, H, W) float32 in (0, 1]; the share of sunlight that reaches the ground, 1 outside shadow.
        kind: the kind of cloud that was drawn.
    """

    cloudy: FloatArray
    mask: NDArray[np.bool_]
    transmission: FloatArray
    shadow: FloatArray
    kind: CloudKind


def simulate_clouds(
    clear: FloatArray,
    generator: np.random.Generator,
    *,
    kind: CloudKind | None = None,
    band_names: Sequence[str] | None = None,
    cover: float | None = None,
    strength: float = 1.0,
) -> SimulatedClouds:
    """Put clouds over a clear image.

    Args:
        clear: (C, H, W) float32 in [0, 1].
        generator: the only source of randomness; equal generators give equal clouds.
        kind: "haze", "broken" or "mixed"; None draws one.
        band_names: C names such as "red" or "nir", for the wavelengths; None means red, green, blue, nir
            for up to four bands.
        cover: share of the image under broken cloud, in (0, 1); None draws 0.08 to 0.7.
        strength: factor on the optical thickness, above 0.

    Raises:
        OptionError: if the shape, range, band names or an option do not fit.
    """
    if kind == "haze" and cover is not None:
        raise OptionError(f"cover is {cover:g}, but haze lies over all of an image; give it for broken or mixed")
    names = _check(clear, kind, band_names, cover, strength)
    chosen = kind if kind is not None else KINDS[int(generator.choice(3, p=[0.4, 0.3, 0.3]))]
    bands, height, width = clear.shape
    ratio = np.array([WAVELENGTH_UM.get(name.lower(), 0.55) / 0.55 for name in names], np.float32)

    transmission = np.ones((bands, height, width), np.float32)
    shadow = np.ones((bands, height, width), np.float32)
    light = np.zeros((bands, height, width), np.float32)  # what the cloud layers add: A (1 - T)
    thickness = np.zeros((height, width), np.float32)

    if chosen != "broken":
        tau, brightness = _haze((height, width), generator, weak=chosen == "mixed")
        tau *= np.float32(strength)
        # Most hazy images are nearly grey; some have the blue veil of small particles.
        alpha = generator.uniform(0.25, 1.3) if generator.random() < 0.4 else generator.uniform(0.03, 0.25)
        haze = _transmission(tau, ratio, alpha)
        light = np.asarray(_tint(brightness, bands, generator, 0.02)[:, None, None] * (1 - haze), np.float32)
        transmission, thickness = haze, tau
    if chosen != "haze":
        layer = _broken((height, width), generator, cover, strength)
        cloud = _transmission(layer.tau, ratio, generator.uniform(0.2, 1.0))
        shadow = _shadow_of(layer, ratio, generator)
        tint = _tint(1.0, bands, generator, 0.015)
        # A bright cloud lies under the haze of a mixed image: it is dimmed and veiled as the ground is.
        light += transmission * (tint[:, None, None] * layer.brightness) * (1 - cloud)
        transmission, thickness = transmission * cloud, thickness + layer.tau

    cloudy = np.clip(clear * shadow * transmission + light, 0, 1)
    return SimulatedClouds(
        cloudy=cloudy.astype(np.float32, copy=False),
        mask=thickness > MASK_TAU,
        transmission=transmission,
        shadow=shadow,
        kind=chosen,
    )


def fractal_noise(
    shape: tuple[int, int], generator: np.random.Generator, *, beta: float, largest_px: float
) -> FloatArray:
    """Return a Gaussian field (H, W) of mean 0 and deviation 1 with power spectrum 1 / (f^2 + f0^2)^(beta/2).

    Args:
        shape: H, W in pixels.
        generator: source of the phases.
        beta: slope of the power spectrum; 11/3 looks like cloud, larger is smoother.
        largest_px: size of the largest structures in pixels (1 / f0).
    """
    # The transform's field is periodic; a margin keeps opposite borders from being alike.
    padded = tuple(fft.next_fast_len(n + n // 4 + 1, real=True) for n in shape)
    squared = _squared_frequencies(padded[0], padded[1])
    amplitude = (squared + np.float32(1.0 / largest_px**2)) ** np.float32(-beta / 4)
    spectrum = np.empty(squared.shape, np.complex64)
    spectrum.real = generator.standard_normal(squared.shape, np.float32)
    spectrum.imag = generator.standard_normal(squared.shape, np.float32)
    spectrum *= amplitude
    spectrum[0, 0] = 0
    field = fft.irfft2(spectrum, s=padded, overwrite_x=True)
    field = field[: shape[0], : shape[1]]
    deviation = float(field.std())
    # A field of one pixel has no spread to normalise.
    return np.asarray((field - field.mean()) / (deviation if deviation > 0 else 1.0), np.float32)


@dataclass(frozen=True)
class _Layer:
    """Broken cloud: `tau`, `shadow_tau` (what stands between ground and sun) and `brightness`, all (H, W)."""

    tau: FloatArray
    shadow_tau: FloatArray
    brightness: FloatArray


def _haze(shape: tuple[int, int], generator: np.random.Generator, *, weak: bool) -> tuple[FloatArray, float]:
    """Return tau (H, W) and the brightness of an even haze, with the figures of the module's docstring."""
    if weak:
        through, brightness = generator.uniform(0.7, 0.97), generator.uniform(0.45, 0.85)
    elif generator.random() < 0.75:
        through = generator.uniform(0.22, 0.62)
        brightness = 0.51 - 0.43 * (through - 0.4) + generator.normal(0, 0.08)
    else:
        through, brightness = generator.uniform(0.6, 0.92), generator.uniform(0.45, 0.9)
    unevenness = min(float(generator.lognormal(np.log(0.25 if weak else 0.04), 0.9)), 0.6)
    field = fractal_noise(shape, generator, beta=generator.uniform(3.2, 4.2), largest_px=1.5 * max(shape))
    tau = -np.log(through) * np.exp(unevenness * field - 0.5 * unevenness**2)
    return tau.astype(np.float32), float(np.clip(brightness, 0.3, 0.95))


def _broken(shape: tuple[int, int], generator: np.random.Generator, cover: float | None, strength: float) -> _Layer:
    """Draw separate clouds: size, raggedness, depth, sun direction and height above the ground."""
    side = max(shape)
    size = float(np.exp(generator.uniform(np.log(0.1), np.log(0.8)))) * side
    share = float(generator.uniform(0.08, 0.7)) if cover is None else cover
    sun = generator.uniform(0, 2 * np.pi)
    # Small clouds are low and throw their shadows near; the way is the height over the tangent of the sun.
    reach = generator.uniform(0.15, 0.5) * min(size, 0.3 * side)
    dy, dx = round(reach * np.sin(sun)), round(reach * np.cos(sun))
    # The field is drawn larger than the image, so that clouds outside it can throw shadows into it.
    large = (shape[0] + abs(dy), shape[1] + abs(dx))

    cells = fractal_noise(large, generator, beta=generator.uniform(3.1, 3.9), largest_px=size)
    # Clouds come in groups: a field larger than the image says where they may grow.
    groups = fractal_noise(large, generator, beta=4.0, largest_px=1.5 * side)
    texture = fractal_noise(large, generator, beta=2.8, largest_px=0.1 * side)
    field = cells + np.float32(generator.uniform(0.3, 1.2)) * groups + np.float32(0.1) * texture
    field /= field.std() + np.float32(1e-6)
    rise = np.maximum(field - np.float32(np.quantile(field[::3, ::3], 1 - share)), 0)
    depth = float(np.exp(generator.uniform(np.log(0.7), np.log(5.0)))) * strength
    # A power above 1 keeps the edges soft and the inside thick.
    tau = np.float32(depth) * rise ** np.float32(generator.uniform(1.3, 2.2))
    tau *= np.exp(np.float32(0.25) * texture)
    tau[tau < 0.01] = 0  # exactly clear ground between the clouds

    # The side of a bump that faces the sun is brighter; log(1 + tau) stands for the height.
    height = np.log1p(tau) + np.float32(0.08) * texture * (1 - np.exp(-tau))
    step = max(side // 85, 1)
    away = np.roll(height, (round(step * np.sin(sun)), round(step * np.cos(sun))), (0, 1))
    shading = np.float32(generator.uniform(0.1, 0.28)) * np.tanh(height - away)
    bright, dull = generator.uniform(0.8, 1.05), generator.uniform(0.55, 0.8)
    brightness = dull + (bright - dull) * (1 - np.exp(-tau / 2)) + shading

    own = (slice(max(dy, 0), max(dy, 0) + shape[0]), slice(max(dx, 0), max(dx, 0) + shape[1]))
    caster = (slice(max(-dy, 0), max(-dy, 0) + shape[0]), slice(max(-dx, 0), max(-dx, 0) + shape[1]))
    return _Layer(tau[own], tau[caster], np.clip(brightness[own], 0.2, 1.05).astype(np.float32))


def _shadow_of(layer: _Layer, ratio: FloatArray, generator: np.random.Generator) -> FloatArray:
    """Return the light left on the ground, (C, H, W): skylight fills shadows, and more so in the blue."""
    darkest = generator.uniform(0.35, 0.8)
    blocked = 1 - np.exp(-0.6 * layer.shadow_tau)
    deep = np.clip(darkest * ratio**0.4, 0, 0.9)
    return np.asarray(1 - deep[:, None, None] * blocked, np.float32)


def _transmission(tau: FloatArray, ratio: FloatArray, alpha: float) -> FloatArray:
    """Return T (C, H, W) of a layer `tau` (H, W) at the wavelengths `ratio` (C,) in units of 0.55 um."""
    colour = np.float32(alpha) * np.exp(-tau)  # thick cloud is neutral
    return np.stack([np.exp(-tau * np.exp(-colour * np.float32(np.log(r)))) for r in ratio])


def _tint(brightness: float, bands: int, generator: np.random.Generator, deviation: float) -> FloatArray:
    """Return the brightness (C,) of a cloud layer, a little different in each band."""
    return np.asarray(brightness * (1 + generator.normal(0, deviation, bands)), np.float32)


def _squared_frequencies(height: int, width: int) -> FloatArray:
    """Return fy^2 + fx^2 in cycles per pixel, in the layout of a real transform, (height, width // 2 + 1)."""
    # Those of training's patches come again and again; those of a scene would fill the memory.
    return _kept_frequencies(height, width) if height * width <= _MOST_KEPT else _made_frequencies(height, width)


def _made_frequencies(height: int, width: int) -> FloatArray:
    rows = fft.fftfreq(height).astype(np.float32)
    columns = fft.rfftfreq(width).astype(np.float32)
    return np.asarray(rows[:, None] ** 2 + columns[None, :] ** 2, np.float32)


_MOST_KEPT = 1 << 20
_kept_frequencies = lru_cache(maxsize=64)(_made_frequencies)


def _check(
    clear: FloatArray,
    kind: CloudKind | None,
    band_names: Sequence[str] | None,
    cover: float | None,
    strength: float,
) -> Sequence[str]:
    """Check what the caller gave; return one name a band."""
    if clear.ndim != 3 or min(clear.shape) < 1:
        raise OptionError(f"clear has shape {clear.shape}, wanted (C, H, W) with at least one pixel")
    if not (clear.min() >= 0 and clear.max() <= 1):
        raise OptionError(
            f"clear has values {clear.min():g} to {clear.max():g}, wanted [0, 1]; scale it with Scaling first"
        )
    if kind is not None and kind not in KINDS:
        raise OptionError(f"kind {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if cover is not None and not 0 < cover < 1:
        raise OptionError(f"cover {cover:g} is not between 0 and 1; give a share such as 0.4")
    if not strength > 0:
        raise OptionError(f"strength {strength:g} is not above 0; 1 is the usual thickness")
    bands = clear.shape[0]
    names = band_names if band_names is not None else RGBN[:bands] + ("",) * (bands - 4)
    if len(names) != bands:
        raise OptionError(f"{len(names)} band names for {bands} bands; give one name a band")
    return names
