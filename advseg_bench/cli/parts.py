"""The option `--part` of `run`: which part is computed, and where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import print_line

if TYPE_CHECKING:
    from advseg_bench.results.run import Run
    from advseg_bench.suite.suite import Suite

PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="Compute one of N parts, for `merge`; in a Slurm array that of the task, unless it is `all`.",
    ),
]


def default_folder(suite: Suite) -> Path:
    """Return the run folder of a suite without --out."""
    return Path("runs") / "-".join(filter(None, (suite.name, suite.profile)))


def choose_part(text: str | None, out: Path | None, folder: Path) -> tuple[tuple[int, int] | None, Path]:
    """Return the part to run and its run folder.

    Args:
        text: The value of `--part`: "I/N", "slurm", "all", or None for the task of a Slurm array, if there is one.
        out: The value of `--out`.
        folder: The run folder of the whole suite.

    Returns:
        The part, None for the whole suite, and the folder: `out` for a part that was given by its number, else a folder
        for each part.

    Raises:
        SpecError: If there is no such part.
    """
    from advseg_bench.errors import SpecError
    from advseg_bench.running.parts import find_array_part, name_part, parse_part

    if text == "all":
        return None, folder
    if text not in (None, "slurm"):
        part = parse_part(text or "")
        return part, out or folder / name_part(part)
    found = find_array_part(os.environ)
    if found is None:
        if text == "slurm":
            raise SpecError("--part slurm: expected a task of a Slurm array, got none. Give --part I/N.")
        return None, folder
    print_line(f"part {found[0]} of {found[1]}, from SLURM_ARRAY_TASK_ID; --part all computes the whole suite")
    return found, folder / name_part(found)


def print_part(run: Run) -> None:
    """Print what a finished part holds; it has no report of its own."""
    from advseg_bench.results.remote import show_place

    assert run.path is not None
    entry = run.info["part"]
    held = ", ".join(f"{model} {start + 1}-{stop}" for model, (start, stop) in entry["holds"].items())
    rows = f"{len(run.rows):,} rows ({held or 'no image'})"
    print_line(f"part {entry['part']} of {entry['of']}: {rows} in {show_place(run.path)}")
    print_line("The report is that of all parts: advseg-bench merge FOLDER... --out RUN")
