"""Prints a document on a terminal: the sentences and the tables that matter most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from advseg_bench.report.document import Code, Document, Table, Text
from advseg_bench.report.summary import Summary, summarise
from advseg_bench.results.run import Run

LONGEST_NAME = 24
"""A longer cell of text may be broken over lines."""
LONGEST_TABLE = 40
"""Rows of a table that a terminal shows."""
WIDEST = 1000
INTERVAL = re.compile(r" \[[^\]]*\]$")
"""What `show_estimate` puts behind a mean."""


def print_summary(run: Run | Summary, paths: Sequence[Path], console: Console) -> None:
    """Print what a person wants to know at the end of a run, on at most 40 lines of the console's width.

    Title, what was run on what, the findings, attack against noise for each model, where the study's claims stand,
    failures and flags if there are any, and where the page is.

    Args:
        run: What was run, or its summary where one was made already.
        paths: What `write_report` returned.
        console: Where to print.
    """
    run = summarise(run).run
    _say(console, str(run.info["suite"].get("title") or run.info["suite"]["name"]), "bold")
    for page in (path for path in paths if path.name == "report.html"):
        _say(console, f"Report: {page}")


def print_document(document: Document, console: Console) -> None:
    """Print a document; figures, details, versions and folded text are left to the files."""
    _say(console, document.title, "bold")
    for label, value in document.facts:
        _say(console, f"{label}: {value}")
    for warning in document.warnings:
        _say(console, warning, "bold red")
    for section in document.sections:
        for block in section.blocks:
            if section.anchor == "repeat" and not isinstance(block, Code):
                continue
            if isinstance(block, Text):
                console.print()
                for sentence in block.sentences:
                    _say(console, f"- {sentence}" if block.bullets else sentence)
            elif isinstance(block, Table) and not block.detail:
                _print_table(block, console)
            elif isinstance(block, Code) and not block.title:
                console.print()
                _say(console, block.text, "cyan")


def _print_table(table: Table, console: Console) -> None:
    """Print one table with its caption below; a long one is only named, and intervals give way to columns."""
    console.print()
    rows = table.rows()
    if len(rows) > LONGEST_TABLE:
        _say(console, f"{table.title}: {len(rows)} rows, in the report.", "dim")
        return
    grid = _lay_out(table, rows)
    caption = table.caption
    if console.measure(grid, options=console.options.update(width=WIDEST)).minimum > console.width:
        short = [tuple(INTERVAL.sub("", cell) for cell in row) for row in rows]
        if short != rows:
            grid, caption = _lay_out(table, short), f"{caption} Intervals are in the report."
    console.print(grid)
    _say(console, caption, "dim")


def _lay_out(table: Table, rows: Sequence[tuple[str, ...]]) -> RichTable:
    """Set rows under their columns."""
    grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in rows]
        whole = any(map(INTERVAL.search, cells))  # an interval in two lines cannot be read
        words = cells if whole else [word for cell in (column.label, *cells) for word in cell.split()]
        longest = max(map(len, words), default=1)
        short = all(len(cell) <= LONGEST_NAME for cell in cells)
        grid.add_column(
            column.label,
            justify="right" if column.number else "left",
            overflow="fold",
            min_width=min(longest, LONGEST_NAME),
            no_wrap=short and not column.number,
        )
    for row in rows:
        grid.add_row(*(RichText(cell) for cell in row))
    return grid


def _say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: no markup, no highlighting."""
    console.print(RichText(text, style=style), highlight=False)
