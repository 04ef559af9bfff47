"""The curves of a run: one attack with one loss, its settings and norm, and how it is named and drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from advseg_bench.report.document import show_plural
from advseg_bench.results.numbering import number_rows
from advseg_bench.results.run import Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, told apart with any colour vision; its yellow is too pale for lines."""
GREYS = ("#6b6b6b", "#a3a3a3", "#8a8a8a")
MARKERS = "os^DvP"
Key = tuple[str, str, str, str]
"""Attack, loss, settings and norm."""

NORMS = {"linf": "L_inf", "l2": "L_2"}


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Attributes:
        attack: The attack's name.
        loss: The loss's name, "" for controls.
        settings: The attack's settings as canonical JSON.
        norm: Norm of its budgets.
        label: For legends and tables; tells the series of a run apart.
        control: Whether it never asks the model.
        variant: Whether it differs by its settings from a series of the same attack and norm that has none.
        budgets: At how many eps above 0 it has rows.
        colour: Of its line.
        marker: Of its points.
        dash: Line style.
    """

    attack: str
    loss: str
    settings: str
    norm: str
    label: str
    control: bool
    variant: bool
    budgets: int
    colour: str
    marker: str
    dash: str

    def where(self) -> dict[str, str]:
        """Return the filter for `Run.table` that keeps this series only."""
        return {name: getattr(self, name) for name in ("attack", "loss", "settings", "norm")}


def list_series(run: Run) -> tuple[Series, ...]:
    """Return the series that have rows, in the order of the suite, controls last.

    Lines that are drawn together differ in colour, marker or dash: variants take what the others leave.
    """
    names = ("attack", "loss", "settings", "norm")
    found = number_rows(run.rows, (*names, "eps"))[1]
    above = found.filter(pl.col("eps") > 0).group_by(names).len()
    budgets = {tuple(key): count for *key, count in above.iter_rows()}
    there = set(found.select(names).iter_rows())
    planned = dict.fromkeys((c["attack"], c["loss"], c["settings"], c["norm"]) for c in run.info["cells"])
    keys = [key for key in planned if key in there and key[0] != "none"]
    plain = {(attack, norm) for attack, _, settings, norm in keys if settings == "{}"}
    variants = {key for key in keys if key[2] != "{}" and (key[0], key[3]) in plain}
    series: list[Series] = []
    for control in (False, True):
        mine = [key for key in keys if (key[0] in run.controls) == control]
        turns = {key: i for i, key in enumerate(sorted(mine, key=lambda key: key in variants))}
        for key in mine:
            colour, marker, dash = style_control(turns[key]) if control else style_line(turns[key])
            label = _name(key, keys)
            series.append(Series(*key, label, control, key in variants, budgets.get(key, 0), colour, marker, dash))
    return tuple(series)


def style_line(turn: int) -> tuple[str, str, str]:
    """Return colour, marker and dash of one of up to 24 lines that stay apart without colour."""
    return (
        COLOURS[turn % len(COLOURS)],
        MARKERS[turn % len(MARKERS)],
        ("-", "--", ":", "-.")[turn // len(COLOURS) % 4],
    )


def style_control(turn: int) -> tuple[str, str, str]:
    """Return colour, marker and dash of a control's line."""
    return GREYS[turn % len(GREYS)], "", ("--", ":", "-.")[turn % 3]


def choose_drawn(series: Sequence[Series], norm: str, *, curves: bool) -> tuple[tuple[Series, ...], str]:
    """Choose the series that a figure shows, so that it stays readable; the tables have all.

    Args:
        series: Of a run.
        norm: Of the figure.
        curves: Whether it draws lines over eps, for which one eps is too few.
    Returns: The series of that norm that are no variants and, for curves, have several eps; and the sentence that
        says what was left out, "" if nothing was.
    """
    mine = [s for s in series if s.norm == norm]
    plain = [s for s in mine if not s.variant]
    drawn = [s for s in plain if s.budgets > 1 or not curves]
    said = [
        f"{show_plural(count, noun)} {rest}"
        for count, noun, rest in (
            (len(mine) - len(plain), "further variant", "with other settings"),
            (len(plain) - len(drawn), "attack", "with a single eps"),
        )
        if count
    ]
    return tuple(drawn), f"Only in the tables: {' and '.join(said)}." if said else ""


def find_label(series: tuple[Series, ...], attack: str, loss: str, settings: str, norm: str) -> str:
    """Return the label of one series by what identifies it."""
    return next(s.label for s in series if (s.attack, s.loss, s.settings, s.norm) == (attack, loss, settings, norm))


def _name(key: Key, keys: list[Key]) -> str:
    """Attack and loss; settings and norm only where another series differs in nothing else."""
    attack, loss, settings, norm = key
    parts = [attack, loss]
    if sum((other[0], other[1], other[3]) == (attack, loss, norm) for other in keys) > 1:
        parts += [f"{name}={value}" for name, value in json.loads(settings).items()] or ["default"]
    if sum(other[:3] == key[:3] for other in keys) > 1:
        parts.append(NORMS.get(norm, norm))
    return " ".join(part for part in parts if part)
