"""The tables of results, formatted for reading, with the unrounded numbers for the CSV."""

from __future__ import annotations

from typing import Any

import polars as pl

from advseg_bench.report.contrasts import show_ratio
from advseg_bench.report.document import (
    NOTHING,
    Column,
    Table,
    show_budget,
    show_count,
    show_number,
    thin,
)
from advseg_bench.report.means import join_right, write_mean
from advseg_bench.report.numbers import CLEAN_SCORES, SUCCESS
from advseg_bench.report.summary import Summary
from advseg_bench.results.arms import POINT, WORST
from advseg_bench.results.selection import Budgets
from advseg_bench.suite.cells import CLEAN

WORST_CASE = (
    "Worst case: for each image, the result with the lowest Dice among all attacks, repeats and noise at this eps, or "
    "the clean image. It is an upper bound of the Dice that the model keeps, and not a test against noise. It counts "
    "every image; a single attack leaves out images on which it has no score, so its mean may be lower."
)
"""What the worst case is."""


def make_clean_table(summary: Summary) -> Table:
    """Make the table of the models and their scores without an attack."""
    scores = summary.clean
    there = [model for model in summary.run.model_names if model in scores["dice"]]
    known = [summary.run.models.get(model, {}) for model in there]
    architectures = [" + ".join(str(m[k]) for k in ("architecture", "encoder") if m.get(k)) or NOTHING for m in known]
    parts: dict[str, list[Any]] = {
        "model": there,
        "architecture": architectures,
        "parameters": [m.get("parameters") for m in known],
        "validation_dice": [m.get("validation_dice") for m in known],
        "train_seconds": [m.get("train_seconds") for m in known],
    }
    data = pl.DataFrame(parts, schema_overrides={"train_seconds": pl.Float64}).with_columns(
        pl.Series(name, [scores[name][model]["mean"] for model in there], dtype=pl.Float64) for name in CLEAN_SCORES
    )
    shown = [
        Column("Model", tuple(there), number=False),
        Column("Network", tuple(architectures), number=False),
        Column("Parameters", tuple(map(show_count, parts["parameters"]))),
        Column("Val. Dice", tuple(map(show_number, parts["validation_dice"]))),
    ]
    labels = ("Dice", "IoU", "Pooled Dice", "Pooled IoU", "Wrong pixels")
    for name, label in zip(CLEAN_SCORES, labels, strict=True):
        shown.append(Column(label, tuple(write_mean(scores[name][model]) for model in there)))
    caption = (
        "Test images without any attack. Dice, IoU: mean over classes of each image, then over the images of a "
        "subject, then over subjects. Pooled: pixel counts summed over all images before the ratio. Wrong pixels: "
        "share of valid pixels with any class wrong. Val. Dice: Dice on the validation split, by which the checkpoint "
        "was selected."
    )
    read = [(name, m["outputs"]["described"]) for name, m in zip(there, known, strict=True) if m.get("outputs")]
    caption += "".join(f" The harness {described} of {name}." for name, described in read)
    return Table("clean", "Models before the attack", caption, tuple(shown), data)


def make_noise_table(summary: Summary) -> Table:
    """Make the table that compares each model's strongest attack with noise."""
    contrasts, budgets = summary.contrasts, summary.budgets[0]
    control = next((c.control for c in contrasts if c.control), None) or "noise (none was run)"
    eps = show_budget(budgets.reference, budgets.norm, budgets.width)
    verdicts = [{True: "yes", False: "no", None: NOTHING}[c.beyond_noise] for c in contrasts]
    worst = any(c.worst for c in contrasts)
    attacked = [c.shown_clean - c.shown_drop["mean"] for c in contrasts]
    drops = [Column("Worst-case drop", tuple(write_mean(c.shown_drop) for c in contrasts))] if worst else []
    columns = (
        Column("Model", tuple(c.model for c in contrasts), number=False),
        Column("Clean Dice", tuple(show_number(c.shown_clean) for c in contrasts)),
        Column("Worst-case Dice" if worst else "Attacked Dice", tuple(map(show_number, attacked))),
        *drops,
        Column("Strongest single attack" if worst else "Strongest attack", tuple(c.label for c in contrasts), False),
        Column("Its drop" if worst else "Drop", tuple(write_mean(c.drop) for c in contrasts)),
        Column("Noise drop", tuple(write_mean(c.noise) for c in contrasts)),
        Column("Ratio", tuple(show_ratio(c) for c in contrasts)),
        Column("More than noise", tuple(verdicts), number=False),
    )
    data = pl.DataFrame(
        {
            "model": [c.model for c in contrasts],
            "strongest": [c.label for c in contrasts],
            "eps": [budgets.reference] * len(contrasts),
            "dice_clean": [c.clean for c in contrasts],
            "drop": [c.drop["mean"] for c in contrasts],
            "noise_drop": [c.noise and c.noise["mean"] for c in contrasts],
            "worst_case_clean": [c.worst and c.worst.clean for c in contrasts],
            "worst_case_drop": [c.worst and c.worst.drop["mean"] for c in contrasts],
        },
        schema_overrides=dict.fromkeys(("noise_drop", "worst_case_clean", "worst_case_drop"), pl.Float64),
    )
    drop = f"{WORST_CASE} Its drop: that of the" if worst else "Drop: mean clean Dice minus mean Dice under the"
    caption = (
        f"eps = {eps}. {drop} attack and loss with the largest mean drop on that model. "
        f"Noise: {control} at the same eps, averaged over repeats. Both are over the images with a score "
        f"under both. Ratio: drop divided by noise drop; {NOTHING} where the noise lowers Dice by less than 0.0005; "
        "where the noise's interval includes 0, >= drop divided by its upper end if that is above 1. More than noise: "
        "paired test over subjects at 5 % for each model, adjusted for the choice of the attack; with fewer than six "
        "subjects, or unknown ones, which of the means is larger. The strongest attack is selected on the same images, "
        "so its drop is slightly overestimated."
    )
    return Table("noise", f"Attack against noise at eps {eps}", caption, columns, data)


def make_sweep_table(summary: Summary, budgets: Budgets, score: str) -> Table:
    """Make the table of one score ("dice" or "diff") over the budgets of a norm."""
    means, clean = summary.points[score], summary.clean["dice"]
    mine = [s for s in summary.series if s.arm.norm == budgets.norm]
    pairs = [(model, s) for model in summary.run.model_names for s in mine]
    pairs = [(m, s) for m, s in pairs if any((m, s.arm, eps) in means.rows for eps in budgets.eps)]
    models = [model for model, _ in pairs]
    columns = [Column("Model", thin(models), number=False)]
    columns.append(Column("Attack and loss", tuple(s.label for _, s in pairs), number=False))
    if score == "dice":
        columns.append(Column("Clean", thin([write_mean(clean.get(model)) for model in models], models)))
    for eps in budgets.eps:
        cells = tuple(write_mean(means.rows.get((m, s.arm, eps))) for m, s in pairs)
        columns.append(Column(show_budget(eps, budgets.norm, budgets.width), cells))
    titles = {"dice": "Mean Dice at each eps", "diff": "Diff: share of the clean Dice that is lost"}
    captions = {
        "dice": "Mean Dice over classes, images and subjects at each eps; random attacks: mean of their repeats.",
        "diff": (
            "(mean clean Dice - mean attacked Dice) / mean clean Dice, of the same images: 0 is no effect, 1 is a Dice "
            "of 0. This is the success measure of arXiv 2401.11224; as a ratio of means it has no interval."
        ),
    }
    caption = captions[score]
    if any(s.arm.attack == WORST for s in mine):
        caption += " The worst case counts every image; an attack without a score on some may seem stronger."
        if len({s.budgets for s in mine if s.single}) > 1:
            caption += " It is over the attacks that were run at each eps, and not all were run at every eps."
    name = score if budgets.norm == "linf" else f"{score}_{budgets.norm}"
    data = means.frame.filter((pl.col("norm") == budgets.norm) & (pl.col("attack") != CLEAN.attack))
    return Table(name, titles[score], caption, tuple(columns), data)


def make_success_tables(summary: Summary, budgets: Budgets) -> tuple[Table, ...]:
    """Make a table of attack success by several definitions for each budget, the reference budget first."""
    frames = {score: summary.points[score].frame.filter(pl.col("norm") == budgets.norm) for score in SUCCESS}
    joined = frames["dice_below"].select(*POINT, pl.col("n_images").alias("n_eligible"))
    for score, frame in frames.items():
        ends = [pl.col(name).alias(f"{score}_{name}") for name in ("mean", "lower", "upper")]
        joined = join_right(joined, frame.select(*POINT, *ends), *POINT)
    name = "success" if budgets.norm == "linf" else f"success_{budgets.norm}"
    tables = []
    for eps in (budgets.reference, *(e for e in budgets.eps if e != budgets.reference)):
        first = eps == budgets.reference
        title = f"Success at eps {show_budget(eps, budgets.norm, budgets.width)}"
        caption = _caption_success(summary) if first else "Definitions as in the first table of this section."
        data = joined.filter(pl.col("attack") != CLEAN.attack) if first else None
        tables.append(Table(name, title, caption, _success_columns(summary, budgets, eps), data, detail=not first))
    return tuple(tables)


def _success_columns(summary: Summary, budgets: Budgets, eps: float) -> tuple[Column, ...]:
    """Make the columns of the success table of one budget."""
    means = {score: summary.points[score].rows for score in SUCCESS}
    mine = [s for s in summary.series if s.arm.norm == budgets.norm]
    pairs = [(m, s) for m in summary.run.model_names for s in mine if (m, s.arm, eps) in means["apsr"]]
    rows = {score: [found[m, s.arm, eps] for m, s in pairs] for score, found in means.items()}
    threshold = summary.run.scoring.dice_threshold
    labels = (f"Dice below {threshold:g}", "Wrong, clean", "Wrong (apsr)", "Flipped", "apsr99")
    numbers = [Column(label, tuple(map(write_mean, rows[score]))) for score, label in zip(SUCCESS, labels, strict=True)]
    eligible = Column("Eligible images", tuple(show_count(row["n_images"]) for row in rows["dice_below"]))
    return (
        Column("Model", thin([m for m, _ in pairs]), number=False),
        Column("Attack and loss", tuple(s.label for _, s in pairs), number=False),
        numbers[0],
        eligible,
        *numbers[1:],
    )


def _caption_success(summary: Summary) -> str:
    """Return the definitions for the caption of the success table."""
    t = f"{summary.run.scoring.dice_threshold:g}"
    return (
        "Four definitions of success that are in use, each a mean over the images of a subject and then over subjects. "
        f"Dice below {t} (dice_below): share of the eligible images, those with clean Dice >= {t}, "
        f"whose Dice falls below {t}. Wrong (apsr): share of valid pixels with any class wrong against the ground "
        "truth, to be compared with its clean value. Flipped: share of valid pixels that differ from the clean "
        "prediction, including corrected ones. apsr99: share of images with at least 99 % of their pixels wrong. "
        "Random attacks: mean of their repeats. Worst case: the result with the lowest Dice, so another attack may "
        "have more wrong or flipped pixels."
    )
