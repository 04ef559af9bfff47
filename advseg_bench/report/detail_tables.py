"""The detailed tables: a summary of each sweep, and the strongest attacks by class."""

from __future__ import annotations

import polars as pl

from advseg_bench.report.document import NOTHING, Column, Table, show_budget, show_count, show_number, thin
from advseg_bench.report.means import join_right, write_mean
from advseg_bench.report.series import find_label
from advseg_bench.report.summary import Summary
from advseg_bench.results.arms import CURVE, POINT, WORST
from advseg_bench.suite.specs import Scoring


def make_curve_table(summary: Summary) -> Table:
    """Make the table that summarises each sweep in two numbers."""
    run, area, width = summary.run, summary.curves, summary.run.about.data.width
    pairs = [(m, s) for m in run.model_names for s in summary.series if (m, s.arm) in area.rows]
    rows = [summary.broken.rows.get((m, s.arm), {}) for m, s in pairs]
    norms = [s.arm.norm for _, s in pairs]
    medians = [_show_median(row.get("median_smallest_eps"), norm, width) for row, norm in zip(rows, norms, strict=True)]
    columns = (
        Column("Model", thin([m for m, _ in pairs]), number=False),
        Column("Attack and loss", tuple(s.label for _, s in pairs), number=False),
        Column("Area under Dice", tuple(write_mean(area.rows[m, s.arm]) for m, s in pairs)),
        Column("Images below threshold", tuple(show_number(row.get("broken")) for row in rows)),
        Column("Median smallest eps", tuple(medians)),
    )
    t = run.scoring.dice_threshold
    caption = (
        "Area: mean height of an image's curve of Dice from eps = 0 (clean) to the largest eps of the sweep "
        "(trapezoid), over images with results at every eps. Images below threshold: share of the images with clean "
        f"Dice >= {t:g} whose Dice falls below {t:g} at any eps of the sweep; each image counts once. Median "
        f"smallest eps: the smallest eps at which it does, median over the same images; {NOTHING} if fewer than half "
        "of them ever do. Random attacks: Dice is averaged over repeats first."
    )
    if len({s.budgets for _, s in pairs}) > 1:
        caption += " The sweeps do not have the same eps: compare areas and shares only between those that do."
    data = join_right(area.frame, summary.broken.frame, *CURVE)
    return Table("curves", "Summary of each sweep", caption, columns, data)


def make_worst_table(summary: Summary) -> Table | None:
    """Make the table of the attacks that are the worst case, and of pooled scores; None without a worst case."""
    if not summary.pooled:
        return None
    budgets, means = summary.budgets[0], summary.pooled
    points = [(m, s, (m, s.arm, budgets.reference)) for m in summary.run.model_names for s in summary.series]
    points = [point for point in points if point[2] in means["pooled_dice"].rows]
    counts = [None if s.arm.attack == WORST else summary.worst_of.get((m, s.arm), 0) for m, s, _ in points]
    columns = [
        Column("Model", thin([m for m, _, _ in points]), number=False),
        Column("Attack and loss", tuple(s.label for _, s, _ in points), number=False),
        Column("Worst on images", tuple(map(show_count, counts))),
    ]
    for name, label in (("pooled_dice", "Pooled Dice"), ("pooled_iou", "Pooled IoU")):
        columns.append(Column(label, tuple(write_mean(means[name].rows[key]) for _, _, key in points)))
    shown = show_budget(budgets.reference, budgets.norm, budgets.width)
    caption = (
        f"eps = {shown}. Worst on images: number of images of which the attack has the lowest Dice among all attacks "
        "and noise; an image counts for one of equal ones. Pooled: pixel counts summed over all images before the "
        "ratio. Random attacks: mean of their repeats. The pooled worst case is of the data set: the result of each "
        "image is chosen so that the pooled score is low (greedy search of arXiv 2306.12941)."
    )
    pooled = means["pooled_iou"].frame.select(*POINT, pl.col("mean").alias("pooled_iou"))
    data = join_right(means["pooled_dice"].frame.rename({"mean": "pooled_dice"}), pooled, *POINT)
    data = data.drop("lower", "upper")
    return Table(
        "worst_case",
        f"Worst case at eps {shown}",
        caption,
        tuple(columns),
        data,
    )


def make_class_table(summary: Summary) -> Table:
    """Make the table that breaks the strongest attack on each model down by class."""
    budgets, means = summary.budgets[0], summary.classes
    keys = []
    for c in summary.contrasts:
        mine = [(c.model, c.shown_arm, budgets.reference, name) for name in summary.run.task.classes]
        keys += [(c, key) for key in mine if key in means["dice"].rows]
    models, eps = [c.model for c, _ in keys], show_budget(budgets.reference, budgets.norm, budgets.width)
    columns = [
        Column("Model", thin(models), number=False),
        Column("Attack", thin([find_label(summary.series, c.shown_arm) for c, _ in keys], models), False),
        Column("Class", tuple(str(key[-1]) for _, key in keys), number=False),
        Column("Images", tuple(show_count(means["dice"].rows[key]["n_images"]) for _, key in keys)),
    ]
    for name, label in (("dice_clean", "Clean Dice"), ("dice", "Attacked Dice"), ("diff", "Diff")):
        columns.append(Column(label, tuple(write_mean(means[name].rows[key]) for _, key in keys)))
    data, by = means["dice"].frame, (*POINT, "class")
    for name in ("dice_clean", "diff"):
        data = join_right(data, means[name].frame.select(*by, pl.col("mean").alias(name)), *by)
    caption = (
        f"eps = {eps}, each model's worst case over the attacks, or its only attack (the CSV has all attacks). Images: "
        f"number of images with a score for the class; {_describe_empty_rule(summary.run.scoring)} Diff: share of the "
        "clean Dice that is lost."
    )
    return Table("classes", f"By class at eps {eps}", caption, tuple(columns), data)


def _describe_empty_rule(scoring: Scoring) -> str:
    """Describe the empty rule."""
    return {
        "skip": "a class that is absent from the ground truth of an image is left out.",
        "one": "a class that is absent from the ground truth of an image scores 1 if it is not predicted, else 0.",
        "zero": "a class that is absent from the ground truth of an image scores 0.",
    }[scoring.empty]


def _show_median(eps: float | None, norm: str, width: float) -> str:
    """Write a median budget; `NOTHING` if it is beyond the sweep."""
    return NOTHING if eps is None or eps == float("inf") else show_budget(eps, norm, width)
