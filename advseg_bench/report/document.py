"""What a report is made of, before it is Markdown, HTML or text on a terminal; and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from advseg_bench.suite.cells import show_eps

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure as Drawing
    from PIL.Image import Image

Array = np.ndarray[Any, Any]

NOTHING = "-"
"""What a cell shows where a value is not defined; captions say why."""

WIDE, NARROW = 9.0, 4.0
"""Widths in inches that figures are drawn at: for a desk screen or a page, and for a phone."""

DPI = 200
"""Dots an inch of what is made of dots, for print."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, already written out. Numbers are set flush right."""

    label: str
    cells: tuple[str, ...]
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption.

    Attributes:
        name: File stem of the CSV.
        title: One line.
        caption: Units and definitions of everything in the table.
        columns: What is shown.
        data: The same and more, unrounded, for the CSV; None if another table's CSV has it.
        detail: Whether a reader in a hurry can do without: folded in HTML, left out on a terminal.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    data: pl.DataFrame | None
    detail: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the first column names groups of rows, see `thin`."""
        return "" in self.columns[0].cells

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing that can be made at any width.

    Attributes:
        name: File stem.
        title: One line.
        caption: What the marks mean.
        draw: Width in inches -> a matplotlib figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[float], Drawing]


@dataclass(frozen=True, slots=True)
class Strip:
    """Pictures side by side, as uint8 (H, W, 3), one per column of their panel; `label` says what the row is."""

    label: str
    tiles: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One case.

    Attributes:
        title: Model and kind of case.
        caption: Image, attack, scores, and the class of the error map.
        titles: Of the columns.
        strips: The rows: one, or one per eps.
    """

    title: str
    caption: str
    titles: tuple[str, ...]
    strips: tuple[Strip, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Pictures on a page for print.

    Attributes:
        name: File stem.
        title: One line.
        caption: What is shown.
        draw: Makes the page.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Image]


@dataclass(frozen=True, slots=True)
class Text:
    """Sentences: a paragraph each, or a list."""

    sentences: tuple[str, ...]
    bullets: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied; `title` folds it in HTML, and a terminal leaves it out then."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of single cases, and the same on sheets for print."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    sheets: tuple[Sheet, ...]


Block = Table | Figure | Text | Code | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what belongs under it; `anchor` is its address in the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report.

    Attributes:
        title: What was run.
        facts: Label -> value, the run at a glance.
        warnings: What a reader must know before any number: missing rows, failures.
        sections: In the order a reader wants.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]


def show_number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals; `NOTHING` for None, and never a negative zero."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def show_estimate(mean: float | None, lower: float | None, upper: float | None) -> str:
    """Write a mean with its interval where there is one; its ends, for the mean need not be in the middle."""
    ends = "" if lower is None or upper is None else f" [{show_number(lower)}, {show_number(upper)}]"
    return show_number(mean) + ends


def show_count(value: int | None) -> str:
    """Write a whole number with separated thousands."""
    return NOTHING if value is None else f"{value:,}"


def show_times(value: float | None) -> str:
    """Write a ratio."""
    return NOTHING if value is None else f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"


def show_budget(eps: float | None) -> str:
    """Write a radius, as n/255 where it is one."""
    return NOTHING if eps is None else show_eps(eps)


def show_plural(count: int, noun: str) -> str:
    """Write "1 model" or "5 models"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def thin(cells: Sequence[str], *groups: Sequence[str]) -> tuple[str, ...]:
    """Leave out what the row above says already, as long as all `groups` stay the same too."""
    keys = list(zip(cells, *groups, strict=True))
    return tuple("" if i and keys[i] == keys[i - 1] else cell for i, cell in enumerate(cells))
