"""The spread of the means over scans, for runs with too few subjects for an interval."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from advseg_bench.results.arms import POINT, read_arm
from advseg_bench.results.numbering import average_by, number_rows
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import CLEAN, Arm

Band = Mapping[float, tuple[float, float]]
"""eps -> the smallest and the largest mean of a scan."""


def spread_over_blocks(run: Run) -> dict[tuple[str, Arm], Band]:
    """Return the spread of mean Dice over scans for each model and arm, at each eps with several scans.

    The band of every arm starts at eps 0 with that of the clean images.
    """
    scored = run.scores()
    number, groups = number_rows(scored, (*POINT, "subject", "block"))
    means = groups.with_columns(average_by(number, scored["dice"], len(groups))).drop_nulls("dice")
    ends = (pl.col("dice").min().alias("low"), pl.col("dice").max().alias("high"), pl.len().alias("blocks"))
    table = means.group_by(POINT).agg(*ends).filter(pl.col("blocks") > 1)
    spread: dict[tuple[str, Arm], dict[float, tuple[float, float]]] = {}
    for row in table.iter_rows(named=True):
        spread.setdefault((row["model"], read_arm(row)), {})[row["eps"]] = (row["low"], row["high"])
    for (model, _), band in spread.items():
        if (model, CLEAN) in spread:
            band.setdefault(0.0, spread[model, CLEAN][0.0])
    return dict(spread)
