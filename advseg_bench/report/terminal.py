"""Prints a document on a terminal: the sentences and the tables that matter most."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from advseg_bench.report.document import Code, Document, Table, Text

LONGEST_NAME = 24
"""A longer cell of text may be broken over lines."""


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
    """Print one table with its caption below."""
    grid = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in table.columns:
        longest = max((len(word) for cell in (column.label, *column.cells) for word in cell.split()), default=1)
        short = all(len(cell) <= LONGEST_NAME for cell in column.cells)
        grid.add_column(
            column.label,
            justify="right" if column.number else "left",
            overflow="fold",
            min_width=min(longest, LONGEST_NAME),
            no_wrap=short and not column.number,
        )
    for row in table.rows():
        grid.add_row(*(RichText(cell) for cell in row))
    console.print()
    console.print(grid)
    _say(console, table.caption, "dim")


def _say(console: Console, text: str, style: str = "") -> None:
    """Print text as it is: no markup, no highlighting."""
    console.print(RichText(text, style=style), highlight=False)
