"""The tables of results. Each is written out for reading, and carries its unrounded numbers for the CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from advseg_bench.report.document import (
    NOTHING,
    Column,
    Table,
    show_budget,
    show_count,
    show_estimate,
    show_number,
    show_times,
    thin,
)
from advseg_bench.report.findings import Contrast, choose_control
from advseg_bench.report.series import Series
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets

IDENTITY = ("model", "attack", "loss", "settings", "norm")
SUCCESS = ("dice_below", "apsr_clean", "apsr", "flipped", "apsr99")

Row = dict[str, Any]


def make_clean_table(run: Run) -> Table:
    """Make the table of the models and their scores before any attack."""
    names = ("dice", "iou", "pooled_dice", "pooled_iou", "apsr")
    scores = {name: _index(run.table(name, by="model", where={"attack": "none"}), "model") for name in names}
    there = [model for model in run.model_names if (model,) in scores["dice"]]
    known = [run.models.get(model, {}) for model in there]
    architectures = [" + ".join(str(m[k]) for k in ("architecture", "encoder") if m.get(k)) or NOTHING for m in known]
    parts: dict[str, list[Any]] = {
        "model": there,
        "architecture": architectures,
        "parameters": [m.get("parameters") for m in known],
        "validation_dice": [m.get("validation_dice") for m in known],
        "train_seconds": [m.get("train_seconds") for m in known],
    }
    data = pl.DataFrame(parts, schema_overrides={"train_seconds": pl.Float64}).with_columns(
        pl.Series(name, [scores[name][(model,)]["mean"] for model in there], dtype=pl.Float64) for name in names
    )
    shown = [
        Column("Model", tuple(there), number=False),
        Column("Network", tuple(architectures), number=False),
        Column("Parameters", tuple(map(show_count, parts["parameters"]))),
        Column("Val. Dice", tuple(map(show_number, parts["validation_dice"]))),
    ]
    labels = ("Dice", "IoU", "Pooled Dice", "Pooled IoU", "Wrong pixels")
    for name, label in zip(names, labels, strict=True):
        shown.append(Column(label, tuple(_estimate(scores[name].get((model,))) for model in there)))
    caption = (
        "Test images without any attack. Dice, IoU: mean over classes of each image, then over the images of a "
        "subject, then over subjects. Pooled: pixel counts summed over all images before the ratio. Wrong pixels: "
        "share of valid pixels with any class wrong. Val. Dice: on the validation split, chose the checkpoint."
    )
    return Table("clean", "Models before the attack", caption, tuple(shown), data)


def make_noise_table(run: Run, budgets: Budgets, contrasts: Sequence[Contrast]) -> Table:
    """Make the table that sets each model's strongest attack beside noise."""
    control = choose_control(run) or "noise (none was run)"
    eps = show_budget(budgets.reference)
    verdicts = [{True: "yes", False: "no", None: NOTHING}[c.beyond_noise] for c in contrasts]
    columns = (
        Column("Model", tuple(c.model for c in contrasts), number=False),
        Column("Strongest attack", tuple(c.label for c in contrasts), number=False),
        Column("Clean Dice", tuple(show_number(c.clean) for c in contrasts)),
        Column("Attacked Dice", tuple(show_number(c.clean - c.drop["mean"]) for c in contrasts)),
        Column("Drop", tuple(_estimate(c.drop) for c in contrasts)),
        Column("Noise drop", tuple(_estimate(c.noise) for c in contrasts)),
        Column("Ratio", tuple(show_times(c.ratio) for c in contrasts)),
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
        },
        schema_overrides={"noise_drop": pl.Float64},
    )
    caption = (
        f"eps = {eps}. Drop: mean clean Dice minus mean Dice under the attack and loss with the largest drop on that "
        f"model; noise: {control} at the same eps, draws averaged. Ratio: drop over noise drop; {NOTHING} where the "
        "noise lowers Dice by less than 0.0005. The strongest attack is chosen on these very images, so its drop is "
        "slightly overstated."
    )
    return Table("noise", f"Attack against noise at eps {eps}", caption, columns, data)


def make_sweep_table(run: Run, budgets: Budgets, series: Sequence[Series], score: str) -> Table:
    """Make the table of one score ("dice" or "diff") over the budgets of a norm."""
    found = run.table(score, by=(*IDENTITY, "eps"))
    index = _index(found, *IDENTITY, "eps")
    clean = _index(run.table("dice", by="model", where={"attack": "none"}), "model")
    pairs = [(model, s) for model in run.model_names for s in series if s.norm == budgets.norm]
    pairs = [(m, s) for m, s in pairs if any((*_key(m, s), eps) in index for eps in budgets.eps)]
    models = [model for model, _ in pairs]
    columns = [Column("Model", thin(models), number=False)]
    columns.append(Column("Attack and loss", tuple(s.label for _, s in pairs), number=False))
    if score == "dice":
        columns.append(Column("Clean", thin([_estimate(clean.get((model,))) for model in models], models)))
    for eps in budgets.eps:
        cells = tuple(_estimate(index.get((*_key(m, s), eps))) for m, s in pairs)
        columns.append(Column(show_budget(eps), cells))
    titles = {"dice": "Mean Dice at each eps", "diff": "Diff: share of the clean Dice that is lost"}
    captions = {
        "dice": "Mean Dice over classes, images and subjects at each eps; random attacks: mean of their draws.",
        "diff": (
            "(mean clean Dice - mean attacked Dice) / mean clean Dice, of the same images: 0 is no effect, 1 is "
            "nothing left. This is the success measure of arXiv 2401.11224; as a ratio of means it has no interval."
        ),
    }
    name = score if budgets.norm == "linf" else f"{score}_{budgets.norm}"
    data = found.filter((pl.col("norm") == budgets.norm) & (pl.col("attack") != "none"))
    return Table(name, titles[score], captions[score], tuple(columns), data)


def make_success_tables(run: Run, budgets: Budgets, series: Sequence[Series]) -> tuple[Table, ...]:
    """Make a table of the ways to call an attack a success for each budget, the reference budget first."""
    found = {score: run.table(score, by=(*IDENTITY, "eps"), where={"norm": budgets.norm}) for score in SUCCESS}
    index = {score: _index(table, *IDENTITY, "eps") for score, table in found.items()}
    joined = found["dice_below"].select(*IDENTITY, "eps", pl.col("n_images").alias("n_eligible"))
    for score, table in found.items():
        ends = ("mean", "lower", "upper")
        renamed = table.select(*IDENTITY, "eps", *(pl.col(e).alias(f"{score}_{e}") for e in ends))
        joined = _attach(joined, renamed, *IDENTITY, "eps")
    name = "success" if budgets.norm == "linf" else f"success_{budgets.norm}"
    tables = []
    for eps in (budgets.reference, *(e for e in budgets.eps if e != budgets.reference)):
        columns = _success_columns(run, eps, [s for s in series if s.norm == budgets.norm], index)
        first = eps == budgets.reference
        title = f"Success at eps {show_budget(eps)}"
        caption = _caption_success(run) if first else "Definitions as in the first table of this section."
        data = joined.filter(pl.col("attack") != "none") if first else None
        tables.append(Table(name, title, caption, columns, data, detail=not first))
    return tuple(tables)


def make_curve_table(run: Run, series: Sequence[Series]) -> Table:
    """Make the table that sums up each sweep in two numbers."""
    area = run.table("area", by=IDENTITY)
    index = _index(area, *IDENTITY)
    eligible = run.curves().filter(pl.col("dice_clean") >= run.scoring.dice_threshold)
    median = pl.col("smallest_eps").fill_null(float("inf")).quantile(0.5, "lower").alias("median_smallest_eps")
    broken = eligible.group_by(IDENTITY).agg(
        pl.len().alias("n_eligible"), pl.col("smallest_eps").is_not_null().mean().alias("broken"), median
    )
    broken = broken.cast({pl.Categorical(): pl.String})
    found = _index(broken, *IDENTITY)
    pairs = [(m, s) for m in run.model_names for s in series if _key(m, s) in index]
    rows = [found.get(_key(m, s), {}) for m, s in pairs]
    columns = (
        Column("Model", thin([m for m, _ in pairs]), number=False),
        Column("Attack and loss", tuple(s.label for _, s in pairs), number=False),
        Column("Area under Dice", tuple(_estimate(index[_key(m, s)]) for m, s in pairs)),
        Column("Images broken", tuple(show_number(row.get("broken")) for row in rows)),
        Column("Median smallest eps", tuple(_show_median(row.get("median_smallest_eps")) for row in rows)),
    )
    t = run.scoring.dice_threshold
    caption = (
        "Area: mean height of an image's curve of Dice from eps = 0 (clean) to the largest eps of the sweep "
        f"(trapezoid); only images with every eps. Images broken: share of the images with clean Dice >= {t:g} that "
        f"fall below {t:g} at any eps of the sweep. Median smallest eps: over those same images, the smallest eps at "
        f"which that happens; {NOTHING} if fewer than half ever do. Random attacks: Dice averaged over draws first."
    )
    data = _attach(area, broken, *IDENTITY)
    return Table("curves", "The sweep in two numbers", caption, columns, data)


def make_class_table(run: Run, budgets: Budgets, contrasts: Sequence[Contrast]) -> Table:
    """Make the table that breaks the strongest attack on each model down by class."""
    by = (*IDENTITY, "eps", "class")
    where = {"norm": budgets.norm, "eps": budgets.reference}
    found = {name: run.table(name, by=by, where=where) for name in ("dice_clean", "dice", "diff")}
    index = {name: _index(table, *by) for name, table in found.items()}
    keys = []
    for c in contrasts:
        key = (c.model, *(c.drop[name] for name in ("attack", "loss", "settings")), budgets.norm, budgets.reference)
        keys += [(c, (*key, name)) for name in run.task.classes if (*key, name) in index["dice"]]
    models = [c.model for c, _ in keys]
    columns = [
        Column("Model", thin(models), number=False),
        Column("Strongest attack", thin([c.label for c, _ in keys], models), number=False),
        Column("Class", tuple(str(key[-1]) for _, key in keys), number=False),
        Column("Images", tuple(show_count(index["dice"][key]["n_images"]) for _, key in keys)),
    ]
    for name, label in (("dice_clean", "Clean Dice"), ("dice", "Attacked Dice"), ("diff", "Diff")):
        columns.append(Column(label, tuple(_estimate(index[name][key]) for _, key in keys)))
    data = found["dice"]
    for name in ("dice_clean", "diff"):
        data = _attach(data, found[name].select(*by, pl.col("mean").alias(name)), *by)
    caption = (
        f"eps = {show_budget(budgets.reference)}, each model's strongest attack (the CSV has all). Images: those with "
        f"a score for the class; {_say_empty(run)} Diff: share of the clean Dice that is lost."
    )
    return Table("classes", f"By class at eps {show_budget(budgets.reference)}", caption, tuple(columns), data)


def _success_columns(
    run: Run, eps: float, series: Sequence[Series], index: dict[str, dict[tuple[Any, ...], Row]]
) -> tuple[Column, ...]:
    """The columns of one budget's success table."""
    pairs = [(m, s) for m in run.model_names for s in series if (*_key(m, s), eps) in index["apsr"]]
    rows = {score: [found[(*_key(m, s), eps)] for m, s in pairs] for score, found in index.items()}
    labels = (f"Dice below {run.scoring.dice_threshold:g}", "Wrong, clean", "Wrong (apsr)", "Flipped", "apsr99")
    numbers = [Column(label, tuple(map(_estimate, rows[score]))) for score, label in zip(SUCCESS, labels, strict=True)]
    eligible = Column("Eligible images", tuple(show_count(row["n_images"]) for row in rows["dice_below"]))
    return (
        Column("Model", thin([m for m, _ in pairs]), number=False),
        Column("Attack and loss", tuple(s.label for _, s in pairs), number=False),
        numbers[0],
        eligible,
        *numbers[1:],
    )


def _caption_success(run: Run) -> str:
    """Definitions of the success table."""
    t = f"{run.scoring.dice_threshold:g}"
    return (
        f"Four definitions that the literature mixes up. Dice below {t} (dice_below): share of the eligible images, "
        f"those with clean Dice >= {t}, whose Dice falls below {t}. Wrong (apsr): share of valid pixels with any class "
        "wrong against the ground truth, to be read beside its clean value. Flipped: share of valid pixels that "
        "differ from the clean prediction, corrected ones included. apsr99: share of images with at least 99 % of "
        "their pixels wrong. Random attacks: mean of their draws."
    )


def _say_empty(run: Run) -> str:
    """The empty rule in words."""
    return {
        "skip": "a class that the ground truth of an image lacks is left out.",
        "one": "a class that the ground truth of an image lacks scores 1 if none was predicted, else 0.",
        "zero": "a class that the ground truth of an image lacks scores 0.",
    }[run.scoring.empty]


def _key(model: str, series: Series) -> tuple[str, ...]:
    """A series on a model, in the order of `IDENTITY`."""
    return (model, series.attack, series.loss, series.settings, series.norm)


def _index(table: pl.DataFrame, *by: str) -> dict[tuple[Any, ...], Row]:
    """Rows by their key."""
    return {tuple(row[name] for name in by): row for row in table.iter_rows(named=True)}


def _attach(left: pl.DataFrame, right: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Join columns to the right of a table whose order is kept."""
    return left.with_row_index("place").join(right, on=by, how="left").sort("place").drop("place")


def _estimate(row: Row | None) -> str:
    """The mean of a row with its interval."""
    return show_estimate(row["mean"], row["lower"], row["upper"]) if row else NOTHING


def _show_median(eps: float | None) -> str:
    """A median budget, which may be beyond the sweep."""
    return NOTHING if eps is None or eps == float("inf") else show_budget(eps)
