"""`declouder data check | split | simulate`: what a data set is, its parts, and sets made of clear images."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from declouder.cli.app import app
from declouder.cli.bars import counting_bar
from declouder.cli.options import OUTPUT_NAMES, DataRangeOption, DebugOption, QuietOption, SetOption, parsed_range
from declouder.errors import DataError, OptionError, OutputError
from declouder.whole_files import check_new

if TYPE_CHECKING:
    from declouder.data.check import PartReport, SetReport

data_app = typer.Typer(help="Look at data sets, split them, make them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

SHOWN = 20
"""Problems and duplicates that are printed one by one."""
_MOST_LISTED = 4
"""Of sizes, numbers of bands and data types."""


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    set_name: SetOption = None,
    bands: Annotated[
        str | None, typer.Option(help="rgb, or rgbn to look at the near infrared too.", metavar="BANDS")
    ] = None,
    data_range: DataRangeOption = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Write names to leave out, for data.exclude and evaluate --exclude.", metavar="LIST"),
    ] = None,
    of: Annotated[
        str, typer.Option(help="The part that the list thins out: test, train, or all.", metavar="PART")
    ] = "test",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace LIST if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    debug: DebugOption = False,
) -> None:
    """Tell what a data set is, and what is wrong with it.

    Pairs, sizes, ranges, cloud, missing twins, damaged files and duplicates. Exits with 2 if a file cannot be
    used; duplicates and odd counts are only told.
    """
    if bands not in (None, "rgb", "rgbn"):
        raise OptionError(f"--bands is {bands!r}; give rgb or rgbn")
    if of not in ("test", "train", "all"):
        raise OptionError(f"--of is {of!r}; give test, train, or all for a set without a split")
    if write is not None:
        check_new(write, overwrite=overwrite)
    if write is not None and not write.absolute().parent.is_dir():
        raise OutputError(f"the folder of {write} does not exist; make it first")

    dn_range = parsed_range(data_range)

    from declouder.data.check import check_set, part_names

    if write is not None:
        there = part_names(folder, name=set_name, bands=bands)  # type: ignore[arg-type]
        if of not in there:
            raise OptionError(f"--of is {of}, but {folder} has only {' and '.join(there)}; give --of {there[0]}")
    with counting_bar(quiet=quiet) as show:
        report = check_set(
            folder,
            name=set_name,
            bands=bands,  # type: ignore[arg-type]
            dn_range=dn_range,
            on_pair=show,
        )
    _print_report(report)
    if write is not None:
        _write_list(report, write, of)
    if report.problems:
        raise DataError(f"{folder} has {len(report.problems)} problems, told above")


@data_app.command()
def split(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A set whose images are in no train and test.")],
    out: Annotated[
        Path | None,
        typer.Option(*OUTPUT_NAMES, help="The list; DIR/split.txt without it.", metavar="LIST"),
    ] = None,
    set_name: SetOption = None,
    share: Annotated[float, typer.Option(help="Share of the pairs that goes to test.", metavar="SHARE")] = 0.2,
    block: Annotated[int, typer.Option(help="Neighbouring numbers that stay together.", metavar="N")] = 25,
    seed: Annotated[int, typer.Option(help="The same seed gives the same split.", metavar="N")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace LIST if it exists.")] = False,
    debug: DebugOption = False,
) -> None:
    """Part a set into train and test, as a list.

    By blocks of neighbouring numbers; the list can be published. Training and evaluation find DIR/split.txt by
    themselves; a list elsewhere is named by the recipe's data.pairs entry.
    """
    if not 0 < share < 1:
        raise OptionError(f"--share is {share:g}; give a share between 0 and 1")
    if block < 1:
        raise OptionError(f"--block is {block}; give 1 or more")
    if seed < 0:
        raise OptionError(f"--seed is {seed}; give 0 or more")
    from declouder.data.lists import split_list_of, write_split_list

    target = split_list_of(folder) if out is None else out
    check_new(target, overwrite=overwrite)

    from declouder.data.catalog import all_pairs
    from declouder.data.split import split_by_blocks

    pairs = all_pairs(folder, name=set_name)
    split_of = split_by_blocks([pair.name for pair in pairs], share=share, block=block, seed=seed)
    counts = Counter(split_of.values())
    write_split_list(
        target,
        split_of,
        heading=f"declouder data split --share {share:g} --block {block} --seed {seed}\n"
        f"{counts['train']} train, {counts['test']} test",
    )
    typer.echo(f"wrote {target}: {counts['train']} train, {counts['test']} test")


@data_app.command()
def simulate(
    clear: Annotated[Path, typer.Argument(metavar="CLEAR_DIR", help="Folder of clear images, subfolders too.")],
    output: Annotated[Path, typer.Option(*OUTPUT_NAMES, help="The paired set to make.", metavar="DIR")],
    split: Annotated[str, typer.Option(help="train or test.", metavar="NAME")] = "train",
    per_image: Annotated[int, typer.Option(help="Cloudy images of each clear one.", metavar="N")] = 1,
    kind: Annotated[
        str | None, typer.Option(help="haze, broken or mixed; a draw without it.", metavar="KIND")
    ] = None,
    cover: Annotated[
        float | None, typer.Option(help="Share under broken cloud; a draw without it.", metavar="SHARE")
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Band names such as red,green,blue,nir, for their wavelengths.", metavar="NAMES"),
    ] = None,
    data_range: DataRangeOption = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same set.", metavar="N")] = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Put synthetic clouds over clear images.

    They become DIR/SPLIT/{cloud,label,mask}, ready for training.
    """
    if split not in ("train", "test"):
        raise OptionError(f"--split is {split!r}; give train or test")
    if per_image < 1:
        raise OptionError(f"--per-image is {per_image}; give 1 or more")
    if seed < 0:
        raise OptionError(f"--seed is {seed}; give 0 or more")

    from declouder.data.simulate import simulate_set

    with counting_bar(quiet=quiet) as show:
        written = simulate_set(
            clear,
            output,
            split=split,
            per_image=per_image,
            kind=kind,  # type: ignore[arg-type]  # simulate_clouds names the right ones
            cover=cover,
            band_names=None if bands is None else [name.strip() for name in bands.split(",")],
            dn_range=parsed_range(data_range),
            seed=seed,
            on_image=show,
        )
    if not quiet:
        typer.echo(f"wrote {output / split}: {written} pairs with masks")


def _print_report(report: SetReport) -> None:
    row = report.found.row
    typer.echo(f"{report.found.root}: {row.name} ({row.about})")
    for name, part in report.parts.items():
        typer.echo(f"  {name:<6} {_described(part)}")
    for sentence in report.notes:
        typer.echo(f"  note: {sentence}")
    for sentence in report.problems[:SHOWN]:
        typer.echo(f"  problem: {sentence}")
    _print_rest(len(report.problems))
    typer.echo(f"  {len(report.duplicates)} pairs of images show the same ground{_counts_by_part(report)}")
    for duplicate in report.duplicates[:SHOWN]:
        flat = math.isnan(duplicate.correlation)
        how = "flat, equal pixels" if flat else f"correlation {duplicate.correlation:.3f}"
        how += f", {duplicate.way}" if duplicate.way else ""
        typer.echo(f"    {duplicate.first} = {duplicate.second} ({how})")
    _print_rest(len(report.duplicates))


def _print_rest(count: int) -> None:
    if count > SHOWN:
        typer.echo(f"    and {count - SHOWN} more")


def _described(part: PartReport) -> str:
    if not part.pairs:
        return "no pair that can be read"
    seen = "by mask" if part.masks == part.pairs else "estimated" if not part.masks else "mask or estimate"
    return (
        f"{part.pairs} pairs, {_listed(part.sizes)}, {_listed(part.bands)} bands, {_listed(part.dtypes)},"
        f" values {part.low:g} to {part.high:g}, cloud {100 * part.cloud_share:.1f} % ({seen})"
    )


def _listed(counts: Counter[Any]) -> str:
    if len(counts) == 1:
        return str(next(iter(counts)))
    told = [f"{value} ({count} times)" for value, count in counts.most_common(_MOST_LISTED)]
    more = len(counts) - len(told)
    return " or ".join([*told, f"{more} others"] if more else told)


def _counts_by_part(report: SetReport) -> str:
    counts = Counter(tuple(dict.fromkeys((d.first.part, d.second.part))) for d in report.duplicates)
    told = [
        f"{n} {'within' if len(parts) == 1 else 'between'} {' and '.join(parts)}" for parts, n in counts.items()
    ]
    return f": {', '.join(told)}" if told else ""


def _write_list(report: SetReport, path: Path, part: str) -> None:
    """Write which pairs of a part to leave out; nothing if a split list that cannot be read leaves no such part."""
    if part not in report.parts:
        return
    from declouder.data.lists import write_exclude_list

    names = report.to_leave_out(part)
    write_exclude_list(
        path, names, heading=f"{report.found.row.name}/{part}: pairs that repeat ground seen elsewhere"
    )
    typer.echo(f"wrote {path}: {len(names)} of {report.parts[part].pairs} pairs of {part}")
