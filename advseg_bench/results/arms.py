"""Arms in the rows of a run: the columns that identify them, and which of them are noise baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import polars as pl

from advseg_bench.registry import catalogue
from advseg_bench.suite.cells import Arm

ARM = tuple(field.name for field in fields(Arm))
"""Columns that identify an arm."""

CURVE = ("model", *ARM)
"""Columns that identify one curve over eps in the rows of one data set."""

POINT = (*CURVE, "eps")
"""Columns that identify one point of a curve: all repeats of one arm and radius on one model."""

SWEEP = ("dataset", *CURVE)
"""Columns that identify one curve over eps."""

WORST = "worst_case"
"""Name of the worst case among the attacks; the module `worst` defines it."""


def read_arm(row: Mapping[str, Any]) -> Arm:
    """Return the arm of a row or of a cell's record."""
    return Arm(**{name: row[name] for name in ARM})


def name_values(arm: Arm) -> dict[str, str]:
    """Return the value of each column of `ARM`, such as for `where` of `Run.table`."""
    return {name: getattr(arm, name) for name in ARM}


def is_arm(arm: Arm) -> pl.Expr:
    """Return the filter condition for the rows of one arm."""
    return pl.all_horizontal(pl.col(name) == value for name, value in name_values(arm).items())


def find_controls(rows: pl.DataFrame) -> frozenset[str]:
    """Return the attacks that are noise baselines: those of the catalogue, and those without model passes and loss.

    An attack with a loss but without model passes is not one of them: it may use the gradient of another model.
    """
    shipped = {name for name, entry in catalogue.ATTACKS.items() if entry.traits.control}
    cost = pl.col("forwards").fill_null(1) + pl.col("backwards").fill_null(1)
    attacked = rows.lazy().filter(pl.col("attack") != "none").group_by("attack")
    attacks = attacked.agg(cost.max().alias("cost"), (pl.col("loss") == "").all().alias("aimless")).collect()
    free = attacks.filter(((pl.col("cost") == 0) & pl.col("aimless")) | pl.col("attack").is_in(sorted(shipped)))
    return frozenset(free["attack"].to_list())
