"""What a report says, in the order in which a reader wants it. One place for every output format."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

import polars as pl

from advseg_bench.report import curves, figures, integrity, panels, tables
from advseg_bench.report.claims import Judged, judge_runs, summarise_claims
from advseg_bench.report.document import (
    Block,
    Code,
    Document,
    Section,
    Table,
    Text,
    show_budget,
    show_plural,
)
from advseg_bench.report.findings import Contrast, contrast_models, write_findings
from advseg_bench.report.series import NORMS, Series, list_series
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, list_budgets

MOST_NAMES = 8
"""Attacks that are named at the head of a report."""


def compose(run: Run, judged: Judged | None = None) -> Document:
    """Compose the report of a run, finished or not; `judged` if its claims were judged already."""
    suite = run.info["suite"]
    series = list_series(run)
    budgets = list_budgets(run)
    contrasts = contrast_models(run, budgets[0], series) if budgets else []
    clean = not run.rows.filter(pl.col("attack") == "none").is_empty()
    sections = (
        _summarise(run, budgets, contrasts),
        Section("claims", "Claims of arXiv 2401.11224", summarise_claims(judged or judge_runs((run,))[0])),
        Section("models", "Models before the attack", (tables.make_clean_table(run),) if clean else ()),
        *(_show_sweep(run, each, series) for each in budgets),
        *(_show_success(run, each, series) for each in budgets),
        *_show_details(run, budgets, series, contrasts),
        _show_cases(run),
        Section("integrity", "Checks, skips and failures", _check(run, series)),
        Section("repeat", "Versions and commands to repeat it", _repeat(run)),
    )
    return Document(
        title=suite.get("title") or suite["name"],
        facts=_list_facts(run, series, budgets),
        warnings=_warn(run),
        sections=tuple(section for section in sections if section.blocks),
    )


def _list_facts(run: Run, series: tuple[Series, ...], budgets: tuple[Budgets, ...]) -> tuple[tuple[str, str], ...]:
    """The run at a glance."""
    data, info = run.info["data"], run.info
    subjects = data.get("subjects", {}).get("test")
    images = show_plural(data["splits"]["test"], "test volume" if run.of_volumes else "test image")
    voxels = "; pixels are voxels" if run.of_volumes else ""
    swept = "; ".join(f"{', '.join(show_budget(eps) for eps in b.eps)} ({NORMS.get(b.norm, b.norm)})" for b in budgets)
    facts = {
        "Suite": info["suite"]["name"],
        "Data": f"{data['name']}, {data['kind']}: {', '.join(data['classes'])}",
        "Tested on": images + (f" of {show_plural(subjects, 'subject')}" if subjects else "") + voxels,
        "Models": ", ".join(run.model_names),
        "Attacks": _list_attacks([s.label for s in series if not s.control]) or "none yet",
        "Controls": ", ".join(s.label for s in series if s.control) or "none",
        "eps": swept or "none yet",
        "Started": info.get("started", "unknown").replace("T", " ").replace("+00:00", " UTC"),
    }
    return tuple(facts.items())


def _list_attacks(labels: Sequence[str]) -> str:
    """The first of many names, and how many there are."""
    more = len(labels) - MOST_NAMES
    return ", ".join(labels[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _warn(run: Run) -> tuple[str, ...]:
    """What a reader must know before any number."""
    warnings = []
    if note := run.info["suite"].get("note"):
        warnings.append(note)
    if run.missing:
        share = run.missing / run.planned
        share_text = f"{share:.0%}" if share >= 0.01 else "under 1 %"
        models = {f["model"] for f in run.failures if f["cell"] is None}
        cells = {f["cell"] for f in run.failures} | {c["id"] for c in run.info["cells"] if c["model"] in models}
        failed = sum(count for cell, count in run.missing_by_cell().items() if cell in cells)
        because = f", {'all' if failed == run.missing else f'{failed:,}'} of them of what failed" if failed else ""
        warnings.append(
            f"Incomplete: {run.missing:,} of {run.planned:,} results are missing ({share_text}){because}. The numbers "
            "below are of the results that are there, so rows may rest on different images. Run the same command "
            "again to complete it."
        )
    if run.failures:
        what = show_plural(len(run.failures), "failure")
        warnings.append(f"Failed: {what}, listed under Checks. Nothing below counts them.")
    return tuple(warnings)


def _summarise(run: Run, budgets: tuple[Budgets, ...], contrasts: list[Contrast]) -> Section:
    """What was found."""
    blocks: list[Block] = []
    if budgets and contrasts:
        blocks.append(Text(write_findings(run, budgets[0], contrasts), bullets=True))
        blocks.append(tables.make_noise_table(run, budgets[0], contrasts))
    else:
        blocks.append(Text(("No attack has a result yet.",)))
    note = run.info["data"].get("note")
    if note:
        blocks.append(Text((f"About the data: {note}",)))
    return Section("findings", "What was found", tuple(blocks))


def _show_sweep(run: Run, budgets: Budgets, series: tuple[Series, ...]) -> Section:
    """Dice and Diff over the budgets."""
    suffix = "" if budgets.norm == "linf" else f" ({NORMS.get(budgets.norm, budgets.norm)})"
    blocks: list[Block] = []
    if run.rows.filter(pl.col("attack") == "none").height:
        blocks += [figure for figure in (curves.make_sweep_figure(run, budgets, series),) if figure]
    blocks += [tables.make_sweep_table(run, budgets, series, score) for score in ("dice", "diff")]
    return Section(f"sweep-{budgets.norm}", f"Dice against eps{suffix}", tuple(blocks))


def _show_success(run: Run, budgets: Budgets, series: tuple[Series, ...]) -> Section:
    """Success by every definition, and against the number of parameters."""
    suffix = "" if budgets.norm == "linf" else f" ({NORMS.get(budgets.norm, budgets.norm)})"
    scatter = figures.make_success_figure(run, budgets, series)
    blocks: tuple[Block, ...] = (*tables.make_success_tables(run, budgets, series), *([scatter] if scatter else []))
    return Section(f"success-{budgets.norm}", f"Attack success{suffix}", blocks)


def _show_details(
    run: Run, budgets: tuple[Budgets, ...], series: tuple[Series, ...], contrasts: list[Contrast]
) -> tuple[Section, ...]:
    """The sweep in two numbers, and class by class."""
    if not budgets:
        return ()
    summary = Section("curves", "The sweep in two numbers", (tables.make_curve_table(run, series),))
    if len(run.task.classes) == 1 or not contrasts:
        return (summary,)
    figure = curves.make_class_figure(run, budgets[0], series)
    table = tables.make_class_table(run, budgets[0], contrasts)
    return (summary, Section("classes", "Class by class", (figure, table) if figure else (table,)))


def _show_cases(run: Run) -> Section:
    """Pictures of the best and worst cases, and of the worst over eps."""
    return Section("cases", "Best and worst cases", panels.make_galleries(run))


def _check(run: Run, series: tuple[Series, ...]) -> tuple[Block, ...]:
    """Norms, flags, skips and failures."""
    optional: tuple[Table | None, ...] = (
        integrity.make_flag_table(run),
        integrity.make_failure_table(run),
        integrity.make_skip_table(run),
    )
    sentences = integrity.say_integrity(run)
    if not run.failures:
        sentences += ("Nothing failed.",)
    if optional[2] is None:
        sentences += ("Nothing was skipped.",)
    if not run.missing:
        sentences += (f"All {show_plural(run.planned, 'planned result')} are there.",)
    norms = (integrity.make_norm_table(run, series),) if series else ()
    return (Text((" ".join(sentences),)), *(table for table in optional if table), *norms)


def _repeat(run: Run) -> tuple[Block, ...]:
    """Versions, conventions, commands."""
    command = run.info.get("command", "")
    folder = run.path.name if run.path.is_absolute() else str(run.path)
    again = f"advseg-bench report {shlex.quote(folder)}  # this report again, from the stored rows"
    lines = [command, again]
    suite = json.dumps(run.info["suite"], indent=1)
    return (
        Code("\n".join(line for line in lines if line)),
        integrity.make_environment_table(run),
        integrity.make_convention_table(run),
        Code(suite, title="The whole suite, as JSON"),
    )
