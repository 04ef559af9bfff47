"""Means of a score with their intervals, indexed by model and arm."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from advseg_bench.report.document import NOTHING, show_estimate
from advseg_bench.results.arms import CURVE, read_arm

Row = dict[str, Any]
"""A row of `Run.table`."""


@dataclass(frozen=True, slots=True)
class Means:
    """The table of one score.

    Attributes:
        frame: The output of `Run.table`, by `CURVE` and optional further columns.
        rows: Its rows by model, arm, and the values of the further columns.
    """

    frame: pl.DataFrame
    rows: Mapping[tuple[Hashable, ...], Row]


def index_means(frame: pl.DataFrame, *more: str) -> Means:
    """Index the rows of a table.

    Args:
        frame: The output of `Run.table`, by `CURVE` and further columns.
        more: Names of the further columns.

    Returns:
        The indexed table.
    """
    assert frame.columns[: len(CURVE) + len(more)] == [*CURVE, *more], "a table by these columns"
    rows = {(row["model"], read_arm(row), *(row[name] for name in more)): row for row in frame.iter_rows(named=True)}
    return Means(frame, rows)


def write_mean(row: Row | None) -> str:
    """Write the mean of a row with its interval; `NOTHING` if there is no row."""
    return show_estimate(row["mean"], row["lower"], row["upper"]) if row else NOTHING


def join_right(left: pl.DataFrame, right: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Join columns to the right of a table, keeping its order."""
    return left.with_row_index("place").join(right, on=by, how="left").sort("place").drop("place")
