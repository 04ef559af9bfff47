"""The numbers of a report, computed once for its tables, figures, sentences and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.checks.doubts import Finding
from advseg_bench.claims.evidence import Evidence, choose_budget
from advseg_bench.instruments.allocator import without_collector
from advseg_bench.instruments.profiling import timed
from advseg_bench.report.contrasts import Contrast, choose_contrasts
from advseg_bench.report.means import Means, Row, index_means
from advseg_bench.report.measured import NonFinite
from advseg_bench.report.numbers import Numbers, compute_numbers
from advseg_bench.report.series import Series, list_series
from advseg_bench.report.spread import Band
from advseg_bench.report.verdicts import Judged, judge_evidence
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, list_budgets
from advseg_bench.results.shares import stack
from advseg_bench.results.tables import Tables, join_tables
from advseg_bench.suite.cells import Arm


@dataclass(frozen=True, slots=True)
class Summary:
    """The tables and findings of a run.

    Attributes:
        run: The run.
        subjects: Number of subjects with a row.
        blocks: Number of scans (groups of images of one subject) with a row.
        series: The series that have rows.
        budgets: The budgets of each norm; summaries use the first norm.
        contrasts: Each model's strongest attack at the reference budget, compared with noise, and its worst case.
        swept: Model -> the worst case over its attacks, or its strongest attack, among those with several budgets.
        judged: The verdicts on the study's claims.
        clean: Score of `numbers.CLEAN_SCORES` -> model -> row without an attack.
        points: "dice", "diff", "drop" and each of `numbers.SUCCESS` -> means by model, arm and eps.
        curves: Area under Dice by model and arm.
        broken: By model and arm: the number of images with clean Dice at or above the threshold ("n_eligible"), the
            share of them that falls below it at any eps ("broken"), and the median of the smallest such eps
            ("median_smallest_eps").
        classes: "dice_clean", "dice" and "diff" -> means by model, arm, eps and class at the reference budget; empty
            for tasks of one class.
        class_curves: Dice by model, arm, eps and class, of clean images and of the attacks in `swept`; None for tasks
            of one class.
        spread: Model and arm -> the spread of Dice over scans.
        pooled: "pooled_dice" and "pooled_iou" -> scores by model, arm and eps at the reference budget; empty without a
            worst case.
        worst_of: By model and arm: the number of images of which the attack is the worst at the reference budget.
        flags: Number of results with each flag: "flag", "model", "attack", "loss", "results".
        doubts: The doubts about attacks and models.
        cells: Perturbations, passes and flags of each cell, see `measured.measure_cells`.
        non_finite: Where models yield NaN or infinity.
        repeats: Mean Dice of each repeat of stochastic models by model, arm, eps and "draw"; None if there are none.
    """

    run: Run
    subjects: int
    blocks: int
    series: tuple[Series, ...]
    budgets: tuple[Budgets, ...]
    contrasts: tuple[Contrast, ...]
    swept: Mapping[str, Arm]
    judged: Judged
    clean: Mapping[str, Mapping[str, Row]]
    points: Mapping[str, Means]
    curves: Means
    broken: Means
    classes: Mapping[str, Means]
    class_curves: Means | None
    spread: Mapping[tuple[str, Arm], Band]
    pooled: Mapping[str, Means]
    worst_of: Mapping[tuple[str, Arm], int]
    flags: pl.DataFrame
    doubts: tuple[Finding, ...]
    cells: pl.DataFrame
    non_finite: NonFinite
    repeats: pl.DataFrame | None

    @property
    def has_clean(self) -> bool:
        """Whether any model has a clean row."""
        return bool(self.clean["dice"])


@timed("report")
@without_collector()
def summarise(run: Run | Summary) -> Summary:
    """Compute the numbers of the report of a run.

    Args:
        run: The run; a summary is returned unchanged.

    Returns:
        The summary.

    Raises:
        RecordError: If a file of the run is damaged.
    """
    if isinstance(run, Summary):
        return run
    budgets, eps = list_budgets(run), choose_budget(run)
    return _put_together(run, budgets, [compute_numbers(share, budgets, eps) for share in run.split()])


def _put_together(run: Run, budgets: tuple[Budgets, ...], parts: Sequence[Numbers]) -> Summary:
    """Put the numbers of all models together."""
    cells = stack([part.cells for part in parts])
    series = list_series(run, cells)
    compared = [part.compared for part in parts if part.compared]
    contrasts = choose_contrasts(run, series, compared) if compared else ()
    clean, points, pooled, classes = (
        _join(run, [getattr(part, name) for part in parts]) for name in ("clean", "points", "pooled", "classes")
    )
    worst = any(part.worst for part in parts)
    blocks = frozenset[tuple[str, str]]().union(*(part.blocks for part in parts))
    followed = [part.class_curves for part in parts if part.class_curves is not None]
    repeats = [part.repeats for part in parts if part.repeats is not None]
    flags = stack([part.flags for part in parts])
    order = {name: i for i, name in enumerate(run.model_names)}
    doubts = [doubt for part in parts for doubt in part.doubts]
    found = [part.non_finite for part in parts]
    return Summary(
        run=run,
        subjects=len({subject for subject, _ in blocks}),
        blocks=len(blocks),
        series=series,
        budgets=budgets,
        contrasts=contrasts,
        swept={model: arm for part in parts for model, arm in part.swept.items()},
        judged=judge_evidence(run, Evidence(run, [part.gathered for part in parts])),
        clean={name: {row["model"]: row for row in table.iter_rows(named=True)} for name, table in clean.items()},
        points={name: index_means(table, "eps") for name, table in points.items()},
        curves=index_means(_join_one(run, [part.curves for part in parts])),
        broken=index_means(stack([part.broken for part in parts])),
        classes={name: index_means(table, "eps", "class") for name, table in classes.items()} if contrasts else {},
        class_curves=index_means(_join_one(run, followed), "eps", "class") if followed and contrasts else None,
        spread={key: band for part in parts for key, band in part.spread.items()},
        pooled={name: index_means(table, "eps") for name, table in pooled.items()} if worst else {},
        worst_of={key: count for part in parts for key, count in part.worst_of.items()},
        flags=flags.sort("flag", "model", "attack", "loss"),
        doubts=tuple(sorted(doubts, key=lambda doubt: order[doubt.model])),
        cells=cells,
        non_finite=NonFinite(
            {name: count for each in found for name, count in each.images.items()},
            {name: count for each in found for name, count in each.results.items()},
        ),
        repeats=_join_one(run, repeats) if repeats else None,
    )


def _join(run: Run, parts: Sequence[Tables]) -> Tables:
    """Join the tables of each score; parts without tables are left out."""
    known = [part for part in parts if part]
    return {name: _join_one(run, [part[name] for part in known]) for name in (known[0] if known else ())}


def _join_one(run: Run, parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Join tables with the same columns."""
    table, _ = join_tables(parts, run.about)
    assert table is not None, "these tables are by all columns that distinguish attacks"
    return table
