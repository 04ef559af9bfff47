"""What does a reader see? The report of a run: rows -> tables, figures, pages. Never runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import polars as pl
import polars.selectors as cs
from rich.console import Console

from advseg_bench.cache import make_folder, write_bytes
from advseg_bench.errors import RecordError, SpecError, expected
from advseg_bench.instruments.allocator import without_collector
from advseg_bench.instruments.profiling import timed
from advseg_bench.report import figures
from advseg_bench.report.brief import print_summary
from advseg_bench.report.claims import compose_claims
from advseg_bench.report.contents import compose
from advseg_bench.report.document import WIDE, Document, Figure, Gallery, Table
from advseg_bench.report.page import render_html, render_markdown
from advseg_bench.report.painting import list_class_colours
from advseg_bench.report.sheets import encode_sheet
from advseg_bench.report.summary import Summary, summarise
from advseg_bench.report.terminal import print_document
from advseg_bench.report.verdicts import judge_runs
from advseg_bench.results.run import Run

__all__ = ["FORMATS", "Summary", "print_document", "print_summary", "summarise", "write_claims", "write_report"]

FORMATS = ("png", "pdf")
"""What figures can be written in, beside the SVG of charts and the PNG of sheets."""

T = TypeVar("T")


@timed("report")
@without_collector()
def write_report(
    run: Run | Summary, out: Path | None = None, *, formats: Sequence[str] = (), console: Console | None = None
) -> list[Path]:
    """Write the report of a run: Markdown, one HTML file, tables as CSV, charts as SVG, sheets of pictures as PNG.

    A run that is not finished is reported as far as it is, and says so. The same rows give the same bytes
    under the same versions of the libraries. Where a claim of arXiv 2401.11224 can be asked, its page is written too.

    Args:
        run: What to report, or its summary where one was made already.
        out: The folder; `report` in the run directory if None. A run in memory needs one.
        formats: Of `FORMATS`; every figure is written in these too.
        console: Where to print its sentences and main tables; nowhere if None.

    Returns:
        The files written: report.html, report.md, claims.html, claims.md, tables/*.csv, figures/*.

    Raises:
        RecordError: if a file of the run is damaged, or the folder cannot be written.
        SpecError: a format that there is not, or no folder for a run in memory.
    """
    _check_formats(formats)
    summary = summarise(run)
    folder = Path(out) if out is not None else summary.run.path and summary.run.path / "report"
    if folder is None:
        raise SpecError(expected("out", "a folder", out, "A run in memory has none of its own."))
    document = compose(summary)
    paths = _write(document, folder, "report", list_class_colours(summary.run.task), formats)
    if summary.judged.asked:
        paths += _write(compose_claims((summary.judged,)), folder, "claims", (), formats)
    if console is not None:
        print_document(document, console)
    return paths


@without_collector()
def write_claims(runs: Sequence[Run], out: Path, *, formats: Sequence[str] = ()) -> list[Path]:
    """Write the claims page of one or more runs, each on a data set of its own.

    Args:
        runs: What to judge.
        out: The folder.
        formats: As for `write_report`.

    Returns:
        The files written: claims.html, claims.md, tables/*.csv, figures/*.

    Raises:
        RecordError: If a run is given twice, or as `write_report`.
    """
    _check_formats(formats)
    paths = [run.path.resolve() for run in runs if run.path]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise RecordError(f"{twice[0]}: this run is given twice. Give each run once.")
    return _write(compose_claims(judge_runs(runs)), out, "claims", (), formats)


def _check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that figures cannot be written in. Raises: SpecError."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(expected("format", " or ".join(FORMATS), name))


def _write(
    document: Document, folder: Path, stem: str, colours: tuple[tuple[str, str], ...], formats: Sequence[str]
) -> list[Path]:
    """Write a document's pages, tables and figures; the figures' other formats, of an earlier report, go."""
    for part in ("tables", "figures"):
        make_folder(folder / part)
    files: dict[str, bytes] = {}
    wide = {}
    sheets = [sheet for gallery in _find(document, Gallery) for sheet in gallery.sheets]
    beside = ThreadPoolExecutor(1)
    try:  # Pillow compresses while charts are drawn; PDFs are matplotlib's, which is not for two threads
        encoded = beside.map(lambda sheet: encode_sheet(sheet.draw(), "png"), sheets)
        for figure in _find(document, Figure):
            kinds = dict.fromkeys(("svg", *formats))
            for kind, data in zip(kinds, figures.render(figure, WIDE, *kinds), strict=True):
                files[f"figures/{figure.name}.{kind}"] = data
            wide[figure.name] = files[f"figures/{figure.name}.svg"]
        for sheet, picture in zip(sheets, encoded, strict=True):
            files[f"figures/{sheet.name}.png"] = picture
            if "pdf" in formats:
                files[f"figures/{sheet.name}.pdf"] = encode_sheet(sheet.draw(), "pdf")
    finally:
        beside.shutdown(cancel_futures=True)
    for table in _find(document, Table):
        if table.data is not None:
            files[f"tables/{table.name}.csv"] = _as_csv(table.data)
    files[f"{stem}.md"] = render_markdown(document).encode()
    files[f"{stem}.html"] = render_html(document, wide, colours).encode()
    for name, data in files.items():
        write_bytes(folder / name, data)
    for name in {name.rsplit(".", 1)[0] for name in files if name.startswith("figures/")}:
        for kind in ("svg", *FORMATS):
            if f"{name}.{kind}" not in files:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
    return [folder / name for name in files]


def _find(document: Document, kind: type[T]) -> list[T]:
    """All blocks of a kind, in order."""
    return [block for section in document.sections for block in section.blocks if isinstance(block, kind)]


def _as_csv(data: pl.DataFrame) -> bytes:
    """Numbers in full but for the last digits, which depend on the order of summation."""
    return data.with_columns(cs.float().round(9)).write_csv().encode()
