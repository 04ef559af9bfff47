"""The report of a run: rows -> tables, figures, pages. Never runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl
import polars.selectors as cs
from rich.console import Console

from advseg_bench.cache import make_folder, write_bytes
from advseg_bench.errors import RecordError
from advseg_bench.profiling import timed
from advseg_bench.report import figures, panels
from advseg_bench.report.claims import compose_claims
from advseg_bench.report.contents import compose
from advseg_bench.report.document import WIDE, Document, Figure, Gallery, Table
from advseg_bench.report.page import render_html, render_markdown
from advseg_bench.report.terminal import print_document
from advseg_bench.results import Run

__all__ = ["print_report", "write_claims", "write_report"]

T = TypeVar("T")


@timed("report")
def write_report(run: Run, out: Path | None = None) -> list[Path]:
    """Write the report of a run: Markdown, one HTML file, tables as CSV, figures as SVG and PNG.

    A run that is not finished is reported as far as it is, and says so. The same rows give the same bytes
    under the same versions of the libraries. Where a claim of arXiv 2401.11224 can be asked, its page is written too.

    Args:
        run: What to report.
        out: The folder; `report` in the run directory if None.
    Returns: The files written: report.html, report.md, claims.html, claims.md, tables/*.csv, figures/*.svg,
        figures/*.png.
    Raises: RecordError: if a file of the run is damaged, or the folder cannot be written.
    """
    folder = run.path / "report" if out is None else Path(out)
    document = compose(run)
    paths = _write(document, folder, "report", panels.list_class_colours(run))
    if any(section.anchor == "claims" for section in document.sections):
        paths += _write(compose_claims((run,)), folder, "claims", ())
    return paths


def write_claims(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write the claims page of one or more runs, each on a data set of its own.

    Args:
        runs: What to judge.
        out: The folder.
    Returns: The files written: claims.html, claims.md, tables/*.csv, figures/*.svg, figures/*.png.
    Raises: RecordError: as `write_report`, or if a run is given twice.
    """
    paths = [run.path.resolve() for run in runs]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise RecordError(f"{twice[0]}: this run is given twice. Give each run once.")
    return _write(compose_claims(runs), out, "claims", ())


def _write(document: Document, folder: Path, stem: str, colours: tuple[tuple[str, str], ...]) -> list[Path]:
    """Write a document in every format, with its tables and figures."""
    for part in ("tables", "figures"):
        make_folder(folder / part)
    drawn = list(_find(document, Figure))
    drawn += [figure for gallery in _find(document, Gallery) for figure in gallery.figures]
    pictures = {figure.name: figures.render(figure, WIDE, "svg", "png") for figure in drawn}
    wide = {name: svg for name, (svg, _) in pictures.items()}
    files = {
        f"{stem}.html": render_html(document, wide, colours).encode(),
        f"{stem}.md": render_markdown(document).encode(),
    }
    for table in _find(document, Table):
        if table.data is not None:
            files[f"tables/{table.name}.csv"] = _as_csv(table.data)
    for name, (svg, png) in pictures.items():
        files |= {f"figures/{name}.svg": svg, f"figures/{name}.png": png}
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


@timed("report")
def print_report(run: Run, console: Console) -> None:
    """Print the report's sentences and main tables on a terminal. Raises: as `write_report`."""
    print_document(compose(run), console)


def _find(document: Document, kind: type[T]) -> list[T]:
    """All blocks of a kind, in order."""
    return [block for section in document.sections for block in section.blocks if isinstance(block, kind)]


def _as_csv(data: pl.DataFrame) -> bytes:
    """Numbers in full but for the last digits, which depend on the order of summation."""
    return data.with_columns(cs.float().round(9)).write_csv().encode()
