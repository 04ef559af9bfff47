"""The command `list`."""

from __future__ import annotations

from typing import Annotated

import typer

from advseg_bench.cli.common import print_line


def list_command(
    what: Annotated[
        str, typer.Argument(metavar="CATEGORY", help="Category: attacks, models, losses, defences, datasets or suites.")
    ],
    every: Annotated[
        bool,
        typer.Option("--all", help="Also attacks of toolkits that cannot run on segmentation models, with the reason."),
    ] = False,
) -> None:
    """List the available names of a category, including those of plug-ins and toolkits."""
    from advseg_bench.cli.listing import list_lines

    for line in list_lines(what, every):
        print_line(line)
