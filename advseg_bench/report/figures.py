"""The figures: drawn through matplotlib's objects, without its global state, and always to the same bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from advseg_bench.report.document import NARROW, Figure, show_budget
from advseg_bench.report.series import NORMS, Series
from advseg_bench.report.tables import IDENTITY
from advseg_bench.results import Run
from advseg_bench.selection import Budgets
from advseg_bench.stats import FEWEST_SUBJECTS

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "legend.frameon": False,
    "svg.fonttype": "none",
}

FEWEST_MODELS = 8
"""Under this many models a caption says that no correlation can be told from chance."""

Row = dict[str, Any]
Band = dict[float, tuple[float, float]]


@contextmanager
def _styled(salt: str) -> Iterator[None]:
    """Apply the house style inside; `salt` makes the ids of an SVG the same every time."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "svg.hashsalt": salt}):
        yield


def render(figure: Figure, width: float, *kinds: str) -> list[bytes]:
    """Draw a figure once and write it in one or more formats.

    Args:
        figure: What to draw.
        width: Inches.
        kinds: Any of "svg" and "png" (200 dots an inch).
    Returns: The files' bytes, the same for the same numbers and version of matplotlib.
    """
    files = []
    with _styled(figure.name):
        drawing = figure.draw(width)
        FigureCanvasAgg(drawing)
        layout = drawing.get_layout_engine()
        if layout is not None:
            layout.execute(drawing)
            drawing.set_layout_engine("none")
        for kind in kinds:
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            drawing.savefig(buffer, format=kind, dpi=200, metadata=metadata)
            files.append(buffer.getvalue())
    return files


def make_sweep_figure(run: Run, budgets: Budgets, series: Sequence[Series]) -> Figure:
    """Make the figure of Dice against eps: one panel per model, one line per series."""
    mine = [s for s in series if s.norm == budgets.norm]
    subjects = run.rows["subject"].n_unique()
    blocks = run.rows.select("subject", "block").n_unique()
    spread = ""
    if subjects >= FEWEST_SUBJECTS:
        spread = f"Bands: 95 % interval for the population mean ({subjects} subjects)."
    elif blocks > 1:
        spread = (
            f"No population interval ({'one subject' if subjects == 1 else f'{subjects} subjects'}). Bands: smallest "
            f"and largest mean of the {blocks} blocks of neighbouring slices; a spread, not an interval."
        )
    caption = (
        "Mean Dice over classes, images and subjects. Coloured: attacks that follow the model's gradient or answers. "
        f"Grey: noise of the same budget. {spread}"
    )
    name = "dice_eps" if budgets.norm == "linf" else f"dice_eps_{budgets.norm}"
    return Figure(name, "Dice against eps", caption.strip(), partial(_draw_sweep, run, budgets, mine))


def make_success_figure(run: Run, budgets: Budgets, series: Sequence[Series]) -> Figure | None:
    """Make the figure of attack success against parameters; None unless two models' parameters are known."""
    mine = [s for s in series if s.norm == budgets.norm]
    known = [m for m in run.model_names if run.models.get(m, {}).get("parameters")]
    attacked = set(run.rows.filter(pl.col("attack") != "none")["model"])
    known = [m for m in known if m in attacked]
    if len(known) < 2:
        return None
    caption = (
        f"Each model's attack success at eps {show_budget(budgets.reference)} against its number of parameters. "
        f"Left (on a phone: top): Diff, the share of the clean Dice that is lost. Right: share of images with clean "
        f"Dice >= {run.scoring.dice_threshold:g} that fall below it."
    )
    if len(known) < FEWEST_MODELS:
        caption += f" With {len(known)} models no correlation can be told from chance, so none is given."
    draw = partial(_draw_success, run, budgets, mine, known)
    name = "parameters" if budgets.norm == "linf" else f"parameters_{budgets.norm}"
    return Figure(name, "Success against parameters", caption, draw)


def _draw_sweep(run: Run, budgets: Budgets, series: Sequence[Series], width: float) -> Drawing:
    """Small multiples with shared axes."""
    table = run.table("dice", by=(*IDENTITY, "eps"))
    clean = {row["model"]: row for row in table.iter_rows(named=True) if row["attack"] == "none"}
    models = [m for m in run.model_names if m in clean]
    spread = _spread_over_blocks(run)
    columns, rows = _arrange(len(models), width)
    drawing = Drawing(figsize=(width, rows * (2.3 if width > NARROW else 1.9) + 0.65), layout="constrained")
    grid = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for ax, model in zip(axes, models, strict=False):
        for s in reversed(series):
            points = table.filter(pl.col("model") == model, *(pl.col(k) == v for k, v in s.where().items()))
            key = (model, *s.where().values())
            _draw_curve(ax, s, [clean[model], *points.sort("eps").iter_rows(named=True)], spread.get(key, {}))
        parameters = run.models.get(model, {}).get("parameters")
        ax.set_title(f"{model}\n{_short(parameters)} parameters" if parameters else model, loc="left")
    used, free = axes[: len(models)], axes[len(models) :]
    for i, ax in enumerate(used):
        lowest = i + columns >= len(models)
        ax.tick_params(labelbottom=lowest)
        ax.set_xlabel(_budget_label(budgets) if lowest else "")
        ax.set_ylabel("Dice" if i % columns == 0 else "")
    for ax in free:
        ax.set_axis_off()
    _label_budgets(used, budgets, small=width <= NARROW)
    handles = [_handle(s) for s in series]
    if free:
        free[0].legend(handles=handles, loc="center")
    else:
        drawing.legend(handles=handles, loc="outside lower center", ncols=_fit(series, width))
    return drawing


def _draw_curve(ax: Axes, series: Series, points: list[Row], blocks: Band) -> None:
    """One line with its band."""
    points = [p for p in points if p["mean"] is not None]
    x = [p["eps"] * _scale(series.norm) for p in points]
    ax.plot(
        x,
        [p["mean"] for p in points],
        series.dash,
        color=series.colour,
        marker=series.marker or None,
        zorder=2 if series.control else 3,
    )
    ends = [(p["lower"], p["upper"]) if p["lower"] is not None else blocks.get(p["eps"]) for p in points]
    if all(end is not None for end in ends) and points:
        low, high = zip(*(end for end in ends if end is not None), strict=True)
        alpha = 0.05 if points[0]["lower"] is None else 0.12
        ax.fill_between(x, low, high, color=series.colour, alpha=alpha, linewidth=0, zorder=1)


def _spread_over_blocks(run: Run) -> dict[tuple[str, ...], Band]:
    """Smallest and largest block mean at each eps of each curve, where there are several blocks."""
    known = run.scores().filter(pl.col("dice").is_not_null())
    means = known.group_by(*IDENTITY, "eps", "subject", "block").agg(pl.col("dice").mean())
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


def _draw_success(run: Run, budgets: Budgets, series: Sequence[Series], models: Sequence[str], width: float) -> Drawing:
    """Two scatters over a logarithmic axis, with the models named above."""
    narrow = width <= NARROW
    drawing = Drawing(figsize=(width, 5.4 if narrow else 3.5), layout="constrained")
    axes = list(drawing.subplots(2 if narrow else 1, 1 if narrow else 2, sharex=True, squeeze=False).flat)
    titles = ("Diff", f"Images below Dice {run.scoring.dice_threshold:g}")
    parameters = {model: run.models[model]["parameters"] for model in models}
    where = {"norm": budgets.norm, "eps": budgets.reference}
    for ax, score, label in zip(axes, ("diff", "dice_below"), titles, strict=True):
        table = run.table(score, by=IDENTITY, where=where)
        for s in series:
            mine = table.filter(*(pl.col(k) == v for k, v in s.where().items()), pl.col("mean").is_not_null())
            points = sorted(
                (parameters[row["model"]], row["mean"]) for row in mine.to_dicts() if row["model"] in parameters
            )
            if points:
                marker = "x" if s.control else s.marker
                ax.plot(
                    [p[0] for p in points],
                    [p[1] for p in points],
                    marker,
                    color=s.colour,
                    markersize=5,
                    clip_on=False,
                    zorder=3,
                )
        ax.set_xscale("log")
        if score == "dice_below":
            ax.set_ylim(-0.03, 1.03)
        else:
            ax.set_ylim(min(0.0, ax.get_ylim()[0]), max(0.1, ax.get_ylim()[1]))
        ax.set_ylabel(label)
    low, high = min(parameters.values()), max(parameters.values())
    axes[0].set_xlim(low / 1.6, max(high, low * 2) * 1.6)
    for ax in axes[:1] if narrow else axes:
        _name_models(ax, parameters, gap=0.07 if narrow else 0.06)
    for ax in axes[1:] if narrow else axes:
        ax.set_xlabel("Parameters")
    handles = [_handle(s, line=False) for s in series]
    drawing.legend(handles=handles, loc="outside lower center", ncols=_fit(series, width))
    return drawing


def _name_models(ax: Axes, parameters: dict[str, int], gap: float) -> None:
    """Write the models' names above their places on the axis, at least `gap` of its length apart."""
    low, high = (math.log(end) for end in ax.get_xlim())
    names = sorted(parameters, key=lambda name: parameters[name])
    places = [(math.log(parameters[name]) - low) / (high - low) for name in names]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for name, place in zip(names, places, strict=True):
        ax.annotate(
            name,
            xy=(parameters[name], 1),
            xycoords=ax.get_xaxis_transform(),
            xytext=(place, 1.06),
            textcoords="axes fraction",
            rotation=35,
            ha="left",
            va="bottom",
            fontsize=7.5,
            rotation_mode="anchor",
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#8a8a8a", "shrinkA": 0, "shrinkB": 0},
        )


def _arrange(count: int, width: float) -> tuple[int, int]:
    """Columns and rows of small multiples."""
    columns = min(count, 2) if width <= NARROW else count if count <= 4 else 3 if count <= 9 else 4
    return max(columns, 1), max(math.ceil(count / max(columns, 1)), 1)


def _label_budgets(axes: Sequence[Axes], budgets: Budgets, *, small: bool) -> None:
    """Ticks at the budgets of the sweep where they are few and far enough apart."""
    ticks = [0.0, *(eps * _scale(budgets.norm) for eps in budgets.eps)]
    gaps = [b - a for a, b in pairwise(ticks)]
    few = min(gaps) / ticks[-1] > (0.065 if small else 0.04)
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


def _handle(series: Series, *, line: bool = True) -> Line2D:
    """Legend entry."""
    marker = series.marker or (None if line else "x")
    style = series.dash if line else "none"
    return Line2D([], [], color=series.colour, linestyle=style, marker=marker, label=series.label)


def _fit(series: Sequence[Series], width: float) -> int:
    """How many legend entries of the longest label's length go side by side, in letters of 9 points."""
    longest = max(len(s.label) for s in series)
    return max(1, min(len(series), int(width / (0.6 + 0.075 * longest))))


def _short(count: int) -> str:
    """A number of parameters in three digits."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
