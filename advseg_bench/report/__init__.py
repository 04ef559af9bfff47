"""The report of a run: rows -> tables, figures, pages. Never runs a model."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import polars as pl
import polars.selectors as cs
from rich.console import Console

from advseg_bench.cache import make_folder, write_bytes
from advseg_bench.report import figures, panels
from advseg_bench.report.contents import compose
from advseg_bench.report.document import WIDE, Document, Figure, Gallery, Table
from advseg_bench.report.page import render_html, render_markdown
from advseg_bench.report.terminal import print_document
from advseg_bench.results import Run

__all__ = ["print_report", "write_report"]

T = TypeVar("T")


def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Write the report of a run: Markdown, one HTML file, tables as CSV, figures as SVG and PNG.

    A run that is not finished is reported as far as it is, and says so. The same rows give the same bytes
    under the same versions of the libraries.

    Args:
        run: What to report.
        out: The folder; `report` in the run directory if None.
    Returns: The files written: report.html, report.md, tables/*.csv, figures/*.svg, figures/*.png.
    Raises: RecordError: if a file of the run is damaged, or the folder cannot be written.
    """
    folder = run.path / "report" if out is None else Path(out)
    for part in ("tables", "figures"):
        make_folder(folder / part)
    document = compose(run)
    drawn = list(_find(document, Figure))
    drawn += [figure for gallery in _find(document, Gallery) for figure in gallery.figures]
    pictures = {figure.name: figures.render(figure, WIDE, "svg", "png") for figure in drawn}
    wide = {name: svg for name, (svg, _) in pictures.items()}
    files = {
        "report.html": render_html(document, wide, panels.list_class_colours(run)).encode(),
        "report.md": render_markdown(document).encode(),
    }
    for table in _find(document, Table):
        if table.data is not None:
            files[f"tables/{table.name}.csv"] = _as_csv(table.data)
    for name, (svg, png) in pictures.items():
        files |= {f"figures/{name}.svg": svg, f"figures/{name}.png": png}
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def print_report(run: Run, console: Console) -> None:
    """Print the report's sentences and main tables on a terminal. Raises: as `write_report`."""
    print_document(compose(run), console)


def _find(document: Document, kind: type[T]) -> list[T]:
    """All blocks of a kind, in order."""
    return [block for section in document.sections for block in section.blocks if isinstance(block, kind)]


def _as_csv(data: pl.DataFrame) -> bytes:
    """Numbers in full but for the last digits, which depend on the order of summation."""
    return data.with_columns(cs.float().round(9)).write_csv().encode()
