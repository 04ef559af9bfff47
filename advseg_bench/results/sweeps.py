"""From scores at single budgets to scores over a sweep of eps, which are defined in `scores`."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from advseg_bench.results.arms import SWEEP, name_values
from advseg_bench.results.numbering import average_by, number_rows
from advseg_bench.results.parts import READ_SCHEMA
from advseg_bench.suite.cells import Arm
from advseg_bench.suite.specs import Scoring

CURVE_SCORES: dict[str, str] = {
    "area": "mean Dice along the sweep, from eps = 0 to the largest eps",
    "smallest_eps": "smallest eps of the sweep at which Dice falls below the threshold, of images where it does",
}
"""Scores of one image over a sweep of eps."""


def list_sweeps(dataset: str, planned: Iterable[tuple[str, float, Arm]]) -> pl.DataFrame:
    """Return the columns of `SWEEP` and `eps` of some models, budgets and arms."""
    listed = [{"dataset": dataset, "model": model, "eps": eps} | name_values(arm) for model, eps, arm in planned]
    return pl.DataFrame(listed, schema={name: READ_SCHEMA[name] for name in (*SWEEP, "eps")})


def score_curves(scored: pl.DataFrame, scoring: Scoring, planned: pl.DataFrame | None = None) -> pl.DataFrame:
    """Summarise each image's Dice over a sweep of eps by `area` and `smallest_eps`.

    For a random attack, both are computed from the Dice averaged over repeats.

    Args:
        scored: The output of `score_rows`.
        scoring: The Dice threshold.
        planned: The columns of `SWEEP` and `eps` of every planned cell; those of `scored` if None.

    Returns:
        One row per image and sweep, without the clean prediction: the columns of `SWEEP`, `image`, `subject`, `block`,
        `dice_clean`, `area` and `smallest_eps`. `area` is null if an eps of the sweep, the clean value or a Dice is
        missing, or all eps are 0; `smallest_eps` is null if no eps of the sweep suffices, or if the clean Dice is below
        the threshold.
    """
    keys = [*SWEEP, "image", "subject", "block"]
    attacked = pl.col("attack") != "none"
    curve, named = number_rows(scored, keys)
    curves = named.with_row_index("curve").filter(attacked).select(pl.col("curve").cast(pl.Int64), *keys)
    rows = scored.select(pl.Series("curve", curve), "eps", "dice", "dice_clean").filter(
        scored.select(attacked).to_series()
    )
    point, points = number_rows(rows, ("curve", "eps"))
    points = points.with_columns(average_by(point, rows[name], len(points)) for name in ("dice", "dice_clean"))
    budgets = number_rows(scored if planned is None else planned, (*SWEEP, "eps"))[1]
    longest = budgets.group_by(SWEEP).agg(pl.len().alias("n_eps"))
    whole = (pl.col("points") == pl.col("n_eps")) & (pl.col("largest") > 0)
    return (
        curves.join(_sum_curves(points, scoring.dice_threshold), on="curve")
        .join(longest, on=SWEEP, how="left")
        .sort("curve")
        .select(
            *keys,
            "dice_clean",
            pl.when(whole).then(pl.col("strips") / pl.col("largest")).alias("area"),
            "smallest_eps",
        )
    )


def _sum_curves(points: pl.DataFrame, threshold: float) -> pl.DataFrame:
    """Summarise points that are sorted by curve and eps.

    Returns:
        One row per curve, in order: the number of points, the largest eps, the area from eps = 0 on, and the smallest
        eps at which Dice falls below the threshold.
    """
    first = pl.col("curve") != pl.col("curve").shift(1, fill_value=-1)
    width = pl.col("eps") - pl.when(first).then(0.0).otherwise(pl.col("eps").shift(1))
    before = pl.when(first).then(pl.col("dice_clean")).otherwise(pl.col("dice").shift(1))
    strip = width * (pl.col("dice") + before) / 2
    broken = (pl.col("dice") < threshold) & (pl.col("dice_clean") >= threshold)
    return (
        points.with_columns(strip.alias("strip"), pl.when(broken).then("eps").alias("broken_at"))
        .group_by("curve")
        .agg(
            pl.len().alias("points"),
            pl.col("eps").max().alias("largest"),
            pl.col("dice_clean").first(),
            pl.when(pl.col("strip").is_not_null().all()).then(pl.col("strip").sum()).alias("strips"),
            pl.col("broken_at").min().alias("smallest_eps"),
        )
    )
