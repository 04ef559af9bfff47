"""The curves of a run: one attack with one loss, its settings and norm, and how it is named and drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass

from advseg_bench.results import Run

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
    colour: str
    marker: str
    dash: str

    def where(self) -> dict[str, str]:
        """Return the filter for `Run.table` that keeps this series only."""
        return {name: getattr(self, name) for name in ("attack", "loss", "settings", "norm")}


def list_series(run: Run) -> tuple[Series, ...]:
    """Return the series that have rows, in the order of the suite, controls last."""
    names = ("attack", "loss", "settings", "norm")
    there = set(run.rows.select(names).unique().iter_rows())
    planned = dict.fromkeys((c["attack"], c["loss"], c["settings"], c["norm"]) for c in run.info["cells"])
    keys = [key for key in planned if key in there and key[0] != "none"]
    series: list[Series] = []
    for control in (False, True):
        for i, key in enumerate(key for key in keys if (key[0] in run.controls) == control):
            colours = GREYS if control else COLOURS
            turn = i // len(colours)
            dash = ("--", ":", "-.")[i % 3] if control else ("-", "--", ":", "-.")[turn % 4]
            marker = MARKERS[i % len(MARKERS)] if not control else ""
            label = _name(key, keys)
            series.append(Series(*key, label, control, colours[i % len(colours)], marker, dash))
    return tuple(series)


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
