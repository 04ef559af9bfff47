"""The numbers of a report, computed once for its tables, figures, sentences and the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.checks.doubts import Finding
from advseg_bench.instruments.allocator import without_collector
from advseg_bench.instruments.profiling import timed
from advseg_bench.report.contrasts import Contrast, contrast_models
from advseg_bench.report.doubts import find_run_doubts
from advseg_bench.report.means import Means, Row, index_means
from advseg_bench.report.series import Series, list_series
from advseg_bench.report.spread import Band, spread_over_blocks
from advseg_bench.report.verdicts import Judged, judge_run
from advseg_bench.results.arms import ARM, CURVE, POINT, name_values, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import (
    Budgets,
    choose_shown,
    find_worst_cases,
    list_budgets,
    rank_attacks,
)
from advseg_bench.suite.cells import CLEAN, Arm

SUCCESS = ("dice_below", "apsr_clean", "apsr", "flipped", "apsr99")
"""Definitions of success, in the order in which a table shows them."""

CLEAN_SCORES = ("dice", "iou", "pooled_dice", "pooled_iou", "apsr")
"""Scores of the models without an attack."""


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
        clean: Score of `CLEAN_SCORES` -> model -> row without an attack.
        points: "dice", "diff" and each of `SUCCESS` -> means by model, arm and eps.
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
    series, budgets = list_series(run), list_budgets(run)
    ranked = rank_attacks(run, budgets[0]) if budgets else {}
    worst = find_worst_cases(run, budgets[0]) if budgets else {}
    contrasts = contrast_models(run, budgets[0], series, ranked, worst) if budgets else ()
    swept = {model: rival.arm for model, rival in choose_shown(ranked, worst).items()}
    by_class = bool(contrasts) and len(run.task.classes) > 1
    clean = run.tables(CLEAN_SCORES, "model", where={"attack": CLEAN.attack})
    points = run.tables(("dice", "diff", *SUCCESS), POINT)
    return Summary(
        run=run,
        subjects=run.rows["subject"].n_unique(),
        blocks=run.rows.select("subject", "block").n_unique(),
        series=series,
        budgets=budgets,
        contrasts=contrasts,
        swept=swept,
        judged=judge_run(run),
        clean={name: {row["model"]: row for row in table.iter_rows(named=True)} for name, table in clean.items()},
        points={name: index_means(table, "eps") for name, table in points.items()},
        curves=index_means(run.table("area", by=CURVE)),
        broken=index_means(_count_broken(run)),
        classes=_list_classes(run, budgets[0]) if by_class else {},
        class_curves=_follow_classes(run, list(swept.values())) if by_class else None,
        spread=spread_over_blocks(run),
        pooled=_pool(run, budgets[0]) if worst else {},
        worst_of=_count_worst(run, budgets[0]) if worst else {},
        flags=_count_flags(run),
        doubts=find_run_doubts(run),
    )


def _list_classes(run: Run, budgets: Budgets) -> dict[str, Means]:
    """Return the scores of each class at the reference budget."""
    where = {"norm": budgets.norm, "eps": budgets.reference}
    tables = run.tables(("dice_clean", "dice", "diff"), (*POINT, "class"), where=where)
    return {name: index_means(table, "eps", "class") for name, table in tables.items()}


def _follow_classes(run: Run, arms: Sequence[Arm]) -> Means:
    """Return Dice of each class over eps under some attacks, and without an attack."""
    values = [name_values(arm) for arm in (CLEAN, *arms)]
    where = {name: sorted({each[name] for each in values}) for name in ARM if name != "norm"}
    return index_means(run.table("dice", by=(*POINT, "class"), where=where), "eps", "class")


def _count_broken(run: Run) -> pl.DataFrame:
    """Count the images whose Dice falls below the threshold along each sweep, and at which eps it does."""
    eligible = run.curves().filter(pl.col("dice_clean") >= run.scoring.dice_threshold)
    smallest = pl.col("smallest_eps")
    median = smallest.fill_null(float("inf")).quantile(0.5, "lower").alias("median_smallest_eps")
    counts = (pl.len().alias("n_eligible"), smallest.is_not_null().mean().alias("broken"), median)
    return eligible.group_by(CURVE).agg(*counts).cast({pl.Categorical(): pl.String})


def _pool(run: Run, budgets: Budgets) -> dict[str, Means]:
    """Return the pooled scores at the reference budget."""
    where = {"norm": budgets.norm, "eps": budgets.reference}
    tables = run.tables(("pooled_dice", "pooled_iou"), POINT, where=where)
    return {name: index_means(table, "eps") for name, table in tables.items()}


def _count_worst(run: Run, budgets: Budgets) -> dict[tuple[str, Arm], int]:
    """Count the images of which each attack is the worst at the reference budget."""
    members = run.find_members().filter(pl.col("norm") == budgets.norm, pl.col("eps") == budgets.reference)
    counts = members.group_by(CURVE).len()
    return {(row["model"], read_arm(row)): row["len"] for row in counts.iter_rows(named=True)}


def _count_flags(run: Run) -> pl.DataFrame:
    """Count the results with each flag."""
    named = run.rows.select("flags", "model", "attack", "loss").filter(pl.col("flags").list.len() > 0)
    flags = named.explode("flags").filter(pl.col("flags").is_not_null()).rename({"flags": "flag"})
    names = ("flag", "model", "attack", "loss")
    return flags.group_by(names).agg(pl.len().alias("results")).sort(names)
