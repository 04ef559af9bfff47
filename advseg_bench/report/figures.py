"""Rendering of figures with matplotlib's objects, without its global state and with reproducible bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from advseg_bench.errors import tidy
from advseg_bench.report.document import DPI, LONGEST_LABEL, Figure

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
}

LEGEND_ROWS, LEGEND_ROW = 3, 0.19
"""Rows of a legend that the height of a drawing includes, and the height of a further one in inches."""

LONGEST_TITLE = 48
"""Most characters of a title of one of several charts, which share the width of the figure."""

MOST_LINES = 6
"""Most lines of a label."""

_DATED = {"svg": "Date", "pdf": "CreationDate", "png": "Software"}
"""Metadata in which two files of the same drawing would differ."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The style of one legend entry.

    Attributes:
        label: Label in the legend.
        colour: Colour of line and markers.
        marker: Marker; "" for none.
        dash: Line style; "" for no line.
        behind: Whether the other lines are drawn on top of it.
        thin: Whether its line is thin, so that a line below it stays visible.
    """

    label: str
    colour: str
    marker: str
    dash: str
    behind: bool = False
    thin: bool = False


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    """Apply the common style inside the context; `salt` makes the ids of an SVG reproducible."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "svg.hashsalt": salt}):
        yield


def render(figure: Figure, width: float, *kinds: str) -> list[bytes]:
    """Plot a figure once and encode it in one or more formats.

    Args:
        figure: The figure.
        width: Width in inches.
        kinds: Any of "svg", "pdf" and "png" (at `DPI`).

    Returns:
        The bytes of each file, which are the same for the same numbers and version of matplotlib.
    """
    files = []
    with _styled(figure.name):
        drawing = figure.draw(width)
        _tidy_labels(drawing)
        FigureCanvasAgg(drawing)
        for axis in (axis for ax in drawing.axes for axis in (ax.xaxis, ax.yaxis)):
            if not axis.get_label_text():
                axis.set_label_coords(0, 0)  # otherwise matplotlib computes a position for an empty label
        layout = drawing.get_layout_engine()
        if layout is not None:
            layout.execute(drawing)
            drawing.set_layout_engine("none")
        for kind in kinds:
            buffer = io.BytesIO()
            metadata = {_DATED[kind]: None}
            if kind == "svg":  # `savefig` would compute the layout once more
                FigureCanvasSVG(drawing).print_svg(buffer, metadata=metadata)
            else:
                drawing.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
            files.append(buffer.getvalue())
    return files


def _tidy_labels(drawing: Drawing) -> None:
    """Tidy every label, line by line: unprintable characters are no XML, and a long name leaves axes no space."""
    for text in drawing.findobj(Text):
        text.set_text(_tidy(text.get_text()))
    for ax in drawing.axes:
        for place in ("left", "center", "right"):
            if len(title := ax.get_title(place)) > LONGEST_TITLE:
                ax.set_title(tidy(title, LONGEST_TITLE), loc=place)
    for axis in (axis for ax in drawing.axes for axis in (ax.xaxis, ax.yaxis)):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, FixedFormatter):
            formatter.seq = [_tidy(label) for label in formatter.seq]


def _tidy(label: str) -> str:
    return "\n".join(tidy(line, LONGEST_LABEL) for line in label.split("\n")[:MOST_LINES])


def add_legend(drawing: Drawing, marks: Sequence[Mark], width: float) -> None:
    """Add a legend below a drawing, with as many columns as fit; rows beyond the first few make the drawing higher."""
    labels = [tidy(mark.label, LONGEST_LABEL) for mark in marks]
    handles = [
        Line2D([], [], color=m.colour, linestyle=m.dash or "none", marker=m.marker or None, label=label)
        for m, label in zip(marks, labels, strict=True)
    ]
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(marks), int(width / (0.6 + 0.075 * longest))))
    drawing.legend(handles=handles, loc="outside lower center", ncols=columns)
    rows = math.ceil(len(marks) / columns)
    drawing.set_figheight(drawing.get_figheight() + LEGEND_ROW * max(rows - LEGEND_ROWS, 0))


def shorten(count: int) -> str:
    """Write a number of parameters with three digits."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
