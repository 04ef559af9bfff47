"""What does a reader see? The report of a run: rows -> tables, figures, pages. It runs no model."""

from __future__ import annotations

import re
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
from advseg_bench.results.remote import attach, publish
from advseg_bench.results.run import Run

__all__ = ["FORMATS", "Summary", "print_document", "print_summary", "summarise", "write_claims", "write_report"]

FORMATS = ("png", "pdf")
"""Formats in which figures can be written, besides SVG for charts and PNG for sheets of images."""

_FORMULA = "^[=+@\\t\\r-]"
"""The first characters of a formula in a spreadsheet."""

PARTS = ("tables", "figures")
"""Folders of a report."""

T = TypeVar("T")


@timed("report")
@without_collector()
def write_report(
    run: Run | Summary, out: Path | None = None, *, formats: Sequence[str] = (), console: Console | None = None
) -> list[Path]:
    """Write the report of a run: Markdown, one HTML file, tables as CSV, charts as SVG, sheets of images as PNG.

    The report of an unfinished run uses the available results and states how many are missing. The same rows give the
    same bytes with the same versions of the libraries. If the run has the arms for a claim of arXiv 2401.11224, the
    claims page is written too.

    Args:
        run: The run, or its summary if it is computed already.
        out: The output folder; `report` in the run directory if None. Required for a run in memory.
        formats: Additional formats of all figures, from `FORMATS`.
        console: The console on which sentences and main tables are printed; nothing is printed if None.

    Returns:
        The files written: report.html, report.md, claims.html, claims.md, tables/*.csv, figures/*.

    Raises:
        RecordError: If a file of the run is damaged, or the folder cannot be written.
        SpecError: If a format is unknown, or `out` is missing for a run in memory.
    """
    _check_formats(formats)
    summary = summarise(run)
    folder = attach(out) if out is not None else summary.run.path and summary.run.path / "report"
    if folder is None:
        raise SpecError(expected("out", "a folder", out, "Pass one, since a run in memory has no run directory."))
    document = compose(summary)
    paths = _write(document, folder, "report", list_class_colours(summary.run.task), formats)
    if summary.judged.asked:
        paths += _write(compose_claims((summary.judged,)), folder, "claims", (), formats)
    if console is not None:
        print_document(document, console)
    return paths


@without_collector()
def write_claims(runs: Sequence[Run], out: Path, *, formats: Sequence[str] = ()) -> list[Path]:
    """Write the claims page of one or more runs, such as of several data sets.

    Args:
        runs: The runs.
        out: The output folder.
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
    return _write(compose_claims(judge_runs(runs)), attach(out), "claims", (), formats)


def _check_formats(formats: Sequence[str]) -> None:
    """Reject formats in which figures cannot be written, by `SpecError`."""
    for name in formats:
        if name not in FORMATS:
            raise SpecError(expected("format", " or ".join(FORMATS), name))


def _write(
    document: Document, folder: Path, stem: str, colours: tuple[tuple[str, str], ...], formats: Sequence[str]
) -> list[Path]:
    """Write a document's pages, tables and figures; delete other formats of the figures from an earlier report."""
    for part in PARTS:
        make_folder(folder / part)
        if (folder / part).is_symlink():
            raise RecordError(expected(folder / part, "a folder of the report", "a link", "Delete it."))
    files: dict[str, bytes] = {}
    wide = {}
    sheets = [sheet for gallery in _find(document, Gallery) for sheet in gallery.sheets]
    beside = ThreadPoolExecutor(1)
    try:  # Pillow compresses while charts are drawn; matplotlib, which makes the PDFs, is not thread-safe
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
    for name in files:  # parts of names come from the run, which may be a stranger's
        if (folder / name).parent not in (folder, *(folder / part for part in PARTS)) or "\0" in name:
            raise RecordError(expected(folder, "names of files in this folder", name, "Do not use this run."))
    for name, data in files.items():
        write_bytes(folder / name, data)
    gone = []
    for name in {name.rsplit(".", 1)[0] for name in files if name.startswith("figures/")}:
        for kind in ("svg", *FORMATS):
            if f"{name}.{kind}" not in files:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)
                gone.append(f"{name}.{kind}")
    publish(folder, files, gone)
    return [folder / name for name in files]


def _find(document: Document, kind: type[T]) -> list[T]:
    """Return all elements of a type, in order."""
    return [block for section in document.sections for block in section.blocks if isinstance(block, kind)]


def _as_csv(data: pl.DataFrame) -> bytes:
    """Write a CSV with 9 decimals; further digits depend on the order of summation.

    A text that a spreadsheet would compute begins with an apostrophe, which spreadsheets hide.
    """
    plain = data.with_columns(cs.float().round(9), cs.string().str.replace(_FORMULA, "'$0"))
    return plain.rename(lambda name: re.sub(_FORMULA, r"'\g<0>", name)).write_csv().encode()
