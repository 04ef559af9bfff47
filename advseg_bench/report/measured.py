"""What was measured beside scores: perturbations, passes and flags, summed over the rows of each cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from advseg_bench.checks.doubts import TRACED
from advseg_bench.results.arms import ARM
from advseg_bench.results.run import Run
from advseg_bench.suite.battery import KEPT_SMALLER, SKIPPED
from advseg_bench.suite.cells import CLEAN

NOTES = (SKIPPED, KEPT_SMALLER, *TRACED)
"""Flags that are no fault of an attack."""

AVERAGED = ("l2", "unmoved", "forwards", "backwards")
"""Columns of which the norm table has means."""


@dataclass(frozen=True, slots=True)
class NonFinite:
    """Model -> where it yields NaN or infinity: its clean images, and results on images with a finite prediction."""

    images: Mapping[str, int]
    results: Mapping[str, int]


def measure_cells(run: Run) -> pl.DataFrame:
    """Sum up the rows of each cell, and those of each worst case.

    Returns:
        One row each: `cell`, the columns of `ARM`, `eps`, `results`, `linf_min`, `linf_max`, `furthest` (the largest
        measured norm of the budget), sum and number of the columns of `AVERAGED`, and numbers of rows: `flagged` and
        `noted` (with and without other flags than notes), `at_fault` (the same, `beyond_eps` apart), `beyond` (with
        that flag; `furthest_beyond` among these), `skipped`.
    """
    keys = ["cell", *ARM, "eps"]
    flags = pl.col("flags").list
    moved = pl.when(pl.col("norm") == "l2").then("l2").otherwise("linf")
    scored = run.scores().lazy().select(*keys, "linf", "l2", "unmoved", "forwards", "backwards", "flags")
    cells = scored.group_by("cell", "eps").agg(
        pl.first(*ARM),
        pl.len().cast(pl.Int64).alias("results"),
        pl.col("linf").min().alias("linf_min"),
        pl.col("linf").max().alias("linf_max"),
        moved.max().alias("furthest"),
        *(pl.col(name).sum() for name in AVERAGED),
        *(pl.col(name).count().cast(pl.Int64).alias(f"{name}_known") for name in AVERAGED),
    )
    beyond = flags.contains("beyond_eps")
    marks = {
        "flagged": flags.set_difference(list(NOTES)).list.len() > 0,
        "noted": flags.set_difference(list(NOTES)).list.len() == 0,
        "at_fault": flags.set_difference(["beyond_eps", *NOTES]).list.len() > 0,
        "beyond": beyond,
        "skipped": flags.contains(SKIPPED),
    }
    marked = (
        scored.filter(flags.len() > 0)
        .with_columns(moved.alias("moved"), *(mask.cast(pl.Int64).alias(name) for name, mask in marks.items()))
        .group_by("cell", "eps")
        .agg(pl.col(*marks).sum(), pl.col("moved").filter(pl.col("beyond") > 0).max().alias("furthest_beyond"))
    )
    found = cells.join(marked, on=["cell", "eps"], how="left").with_columns(pl.col(*marks).fill_null(0))
    return found.collect().cast({pl.Categorical(): pl.String}).sort("cell", "eps")


def count_flags(run: Run) -> pl.DataFrame:
    """Count the results with each flag."""
    named = run.rows.select("flags", "model", "attack", "loss").filter(pl.col("flags").list.len() > 0)
    flags = named.explode("flags").filter(pl.col("flags").is_not_null()).rename({"flags": "flag"})
    counted = flags.group_by("flag", "model", "attack", "loss").agg(pl.len().alias("results"))
    return counted.cast({pl.Categorical(): pl.String})


def count_non_finite(run: Run) -> NonFinite:
    """Count where the models yield NaN or infinity, on clean images and under attack only."""
    flagged = pl.col("flags").list.contains("non_finite_logits")
    broken = run.rows.lazy().filter(flagged).select("model", "image", pl.col("attack") == CLEAN.attack).collect()
    keys = ["model", "image"]
    clean = broken.filter("attack").select(keys).unique()
    attacked = broken.filter(~pl.col("attack")).join(clean, on=keys, how="anti")
    return NonFinite(*(dict(frame.group_by("model").len().iter_rows()) for frame in (clean, attacked)))
