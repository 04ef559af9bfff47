"""The figure of attack success against the number of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from advseg_bench.report.document import NARROW, Figure, show_budget
from advseg_bench.report.figures import Mark, add_legend, shorten
from advseg_bench.report.series import Series, choose_drawn
from advseg_bench.report.summary import Summary
from advseg_bench.results.selection import Budgets
from advseg_bench.suite.cells import CLEAN

FEWEST_MODELS = 8
"""With fewer models, the caption states that a correlation cannot be distinguished from chance."""


def make_success_figure(summary: Summary, budgets: Budgets) -> Figure | None:
    """Make the figure of attack success against parameters; None unless two models' parameters are known."""
    run = summary.run
    drawn, left_out = choose_drawn(summary.series, budgets.norm, curves=False)
    attacked = {model for model, arm, _ in summary.points["dice"].rows if arm != CLEAN}
    parameters = {m: run.models.get(m, {}).get("parameters") for m in run.model_names if m in attacked}
    known = {model: count for model, count in parameters.items() if count}
    if len(known) < 2:
        return None
    eps = show_budget(budgets.reference, budgets.norm, budgets.width)
    caption = (
        f"Each model's attack success at eps {eps} against its number of parameters. "
        "Left (on a phone: top): Diff, the share of the clean Dice that is lost. Right: share of the "
        f"images with clean Dice >= {run.scoring.dice_threshold:g} whose Dice falls below it, mean over "
        "subjects."
    )
    if len(known) < FEWEST_MODELS:
        caption += f" With {len(known)} models, a correlation cannot be distinguished from chance, so none is given."
    if left_out:
        caption += f" {left_out}"
    draw = partial(_draw_success, summary, budgets, drawn, known)
    name = "parameters" if budgets.norm == "linf" else f"parameters_{budgets.norm}"
    return Figure(name, "Success against parameters", caption, draw)


def _draw_success(
    summary: Summary, budgets: Budgets, series: Sequence[Series], parameters: Mapping[str, int], width: float
) -> Drawing:
    """Make two scatter plots over a logarithmic axis, with the names of the models above."""
    narrow = width <= NARROW
    drawing = Drawing(figsize=(width, 5.4 if narrow else 3.5), layout="constrained")
    axes = list(drawing.subplots(2 if narrow else 1, 1 if narrow else 2, sharex=True, squeeze=False).flat)
    titles = ("Diff", f"Images below Dice {summary.run.scoring.dice_threshold:g}")
    crosses = iter("x+1234" * len(series))
    marks = {s: Mark(s.label, s.colour, next(crosses) if s.control else s.marker, "") for s in series}
    shown: dict[Series, Mark] = {}
    for ax, score, label in zip(axes, ("diff", "dice_below"), titles, strict=True):
        means = summary.points[score].rows
        for i, (s, mark) in enumerate(marks.items()):
            found = [(count, means.get((model, s.arm, budgets.reference))) for model, count in parameters.items()]
            points = sorted((count, row["mean"]) for count, row in found if row and row["mean"] is not None)
            if points:
                shown[s] = mark
                x, y = zip(*points, strict=True)
                size = max(7.5 - 0.7 * i, 4)  # larger marks stay visible behind smaller ones of the same value
                ax.plot(x, y, mark.marker, color=mark.colour, markersize=size, clip_on=False, zorder=3)
        scale_parameters(ax, parameters)
        if score == "dice_below":
            ax.set_ylim(-0.03, 1.03)
        else:
            ax.set_ylim(min(0.0, ax.get_ylim()[0]), max(0.1, ax.get_ylim()[1]))
        ax.set_ylabel(label)
    for ax in axes[:1] if narrow else axes:
        name_models(ax, parameters, gap=0.07 if narrow else 0.06)
    for ax in axes[1:] if narrow else axes:
        ax.set_xlabel("Parameters")
    add_legend(drawing, [mark for s, mark in marks.items() if s in shown], width)
    return drawing


def scale_parameters(ax: Axes, parameters: Mapping[str, int]) -> None:
    """Make an axis logarithmic, with ticks at round numbers."""
    low, high = min(parameters.values()), max(parameters.values())
    ax.set_xscale("log")
    middle, half = math.sqrt(low * high), 1.6 * math.sqrt(max(high / low, 2))
    ax.set_xlim(middle / half, middle * half)
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 20 * low else (1.0,)))
    ax.xaxis.set_major_formatter(lambda value, _: shorten(round(value)))
    ax.xaxis.set_minor_locator(NullLocator())


def name_models(ax: Axes, parameters: Mapping[str, int], gap: float) -> None:
    """Write the models' names above their positions on the axis, at least `gap` of its length apart."""
    low, high = (math.log(end) for end in ax.get_xlim())
    names = sorted(parameters, key=lambda name: parameters[name])
    marked = [(math.log(parameters[name]) - low) / (high - low) for name in names]
    named = list(marked)
    for i in range(1, len(named)):
        named[i] = max(named[i], named[i - 1] + gap)
    turned: dict[str, Any] = {"rotation": 35, "rotation_mode": "anchor", "ha": "left", "va": "bottom"}
    for name, foot, place in zip(names, marked, named, strict=True):
        ax.add_line(Line2D([foot, place], [1, 1.05], transform=ax.transAxes, color="#8a8a8a", lw=0.5, clip_on=False))
        ax.text(place, 1.06, name, transform=ax.transAxes, fontsize=7.5, **turned)
