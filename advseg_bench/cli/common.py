"""What several commands share: the console, arguments and options, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from advseg_bench.suite.suite import Suite

console = Console()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 120  # a file or a pipe has no width of its own

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite, or the path of a TOML file.")]
Profile = Annotated[str | None, typer.Option(help="One of the suite's profiles, such as cpu of wang2024.")]
DataPath = Annotated[Path | None, typer.Option("--data", help="Folder of the data set, overriding the suite's path.")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="Additional format of the figures, png or pdf; repeatable.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core, at most one per model.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Print all findings and main tables, not only the summary.")]


def print_line(text: object) -> None:
    """Print text on one line, however long, as it is: no markup, no highlighting."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def split_names(text: str) -> tuple[str, ...]:
    """Read a list separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_workers(suite: Suite) -> int:
    """Return how many workers of the suite's threads this machine's cores feed, at most one per model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // suite.compute.threads, len(suite.models)))
