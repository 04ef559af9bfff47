"""From stored counts to scores. No model is needed, so a report can be recomputed with other conventions.

Definitions, for one image and its valid pixels:

- `dice` = 2 TP / (2 TP + FP + FN) and `iou` = TP / (TP + FP + FN) of a class; the score of an image is the mean
  over the scored classes (all classes of the task, without the background of a multiclass task). The empty rule
  applies to a class that is absent from the ground truth of the image: "skip" leaves it out (an image without any
  class has no score), "one" gives 1 if no pixel was predicted as this class and 0 otherwise, "zero" gives 0.
- `pooled_dice`, `pooled_iou`: TP, FP and FN are summed over the images first, then the ratio, then the mean
  over classes (CmIoU of arXiv 2407.09150; `iou` averages to its NmIoU).
- `dice_released`: the score in the code of arXiv 2401.11224, (2 TP + 1e-5) / (2 TP + FP + FN + 1e-5), averaged over
  all classes of the task, for images that show any class; a class that is neither present nor predicted scores 1.
- `drop` = clean Dice - Dice. `diff`, the study's "Diff" (arXiv 2401.11224) = (mean clean Dice - mean Dice) /
  mean clean Dice: a ratio of means, so it is defined only for groups of images.
- `apsr`, attack pixel success rate against the ground truth (arXiv 2206.07179): share of pixels with any
  class wrong. Its value on clean images, `apsr_clean`, is above 0. `apsr99`: 1 if `apsr` >= 0.99, else 0.
- `flipped`: share of pixels where any class differs from the clean prediction, including corrected pixels.
- `dice_below`: 1 if Dice is below the threshold, else 0; only for images with clean Dice at or above it.
- `area`: mean height of the curve of Dice over eps between eps = 0 (clean) and the largest eps of the sweep
  (trapezoid); `smallest_eps`: the smallest eps of the sweep at which the image meets `dice_below`.

Repeats of a random attack are averaged for each image before any other step.

A result with a flag of `UNMEASURED` is not a measurement: it has no score and enters no mean. It equals the clean image
(`unchanged`), its logits or those of the clean image have NaN or infinity (`non_finite_logits`), or the attack met such
a gradient (`non_finite_gradient`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from operator import add

import polars as pl

from advseg_bench.results.arms import SWEEP
from advseg_bench.suite.specs import Scoring
from advseg_bench.types import Task

ROW_SCORES: dict[str, str] = {
    "dice": "mean Dice over classes",
    "iou": "mean IoU over classes",
    "dice_released": "smoothed Dice over all classes of images that show any, as in the code of arXiv 2401.11224",
    "drop": "clean Dice minus Dice",
    "apsr": "share of pixels wrong against the ground truth",
    "flipped": "share of pixels that differ from the clean prediction",
    "apsr99": "share of images with at least 99 % of their pixels wrong",
    "dice_below": "share of the images at or above the Dice threshold when clean that fall below it",
    "dice_clean": "mean Dice over classes of the clean image",
    "iou_clean": "mean IoU over classes of the clean image",
    "dice_released_clean": "dice_released of the clean image",
    "apsr_clean": "share of pixels wrong before the attack",
}
"""Scores of one row, in the order in which `score_rows` documents them."""

CLEAN_KEYS = ("dataset", "model", "image")
"""Columns that an attacked row shares with the clean row of the same image."""

RELEASED_SMOOTH = 1e-5
"""Smoothing term of numerator and denominator in the code of arXiv 2401.11224."""

Counts = tuple[pl.Expr, pl.Expr, pl.Expr]
"""True positives, false positives and false negatives of one class."""

UNMEASURED = ("unchanged", "non_finite_logits", "non_finite_gradient")
"""Flags of rows that are no measurement of the model."""

MEASURED = ~pl.any_horizontal([pl.col("flags").list.contains(flag) for flag in UNMEASURED])
"""Whether a row is a measurement of the model."""

CLASS_SCORES = ("dice", "iou", "drop", "dice_clean", "iou_clean")
"""Scores of one row and one class."""


def find_scored_classes(task: Task) -> dict[str, int]:
    """Return the classes over which scores are averaged, with their index in the counts."""
    first = 1 if task.kind == "multiclass" else 0
    return {name: i for i, name in enumerate(task.classes) if i >= first}


def score_rows(rows: pl.DataFrame, task: Task, scoring: Scoring) -> pl.DataFrame:
    """Add the scores of each row, and the clean scores of the same image and model.

    Args:
        rows: Rows of `records.ROW_SCHEMA`.
        task: The task, which defines the meaning of the counts.
        scoring: Empty rule and Dice threshold.

    Returns:
        The rows with the float64 columns of `ROW_SCORES`; null where a score is undefined: no scored class in the
        image, no valid pixel, no clean row, a flag of `UNMEASURED`, or, for `dice_below`, a clean Dice below the
        threshold.

    Source:
        See the definitions in the module docstring.
    """
    places = find_scored_classes(task).values()
    counts = _list_counts(places)
    valid = pl.col("valid_pixels")
    values = {
        **{name: _mean([_ratio(name, each, scoring) for each in counts]) for name in ("dice", "iou")},
        "dice_released": _released_dice(places),
        "apsr": pl.when(valid > 0).then(pl.col("wrong_pixels") / valid),
        "flipped": pl.when(valid > 0).then(pl.col("flipped_pixels") / valid),
        "apsr99": pl.when(valid > 0).then(100 * pl.col("wrong_pixels") >= 99 * valid).cast(pl.Float64),
    }
    measured = rows.lazy().select(pl.when(MEASURED).then(value).alias(name) for name, value in values.items()).collect()
    scored = rows.hstack(measured)
    scored = _join_clean(scored, ("dice", "iou", "dice_released", "apsr"))
    eligible = pl.col("dice_clean") >= scoring.dice_threshold
    below = (pl.col("dice") < scoring.dice_threshold).cast(pl.Float64)
    return scored.with_columns(
        (pl.col("dice_clean") - pl.col("dice")).alias("drop"),
        pl.when(eligible).then(below).alias("dice_below"),
    )


def score_classes(
    rows: pl.DataFrame, task: Task, scoring: Scoring, columns: Collection[str] | None = None
) -> pl.DataFrame:
    """Compute the scores of each scored class separately.

    Args:
        rows: As for `score_rows`.
        task: The task, which defines the meaning of the counts.
        scoring: The empty rule is applied to each class; the threshold is not used.
        columns: The columns to return; all if None.

    Returns:
        One row for each measurement and scored class: the columns that identify the row, `class`, and the columns of
        `CLASS_SCORES`. Null where the empty rule leaves the class out.
    """
    names = ["cell", *SWEEP, "eps", "draw", "image", "subject", "block"]
    if columns is not None:
        names = [name for name in names if name in {*columns, "attack", *CLEAN_KEYS}]
    frames = []
    for name, k in find_scored_classes(task).items():
        (counts,) = _list_counts([k])
        ratios = (_ratio(score, counts, scoring).alias(score) for score in ("dice", "iou"))
        counted = rows.lazy().filter(MEASURED).select(*names, pl.lit(name).alias("class"), *ratios).collect()
        scored = _join_clean(counted, ("dice", "iou"))
        drop = (pl.col("dice_clean") - pl.col("dice")).alias("drop")
        frames.append(scored.with_columns(drop).select(columns or pl.all()))
    return pl.concat(frames)


def pool_counts(rows: pl.DataFrame, task: Task, scoring: Scoring, by: Sequence[str]) -> pl.DataFrame:
    """Compute the scores of the summed counts of all images of a cell, then average the cells of each group.

    Args:
        rows: As for `score_rows`.
        task: The task, which defines the meaning of the counts.
        scoring: The empty rule is applied to a class that no image of the cell shows.
        by: Columns that define the groups. Cells of one group (such as repeats) are averaged after the ratio.

    Returns:
        One row per group: `by`, `pooled_dice`, `pooled_iou`, `n_images`, `n_subjects`.
    """
    places = find_scored_classes(task).values()
    keys = (*by, *({"cell"} - set(by)))
    totals = (
        rows.filter(MEASURED)
        .group_by(*keys, maintain_order=True)
        .agg(
            *(pl.col(count).list.get(k).sum().alias(f"{count}{k}") for count in ("tp", "fp", "fn") for k in places),
            pl.col("image").n_unique().alias("n_images"),
            pl.col("subject").n_unique().alias("n_subjects"),
        )
    )
    groups = rows.select(keys).unique(maintain_order=True)
    if len(groups) > len(totals):  # a group without any measurement has no score
        totals = groups.join(totals, on=keys, how="left", maintain_order="left")
        totals = totals.with_columns(pl.col("n_images", "n_subjects").fill_null(0))
    counts: list[Counts] = [(pl.col(f"tp{k}"), pl.col(f"fp{k}"), pl.col(f"fn{k}")) for k in places]
    ratios = totals.with_columns(
        _mean([_ratio(name, each, scoring) for each in counts]).alias(f"pooled_{name}") for name in ("dice", "iou")
    )
    # Lists, since the order in which polars sums the values of a group depends on the number of threads.
    cells = ratios.group_by(*by, maintain_order=True).agg("pooled_dice", "pooled_iou", pl.max("n_images", "n_subjects"))
    return cells.with_columns(pl.col("pooled_dice", "pooled_iou").list.mean())


def _join_clean(scored: pl.DataFrame, scores: Sequence[str]) -> pl.DataFrame:
    """Add `<score>_clean` from the rows of the clean prediction, averaged over its repeats."""
    named = [pl.col(name).alias(f"{name}_clean") for name in scores]
    clean = scored.lazy().filter(pl.col("attack") == "none").select(*CLEAN_KEYS, *named).collect()
    if clean.select(CLEAN_KEYS).is_duplicated().any():  # of a stochastic model
        clean = clean.group_by(CLEAN_KEYS, maintain_order=True).agg(pl.exclude(CLEAN_KEYS))
        clean = clean.with_columns(pl.exclude(CLEAN_KEYS).list.mean())
    rows = scored.lazy().select(CLEAN_KEYS).with_row_index("place").join(clean.lazy(), on=CLEAN_KEYS, how="left")
    found = rows.select("place", *(f"{name}_clean" for name in scores)).sort("place").collect()
    return scored.hstack(found.drop("place"))


def _list_counts(places: Collection[int]) -> list[Counts]:
    """Return true positives, false positives and false negatives of some classes, from list columns."""
    return [(pl.col("tp").list.get(k), pl.col("fp").list.get(k), pl.col("fn").list.get(k)) for k in places]


def _released_dice(places: Collection[int]) -> pl.Expr:
    """Return `dice_released` from list columns."""
    counts = _list_counts(places)
    ratios = [(2 * tp + RELEASED_SMOOTH) / (2 * tp + fp + fn + RELEASED_SMOOTH) for tp, fp, fn in counts]
    shows_any = pl.any_horizontal([tp + fn > 0 for tp, _, fn in counts])
    return pl.when(shows_any).then(_mean(ratios))


def _mean(values: Sequence[pl.Expr]) -> pl.Expr:
    """Return the mean of the non-null values, summed in order; that of `pl.mean_horizontal` depends on its threads."""
    total = reduce(add, (value.fill_null(0.0) for value in values))
    known = reduce(add, (value.is_not_null().cast(pl.Int32) for value in values))
    return pl.when(known > 0).then(total / known)


def _ratio(score: str, counts: Counts, scoring: Scoring) -> pl.Expr:
    """Return Dice or IoU of one class, with the empty rule."""
    tp, fp, fn = counts
    value = 2 * tp / (2 * tp + fp + fn) if score == "dice" else tp / (tp + fp + fn)
    if_absent = {
        "skip": pl.lit(None, dtype=pl.Float64),
        "one": (fp == 0).cast(pl.Float64),
        "zero": pl.lit(0.0),
    }[scoring.empty]
    return pl.when(tp + fn == 0).then(if_absent).otherwise(value)
