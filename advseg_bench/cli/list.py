"""The command `list`."""

from __future__ import annotations

from typing import Annotated

import typer

from advseg_bench.cli.common import print_line


def list_command(
    what: Annotated[str, typer.Argument(help="attacks, models, losses, datasets or suites.")],
    every: Annotated[bool, typer.Option("--all", help="Include attacks that cannot run, and why.")] = False,
) -> None:
    """List available names, including those of plug-ins."""
    from advseg_bench.cli.listing import list_lines

    for line in list_lines(what, every):
        print_line(line)
