"""The contents of a report in reading order, shared by all output formats."""

from __future__ import annotations

import json
import shlex

from advseg_bench.report import behaviour, curves, detail_tables, doubts, integrity, panels, scatter, tables, transfer
from advseg_bench.report.document import Block, Code, Document, Section, Table, Text, show_plural, show_radius
from advseg_bench.report.findings import shorten_list, write_findings
from advseg_bench.report.series import NORMS
from advseg_bench.report.summary import Summary
from advseg_bench.report.verdicts import summarise_claims
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets
from advseg_bench.results.verify import list_damaged

MOST_NAMES = 8
"""Largest number of attacks that are named at the top of a report."""


def compose(summary: Summary) -> Document:
    """Compose the report of a run, finished or not."""
    sections = (
        _show_findings(summary),
        Section("claims", "Claims of arXiv 2401.11224", summarise_claims(summary.judged)),
        Section("models", "Models before the attack", _show_models(summary)),
        *(_show_sweep(summary, each) for each in summary.budgets),
        *(_show_success(summary, each) for each in summary.budgets),
        Section("transfer", "Transfer between models", _show_transfer(summary)),
        *_show_details(summary),
        Section("cases", "Best and worst cases", panels.make_galleries(summary.run)),
        Section("integrity", "Checks, skips and failures", _check(summary)),
        Section("repeat", "Versions and commands to reproduce the run", _repeat(summary.run)),
    )
    return Document(
        title=summary.run.about.suite.title,
        facts=tuple(_list_facts(summary).items()),
        warnings=list_warnings(summary),
        sections=tuple(section for section in sections if section.blocks),
    )


def _list_facts(summary: Summary) -> dict[str, str]:
    """Return the key facts of the run."""
    about, series = summary.run.about, summary.series
    images = show_plural(about.data.images, "test volume" if about.suite.of_volumes else "test image")
    voxels = "; pixels are voxels" if about.suite.of_volumes else ""
    subjects = None if about.data.by_image else about.data.subjects
    swept = [
        (", ".join(show_radius(eps, b.norm, b.width) for eps in b.eps), NORMS.get(b.norm, b.norm))
        for b in summary.budgets
    ]
    return {
        "Suite": about.suite.name,
        "Data": f"{about.data.title}, {about.task.kind}: {', '.join(about.task.classes)}",
        "Tested on": images + (f" of {show_plural(subjects, 'subject')}" if subjects else "") + voxels,
        **{name: value for name, value in about.data.facts.items() if name in ("Attack space", "Channels")},
        "Models": ", ".join(about.models),
        **integrity.describe_windows(summary.run),
        "Attacks": shorten_list([s.label for s in series if s.single], MOST_NAMES) or "none yet",
        "Noise baselines": ", ".join(s.label for s in series if s.control) or "none",
        "eps": "; ".join(f"{eps} ({norm})" for eps, norm in swept) or "none yet",
        "Started": about.started.replace("T", " ").replace("+00:00", " UTC") or "unknown",
    }


def list_warnings(summary: Summary) -> tuple[str, ...]:
    """Return the cautions to show before any number."""
    run = summary.run
    warnings = [
        *_list_damaged(run),
        *behaviour.list_weak(summary),
        *behaviour.list_non_finite(summary),
        *([run.about.suite.note] if run.about.suite.note else []),
    ]
    if run.missing:
        share = run.missing / run.planned
        share_text = f"{share:.0%}" if share >= 0.01 else "under 1 %"
        models = {f["model"] for f in run.failures if f["cell"] is None}
        cells = {f["cell"] for f in run.failures} | {cell.id for cell in run.about.cells if cell.model in models}
        failed = sum(count for cell, count in run.missing_by_cell.items() if cell in cells)
        because = f", {'all' if failed == run.missing else f'{failed:,}'} of them due to failures" if failed else ""
        warnings.append(
            f"Incomplete: {run.missing:,} of {run.planned:,} results are missing ({share_text}){because}. The numbers "
            "below use the available results, so rows may be based on different images."
            + ("" if run.path is None else " Run the same command again to complete the run.")
        )
    if run.failures:
        what = show_plural(len(run.failures), "failure")
        warnings.append(f"Failed: {what}, listed under Checks. Failures enter no number below.")
    return tuple(warnings)


def _list_damaged(run: Run) -> tuple[str, ...]:
    """Return a caution that names the damaged files of a run, which are left out."""
    damaged = list_damaged(run)
    if not damaged or run.path is None:
        return ()
    shown = "; ".join(f"{each.path.relative_to(run.path)} {each.reason}" for each in damaged[:MOST_NAMES])
    more = f"; and {len(damaged) - MOST_NAMES} more" if len(damaged) > MOST_NAMES else ""
    what = show_plural(len(damaged), "file")
    return (f"Damaged: {what} left out; what was in there is missing below: {shown}{more}.",)


def _show_findings(summary: Summary) -> Section:
    """Show the findings."""
    blocks: list[Block] = []
    if summary.contrasts:
        blocks.append(Text(write_findings(summary), bullets=True))
        blocks.append(tables.make_noise_table(summary))
    else:
        blocks.append(Text(("No attack has a result yet.",)))
    if note := summary.run.about.data.note:
        blocks.append(Text((f"About the data: {note}",)))
    return Section("findings", "Findings", tuple(blocks))


def _show_models(summary: Summary) -> tuple[Block, ...]:
    """Show the scores of the models without an attack, and what is special about their behaviour."""
    sentences = tuple(behaviour.describe_models(summary.run))
    optional: tuple[Block | None, ...] = (
        tables.make_clean_table(summary) if summary.has_clean else None,
        Text(sentences, bullets=True) if sentences else None,
        behaviour.make_repeat_table(summary),
    )
    return tuple(block for block in optional if block)


def _show_sweep(summary: Summary, budgets: Budgets) -> Section:
    """Show Dice and Diff over the budgets."""
    figure = curves.make_sweep_figure(summary, budgets)
    shown = tuple(tables.make_sweep_table(summary, budgets, score) for score in ("dice", "diff"))
    title = f"Dice against eps{_describe_norm(budgets)}"
    return Section(f"sweep-{budgets.norm}", title, (figure, *shown) if figure else shown)


def _show_success(summary: Summary, budgets: Budgets) -> Section:
    """Show success by every definition, and against the number of parameters."""
    figure = scatter.make_success_figure(summary, budgets)
    shown = tables.make_success_tables(summary, budgets)
    title = f"Attack success{_describe_norm(budgets)}"
    return Section(f"success-{budgets.norm}", title, (*shown, figure) if figure else shown)


def _show_transfer(summary: Summary) -> tuple[Block, ...]:
    """Show the transfer matrix of each norm."""
    found = (transfer.make_transfer_table(summary, each) for each in summary.budgets)
    return tuple(table for table in found if table)


def _describe_norm(budgets: Budgets) -> str:
    """Return the suffix of a title for a norm other than L_inf."""
    return "" if budgets.norm == "linf" else f" ({NORMS.get(budgets.norm, budgets.norm)})"


def _show_details(summary: Summary) -> tuple[Section, ...]:
    """Show the worst case, the summary of each sweep, and the results by class."""
    if not summary.budgets:
        return ()
    sections = [Section("curves", "Summary of each sweep", (detail_tables.make_curve_table(summary),))]
    if worst := detail_tables.make_worst_table(summary):
        sections.insert(0, Section("worst", "Worst case", (worst,)))
    if not summary.classes:
        return tuple(sections)
    figure, table = curves.make_class_figure(summary), detail_tables.make_class_table(summary)
    return (*sections, Section("classes", "Class by class", (figure, table) if figure else (table,)))


def _check(summary: Summary) -> tuple[Block, ...]:
    """Show doubts, norms, flags, skips and failures."""
    run = summary.run
    optional: tuple[Table | None, ...] = (
        doubts.make_doubt_table(summary.doubts, summary.run.about.data.width),
        integrity.make_flag_table(summary.flags),
        integrity.make_failure_table(run),
        integrity.make_skip_table(run),
    )
    sentences = integrity.describe_checks(summary)
    if summary.series and not summary.doubts:
        sentences += ("No doubt about an attack was raised.",)
    if not run.failures:
        sentences += ("Nothing failed.",)
    if optional[3] is None:
        sentences += ("Nothing was skipped.",)
    if not run.missing:
        sentences += (f"All {show_plural(run.planned, 'planned result')} are present.",)
    norms = (integrity.make_norm_table(summary),) if summary.series else ()
    return (Text((" ".join(sentences),)), *(table for table in optional if table), *norms)


def _repeat(run: Run) -> tuple[Block, ...]:
    """Show versions, conventions and commands."""
    lines = [run.about.command]
    if run.path is not None:
        folder = run.path.name if run.path.is_absolute() else str(run.path)
        lines.append(f"advseg-bench report {shlex.quote(folder)}  # recreate this report from the stored rows")
    suite = json.dumps(run.about.suite.source, indent=1)
    commands = "\n".join(line for line in lines if line)
    return (
        *((Code(commands),) if commands else ()),
        integrity.make_environment_table(run),
        integrity.make_convention_table(run),
        Code(suite, title="The complete suite, as JSON"),
    )
