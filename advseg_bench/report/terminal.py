"""Prints a document on a terminal: the sentences and the main tables."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text as RichText

from advseg_bench.report.document import Code, Document, Table, Text

LONGEST_NAME = 24
"""A longer text cell may be wrapped."""
LONGEST_TABLE = 40
"""Largest number of rows of a table that is printed."""
WIDEST = 1000
INTERVAL = re.compile(r" \[[^\]]*\]$")
"""The interval that `show_estimate` writes after a mean."""


def print_document(document: Document, console: Console) -> None:
    """Print a document; figures, details, versions and collapsed text are only in the files."""
    _print_text(console, document.title, "bold")
    for label, value in document.facts:
        _print_text(console, f"{label}: {value}")
    for warning in document.warnings:
        _print_text(console, warning, "bold red")
    for section in document.sections:
        for block in section.blocks:
            if section.anchor == "repeat" and not isinstance(block, Code):
                continue
            if isinstance(block, Text):
                console.print()
                for sentence in block.sentences:
                    _print_text(console, f"- {sentence}" if block.bullets else sentence)
            elif isinstance(block, Table) and not block.detail:
                _print_table(block, console)
            elif isinstance(block, Code) and not block.title:
                console.print()
                _print_text(console, block.text, "cyan")


def _print_table(table: Table, console: Console) -> None:
    """Print one table with its caption; only the title if it is long, and no intervals if it is too wide."""
    console.print()
    rows = table.rows()
    if len(rows) > LONGEST_TABLE:
        _print_text(console, f"{table.title}: {len(rows)} rows, in the report.", "dim")
        return
    grid = _lay_out(table, rows)
    caption = table.caption
    if _measure(grid, console).maximum > console.width:
        grid = _lay_out(table, rows, wrapped=True)
    if _measure(grid, console).minimum > console.width:
        short = [tuple(INTERVAL.sub("", cell) for cell in row) for row in rows]
        if short != rows:
            grid, caption = _lay_out(table, short, wrapped=True), f"{caption} Intervals are in the report."
    console.print(grid)
    _print_text(console, caption, "dim")


def _measure(grid: RichTable, console: Console) -> Measurement:
    """Return the smallest and the largest width of a table."""
    return console.measure(grid, options=console.options.update(width=WIDEST))


def _lay_out(table: Table, rows: Sequence[tuple[str, ...]], *, wrapped: bool = False) -> RichTable:
    """Lay out the rows in columns; if `wrapped`, the titles are broken into lines where cells are shorter."""
    grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in rows]
        whole = any(map(INTERVAL.search, cells))  # an interval is not wrapped
        words = cells if whole else [word for cell in (column.label, *cells) for word in cell.split()]
        longest = max(map(len, words), default=1)
        fixed = all(len(cell) <= LONGEST_NAME for cell in cells) and not column.number
        label = column.label
        if wrapped and label:  # a title that is not broken here may be cut
            widest = max(map(len, (*cells, *label.split())))
            label, longest = textwrap.fill(label, widest), widest if fixed else longest
        grid.add_column(
            label,
            justify="right" if column.number else "left",
            overflow="fold",
            min_width=min(longest, LONGEST_NAME),
            no_wrap=fixed,
        )
    for row in rows:
        grid.add_row(*(RichText(cell) for cell in row))
    return grid


def _print_text(console: Console, text: str, style: str = "") -> None:
    """Print text literally, without markup and highlighting."""
    console.print(RichText(text, style=style), highlight=False)
