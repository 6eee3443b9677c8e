"""Options that several commands share, and what their values mean.

Nothing heavy is imported here: `--help` shows them all.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from declouder.errors import OptionError

FAST_STEPS = 1
FAST_LEAST_PAINTED = 0.15
"""What `--fast` means: so many steps, in windows of which the reference network painted so large a share.

Wanted was that held-out pairs lose less than 0.1 dB and 0.005 LPIPS on either set; of RICE1, where nothing is
painted, they lose 0.03 dB with any share, those of another model 0.11 (docs/model-card.md, fusion settings).
"""

BEST_SAMPLES = 2
"""What `--best` means: the mean of at least so many draws of the noise (docs/model-card.md, fusion settings)."""

OUTPUT_NAMES = ("-o", "--output", "--out")
"""What every command calls the place of its result."""
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "bf16")

DebugOption = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
ModelOption = Annotated[
    str | None, typer.Option(help="A model's folder; without it the one that declouder brings.", metavar="DIR")
]
SetOption = Annotated[
    str | None,
    typer.Option(
        "--set",
        help="The data set's name in the catalog (in `train` it sets fields); without it found by folder name.",
        metavar="NAME",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", metavar="NAME")]
SeedOption = Annotated[
    int, typer.Option(help="Seed of the noise; the same seed gives the same image.", metavar="N")
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        help="Steps of the diffusion; without it the model's own number, 1 for the one declouder brings. 0: the"
        " reference network's image, the quickest way.",
        metavar="N",
    ),
]
FastOption = Annotated[
    bool, typer.Option("--fast", help="One step, and none in windows with little to paint under thick cloud.")
]
BestOption = Annotated[
    bool, typer.Option("--best", help="The mean of two draws of the noise, or of as many as --samples says.")
]
SamplerOption = Annotated[
    str | None,
    typer.Option(
        help="ddim (the paper's), ddim-trailing, dpmsolver++, unipc or euler; without it the model's own.",
        metavar="NAME",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="32, bf16 (the steps in bfloat16) or auto (that where the device has it); 32 without it, with --fast"
        " auto on a CPU.",
        metavar="NAME",
    ),
]
EnlargeOption = Annotated[
    int,
    typer.Option(
        help="How many times as large the networks see an image, up to 4: for clouds of a few pixels.", metavar="N"
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]

# Of commands that score.
SplitOption = Annotated[str, typer.Option(help="Part of the data.", metavar="NAME")]
BandsOption = Annotated[
    str | None, typer.Option(help="rgb, or rgbn to join the near infrared's own tree.", metavar="BANDS")
]
SplitListOption = Annotated[
    Path | None,
    typer.Option(help="File of train/NAME and test/NAME, as a recipe's data.pairs entry names it.", metavar="LIST"),
]
BandNamesOption = Annotated[
    str | None,
    typer.Option(
        help="What the bands are called, such as nir,red,green; without it as the model's, or grey, RGB, RGB and"
        " nir.",
        metavar="LIST",
    ),
]
ExcludeOption = Annotated[Path | None, typer.Option(help="File of names to leave out, one a line.", metavar="LIST")]
LimitOption = Annotated[int | None, typer.Option(help="So many images only, spread over the list.", metavar="N")]
SizeOption = Annotated[
    int | None,
    typer.Option(
        help="Resize whole images to this width first, heights in proportion; the paper scores at 256.",
        metavar="PX",
    ),
]
DataRangeOption = Annotated[
    str | None,
    typer.Option(
        help="Span of the numbers, such as 10000, or those that are black and white; without it the data type's.",
        metavar="SPAN|LOW,HIGH",
    ),
]
BackboneOption = Annotated[
    Path | None,
    typer.Option(
        help="AlexNet's weights for LPIPS; else $DECLOUDER_LPIPS_BACKBONE, else torch hub's cache.", metavar="FILE"
    ),
]
DownloadOption = Annotated[
    bool, typer.Option("--lpips-download", help="Download them if they are nowhere on this machine.")
]


def check_sampling(
    *,
    steps: int | None,
    fast: bool,
    best: bool,
    samples: int | None,
    sampler: str | None,
    precision: str | None = None,
) -> None:
    """Raise OptionError where options of how the model samples exclude each other; None are not given."""
    if fast and (best or steps is not None):
        raise OptionError(f"--fast and {'--best' if best else '--steps'} exclude each other; give one of them")
    if best and steps == 0:
        raise OptionError("--best draws noise several times, and --steps 0 draws none; leave one of them out")
    if best and samples == 1:
        raise OptionError(
            f"--best is the mean of several draws; give --samples {BEST_SAMPLES} or more, or leave it out"
        )
    if samples is not None and samples > 1 and steps == 0:
        raise OptionError(
            f"--samples {samples} draws noise several times, and --steps 0 draws none; leave one of them out"
        )
    if sampler is not None and steps == 0:
        raise OptionError("--sampler is how steps are taken, and --steps 0 takes none; leave one of them out")
    if precision == "bf16" and steps == 0:
        raise OptionError("--precision bf16 is of the steps, and --steps 0 takes none; leave one of them out")


def samples_of(samples: int | None, *, best: bool) -> int:
    """Return how many draws of the noise --samples asks for beside --best; None: it is not given."""
    if samples is None:
        return BEST_SAMPLES if best else 1
    return samples


def check_device_name(name: str) -> None:
    """Raise OptionError for a device that no machine has; torch is not needed for that."""
    if name not in DEVICES:
        raise OptionError(f"--device is {name!r}; give one of {', '.join(DEVICES)}")


def chosen_precision(option: str | None, *, fast: bool) -> str:
    """Return what a --precision option means beside --fast: one of `PRECISIONS`, or "fast".

    Raises:
        OptionError: if it is none of `PRECISIONS`.
    """
    if option not in (None, *PRECISIONS):
        raise OptionError(f"--precision is {option!r}; give one of {', '.join(PRECISIONS)}")
    return option or ("fast" if fast else "32")


def parsed_ends(option: str, text: str) -> tuple[float, float]:
    """Return the two numbers of LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} is {text!r}; give LOW,HIGH such as 0,10000") from None
    return low, high


def selection(data: Path, *, bands: str | None, **options: Any) -> Any:
    """Return the `evaluation.Selection` of the options that say which images; they are called as its fields."""
    from declouder.evaluation import Selection

    if bands not in (None, "rgb", "rgbn"):
        raise OptionError(f"--bands is {bands!r}; give rgb or rgbn")
    return Selection(data, bands=bands, **options)  # type: ignore[arg-type]


def parsed_range(text: str | None) -> tuple[float, float] | None:
    """Return the numbers that are black and white of a --data-range option; black is 0 where it is one number."""
    if text is None:
        return None
    from declouder.arguments import LEAST_SPAN

    try:
        low, high = parsed_ends("--data-range", text) if "," in text else (0.0, float(text))
        if not LEAST_SPAN <= high - low < math.inf:
            raise ValueError
    except ValueError:
        raise OptionError(f"--data-range is {text!r}; give SPAN or LOW,HIGH such as 0,10000") from None
    return low, high
