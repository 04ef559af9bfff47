"""The elements of a report, independent of Markdown, HTML or terminal output; and the formatting of numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from advseg_bench.errors import tidy
from advseg_bench.suite.cells import find_grey, show_eps

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure as Drawing
    from PIL.Image import Image

Array = np.ndarray[Any, Any]

NOTHING = "-"
"""Content of a cell whose value is undefined; captions give the reason."""

WIDE, NARROW = 9.0, 4.0
"""Widths of figures in inches: for a desktop screen or a page, and for a phone."""

LONGEST_CELL, LONGEST_PARAGRAPH = 300, 5_000
"""Most characters of a cell of a table, and of a sentence or caption."""

LONGEST_LABEL = 120
"""Most characters of a label in a figure."""

LONGEST_STEM = 150
"""Most characters of the stem of a file, below the 255 bytes of file systems."""

DPI = 200
"""Resolution of raster images for print, in dots per inch."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, formatted as text. Numbers are right-aligned."""

    label: str
    cells: tuple[str, ...]
    number: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption.

    Attributes:
        name: File stem of the CSV.
        title: One line.
        caption: Units and definitions of all columns.
        columns: The columns to show.
        data: The unrounded data for the CSV, which may have more columns; None if another table's CSV has them.
        detail: Whether the table is of secondary interest: collapsed in HTML, omitted on a terminal.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    data: pl.DataFrame | None
    detail: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the first column labels groups of rows, see `thin`."""
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
        caption: Meaning of the marks.
        draw: Width in inches -> a matplotlib figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[float], Drawing]


@dataclass(frozen=True, slots=True)
class Strip:
    """Images side by side, as uint8 (H, W, 3), one per column of their panel; `label` describes the row."""

    label: str
    tiles: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One case.

    Attributes:
        title: Model, and whether it is the best or the worst case.
        caption: Image, attack, scores, and the class of the error map.
        titles: Titles of the columns.
        strips: The rows: one, or one per eps.
    """

    title: str
    caption: str
    titles: tuple[str, ...]
    strips: tuple[Strip, ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """Images on one page for print.

    Attributes:
        name: File stem.
        title: One line.
        caption: Description of the images.
        draw: Function that makes the page.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Image]


@dataclass(frozen=True, slots=True)
class Text:
    """Sentences, as one paragraph each or as a list."""

    sentences: tuple[str, ...]
    bullets: bool = False


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied; with a `title` it is collapsed in HTML and omitted on a terminal."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images of single cases, also as sheets for print."""

    title: str
    caption: str
    panels: tuple[Panel, ...]
    sheets: tuple[Sheet, ...]


Block = Table | Figure | Text | Code | Gallery


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its content; `anchor` is its id in the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A complete report. Its text is tidied when it is made, since names in it may come from files of strangers.

    Attributes:
        title: Title of the suite.
        facts: Label and value of the key facts of the run.
        warnings: Cautions to show before any number, such as missing rows and failures.
        sections: The sections in reading order.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, tidy_all(getattr(self, field.name)))


def tidy_all(value: Any) -> Any:
    """Tidy every text of an element, see `errors.tidy`; data, drawings and images are unchanged."""
    if isinstance(value, str):
        return tidy(value, LONGEST_PARAGRAPH)
    if isinstance(value, tuple):
        return tuple(map(tidy_all, value))
    if isinstance(value, Code):
        lines = value.text.split("\n")
        return replace(value, text="\n".join(tidy(line, LONGEST_PARAGRAPH) for line in lines), title=tidy(value.title))
    if isinstance(value, Column):
        return replace(
            value, label=tidy(value.label, LONGEST_CELL), cells=tuple(tidy(c, LONGEST_CELL) for c in value.cells)
        )
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: tidy_all(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, (Table, Figure, Sheet)):
            changed["name"] = name_file(value.name)
        return replace(value, **changed)
    return value


def name_file(name: str) -> str:
    """Return a name as a stem of a file: letters, digits and "._+-" only, and not hidden."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".")[:LONGEST_STEM] or "_"


def show_number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed number of decimals; `NOTHING` for None, and never a negative zero."""
    if value is None:
        return NOTHING
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def show_estimate(mean: float | None, lower: float | None, upper: float | None) -> str:
    """Write a mean with both ends of its interval, if it has one; the interval need not be symmetric."""
    ends = "" if lower is None or upper is None else f" [{show_number(lower)}, {show_number(upper)}]"
    return show_number(mean) + ends


def show_count(value: int | None) -> str:
    """Write a whole number with separated thousands."""
    return NOTHING if value is None else f"{value:,}"


def show_times(value: float | None, *, least: bool = False) -> str:
    """Write a ratio; a lower limit (`least`) is rounded down, so that "at least" holds for the written number."""
    if value is None:
        return NOTHING
    digits = 0 if value >= 10 else 1
    if least:
        value = math.floor(value * 10**digits + 1e-9) / 10**digits
    return f"{value:.{digits}f}x"


def show_budget(eps: float | None, norm: str = "linf", width: float = 1.0) -> str:
    """Write a radius: of L_inf as n/255 if it is a multiple of 1/255 and the range has width 1, else as a number."""
    return NOTHING if eps is None else show_eps(eps, width) if norm == "linf" else f"{eps:.4g}"


def show_radius(eps: float | None, norm: str = "linf", width: float = 1.0) -> str:
    """Write a radius in the units of the images, with its equivalent in 1/255 of their range if that is not 1."""
    if eps is None or width == 1 or norm != "linf":
        return show_budget(eps, norm, width)
    return f"{eps:.4g} = {find_grey(eps, width):.3g}/255"


def show_grey(value: float | None, width: float, digits: int) -> str:
    """Write an L_inf norm in units of 1/255 of the range of intensities."""
    return show_number(None if value is None else find_grey(value, width), digits)


def show_plural(count: int, noun: str) -> str:
    """Write "1 model" or "5 models"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def thin(cells: Sequence[str], *groups: Sequence[str]) -> tuple[str, ...]:
    """Blank out cells that repeat the row above, as long as all `groups` are unchanged too."""
    keys = list(zip(cells, *groups, strict=True))
    return tuple("" if i and keys[i] == keys[i - 1] else cell for i, cell in enumerate(cells))
