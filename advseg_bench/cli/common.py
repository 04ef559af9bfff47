"""Shared parts of the commands: the console, common arguments and options, and their parsing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from advseg_bench.errors import tidy

if TYPE_CHECKING:
    from advseg_bench.suite.suite import Suite


class PlainConsole(Console):
    """A console on which text cannot steer the terminal: names from files are printed with their visible characters.

    Only what rich itself adds, such as colours, is sent as escape sequences.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Tidy every piece of text that is about to be printed."""
        for text, style, control in super().render(renderable, options):
            shown = text if control else "\n".join(tidy(line, max(len(line), 1)) for line in text.split("\n"))
            yield Segment(shown, style, control)


console = PlainConsole()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 120  # a file or a pipe has no width

LONGEST_LINE = 5_000
"""Most characters of a printed line."""

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
    """Print text on one line: no markup, no highlighting, no wrapping; of a long text the middle is left out."""
    console.print(tidy(text, LONGEST_LINE), markup=False, highlight=False, soft_wrap=True)


def print_problem(text: object) -> None:
    """Print text on one line as `print_line` does, in red."""
    console.print(tidy(text, LONGEST_LINE), style="red", markup=False, highlight=False, soft_wrap=True)


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_workers(suite: Suite) -> int:
    """Return the number of cores over the suite's threads per worker, at most one worker per model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // suite.compute.threads, len(suite.models)))
