"""Image files: sheets with rows of images for print, and single images for the page."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from advseg_bench.errors import tidy
from advseg_bench.report.document import DPI, LONGEST_LABEL, WIDE, Array, Panel, tidy_all

LARGEST_SIDE = 128
NARROWER = 6.5
"""Width in inches of a case over eps, so that its rows fit on a page."""
EDGE, GAP, LINE, KEY_LINE = 0.1, 0.06, 0.13, 0.2
"""In inches: margin of a sheet, gap between images, height of a line of 7 points, height of a line of a legend."""

Font = ImageFont.FreeTypeFont
Key = Sequence[tuple[str, str]]
"""Name and colour of each entry of a legend."""


def encode_png(tile: Array) -> bytes:
    """Encode an image as PNG, reduced to at most `LARGEST_SIDE` pixels per side."""
    image = Image.fromarray(tile)
    largest = max(image.size)
    if largest > LARGEST_SIDE:
        size = tuple(max(1, round(side * LARGEST_SIDE / largest)) for side in image.size)
        image = image.resize(size, Image.Resampling.BOX)  # type: ignore[arg-type]
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_sheet(image: Image.Image, kind: str) -> bytes:
    """Encode a sheet as "png" or "pdf", with reproducible bytes."""
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, format="PNG", dpi=(DPI, DPI))
    else:
        # Pillow would compress the image as JPEG inside the PDF.
        drawing = Figure(figsize=(image.width / DPI, image.height / DPI), dpi=DPI)
        drawing.figimage(np.asarray(image))
        drawing.savefig(buffer, format="pdf", dpi=DPI, metadata={"CreationDate": None})
    return buffer.getvalue()


def draw_sheet(panels: Sequence[Panel], keys: Sequence[tuple[str, Key]]) -> Image.Image:
    """Make a sheet for print: the rows of images below the headings of their panels.

    Args:
        panels: Panels with the same columns.
        keys: Titles and entries of the legends below.

    Returns:
        The sheet at `DPI`, with the width of a page; narrower if rows have labels.
    """
    panels = [tidy_all(panel) for panel in panels]
    keys = [(title, [(tidy(name, LONGEST_LABEL), colour) for name, colour in key]) for title, key in keys]
    titles, labelled = panels[0].titles, bool(panels[0].strips[0].label)
    width = NARROWER if labelled else WIDE
    start = EDGE + (0.32 if labelled else 0)
    side = (width - start - EDGE - GAP * (len(titles) - 1)) / len(titles)
    places = [start + column * (side + GAP) for column in range(len(titles))]
    headings = [_wrap(f"{panel.title}, {panel.caption}", width - 2 * EDGE, _font()) for panel in panels]
    heads = [_wrap(title, side, _font(bold=True)) for title in titles]
    legend = [line for title, key in keys for line in _split_key(title, key, width - 2 * EDGE)]
    room = max(map(len, heads)) * LINE + GAP
    text = room + sum(len(heading) * LINE + GAP for heading in headings)
    height = 2 * EDGE + text + sum(len(panel.strips) for panel in panels) * (side + GAP) + len(legend) * KEY_LINE

    paper = _Paper(width, height)
    top = EDGE
    for i, (panel, heading) in enumerate(zip(panels, headings, strict=True)):
        for line in heading:
            paper.write(line, EDGE, top)
            top += LINE
        if not i:
            top += room
            for lines, place in zip(heads, places, strict=True):
                for up, line in enumerate(reversed(lines), 1):
                    paper.write(line, place, top - up * LINE, _font(bold=True))
        top += GAP
        for strip in panel.strips:
            if strip.label:
                paper.write_upwards(strip.label.split(": "), EDGE, top + side / 2)
            for place, tile in zip(places, strip.tiles, strict=True):
                paper.paste(tile, place, top, side)
            top += side + GAP
    for title, entries in legend:
        paper.write(title, EDGE, top, _font(bold=True))
        left = EDGE + _measure(title, _font(bold=True)) + 2 * GAP
        for name, colour in entries:
            paper.fill(colour, left, top, 0.1)
            paper.write(name, left + 0.15, top)
            left += _width_of_entry(name)
        top += KEY_LINE
    return paper.image


class _Paper:
    """A white page with coordinates in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (_dots(width), _dots(height)), "white")
        self.pen = ImageDraw.Draw(self.image)

    def write(self, text: str, left: float, top: float, font: Font | None = None) -> None:
        """Write one line."""
        self.pen.text((_dots(left), _dots(top)), text, fill="black", font=font or _font())

    def write_upwards(self, lines: Sequence[str], left: float, middle: float) -> None:
        """Write lines from bottom to top, each centred vertically at `middle`."""
        for i, line in enumerate(lines):
            size = (_dots(_measure(line, _font())) + 2, _dots(LINE))
            label = Image.new("RGB", size, "white")
            ImageDraw.Draw(label).text((0, 0), line, fill="black", font=_font())
            label = label.transpose(Image.Transpose.ROTATE_90)
            self.image.paste(label, (_dots(left + i * LINE), _dots(middle) - label.height // 2))

    def paste(self, tile: Array, left: float, top: float, side: float) -> None:
        """Centre an image in a square: enlarged by repeating pixels, without blur, or reduced by averaging."""
        scale = _dots(side) / max(tile.shape[:2])
        height, width = (max(1, round(length * scale)) for length in tile.shape[:2])
        how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
        picture = Image.fromarray(tile).resize((width, height), how)
        self.image.paste(picture, (_dots(left + side / 2) - width // 2, _dots(top + side / 2) - height // 2))

    def fill(self, colour: str, left: float, top: float, side: float) -> None:
        """Fill a square with a colour."""
        corners = (_dots(left), _dots(top), _dots(left + side), _dots(top + side))
        self.pen.rectangle(corners, fill=colour, outline="#555555")


def _split_key(title: str, entries: Key, width: float) -> list[tuple[str, Key]]:
    """Break a legend of colours into lines that fit the width; the first begins with the title."""
    lines: list[tuple[str, list[tuple[str, str]]]] = [(title, [])]
    room = width - _measure(title, _font(bold=True)) - 2 * GAP
    for name, colour in entries:
        if _width_of_entry(name) > room and lines[-1][1]:
            lines.append(("", []))
            room = width - 2 * GAP
        lines[-1][1].append((name, colour))
        room -= _width_of_entry(name)
    return [(head, tuple(key)) for head, key in lines]


def _width_of_entry(name: str) -> float:
    """Return the width of a colour and its name in inches, with the gap after it."""
    return 0.15 + _measure(name, _font()) + 0.15


def _wrap(text: str, width: float, font: Font) -> list[str]:
    """Break a text into lines of at most `width` inches: at spaces, and within words that are longer."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _measure(longer, font) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and _measure(lines[-1] + letter, font) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _measure(text: str, font: Font) -> float:
    """Return the width of a line in inches."""
    return font.getlength(text) / DPI


def _dots(inches: float) -> int:
    """Convert inches to dots."""
    return round(inches * DPI)


@functools.cache
def _font(*, bold: bool = False) -> Font:
    """Return the font of the charts in 7 points, with a layout that is the same on every machine."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSans{'-Bold' * bold}.ttf")
    return ImageFont.truetype(str(path), 7 * DPI / 72, layout_engine=ImageFont.Layout.BASIC)
