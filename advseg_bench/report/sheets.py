"""Pictures in rows: a sheet for print, and single ones for the page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Patch
from PIL import Image

LARGEST_SIDE = 128
PRINT_WIDTH = 6.5
"""Inches that a case over eps is wide at most: at that its rows fit on a page."""
LETTER = 0.052
"""Inches that a letter of 7 points takes at most, on average."""
KEY_STYLE: dict[str, Any] = {"fontsize": 7, "handlelength": 1, "borderaxespad": 0, "borderpad": 0, "columnspacing": 1.2}

Array = np.ndarray[Any, Any]
Key = Sequence[tuple[str, str]]
"""Name and colour of each entry of a legend."""


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


def encode_png(tile: Array) -> bytes:
    """Write a picture as PNG, reduced to at most `LARGEST_SIDE` pixels."""
    image = Image.fromarray(tile)
    largest = max(image.size)
    if largest > LARGEST_SIDE:
        size = tuple(max(1, round(side * LARGEST_SIDE / largest)) for side in image.size)
        image = image.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def draw_sheet(panels: Sequence[Panel], keys: Sequence[tuple[str, Key]], width: float) -> Drawing:
    """Draw rows of pictures under their panels' headings, placed by hand: a layout engine takes seconds for so many.

    Args:
        panels: With the same columns.
        keys: Titles and entries of the legends below.
        width: Inches; rows with labels stay within `PRINT_WIDTH`.
    """
    titles, labelled = panels[0].titles, bool(panels[0].strips[0].label)
    width = min(width, PRINT_WIDTH) if labelled else width
    edge, gap, line = 0.1, 0.06, 0.13
    start = edge + (0.32 if labelled else 0)
    side = (width - start - edge - gap * (len(titles) - 1)) / len(titles)
    places = [start + column * (side + gap) for column in range(len(titles))]
    letters = int((width - 2 * edge) / LETTER)
    headings = [textwrap.wrap(f"{panel.title}, {panel.caption}", letters) for panel in panels]
    lines = [handles for title, key in keys for handles in _split_key(title, key, width)]
    above = [len(heading) * line + 0.04 for heading in headings]
    head = 0.33
    strips = sum(len(panel.strips) for panel in panels) * (side + gap)
    height = edge + sum(above) + head + strips + 0.05 + 0.2 * len(lines)
    drawing = Drawing(figsize=(width, height))
    paper = _spread_paper(drawing)
    top = height - edge
    for i, panel in enumerate(panels):
        drawing.text(edge / width, top / height, "\n".join(headings[i]), fontsize=7, va="top")
        top -= above[i] + (0 if i else head)
        if not i:
            _write_titles(drawing, titles, places, top, side)
        for strip in panel.strips:
            label = drawing.text(edge / width, (top - side / 2) / height, strip.label.replace(": ", "\n"))
            label.set(fontsize=7, rotation=90, ha="left", va="center", ma="center")
            _draw_tiles(paper, strip.tiles, places, top, side)
            top -= side + gap
    for handles in lines:
        place = (edge / width, top / height)
        key = drawing.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=len(handles), **KEY_STYLE)
        key.get_texts()[0].set_fontweight("bold")
        top -= 0.2
    return drawing


def _spread_paper(drawing: Drawing) -> Axes:
    """Axes over a whole drawing, in inches: axes for each picture would take longer to make than to draw."""
    width, height = drawing.get_size_inches()
    paper = drawing.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height), autoscale_on=False)
    paper.set_axis_off()
    return paper


def _draw_tiles(paper: Axes, tiles: Sequence[Array], places: Sequence[float], top: float, side: float) -> None:
    """Place pictures side by side, each in the middle of its square."""
    for place, picture in zip(places, tiles, strict=True):
        high, wide = (side / max(picture.shape[:2]) * length for length in picture.shape[:2])
        left, foot = place + (side - wide) / 2, top - (side + high) / 2
        extent = (left, left + wide, foot, foot + high)
        paper.imshow(_enlarge(picture), interpolation="none", extent=extent, aspect="auto")


def _write_titles(drawing: Drawing, titles: Sequence[str], places: Sequence[float], foot: float, side: float) -> None:
    """Write what each column shows above it, on two lines and smaller where it has no room."""
    width, height = drawing.get_size_inches()
    bold = 0.078
    wrapped = [textwrap.fill(title, max(int(side / bold), 1), break_long_words=False) for title in titles]
    longest = max(len(line) for text in wrapped for line in text.split("\n"))
    size = 8 * min(1.0, side / (bold * longest))
    for text, place in zip(wrapped, places, strict=True):
        drawing.text(place / width, (foot + 0.06) / height, text, fontsize=size, weight="bold", va="bottom")


def _split_key(title: str, entries: Key, width: float) -> list[list[Patch]]:
    """The legend of colours, in as many lines as the width asks for; each begins with a title or a blank."""
    lines: list[list[Patch]] = []
    room = 0.0
    for name, colour in entries:
        needed = 0.4 + LETTER * len(name)
        if needed > room:
            lines.append([Patch(visible=False, label="" if lines else title)])
            room = width - 1
        lines[-1].append(Patch(facecolor=colour, edgecolor="#555555", linewidth=0.5, label=name))
        room -= needed
    return lines


def _enlarge(picture: Array) -> Array:
    """Repeat pixels until no viewer has a reason to blur them."""
    times = max(1, 256 // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
