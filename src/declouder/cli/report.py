"""`declouder report`: files of scores as one page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from declouder.cli.app import app
from declouder.cli.options import (
    OUTPUT_NAMES,
    DebugOption,
    OverwriteOption,
    QuietOption,
)


@app.command()
def report(
    scores: Annotated[
        list[Path], typer.Argument(metavar="SCORES...", help="Files that `declouder evaluate` wrote.")
    ],
    out: Annotated[Path, typer.Option(*OUTPUT_NAMES, help="The page.", metavar="FILE.html")],
    title: Annotated[str | None, typer.Option(help="Title of the page.", metavar="TEXT")] = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Make one HTML page of scores and images.

    It opens offline in any browser.
    """
    from declouder.report import write_report

    write_report(scores, out, overwrite=overwrite, title=title)
    if not quiet:
        typer.echo(f"wrote {out} ({out.stat().st_size / 1e6:.1f} MB)")
