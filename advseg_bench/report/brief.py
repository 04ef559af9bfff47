"""The summary of a run on a terminal, on at most 40 lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from advseg_bench.errors import tidy
from advseg_bench.instruments.process_entry import CHANGED
from advseg_bench.report.behaviour import describe_models, list_non_finite, list_weak
from advseg_bench.report.contrasts import Contrast, show_ratio
from advseg_bench.report.document import LONGEST_PARAGRAPH, show_budget, show_number, show_plural
from advseg_bench.report.findings import shorten_list, write_findings
from advseg_bench.report.means import Row, write_mean
from advseg_bench.report.measured import NOTES
from advseg_bench.report.series import NORMS
from advseg_bench.report.summary import Summary, summarise
from advseg_bench.report.verdicts import Judged, describe_shortage
from advseg_bench.results.remote import show_place
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets
from advseg_bench.suite.cells import show_radii

MOST_LINES = 40
"""Largest number of lines of a summary."""

MOST_NAMES = 3
"""Largest number of names in a list."""

GAP = 2
"""Number of spaces between two columns of a table."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Each model's strongest attack beside noise, in columns that fit a width.

    Attributes:
        names: Title and cells of the text columns.
        numbers: Title and cells of the number columns.
        intervals: Whether the numbers are shown with their intervals.
    """

    names: dict[str, list[str]]
    numbers: dict[str, list[str]]
    intervals: bool

    def measure(self, columns: dict[str, list[str]]) -> list[int]:
        """Return the widths of some columns."""
        return [max(map(cell_len, (title, *cells))) for title, cells in columns.items()]

    def fits(self, width: int) -> bool:
        """Return whether every cell fits without truncation on lines of this width."""
        widths = self.measure(self.names) + self.measure(self.numbers)
        return sum(widths) + GAP * (len(widths) - 1) <= width

    def draw(self, width: int, rows: int) -> RichTable:
        """Return the first rows, one line each; names are truncated where the lines are too short."""
        numbers = self.measure(self.numbers)
        room = width - sum(numbers) - GAP * (len(numbers) + len(self.names) - 1)
        model, attack = self.measure(self.names)
        model = max(min(model, max(room - attack, room // 2)), 1)
        table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="")
        for title, size in zip(self.names, (model, max(min(attack, room - model), 1)), strict=True):
            table.add_column(title, width=size, no_wrap=True, overflow="ellipsis")
        for title, size in zip(self.numbers, numbers, strict=True):
            table.add_column(title, width=size, no_wrap=True, justify="right")
        columns = [*self.names.values(), *self.numbers.values()]
        for cells in list(zip(*columns, strict=True))[:rows]:
            table.add_row(*(RichText(tidy(cell)) for cell in cells))
        return table


def print_summary(run: Run | Summary, paths: Sequence[Path], console: Console) -> None:
    """Print the summary of a run on at most 40 lines of the console's width.

    It has the title, the models, attacks and data, the findings, attack against noise for each model, the verdicts on
    the study's claims, skips, failures and flags if there are any, and the paths of the claims page and the report.

    Args:
        run: The run, or its summary if it is computed already.
        paths: The output of `write_report`.
        console: The console to print on.
    """
    summary = summarise(run)
    contrasts = summary.contrasts
    grid = _lay_out(contrasts, console.width)
    sentences = write_findings(summary, MOST_NAMES, intervals=grid.intervals)
    titles = {"claims.html": "Claims", "report.html": "Report"}
    page = [f"{title}: {show_place(path)}" for name, title in titles.items() for path in paths if path.name == name]
    head = [
        *_fit([summary.run.about.suite.title], 1, console, "bold"),
        *_fit(_describe_run(summary), 4, console),
        *_fit(_list_warnings(summary), 3, console, "bold red"),
        *_fit(describe_models(summary.run), 2, console),
    ]
    reach = _fit(sentences[-1:], 2, console, bullet="- ")  # the scope of all findings, so it is never left out
    found = [RichText(), *_fit(sentences[:-1], 8, console, bullet="- "), *reach]
    claims = _fit(_list_verdicts(summary.judged), 9, console)
    trouble = [*_fit(_list_skips(summary.run), 2, console), *_fit(_list_trouble(summary), 3, console, "red")]
    end = [RichText(), *claims, *trouble] if claims or trouble or page else []
    rest = sum(math.ceil(cell_len(line) / console.width) for line in page)
    room = MOST_LINES - len(head) - len(found) - len(end) - rest - 3
    _print(console, [*head, *found])
    if contrasts:
        _print(console, [RichText(), *_fit([_title(summary)], 1, console, "bold")])
        shown = len(contrasts) if len(contrasts) <= room else max(room - 1, 1)
        console.print(grid.draw(console.width, shown))
        if more := len(contrasts) - shown:
            _print(console, [RichText(f"... and {more} more in the report")])
    _print(console, end)
    for line in page:
        console.print(RichText(tidy(line, LONGEST_PARAGRAPH)), soft_wrap=True)


def _print(console: Console, lines: Iterable[RichText]) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, highlight=False)


def _fit(sentences: Iterable[str], most: int, console: Console, style: str = "", *, bullet: str = "") -> list[RichText]:
    """Break sentences into lines, two each and `most` in total; "..." marks what is left out."""
    lines: list[RichText] = []
    for sentence in sentences:
        wrapped = list(RichText(tidy(sentence, LONGEST_PARAGRAPH), style).wrap(console, console.width - len(bullet)))
        kept = wrapped[: min(2, most - len(lines))]
        if kept and len(kept) < len(wrapped):
            kept[-1].truncate(console.width - len(bullet) - 4)
            kept[-1].rstrip()
            kept[-1].append(" ...")
        margins = [bullet] + [" " * len(bullet)] * len(kept)
        lines += [RichText.assemble(margin, line) for margin, line in zip(margins, kept, strict=False)]
    return lines


def _describe_run(summary: Summary) -> list[str]:
    """Describe the data, the models and the attacks."""
    about, series = summary.run.about, summary.series
    classes = shorten_list(about.task.classes, MOST_NAMES)
    images = show_plural(about.data.images, "test volume" if about.suite.of_volumes else "test image")
    known = None if about.data.by_image else about.data.subjects
    subjects = f" of {show_plural(known, 'subject')}" if known else ""
    text = [f"{about.suite.name} on {about.data.title} ({about.task.kind}: {classes}), {images}{subjects}."]
    attacks, controls = ([s.label for s in series if s.single], [s.label for s in series if s.control])
    if attacks:
        beside = f" beside {shorten_list(controls, MOST_NAMES)}" if controls else ""
        eps = "; ".join(f"{_show_budgets(b)} ({NORMS.get(b.norm, b.norm)})" for b in summary.budgets)
        models = show_plural(len(about.models), "model")
        text.append(f"{models}: {shorten_list(attacks, MOST_NAMES)}{beside}, eps {eps}.")
    return text


def _show_budgets(budgets: Budgets) -> str:
    """Write a few budgets one by one, and more of them as a range."""
    if len(budgets.eps) <= MOST_NAMES:
        return ", ".join(show_budget(eps, budgets.norm, budgets.width) for eps in budgets.eps)
    return show_radii(budgets.eps, budgets.norm, budgets.width)


def _list_warnings(summary: Summary) -> list[str]:
    """Return the cautions to show before any number, in short."""
    run = summary.run
    note = [run.about.suite.note] if run.about.suite.note else []
    warnings = [*list_weak(summary), *list_non_finite(summary), *note]
    if run.missing:
        warnings.append(f"Incomplete: {run.missing:,} of {run.planned:,} results are missing.")
    return warnings


def _title(summary: Summary) -> str:
    """Return the title of the table."""
    first = summary.budgets[0]
    return f"Attack against noise at eps {show_budget(first.reference, first.norm, first.width)}: drop of mean Dice"


def _lay_out(contrasts: Sequence[Contrast], width: int) -> Grid:
    """Choose the columns that fit: with intervals, without intervals, or fewer columns."""
    worst = any(c.worst for c in contrasts)
    single = "Strongest single" if worst else "Strongest attack"
    names = {"Model": [c.model for c in contrasts], single: [c.label for c in contrasts]}
    scores = {
        "Clean": [show_number(c.shown_clean) for c in contrasts],
        "Attacked": [show_number(c.shown_clean - c.shown_drop["mean"]) for c in contrasts],
    }
    rows: dict[str, list[Row | None]] = {"Worst": [c.shown_drop for c in contrasts]} if worst else {}
    rows |= {"Single" if worst else "Drop": [c.drop for c in contrasts], "Noise": [c.noise for c in contrasts]}
    drops = {title: [write_mean(row) for row in column] for title, column in rows.items()}
    short = {title: [_write_alone(row) for row in column] for title, column in rows.items()}
    ratios = {"Ratio": [show_ratio(c) for c in contrasts]}
    full = Grid(names, scores | drops | ratios, intervals=True)
    plain = Grid(names, scores | short | ratios, intervals=drops == short)
    few = {title: column for title, column in short.items() if not (worst and title == "Noise")}
    fewest = Grid(names, few | ratios, intervals=drops == short)
    return next((grid for grid in (full, plain) if grid.fits(width)), fewest)


def _write_alone(row: Row | None) -> str:
    """Write a mean without its interval."""
    return show_number(row["mean"] if row else None)


def _list_verdicts(judged: Judged) -> list[str]:
    """Return the verdicts on the study's claims."""
    if not judged.asked:
        return []
    verdicts = [f"Claim {i}, {claim.verdict}: {claim.statement}" for i, claim in judged.shown]
    title = ["Claims of arXiv 2401.11224"] if verdicts else []
    return [line for line in (*title, *verdicts, describe_shortage(judged)) if line]


def _list_skips(run: Run) -> list[str]:
    """Return the number of skipped cells and the first reason."""
    skips = [cell.skip for cell in run.about.cells if cell.skip]
    reasons = shorten_list(list(dict.fromkeys(skips)), 1)
    return [f"Skipped: {show_plural(len(skips), 'cell')}: {reasons}."] if skips else []


def _list_trouble(summary: Summary) -> list[str]:
    """Return failures, flags and doubts, in one line each."""
    failures, lines = summary.run.failures, []
    if failures:
        labels = {cell.id: cell.label for cell in summary.run.about.cells}
        first = failures[0]
        what = labels.get(first["cell"], f"all of {first['model']}")
        more = f" ({len(failures) - 1} more in the report)" if len(failures) > 1 else ""
        lines.append(f"Failed{more}: {what}: {first['message']}")
    faults = summary.flags.filter(~pl.col("flag").is_in([*NOTES, CHANGED]))  # a second flag names what was changed
    counts = faults.group_by("flag", maintain_order=True).agg(results=pl.col("results").sum())
    if len(counts):
        flags = [f"{flag.replace(':', ': ')} {count:,}" for flag, count in counts.iter_rows()]
        lines.append(f"Flagged results: {shorten_list(flags, MOST_NAMES)}; see Checks in the report.")
    if summary.doubts:
        names = list(dict.fromkeys(found.doubt for found in summary.doubts))
        lines.append(f"Doubts about attacks: {shorten_list(names, MOST_NAMES)}; see Checks in the report.")
    return lines
