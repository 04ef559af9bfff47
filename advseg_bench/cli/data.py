"""The commands `make-data` and `schema`, and the line about phantom data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import print_line

if TYPE_CHECKING:
    from advseg_bench.suite.specs import DataSpec


def make_data_command(
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 12,
    slices: Annotated[int, typer.Option(min=1, help="Slices per scan.")] = 8,
    days: Annotated[int, typer.Option(min=1, help="Scans per subject.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
) -> None:
    """Write a small phantom data set in the format of UW-Madison GI Tract."""
    from advseg_bench.data.uw_madison.make import write_uw_madison

    write_uw_madison(path, cases=cases, slices=slices, days=days, seed=seed, workers=workers)
    print_line(f"{path}: {cases * days * slices} slices of {cases} cases.")


def schema_command() -> None:
    """Print the JSON schema of suite files, for validation and completion in editors."""
    from advseg_bench.suite.suite import Suite

    print(json.dumps(Suite.model_json_schema(), indent=1))


def print_phantom(data: DataSpec) -> None:
    """Print which phantom data replace a missing data set, and their folder."""
    from advseg_bench.suite.specs import UwMadisonData

    if not isinstance(data, UwMadisonData) or data.phantom is None:
        return
    from advseg_bench.data.uw_madison.phantom import locate_phantom

    folder = locate_phantom(data.phantom)
    state = "generated in" if folder.is_dir() else "to be generated in"
    cases = f"{data.phantom.cases} cases, no patients"
    print_line(f"data: {data.path} does not exist; phantom data ({cases}) are used instead, {state} {folder}")
