"""The numbers of some models, computed from their rows at once; the summary of a run is put together from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.checks.doubts import Finding
from advseg_bench.claims.evidence import Gathered, gather
from advseg_bench.report.contrasts import Compared, compare_models
from advseg_bench.report.doubts import find_run_doubts
from advseg_bench.report.measured import NonFinite, count_flags, count_non_finite, measure_cells
from advseg_bench.report.spread import Band, spread_over_blocks
from advseg_bench.results.arms import ARM, CURVE, POINT, WORST, name_values, read_arm
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, choose_shown, find_worst_cases, rank_attacks
from advseg_bench.results.tables import Tables
from advseg_bench.suite.cells import CLEAN, Arm

SUCCESS = ("dice_below", "apsr_clean", "apsr", "flipped", "apsr99")
"""Definitions of success, in the order in which a table shows them."""

CLEAN_SCORES = ("dice", "iou", "pooled_dice", "pooled_iou", "apsr")
"""Scores of the models without an attack."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of some models.

    Attributes:
        cells: The output of `measure_cells`.
        blocks: Subject and column `block` of each of their scans.
        compared: Their strongest attacks beside noise; None without an attack.
        swept: As `Summary.swept`.
        worst: Whether any of them has a worst case.
        clean: Score of `CLEAN_SCORES` -> its table by model.
        points: "dice", "diff", "drop" and each of `SUCCESS` -> its table by `POINT`.
        curves: The table of the area by `CURVE`.
        broken: Images whose Dice falls below the threshold, see `Summary.broken`.
        classes: "dice_clean", "dice" and "diff" -> its table by `POINT` and class at the reference budget.
        class_curves: Dice by `POINT` and class, of clean images and of the attacks in `swept`.
        pooled: "pooled_dice" and "pooled_iou" -> its table by `POINT` at the reference budget.
        worst_of: As `Summary.worst_of`.
        repeats: Dice by `POINT` and repeat, of stochastic models.
        spread: As `Summary.spread`.
        flags: As `Summary.flags`.
        non_finite: Where models yield NaN or infinity.
        doubts: As `Summary.doubts`.
        gathered: What the claims need.
    """

    cells: pl.DataFrame
    blocks: frozenset[tuple[str, str]]
    compared: Compared | None
    swept: Mapping[str, Arm]
    worst: bool
    clean: Tables
    points: Tables
    curves: pl.DataFrame
    broken: pl.DataFrame
    classes: Tables
    class_curves: pl.DataFrame | None
    pooled: Tables
    worst_of: Mapping[tuple[str, Arm], int]
    repeats: pl.DataFrame | None
    spread: Mapping[tuple[str, Arm], Band]
    flags: pl.DataFrame
    non_finite: NonFinite
    doubts: tuple[Finding, ...]
    gathered: Gathered


def compute_numbers(run: Run, budgets: Sequence[Budgets], eps: float | None) -> Numbers:
    """Compute the numbers of some models.

    Args:
        run: The run of these models, see `Run.split`.
        budgets: The budgets of each norm of the whole run.
        eps: The budget of the claims.
    """
    first = budgets[0] if budgets else None
    ranked = rank_attacks(run, first) if first else {}
    worst = find_worst_cases(run, first) if first else {}
    compared = compare_models(run, first, ranked, worst) if first else None
    swept = {model: rival.arm for model, rival in choose_shown(ranked, worst).items()}
    at_reference = {"norm": first.norm, "eps": first.reference} if first else {}
    by_class = first is not None and len(run.task.classes) > 1
    of_class = (*POINT, "class")
    clean = run.tables(CLEAN_SCORES, "model", where={"attack": CLEAN.attack})
    scans = run.rows.select("subject", "block").unique().cast(pl.String)
    return Numbers(
        cells=measure_cells(run),
        blocks=frozenset(scans.iter_rows()),
        compared=compared,
        swept=swept,
        worst=bool(worst),
        clean=clean,
        points=run.tables(("dice", "diff", "drop", *SUCCESS), POINT),
        curves=run.table("area", by=CURVE),
        broken=_count_broken(run),
        classes=run.tables(("dice_clean", "dice", "diff"), of_class, where=at_reference) if by_class else {},
        class_curves=_follow_classes(run, list(swept.values())) if by_class else None,
        pooled=run.tables(("pooled_dice", "pooled_iou"), POINT, where=at_reference) if first else {},
        worst_of=_count_worst(run, first) if first and worst else {},
        repeats=_list_repeats(run),
        spread=spread_over_blocks(run),
        flags=count_flags(run),
        non_finite=count_non_finite(run),
        doubts=find_run_doubts(run),
        gathered=gather(run, eps),
    )


def _follow_classes(run: Run, arms: Sequence[Arm]) -> pl.DataFrame:
    """Return Dice of each class over eps under some attacks, and without an attack."""
    values = [name_values(arm) for arm in (CLEAN, *arms)]
    where = {name: sorted({each[name] for each in values}) for name in ARM if name != "norm"}
    return run.table("dice", by=(*POINT, "class"), where=where)


def _count_broken(run: Run) -> pl.DataFrame:
    """Count the images whose Dice falls below the threshold along each sweep, and at which eps it does."""
    eligible = run.curves().filter(pl.col("dice_clean") >= run.scoring.dice_threshold)
    smallest = pl.col("smallest_eps")
    median = smallest.fill_null(float("inf")).quantile(0.5, "lower").alias("median_smallest_eps")
    counts = (pl.len().alias("n_eligible"), smallest.is_not_null().mean().alias("broken"), median)
    return eligible.group_by(CURVE).agg(*counts).cast({pl.Categorical(): pl.String})


def _count_worst(run: Run, budgets: Budgets) -> dict[tuple[str, Arm], int]:
    """Count the images of which each attack is the worst at the reference budget."""
    counts = run.find_members(norm=budgets.norm, eps=budgets.reference).group_by(CURVE).len()
    return {(row["model"], read_arm(row)): row["len"] for row in counts.iter_rows(named=True)}


def _list_repeats(run: Run) -> pl.DataFrame | None:
    """Return mean Dice of each repeat of stochastic models, or None if there are none."""
    names = [name for name in run.model_names if run.models.get(name, {}).get("stochastic")]
    if not names:
        return None
    repeats = run.table("dice", by=(*POINT, "draw"), where={"model": names})
    return repeats.filter(pl.col("mean").is_not_null(), pl.col("attack") != WORST)
