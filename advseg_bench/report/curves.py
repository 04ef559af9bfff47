"""The figures over eps: small multiples of lines with their bands, by model and by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, MaxNLocator

from advseg_bench.report.document import NARROW, Figure, show_budget
from advseg_bench.report.figures import Mark, add_legend, shorten
from advseg_bench.report.series import NORMS, Series, choose_drawn, find_label, style_line
from advseg_bench.report.tables import IDENTITY
from advseg_bench.results.numbering import average_by, number_rows
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Budgets, find_strongest
from advseg_bench.stats import FEWEST_SUBJECTS

Row = dict[str, Any]
Band = dict[float, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of one panel.

    Attributes:
        mark: How it is drawn.
        points: Rows of `Run.table`, ascending in eps, the clean one first.
        blocks: Spread at each eps where rows have no interval.
    """

    mark: Mark
    points: list[Row]
    blocks: Band = field(default_factory=dict)


Panel = tuple[str, list[Line]]
"""A title and the lines below it."""


def make_sweep_figure(run: Run, budgets: Budgets, series: Sequence[Series]) -> Figure | None:
    """Make the figure of Dice against eps: one panel per model, one line per series; None if none has several eps."""
    drawn, left_out = choose_drawn(series, budgets.norm, curves=True)
    if not drawn:
        return None
    subjects = run.rows["subject"].n_unique()
    blocks = run.rows.select("subject", "block").n_unique()
    spread = ""
    if subjects >= FEWEST_SUBJECTS:
        spread = f"Bands: 95 % interval for the population mean ({subjects} subjects)."
    elif blocks > 1:
        inside = "volumes" if run.of_volumes else "neighbouring slices"
        spread = (
            f"No population interval ({'one subject' if subjects == 1 else f'{subjects} subjects'}). Bands: smallest "
            f"and largest mean of the {blocks} blocks of {inside}; a spread, not an interval."
        )
    sentences = (
        "Mean Dice over classes, images and subjects. Coloured: attacks that follow the model's gradient or answers.",
        "Grey: noise of the same budget." if any(s.control for s in drawn) else "",
        spread,
        left_out,
    )
    name = "dice_eps" if budgets.norm == "linf" else f"dice_eps_{budgets.norm}"
    panels = _list_model_panels(run, drawn)
    return Figure(name, "Dice against eps", _join(sentences), partial(_draw_multiples, panels, budgets))


def make_class_figure(run: Run, budgets: Budgets, series: tuple[Series, ...]) -> Figure | None:
    """Make the figure of each class's Dice against eps: one panel per class, one line per model.

    Returns: None if no class of any image has a score.
    """
    strongest = find_strongest(run, budgets, swept=True)
    labels = {
        model: find_label(series, top["attack"], top["loss"], top["settings"], budgets.norm)
        for model, top in strongest.items()
    }
    panels = _list_class_panels(run, budgets, strongest, labels)
    if not panels:
        return None
    same = len({*labels.values()}) == 1
    bands = any(point["lower"] is not None for _, lines in panels for line in lines for point in line.points)
    few = f"No class has {FEWEST_SUBJECTS} subjects, so there is no interval."
    sentences = (
        "Dice of each class under each model's strongest attack"
        + (f", {next(iter(labels.values()))}" if same else "")
        + f" (at eps {show_budget(budgets.reference)}, among those with several eps; chosen on these images).",
        "Mean over the images with a score for the class, then over subjects; eps 0 is the clean image.",
        f"Bands: 95 % interval for the population mean, of classes in >= {FEWEST_SUBJECTS} subjects." if bands else few,
    )
    draw = partial(_draw_multiples, panels, budgets)
    return Figure("classes_eps", "Dice of each class against eps", _join(sentences), draw)


def _join(sentences: Iterable[str]) -> str:
    """A caption."""
    return " ".join(sentence for sentence in sentences if sentence)


def _list_model_panels(run: Run, series: Sequence[Series]) -> list[Panel]:
    """A panel per model, with its size."""
    table = run.table("dice", by=(*IDENTITY, "eps"))
    clean = {row["model"]: row for row in table.iter_rows(named=True) if row["attack"] == "none"}
    spread = _spread_over_blocks(run)
    panels = []
    for model in run.model_names:
        if model not in clean:
            continue
        lines = []
        for s in series:
            same = (pl.col(name) == value for name, value in s.where().items())
            points = table.filter(pl.col("model") == model, pl.col("eps") > 0, *same).sort("eps").to_dicts()
            blocks = spread.get((model, *s.where().values()), {})
            mark = Mark(s.label, s.colour, s.marker, s.dash, behind=s.control)
            lines.append(Line(mark, [clean[model], *points], blocks))
        parameters = run.models.get(model, {}).get("parameters")
        panels.append((f"{model}\n{shorten(parameters)} parameters" if parameters else model, lines))
    return panels


def _list_class_panels(run: Run, budgets: Budgets, strongest: dict[str, Row], labels: dict[str, str]) -> list[Panel]:
    """A panel per class that any image has a score for, with the number of its images."""
    clean = {"attack": "none", "loss": "", "settings": "{}"}
    drawn = {name: sorted({none, *(top[name] for top in strongest.values())}) for name, none in clean.items()}
    table = run.table("dice", by=(*IDENTITY, "eps", "class"), where=drawn).filter(pl.col("mean").is_not_null())
    same = len({*labels.values()}) == 1
    models = [model for model in run.model_names if model in strongest]
    panels: list[Panel] = []
    for name in run.task.classes:
        lines = []
        for i, model in enumerate(models):
            mine = table.filter(pl.col("class") == name, pl.col("model") == model)
            key = {k: strongest[model][k] for k in ("attack", "loss", "settings")} | {"norm": budgets.norm}
            attacked = mine.filter(pl.col("eps") > 0, *(pl.col(k) == v for k, v in key.items())).sort("eps")
            points = [*mine.filter(pl.col("attack") == "none").to_dicts(), *attacked.to_dicts()]
            if points:
                label = model if same else f"{model}, {labels[model]}"
                lines.append(Line(Mark(label, *style_line(i)), points))
        if lines:
            images = max(line.points[0]["n_images"] for line in lines)
            panels.append((f"{name}\n{images:,} image{'' if images == 1 else 's'}", lines))
    return panels


def _spread_over_blocks(run: Run) -> dict[tuple[str, ...], Band]:
    """Smallest and largest block mean at each eps of each curve, where there are several blocks."""
    scored = run.scores()
    number, groups = number_rows(scored, (*IDENTITY, "eps", "subject", "block"))
    means = groups.with_columns(average_by(number, scored["dice"], len(groups))).drop_nulls("dice")
    ends = (pl.col("dice").min().alias("low"), pl.col("dice").max().alias("high"), pl.len().alias("blocks"))
    table = means.group_by(*IDENTITY, "eps").agg(*ends).filter(pl.col("blocks") > 1)
    spread: dict[tuple[str, ...], Band] = {}
    clean: dict[str, tuple[float, float]] = {}
    for *key, eps, low, high, _ in table.iter_rows():
        spread.setdefault(tuple(key), {})[eps] = (low, high)
        if key[1] == "none":
            clean[key[0]] = (low, high)
    for (model, *_), band in spread.items():
        if model in clean:
            band.setdefault(0.0, clean[model])
    return spread


def _draw_multiples(panels: Sequence[Panel], budgets: Budgets, width: float) -> Drawing:
    """Small multiples with shared axes and one legend."""
    columns, rows = _arrange(len(panels), width)
    drawing = Drawing(figsize=(width, rows * (2.3 if width > NARROW else 1.9) + 0.65), layout="constrained")
    axes = list(drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    marks: dict[str, Mark] = {}
    for ax, (title, lines) in zip(axes, panels, strict=False):
        for line in reversed(lines):
            _draw_line(ax, line, budgets)
        marks |= {line.mark.label: line.mark for line in lines}
        ax.set_title(title, loc="left")
    used, free = axes[: len(panels)], axes[len(panels) :]
    for i, ax in enumerate(used):
        lowest = i + columns >= len(panels)
        ax.tick_params(labelbottom=lowest)
        ax.set_xlabel(_budget_label(budgets) if lowest else "")
        ax.set_ylabel("Dice" if i % columns == 0 else "")
    for ax in free:
        ax.set_axis_off()
    _label_budgets(used, budgets, inches=width / columns - 0.5)
    add_legend(drawing, list(marks.values()), width)
    return drawing


def _draw_line(ax: Axes, line: Line, budgets: Budgets) -> None:
    """One line with its band."""
    points = [p for p in line.points if p["mean"] is not None]
    x = [p["eps"] * _scale(budgets.norm) for p in points]
    mark = line.mark
    ax.plot(
        x,
        [p["mean"] for p in points],
        mark.dash,
        color=mark.colour,
        marker=mark.marker or None,
        clip_on=False,
        zorder=2 if mark.behind else 3,
    )
    ends = [(p["lower"], p["upper"]) if p["lower"] is not None else line.blocks.get(p["eps"]) for p in points]
    if all(end is not None for end in ends) and points:
        low, high = zip(*(end for end in ends if end is not None), strict=True)
        alpha = 0.05 if points[0]["lower"] is None else 0.12
        ax.fill_between(x, low, high, color=mark.colour, alpha=alpha, linewidth=0, zorder=1)


def _arrange(count: int, width: float) -> tuple[int, int]:
    """Columns and rows of small multiples."""
    columns = min(count, 2) if width <= NARROW else count if count <= 4 else 3 if count <= 9 else 4
    return max(columns, 1), max(math.ceil(count / max(columns, 1)), 1)


def _label_budgets(axes: Sequence[Axes], budgets: Budgets, *, inches: float) -> None:
    """Ticks at the budgets of the sweep where they are far enough apart on axes of that length."""
    ticks = [0.0, *(eps * _scale(budgets.norm) for eps in budgets.eps)]
    gaps = [b - a for a, b in pairwise(ticks)]
    widest = max(len(f"{tick:g}") for tick in ticks)
    few = inches * min(gaps) / ticks[-1] > 0.03 + 0.08 * widest
    for ax in axes:
        ax.xaxis.set_major_locator(FixedLocator(ticks) if few else MaxNLocator(5))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, 0.0), min(high, 1.0))


def _budget_label(budgets: Budgets) -> str:
    """Axis label with norm and unit."""
    unit = "1/255" if budgets.norm == "linf" else "image units"
    return f"eps ({NORMS.get(budgets.norm, budgets.norm)}, in {unit})"


def _scale(norm: str) -> float:
    """L_inf budgets are shown in grey levels of 255."""
    return 255.0 if norm == "linf" else 1.0
