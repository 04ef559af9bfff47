"""Renders a document as Markdown and as one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from advseg_bench.report import figures
from advseg_bench.report.document import (
    NARROW,
    Code,
    Document,
    Figure,
    Gallery,
    Table,
    Text,
    tidy_all,
)
from advseg_bench.report.painting import ERROR_COLOURS
from advseg_bench.report.sheets import encode_png

_LINK = re.compile(r"\]([(:\[])")
"""Where a link or its address would begin."""

_CODE = re.compile(r"(?<![^\s(])`\w+`(?!\w)")
"""A key of a suite, as sentences write it."""

_LEADING = re.compile(r"^([#>+~=*-])")
"""What makes a heading, quotation, list or rule of a line that begins with it."""

LARGEST_GALLERY = 1_500_000
"""Maximum size in bytes of the images of a gallery in the HTML page; further cases are only in the figure files."""


def render_html(document: Document, wide: Mapping[str, bytes], colours: tuple[tuple[str, str], ...]) -> str:
    """Render the page: figures inlined at two widths, no script, no external resource.

    Args:
        document: The document.
        wide: The SVG of each of its figures for a desktop screen; those for a phone are drawn here.
        colours: Name and colour of each class in the images.

    Returns:
        The HTML.
    """
    environment = Environment(
        loader=PackageLoader("advseg_bench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [
        {"anchor": s.anchor, "title": s.title, "blocks": [_prepare(block, wide) for block in s.blocks]}
        for s in document.sections
    ]
    template = environment.get_template("page.html.j2")
    return template.render(
        document=document,
        sections=sections,
        classes=tidy_all(colours),
        errors=tuple(ERROR_COLOURS.items()),
    )


def render_markdown(document: Document) -> str:
    """Render Markdown that refers to the figure files beside it."""
    lines = [f"# {_escape(document.title)}", ""]
    lines += [f"> **{_escape(warning)}**\n" for warning in document.warnings]
    lines += [f"- {_escape(label)}: {_escape(value)}" for label, value in document.facts]
    for section in document.sections:
        lines += ["", f"## {_escape(section.title)}", ""]
        for block in section.blocks:
            lines += [*_as_markdown(block, section.title), ""]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def _as_markdown(block: object, section: str) -> list[str]:
    """Return the lines of one element; a table with the title of its section gets no separate heading."""
    match block:
        case Text():
            sentences = [_LEADING.sub(r"\\\1", _escape(sentence)) for sentence in block.sentences]
            return [f"- {s}" for s in sentences] if block.bullets else ["\n\n".join(sentences)]
        case Code():
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", block.text)), default=0))
            return [fence, block.text, fence] if not block.title else []
        case Figure():
            return [f"![{_escape_title(block.title)}](figures/{block.name}.svg)", "", _escape(block.caption)]
        case Gallery():
            lines = []
            for sheet in block.sheets:
                own = [_escape(sheet.caption), ""] if sheet.caption != block.caption else []
                lines += [f"![{_escape_title(sheet.title)}](figures/{sheet.name}.png)", "", *own]
            return [*lines, _escape(block.caption)]
        case Table():
            head = [column.label for column in block.columns]
            rule = ["---:" if column.number else ":---" for column in block.columns]
            rows = [head, rule, *block.rows()]
            lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in rows]
            heading = [] if block.title == section else [f"### {_escape(block.title)}", ""]
            return [*heading, *lines, "", _escape(block.caption)]
    raise AssertionError(f"no Markdown for {type(block).__name__}")


def _escape(text: str) -> str:
    """Escape text so that Markdown shows it as it is: no element, link, code or column of a table begins in it."""
    plain = " ".join(text.split()).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    whole = _CODE.sub("", plain).count("`") == 0  # keys that a sentence names
    return _LINK.sub(r"]\\\1", plain if whole else plain.replace("`", "\\`"))


def _escape_title(text: str) -> str:
    """Escape the description of an image, in which every bracket counts."""
    return _escape(text).replace("]\\(", "](").replace("[", "\\[").replace("]", "\\]")


def _prepare(block: object, wide: Mapping[str, bytes]) -> dict[str, Any]:
    """Prepare an element for the template: encode its figures and images."""
    prepared: dict[str, Any] = {"kind": type(block).__name__, "block": block}
    if isinstance(block, Figure):
        (narrow,) = figures.render(block, NARROW, "svg")
        prepared["wide"] = _data_uri(wide[block.name], "svg+xml")
        prepared["narrow"] = _data_uri(narrow, "svg+xml")
    elif isinstance(block, Gallery):
        shown, size = [], 0
        for panel in block.panels:
            strips = [(strip.label, [encode_png(tile) for tile in strip.tiles]) for strip in panel.strips]
            size += sum(len(picture) for _, pictures in strips for picture in pictures)
            if size > LARGEST_GALLERY:
                break
            encoded = [(label, [_data_uri(picture, "png") for picture in pictures]) for label, pictures in strips]
            shown.append((panel, encoded))
        prepared["shown"], prepared["left_out"] = shown, len(block.panels) - len(shown)
    return prepared


def _data_uri(data: bytes, kind: str) -> str:
    """Return an image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
