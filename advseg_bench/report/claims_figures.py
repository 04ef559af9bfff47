"""The figures of the claims page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from advseg_bench.claims import Association, Claim, Crossing
from advseg_bench.report.document import NARROW, Figure, show_grey
from advseg_bench.report.figures import Mark, add_legend
from advseg_bench.report.series import COLOURS
from advseg_bench.stats import PairedTest

FORMS = {"additive": "additive", "blend": "blend, scaled", "blend_released": "blend, as released"}
"""Step forms as text."""

VERDICT_COLOURS = {"supported": "#0072B2", "contradicted": "#D55E00", "undecided": "#6b6b6b", "undecidable": "#a3a3a3"}


def make_finding_figure(name: str, data: str, claim: Claim) -> Figure:
    """Make the figure of the tests behind a claim: one line each, with its interval."""
    caption = (
        "Each point is a mean difference over subjects with its 95 % interval (none for fewer than five subjects); "
        "values above 0 support the claim. Colour: verdict of this comparison, as in the table."
    )
    return Figure(name, f"{claim.statement.rstrip('.')}: {data}", caption, partial(_draw_findings, claim))


def make_association_figure(name: str, data: str, found: Sequence[Association]) -> Figure:
    """Make the figure of attack success against properties of the models."""
    caption = (
        "Diff, the share of the clean Dice that is lost, against properties of the models; r is the linear "
        "correlation. Axes of parameters and operations are logarithmic."
    )
    title = f"Attack success against properties of the models: {data}"
    return Figure(name, title, caption, partial(_draw_models, found))


def make_crossing_figure(name: str, data: str, crossings: Sequence[Crossing], loss: str, scale: float = 1.0) -> Figure:
    """Make the figure of both losses under each argument order and step form."""
    whole = "" if scale == 1 else " of the range of intensities"
    caption = (
        f"Top: drop of Dice under BCE and under {loss}, the training loss, mean over models. Bottom: their difference, "
        "above 0 where BCE succeeds more. Bars: 95 % intervals over subjects. Below the names: mean measured L_inf in "
        f"units of 1/255{whole}, for BCE / training loss."
    )
    title = f"BCE against {loss} by argument order and step form: {data}"
    return Figure(name, title, caption, partial(_draw_crossing, crossings, loss, scale))


def _draw_findings(claim: Claim, width: float) -> Drawing:
    """Plot one finding per row, from top to bottom."""
    findings = claim.findings
    drawing = Drawing(figsize=(width, 0.28 * len(findings) + 0.9), layout="constrained")
    ax = drawing.subplots()
    for row, finding in enumerate(findings):
        test = finding.test
        if test.mean is None:
            continue
        colour = VERDICT_COLOURS[finding.verdict]
        if test.interval:
            ax.plot([test.interval.lower, test.interval.upper], [row, row], color=colour, solid_capstyle="butt")
        ax.plot([test.mean], [row], "o", color=colour, markersize=5)
    ax.axvline(0, color="#333333", linewidth=0.8)
    small = 6.5 if width <= NARROW else 8
    ax.set_yticks(range(len(findings)), [finding.what for finding in findings], fontsize=small)
    ax.set_ylim(len(findings) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(f"Difference in the {claim.measure}")
    used = dict.fromkeys(finding.verdict for finding in findings)
    add_legend(drawing, [Mark(verdict, VERDICT_COLOURS[verdict], "o", "-") for verdict in used], width)
    return drawing


def _draw_models(found: Sequence[Association], width: float) -> Drawing:
    """Make one scatter plot for each property."""
    narrow = width <= NARROW
    columns = 2 if narrow else max(len(found), 1)
    rows = -(-len(found) // columns)
    drawing = Drawing(figsize=(width, 2.1 * max(rows, 1) + 0.7), layout="constrained")
    axes = list(drawing.subplots(max(rows, 1), columns, sharey=True, squeeze=False).flat)
    labels = {
        "parameters": "log10 parameters",
        "flops": "log10 operations",
        "receptive_field_px": "receptive field, px",
        "clean Dice": "clean Dice",
    }
    names = list(dict.fromkeys(model for each in found for model in each.models))
    marks = {
        name: Mark(name, COLOURS[i % len(COLOURS)], "os^DvP"[i // len(COLOURS) % 6], "") for i, name in enumerate(names)
    }
    for ax, each in zip(axes, found, strict=False):
        for model, x, y in zip(each.models, each.x, each.y, strict=True):
            ax.plot([x], [y], marks[model].marker, color=marks[model].colour, markersize=6, clip_on=False)
        r = each.correlation.pearson
        ax.set_title("r undefined" if r is None else f"r = {r.value:+.2f}", loc="left")
        ax.set_xlabel(labels[each.what])
        ax.margins(0.12)
    for i, ax in enumerate(axes):
        if i >= len(found):
            ax.set_axis_off()
        elif i % columns == 0:
            ax.set_ylabel("Diff")
    add_legend(drawing, list(marks.values()), width)
    return drawing


def _draw_crossing(crossings: Sequence[Crossing], loss: str, scale: float, width: float) -> Drawing:
    """Plot the drops above and their difference below."""
    narrow = width <= NARROW
    drawing = Drawing(figsize=(width, 5.0), layout="constrained")
    top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    marks = (Mark("bce", COLOURS[0], "o", ""), Mark(loss, COLOURS[1], "s", ""))
    for i, crossing in enumerate(crossings):
        for test, mark, shift in ((crossing.bce, marks[0], -0.1), (crossing.other, marks[1], 0.1)):
            _draw_amount(top, i + shift, test, mark)
        _draw_amount(bottom, i, crossing.finding.test, Mark("", VERDICT_COLOURS[crossing.finding.verdict], "D", ""))
    for ax, label in ((top, "Drop of Dice"), (bottom, "Difference")):
        ax.axhline(0, color="#333333", linewidth=0.8)
        ax.set_ylabel(label)
        ax.grid(visible=False, axis="x")
    break_line = "\n" if narrow else " "
    names = [
        f"{crossing.order},\n{FORMS[crossing.form].replace(', ', ',' + break_line)}\n"
        f"{break_line.join((show_grey(crossing.linf[0], scale, 1), '/ ' + show_grey(crossing.linf[1], scale, 1)))}"
        for crossing in crossings
    ]
    bottom.set_xticks(range(len(crossings)), names, fontsize=6 if narrow else 8)
    bottom.set_xlim(-0.5, len(crossings) - 0.5)
    add_legend(drawing, marks, width)
    return drawing


def _draw_amount(ax: Axes, place: float, test: PairedTest, mark: Mark) -> None:
    """Plot a mean with its interval."""
    if test.mean is None:
        return
    ends = test.interval
    if ends is not None:
        ax.plot([place, place], [ends.lower, ends.upper], color=mark.colour, linewidth=1.5)
    ax.plot([place], [test.mean], mark.marker, color=mark.colour, markersize=5)
