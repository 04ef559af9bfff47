"""The doubts about a run: a table of findings with what was observed and the remedy."""

from __future__ import annotations

import polars as pl

from advseg_bench.checks.doubtful_rows import find_doubts
from advseg_bench.checks.doubts import DOUBTS, Finding
from advseg_bench.report.document import Column, Table, show_budget, show_count, thin
from advseg_bench.results.run import Run


def find_run_doubts(run: Run) -> tuple[Finding, ...]:
    """Find the doubts about a run.

    Args:
        run: The run, finished or not.

    Returns:
        The findings, in the order of the models of the suite.
    """
    validation = {name: model.get("validation_dice") for name, model in run.models.items()}
    width = run.about.data.width
    found = find_doubts(run.scores(), run.controls, width=width, validation=validation)
    return tuple(sorted(found, key=lambda finding: run.model_names.index(finding.model)))


def make_doubt_table(findings: tuple[Finding, ...], width: float = 1.0) -> Table | None:
    """Make the table of doubts, or None where there are none."""
    if not findings:
        return None
    names = {"attack": 0, "loss": 1, "settings": 2, "norm": 3}
    data = pl.DataFrame(
        {
            "doubt": [f.doubt for f in findings],
            "model": [f.model for f in findings],
            **{name: [f.arm[i] if f.arm else None for f in findings] for name, i in names.items()},
            "eps": [" ".join(f"{eps:.9g}" for eps in f.eps) for f in findings],
            "images": [f.images for f in findings],
            "observed": [f.observed for f in findings],
            "cause": [DOUBTS[f.doubt].cause for f in findings],
            "threshold": [DOUBTS[f.doubt].threshold for f in findings],
            "source": [DOUBTS[f.doubt].source for f in findings],
            "remedy": [DOUBTS[f.doubt].remedy for f in findings],
        },
        schema_overrides=dict.fromkeys(names, pl.String),
    )
    known = [DOUBTS[f.doubt] for f in findings]
    columns = (
        Column("Model", thin([f.model for f in findings]), number=False),
        Column("Doubt", tuple(f.doubt for f in findings), number=False),
        Column("Attack and loss", tuple(" ".join(filter(None, f.arm[:2])) for f in findings), number=False),
        Column("eps", tuple(_show_radii(f, width) for f in findings), number=False),
        Column("Images", tuple(show_count(f.images) for f in findings)),
        Column("Observed", tuple(f.observed for f in findings), number=False),
        Column("Possible cause", tuple(doubt.cause for doubt in known), number=False),
        Column("Remedy", tuple(doubt.remedy for doubt in known), number=False),
    )
    caption = (
        "Signs that an attack failed, so that a low drop is no robustness. A doubt is no fault: all means contain its "
        "results. Several eps: observed at the one with most images. Thresholds and sources: docs/doubts.md and the "
        "CSV."
    )
    return Table("doubts", "Doubts", caption, columns, data)


def _show_radii(finding: Finding, width: float) -> str:
    """Write the radii of a finding."""
    norm = finding.arm[3] if finding.arm else "linf"
    return ", ".join(show_budget(eps, norm, width) for eps in finding.eps)
