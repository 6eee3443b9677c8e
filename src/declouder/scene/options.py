"""What can be asked of a scene's processing, and what is said of it in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from declouder.arguments import MOST_STEPS, checked_enlarge, real_number, seed_number, whole_number
from declouder.bands import BandChoice, listed
from declouder.errors import OptionError
from declouder.masks import MaskChoice
from declouder.mosaic import LEAST_CUT_PX
from declouder.raster import MOST_PIXELS
from declouder.scaling import Scaling

WINDOW_PX = 1024
"""Size of a window as the networks see it, where none is given."""
LEAST_WINDOW_PX = 32
"""Below, windows overlap and surround each other so much that a scene takes hours for minutes."""

_WHOLE = ("steps", "enlarge", "window_px", "overlap_px", "batch", "threads", "samples", "max_pixels")
_MAY_BE_NONE = ("steps", "window_px", "overlap_px", "threads")

Progress = Callable[[int, int], None]
"""Called with the numbers of finished windows and of all windows."""


@dataclass(frozen=True)
class SceneOptions:
    """How a scene is processed.

    Attributes:
        steps: steps of the diffusion; 0 writes the reference network's image, None takes the model's own
            number.
        least_painted: windows of which the reference network painted a smaller share take no step, see
            `declouder.painted`; 0 steps everywhere.
        enlarge: how many times as large the networks see the scene, from 1 to 4, for clouds of a few pixels; time,
            and memory for windows of one size, grow with its square.
        seed: of the noise, 0 <= seed < 2^64.
        bands: the raster's bands that the model sees, in the model's order, by 1-based number or name; None finds
            them.
        scale: the DN that are 0 and 1 to the model; None finds them.
        nodata: a DN that holds no data, besides what the file says; None takes the file's word, and where it says
            nothing, looks for a frame of 0 and for a lowest number such as -9999.
        window_px: size of a window, at least 32; None is `WINDOW_PX / enlarge`, for the networks' memory. With the
            default overlap 30 % of the pixels are computed twice, whatever the size; the larger, the less do
            neighbours differ in what they take for haze.
        overlap_px: of neighbouring windows; None is an eighth of the window.
        batch: windows that go through the model at once.
        threads: of the CPU that compute a window; None is as many as PyTorch takes. Sums are rounded differently
            with another number, so the last bit of a pixel may depend on it. PyTorch's number is that of the whole
            process: scenes that run at the same time want one number.
        overwrite: replace an output that exists.
        mask: where the cloud is; only there pixels change.
        provenance: where to write what was made up, or None; see `declouder.provenance`.
        samples: draws of the noise, whose spread goes into the provenance; the first of them is the output.
        average: the mean of the draws is the output.
        cog: write a cloud-optimised GeoTIFF, with overviews.
        max_pixels: a larger scene is refused before memory is taken.
        allow_outside: a scene that is a VRT may name files outside its own folder; for a mask see `MaskChoice`.
    """

    steps: int | None = None
    least_painted: float = 0.0
    enlarge: int = 1
    seed: int = 0
    bands: tuple[int | str, ...] | None = None
    scale: Scaling | None = None
    nodata: float | None = None
    window_px: int | None = None
    overlap_px: int | None = None
    batch: int = 1
    threads: int | None = None
    overwrite: bool = False
    mask: MaskChoice = field(default_factory=MaskChoice)
    provenance: Path | None = None
    samples: int = 1
    average: bool = False
    cog: bool = False
    max_pixels: int = MOST_PIXELS
    allow_outside: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("mask", MaskChoice), ("scale", Scaling)):
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "scale" and value is None):
                raise OptionError(f"{name} is {value!r}; give a {kind.__name__}")
        for name, value in self._plain().items():
            object.__setattr__(self, name, value)
        self._check()

    def _plain(self) -> dict[str, object]:
        """Return fields as plain Python has them: callers give numpy's numbers, and paths as text."""
        plain: dict[str, object] = {
            "seed": seed_number(self.seed),
            "least_painted": real_number(self.least_painted, "least_painted"),
            **{name: bool(getattr(self, name)) for name in ("overwrite", "average", "cog", "allow_outside")},
        }
        for name in _WHOLE:
            value = getattr(self, name)
            if value is not None or name not in _MAY_BE_NONE:
                plain[name] = whole_number(value, name.removesuffix("_px").replace("_", "-"))
        if isinstance(self.bands, str):  # its letters would be bands
            raise OptionError(f"bands is {self.bands!r}; give a tuple such as (3, 2, 1)")
        if self.bands is not None:
            plain["bands"] = tuple(_band(band) for band in self.bands)
        if self.provenance is not None:
            plain["provenance"] = Path(self.provenance)
        if self.nodata is not None:
            plain["nodata"] = real_number(self.nodata, "nodata")
        return plain

    def _check(self) -> None:
        if self.steps is not None and not 0 <= self.steps <= MOST_STEPS:
            raise OptionError(f"steps is {self.steps}; give 0 (the reference image) to {MOST_STEPS}")
        if not 0 <= self.least_painted <= 1:
            raise OptionError(f"least_painted is {self.least_painted:g}; give a share, from 0 to 1")
        checked_enlarge(self.enlarge)
        if self.window < LEAST_WINDOW_PX:
            raise OptionError(f"window is {self.window} px; give at least {LEAST_WINDOW_PX}, such as {WINDOW_PX}")
        if not 0 <= self.overlap <= self.window // 2:
            raise OptionError(
                f"overlap is {self.overlap} px; give 0 to {self.window // 2}, "
                f"half of the window of {self.window} px"
            )
        if self.batch < 1:
            raise OptionError(f"batch is {self.batch}; give 1 window or more")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise OptionError(f"threads is {self.threads}; give 1 to 1024")
        if self.bands is not None and not all(isinstance(band, str) or band >= 1 for band in self.bands or (0,)):
            raise OptionError(f"bands is {listed(self.bands)}; bands are counted from 1, such as 3,2,1")
        if self.bands is not None and len(set(self.bands)) < len(self.bands):
            raise OptionError(f"bands is {listed(self.bands)}; give each band once")
        if not 1 <= self.samples <= 1000:
            raise OptionError(f"samples is {self.samples}; give 1 to 1000 draws")
        if self.samples > 1 and self.provenance is None and not self.average:
            raise OptionError(f"samples is {self.samples}, but their spread goes nowhere; give --provenance FILE")
        if self.max_pixels < 1:
            raise OptionError(f"max-pixels is {self.max_pixels}; give at least 1")

    @property
    def window(self) -> int:
        """The size of a window in pixels, with its default filled in."""
        return WINDOW_PX // self.enlarge if self.window_px is None else self.window_px

    @property
    def overlap(self) -> int:
        """The overlap in pixels, with its default filled in."""
        return self.window // 8 if self.overlap_px is None else self.overlap_px

    @property
    def least_cut_px(self) -> int:
        """What windows at the scene's edge keep of their size: as much as ever, as the networks see it."""
        return LEAST_CUT_PX // self.enlarge


@dataclass(frozen=True)
class SceneReport:
    """What was done to a scene; `skipped` windows held no data or no cloud and went past the model, and `continued`
    ones an earlier run had finished.

    `seconds` is the time it took, `ended` when that was on the clock of `time.perf_counter`. `small_clouds_left`:
    many clouds of a few pixels seem to be left (`declouder.small_clouds`), so that `enlarge` may help; windows that
    an earlier run had finished do not count. `tags`: what the output says of how it was made, by `declouder.tags`;
    a WebP holds none.
    """

    source: Path
    output: Path
    height: int
    width: int
    bands: BandChoice
    scale: Scaling
    windows: int
    skipped: int
    seconds: float
    ended: float
    small_clouds_left: bool
    tags: Mapping[str, str]
    continued: int = 0

    @property
    def megapixels(self) -> float:
        """Size of the scene in millions of pixels."""
        return self.height * self.width / 1e6


def _band(value: object) -> int | str:
    """Return a band's number, or what it is called."""
    if isinstance(value, str) and value.strip() and not value.strip().isdecimal():
        return value.strip()
    return whole_number(int(value) if isinstance(value, str) and value.strip() else value, "a band")
