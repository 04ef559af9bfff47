"""Shared parts of the commands: the console, common arguments and options, and their parsing."""

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
    console.width = 120  # a file or a pipe has no width

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="Shipped suite (see `list suites`), or path of a TOML file.")
]
Profile = Annotated[
    str | None, typer.Option(help="Profile of the suite, such as cpu of wang2024; by default the suite's.")
]
DataPath = Annotated[Path | None, typer.Option("--data", help="Folder of the data set; by default the suite's path.")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="Additional figure format, png or pdf; repeatable.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Number of worker processes; by default one per core, at most one per model.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="All findings and main tables instead of the summary.")]


def print_line(text: object) -> None:
    """Print text verbatim on one line: no markup, no highlighting, no wrapping."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_workers(suite: Suite) -> int:
    """Return the number of cores over the suite's threads per worker, at most one worker per model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // suite.compute.threads, len(suite.models)))
