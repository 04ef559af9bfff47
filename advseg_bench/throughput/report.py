"""Writes timings as a terminal table, Parquet, JSON and a figure."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure as Drawing
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from advseg_bench.cache import make_folder, write_bytes, write_json
from advseg_bench.report.document import Figure
from advseg_bench.report.figures import render
from advseg_bench.report.series import COLOURS
from advseg_bench.throughput.contenders import LIMIT, RAW
from advseg_bench.throughput.grid import Row

SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "model": pl.String,
    "parameters": pl.Int64,
    "flops": pl.Int64,
    "attack": pl.String,
    "loss": pl.String,
    "implementation": pl.String,
    "preparation": pl.String,
    "precision": pl.String,
    "batch": pl.Int64,
    "images_per_s": pl.Float64,
    "images_per_s_low": pl.Float64,
    "images_per_s_high": pl.Float64,
    "ratio": pl.Float64,
    "ratio_low": pl.Float64,
    "ratio_high": pl.Float64,
    "gradients": pl.Int64,
    "forwards": pl.Float64,
    "backwards": pl.Float64,
    "rise": pl.Float64,
    "flops_per_s": pl.Float64,
    "peak_share": pl.Float64,
    "peak_bytes": pl.Int64,
    "largest_batch": pl.Int64,
    "seconds": pl.List(pl.Float64),
    "warmups": pl.Int64,
    "error": pl.String,
}
"""Columns of `throughput.parquet`: one implementation on one model at one batch size and precision.

`flops` are those of one forward of one image. `ratio` is the limit's time for `gradients` gradients over the
implementation's time, paired by round, with its 95 % confidence interval; null if the implementation computes fewer
gradients. `forwards` and `backwards` are counted per image. `rise` is the increase of the raw model's attack loss over
that of the reference: 1 if both are equally strong. `flops_per_s` counts a gradient as two forwards, and `peak_share`
is its share of the peak rate of a matrix product on this machine. `seconds` are all samples of a call.
"""


def print_throughput(rows: Sequence[Row], console: Console) -> None:
    """Print one line per row, the limit of each group first; conditions common to all rows are printed above."""
    columns = {name: [show(row) for row in rows] for name, show in _COLUMNS.items()}
    same = {name: texts[0] for name, texts in columns.items() if name in _CONDITIONS and len(set(texts)) == 1}
    varying = [name for name, texts in columns.items() if name not in same and any(texts)]
    console.print(", ".join(f"{name} {text}" for name, text in same.items() if text), highlight=False, markup=False)
    left = (*_CONDITIONS, "implementation")
    table = Table(
        *(
            Column(name, justify="left" if name in left else "right", no_wrap=name != "implementation", overflow="fold")
            for name in varying
        ),
        box=None,
        pad_edge=False,
    )
    for i in range(len(rows)):
        table.add_row(*(escape(columns[name][i]) for name in varying))
    console.print(table, highlight=False)
    console.print(
        "of the limit: the median ratio of the limit's time to the implementation's in the same round. [more rounds]: "
        "too few independent rounds for an interval. Toolkits attack the raw model.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _show_ratio(row: Row) -> str:
    if row["implementation"] == LIMIT:
        return "1"
    if row["ratio"] is None:
        return f"computes {row['backwards']:g} gradients, not {row['gradients']}"
    if math.isinf(row["ratio_high"]):
        return f"{row['ratio']:.3f} [more rounds]"
    return f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"


def _number(name: str, form: str, unit: float = 1) -> Callable[[Row], str]:
    """A formatter of a column, empty if there is no number."""

    def show(row: Row) -> str:
        return "" if row.get(name) is None else form.format(row[name] / unit)

    return show


_CONDITIONS = ("model", "precision", "batch", "prepared")

_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row["model"],
    "precision": lambda row: row["precision"],
    "batch": lambda row: str(row["batch"]),
    "implementation": lambda row: row["implementation"],
    "prepared": lambda row: row["preparation"],
    "images/s": _number("images_per_s", "{:.2f}"),
    "of the limit [95 %]": lambda row: row["error"] or _show_ratio(row),
    "F + B": lambda row: "" if row["error"] else f"{row['forwards']:g} + {row['backwards']:g}",
    "loss increase": _number("rise", "{:.3f}"),
    "GFLOP/s": _number("flops_per_s", "{:.1f}", 1e9),
    "of peak": _number("peak_share", "{:.0%}"),
    "peak MB": _number("peak_bytes", "{:.1f}", 1e6),
    "largest batch": _number("largest_batch", "{:.0f}"),
}


def write_throughput(rows: Sequence[Row], about: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `throughput.parquet`, `throughput.json` (machine and options) and the figure as SVG and PNG.

    Returns:
        The files.

    Raises:
        RecordError: If they cannot be written.
    """
    make_folder(out)
    buffer = io.BytesIO()
    pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in rows], schema=SCHEMA).write_parquet(buffer)
    paths = [out / f"throughput.{kind}" for kind in ("parquet", "json", "svg", "png")]
    write_bytes(paths[0], buffer.getvalue())
    write_json(paths[1], dict(about))
    figure = Figure("throughput", "Throughput", "", partial(draw_throughput, rows))
    for path, content in zip(paths[2:], render(figure, 7.2, "svg", "png"), strict=True):
        write_bytes(path, content)
    return paths


def draw_throughput(rows: Sequence[Row], width: float) -> Drawing:
    """Plot each implementation's ratio to the limit with its interval, one row per model and batch."""
    sound = [row for row in rows if row.get("ratio") is not None and row["implementation"] != LIMIT]
    places = list(dict.fromkeys(_place(row) for row in sound))
    labels = list(dict.fromkeys(_label(row) for row in sound))
    drawing = Drawing(figsize=(width, 1.2 + 0.16 * max(1, len(places)) * (len(labels) + 1)), layout="constrained")
    ax = drawing.subplots()
    step = 0.8 / max(1, len(labels))
    for i, label in enumerate(labels):
        mine = [row for row in sound if _label(row) == label]
        y = [places.index(_place(row)) + (i - (len(labels) - 1) / 2) * step for row in mine]
        x = [row["ratio"] for row in mine]
        known = [math.isfinite(row["ratio_high"]) for row in mine]  # with too few rounds, a marker without an interval
        low = [row["ratio"] - row["ratio_low"] if sure else 0 for row, sure in zip(mine, known, strict=True)]
        high = [row["ratio_high"] - row["ratio"] if sure else 0 for row, sure in zip(mine, known, strict=True)]
        colour = COLOURS[i % len(COLOURS)]
        ax.errorbar(x, y, xerr=[low, high], fmt="osD^v<>"[i % 7], color=colour, label=label, capsize=2, markersize=4)
    ax.axvline(1, color="#555555", linewidth=0.8)
    ax.set_yticks(range(len(places)), places)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("Speed relative to the bare limit, with 95 % confidence interval")
    ax.grid(False, axis="y")
    if labels:
        drawing.legend(loc="outside upper left", ncols=min(3, len(labels)))
    return drawing


def _place(row: Row) -> str:
    return f"{row['model']}\n{row['precision']}, batch {row['batch']}"


def _label(row: Row) -> str:
    return f"{row['implementation']}, {row['preparation']}" if row["preparation"] != RAW else str(row["implementation"])
