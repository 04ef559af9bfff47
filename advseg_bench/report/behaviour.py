"""Models that are not deterministic, change themselves, or yield NaN: sentences, and the spread over repeats."""

from __future__ import annotations

import polars as pl

from advseg_bench.report.document import Column, Table, show_budget, show_count, show_number, show_plural, thin
from advseg_bench.report.summary import Summary
from advseg_bench.results.arms import POINT, read_arm
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import CLEAN

WEAK = 0.5
"""Clean Dice below which a network with given weights probably gets other intensities or classes than it expects."""


def list_weak(summary: Summary) -> list[str]:
    """Name the models with given weights whose clean Dice is so low that their input or classes may be wrong."""
    listed = summary.run.about.suite.source.get("models", ())
    remedies = {
        model["name"]: "With `weights`, check `scale`, `mean`, `std` and the classes."
        if "weights" in model
        else "Check the intensities that it expects and the order of its classes."
        for model in listed
        if model.get("weights") or "architecture" not in model  # given, or a network in memory
    }
    found = {model: row["mean"] for model, row in summary.clean["dice"].items()}
    return [
        f"{name}: clean Dice {found[name]:.3f}. {remedy}"
        for name, remedy in remedies.items()
        if found.get(name) is not None and found[name] < WEAK
    ]


def list_non_finite(summary: Summary) -> list[str]:
    """Name the models that yield NaN or infinity: first those that do so on clean images, then under attack only."""
    run, images, results = summary.run, summary.non_finite.images, summary.non_finite.results
    total = show_plural(run.about.data.images, "clean test image")
    sentences = [
        f"Model {name} yields NaN or infinity on {images[name]:,} of {total}. No result on these images enters a mean."
        for name in run.model_names
        if name in images
    ]
    return sentences + [
        f"Model {name} yields NaN or infinity under attack: {show_plural(results[name], 'result')} on images with a "
        "finite clean prediction. They enter no mean."
        for name in run.model_names
        if name in results
    ]


def describe_models(run: Run) -> list[str]:
    """Describe what is special about the behaviour of each model: changes of itself, and randomness."""
    sentences = []
    for name in run.model_names:
        known = run.models.get(name, {})
        if notes := known.get("notes"):
            sentences.append(f"Model {name} {'; '.join(notes)}. Such changes are not attributed to attacks.")
        if stochastic := known.get("stochastic"):
            sentences.append(
                f"Model {name} is declared stochastic: each cell has {stochastic['repeats']} repeats or more, and its "
                "rows are not bit-identical in another run."
            )
    return sentences


def make_repeat_table(summary: Summary) -> Table | None:
    """Make the table of the spread of mean Dice over the repeats of stochastic models, or None if there are none."""
    if summary.repeats is None:
        return None
    run, dice = summary.run, pl.col("mean")
    data = summary.repeats.group_by(POINT, maintain_order=True).agg(
        pl.len().alias("repeats"),
        dice.mean(),
        dice.min().alias("lowest"),
        dice.max().alias("highest"),
        dice.std().alias("sd"),
    )
    labels = {series.arm: series.label for series in summary.series} | {CLEAN: "clean"}
    rows = data.to_dicts()
    columns = (
        Column("Model", thin([row["model"] for row in rows]), number=False),
        Column("Attack and loss", tuple(labels.get(read_arm(row), row["attack"]) for row in rows), number=False),
        Column("eps", tuple(show_budget(row["eps"], row["norm"], run.about.data.width) for row in rows)),
        Column("Repeats", tuple(show_count(row["repeats"]) for row in rows)),
        Column("Mean Dice", tuple(show_number(row["mean"]) for row in rows)),
        Column("Lowest", tuple(show_number(row["lowest"]) for row in rows)),
        Column("Highest", tuple(show_number(row["highest"]) for row in rows)),
        Column("SD", tuple(show_number(row["sd"]) for row in rows)),
    )
    caption = (
        "Mean Dice of each repeat, over subjects; its mean, smallest and largest value and standard deviation (n - 1) "
        "over the repeats. All other tables average the repeats of each image first."
    )
    return Table("repeats", "Repeats of stochastic models", caption, columns, data)
