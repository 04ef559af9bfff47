"""The figures over eps: small multiples of lines with their bands, by model and by class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FixedLocator, MaxNLocator

from advseg_bench.report.document import NARROW, Figure, show_budget
from advseg_bench.report.figures import Mark, add_legend, shorten
from advseg_bench.report.means import Means, Row
from advseg_bench.report.series import NORMS, Series, choose_drawn, find_label, style_line
from advseg_bench.report.spread import Band
from advseg_bench.report.summary import Summary
from advseg_bench.results.arms import WORST
from advseg_bench.results.selection import Budgets
from advseg_bench.stats import FEWEST_SUBJECTS
from advseg_bench.suite.cells import CLEAN, Arm, find_grey

THIN = 0.8
"""Width in points of the line of the worst case, below which that of the strongest attack stays visible."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of one panel.

    Attributes:
        mark: Style of the line.
        points: Rows of means, ascending in eps, the clean one first.
        blocks: Spread over scans at each eps, shown where rows have no interval.
    """

    mark: Mark
    points: list[Row]
    blocks: Band = field(default_factory=dict)


Chart = tuple[str, list[Line]]
"""A title and the lines below it."""


def make_sweep_figure(summary: Summary, budgets: Budgets) -> Figure | None:
    """Make the figure of Dice against eps: one panel per model, one line per series.

    Returns:
        The figure; None if no series has several eps, or if no model has a clean result.
    """
    drawn, left_out = choose_drawn(summary.series, budgets.norm, curves=True)
    if not drawn or not summary.has_clean:
        return None
    subjects, blocks = summary.subjects, summary.blocks
    spread = ""
    if subjects >= FEWEST_SUBJECTS and summary.run.about.data.by_image:
        spread = f"Bands: 95 % interval over {subjects} images, each of which counts by itself."
    elif summary.run.about.data.by_image:
        spread = ""
    elif subjects >= FEWEST_SUBJECTS:
        spread = f"Bands: 95 % interval for the population mean ({subjects} subjects)."
    elif blocks > 1:
        inside = "volumes" if summary.run.about.suite.of_volumes else "neighbouring slices"
        spread = (
            f"No population interval ({'one subject' if subjects == 1 else f'{subjects} subjects'}). Bands: smallest "
            f"and largest mean of the {blocks} groups of {inside}; a spread, not an interval."
        )
    sentences = (
        "Mean Dice over classes, images and subjects. Coloured: attacks that use the model's gradients or outputs.",
        "Black: the worst case over all results of an image." if any(s.arm.attack == WORST for s in drawn) else "",
        "Grey: noise of the same budget." if any(s.control for s in drawn) else "",
        spread,
        left_out,
    )
    name = "dice_eps" if budgets.norm == "linf" else f"dice_eps_{budgets.norm}"
    panels = _list_model_panels(summary, budgets, drawn)
    return Figure(name, "Dice against eps", _join(sentences), partial(_draw_multiples, panels, budgets))


def make_class_figure(summary: Summary) -> Figure | None:
    """Make the figure of each class's Dice against eps: one panel per class, one line per model.

    Returns:
        The figure; None if no class of any image has a score.
    """
    if summary.class_curves is None:
        return None
    budgets = summary.budgets[0]
    labels = {model: find_label(summary.series, arm) for model, arm in summary.swept.items()}
    panels = _list_class_panels(summary, summary.class_curves, labels)
    if not panels:
        return None
    same = len({*labels.values()}) == 1
    bands = any(point["lower"] is not None for _, lines in panels for line in lines for point in line.points)
    by_image = summary.run.about.data.by_image
    unit, what = ("images", "over images") if by_image else ("subjects", "for the population mean")
    few = f"No class has {FEWEST_SUBJECTS} {unit}, so there is no interval."
    sentences = (
        "Dice of each class under the worst case over the attacks on each model (the lowest mean Dice of each image)."
        if {arm.attack for arm in summary.swept.values()} == {WORST}
        else "Dice of each class under each model's strongest attack"
        + (f", {next(iter(labels.values()))}" if same else "")
        + f" (at eps {show_budget(budgets.reference, budgets.norm, budgets.width)}, among those with several eps; "
        "chosen on these images).",
        "Mean over the images with a score for the class, then over subjects; eps 0 is the clean image.",
        f"Bands: 95 % interval {what}, of classes in >= {FEWEST_SUBJECTS} {unit}." if bands else few,
    )
    draw = partial(_draw_multiples, panels, budgets)
    return Figure("classes_eps", "Dice of each class against eps", _join(sentences), draw)


def _join(sentences: Iterable[str]) -> str:
    """Join the sentences of a caption."""
    return " ".join(sentence for sentence in sentences if sentence)


def _follow(means: Means, model: str, arm: Arm, budgets: Budgets, *more: str) -> list[Row]:
    """Return the rows of a model's curve, ascending in eps, the clean one first."""
    keys = [(model, CLEAN, 0.0, *more), *((model, arm, eps, *more) for eps in budgets.eps)]
    return [means.rows[key] for key in keys if key in means.rows]


def _list_model_panels(summary: Summary, budgets: Budgets, series: Sequence[Series]) -> list[Chart]:
    """Return one panel per model, with its number of parameters."""
    panels = []
    front = sorted(series, key=lambda s: s.arm.attack != WORST)  # the first line is drawn last
    for model in summary.run.model_names:
        if model not in summary.clean["dice"]:
            continue
        lines = []
        for s in front:
            mark = Mark(s.label, s.colour, s.marker, s.dash, behind=s.control, thin=s.arm.attack == WORST)
            points = _follow(summary.points["dice"], model, s.arm, budgets)
            lines.append(Line(mark, points, summary.spread.get((model, s.arm), {})))
        parameters = summary.run.models.get(model, {}).get("parameters")
        panels.append((f"{model}\n{shorten(parameters)} parameters" if parameters else model, lines))
    return panels


def _list_class_panels(summary: Summary, means: Means, labels: Mapping[str, str]) -> list[Chart]:
    """Return one panel per class for which any image has a score, with its number of images."""
    same = len({*labels.values()}) == 1
    models = [model for model in summary.run.model_names if model in summary.swept]
    panels: list[Chart] = []
    for name in summary.run.task.classes:
        lines = []
        for i, model in enumerate(models):
            followed = _follow(means, model, summary.swept[model], summary.budgets[0], name)
            points = [row for row in followed if row["mean"] is not None]
            if points:
                label = model if same else f"{model}, {labels[model]}"
                lines.append(Line(Mark(label, *style_line(i)), points))
        if lines:
            images = max(line.points[0]["n_images"] for line in lines)
            panels.append((f"{name}\n{images:,} image{'' if images == 1 else 's'}", lines))
    return panels


def _draw_multiples(panels: Sequence[Chart], budgets: Budgets, width: float) -> Drawing:
    """Plot small multiples with shared axes and one legend."""
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
    """Plot one line with its band."""
    points = [p for p in line.points if p["mean"] is not None]
    x = [p["eps"] * _scale(budgets) for p in points]
    mark = line.mark
    ax.plot(
        x,
        [p["mean"] for p in points],
        mark.dash,
        color=mark.colour,
        marker=mark.marker or None,
        linewidth=THIN if mark.thin else None,
        clip_on=False,
        zorder=2 if mark.behind else 3,
    )
    ends = [(p["lower"], p["upper"]) if p["lower"] is not None else line.blocks.get(p["eps"]) for p in points]
    if all(end is not None for end in ends) and points:
        low, high = zip(*(end for end in ends if end is not None), strict=True)
        alpha = 0.05 if points[0]["lower"] is None else 0.12
        ax.fill_between(x, low, high, color=mark.colour, alpha=alpha, linewidth=0, zorder=1)


def _arrange(count: int, width: float) -> tuple[int, int]:
    """Return the numbers of columns and rows of small multiples."""
    columns = min(count, 2) if width <= NARROW else count if count <= 4 else 3 if count <= 9 else 4
    return max(columns, 1), max(math.ceil(count / max(columns, 1)), 1)


def _label_budgets(axes: Sequence[Axes], budgets: Budgets, *, inches: float) -> None:
    """Set ticks at the budgets of the sweep if they are far enough apart on axes of this length."""
    ticks = [0.0, *(eps * _scale(budgets) for eps in budgets.eps)]
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
    """Return the axis label with norm and unit."""
    whole = "" if budgets.width == 1 else " of the range of intensities"
    unit = f"1/255{whole}" if budgets.norm == "linf" else "image units"
    return f"eps ({NORMS.get(budgets.norm, budgets.norm)}, in {unit})"


def _scale(budgets: Budgets) -> float:
    """Return the factor from eps to the axis: L_inf budgets are shown in units of 1/255 of the range of intensities."""
    return find_grey(1, budgets.width) if budgets.norm == "linf" else 1.0
