"""The command `verify`: is a run directory as it was written?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advseg_bench.cli.common import print_line, print_problem


def verify_command(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or URL of a run.")]) -> None:
    """Verify every file of a run: bytes, origin, and whether rows and images can be; exit code 1 if any is damaged."""
    from advseg_bench.results.bucket import find_url
    from advseg_bench.results.remote import fetched_anew
    from advseg_bench.results.verify import verify_run

    with fetched_anew(run) as folder:
        found = verify_run(folder)
    for each in found.damaged:
        print_problem(str(each).replace(str(folder), find_url(run) or str(folder)))
    older = len(found.parts) - found.labelled
    known = f", {older} of them without a digest (from an older version)" if older else ""
    print_line(
        f"{found.rows:,} of {found.planned:,} results in {len(found.parts):,} whole parts{known}, "
        f"{found.panels:,} whole panels; damaged files: {len(found.damaged):,}"
    )
    if found.damaged:
        raise typer.Exit(1)
