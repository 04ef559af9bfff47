"""The series of a run: one attack with loss, settings and norm, and the label and style of its curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from advseg_bench.report.document import show_plural
from advseg_bench.results.arms import ARM, WORST, read_arm
from advseg_bench.results.run import Run
from advseg_bench.suite.cells import CLEAN, Arm

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette, which is safe for colour-blind readers; its yellow is too pale for lines."""
GREYS = ("#6b6b6b", "#a3a3a3", "#8a8a8a")
MARKERS = "os^DvP"
WORST_STYLE = ("#000000", "*", "-")
"""Colour, marker and dash of the worst case."""
NORMS = {"linf": "L_inf", "l2": "L_2"}


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Attributes:
        arm: The attack with its loss, settings and norm.
        label: Label in legends and tables, unique in the run.
        control: Whether it is a noise baseline.
        variant: Whether it has settings while another series of the same attack and norm has the default ones.
        budgets: Number of eps above 0 at which it has rows.
        colour: Colour of its line.
        marker: Marker of its points.
        dash: Line style.
    """

    arm: Arm
    label: str
    control: bool
    variant: bool
    budgets: int
    colour: str
    marker: str
    dash: str

    @property
    def single(self) -> bool:
        """Whether it is one attack: neither noise nor the worst case over the attacks."""
        return not self.control and self.arm.attack != WORST


def list_series(run: Run, cells: pl.DataFrame) -> tuple[Series, ...]:
    """Return the series that have rows: attacks in the order of the suite, the worst case, noise baselines.

    Lines in one figure differ in colour, marker or dash; variants get the styles that the others do not use.

    Args:
        run: The run.
        cells: Its cells with rows and its worst cases, see `measured.measure_cells`.
    """
    budgets = _count_budgets(cells)
    arms = [arm for arm in dict.fromkeys(cell.arm for cell in run.about.cells) if arm in budgets and arm != CLEAN]
    plain = {(arm.attack, arm.norm) for arm in arms if arm.settings == "{}"}
    variants = {arm for arm in arms if arm.settings != "{}" and (arm.attack, arm.norm) in plain}
    worst = sorted((arm for arm in budgets if arm.attack == WORST), key=lambda arm: (arm.norm != "linf", arm.norm))
    series: list[Series] = []
    for control in (False, True):
        mine = [arm for arm in arms if (arm.attack in run.controls) == control]
        turns = {arm: i for i, arm in enumerate(sorted(mine, key=lambda arm: arm in variants))}
        for arm in mine:
            colour, marker, dash = style_control(turns[arm]) if control else style_line(turns[arm])
            label = _name(arm, arms)
            series.append(Series(arm, label, control, arm in variants, budgets[arm], colour, marker, dash))
        if not control:
            series += [Series(arm, _name(arm, worst), False, False, budgets[arm], *WORST_STYLE) for arm in worst]
    return tuple(series)


def _count_budgets(cells: pl.DataFrame) -> dict[Arm, int]:
    """Return the number of eps above 0 at which each arm has rows; 0 if it has rows only at eps 0."""
    found = cells.select(*ARM, "eps").unique().group_by(ARM).agg((pl.col("eps") > 0).sum().alias("budgets"))
    return {read_arm(row): row["budgets"] for row in found.iter_rows(named=True)}


def style_line(turn: int) -> tuple[str, str, str]:
    """Return colour, marker and dash of one of up to 24 lines, distinguishable without colour, and without dash."""
    return (
        COLOURS[turn % len(COLOURS)],
        MARKERS[(turn + turn // len(COLOURS)) % len(MARKERS)],
        ("-", "--", ":", "-.")[turn // len(COLOURS) % 4],
    )


def style_control(turn: int) -> tuple[str, str, str]:
    """Return colour, marker and dash of the line of a noise baseline."""
    return GREYS[turn % len(GREYS)], "", ("--", ":", "-.")[turn % 3]


def choose_drawn(series: Sequence[Series], norm: str, *, curves: bool) -> tuple[tuple[Series, ...], str]:
    """Choose the series that a figure shows, so that it stays readable; the tables have all series.

    Args:
        series: The series of a run.
        norm: The norm of the figure.
        curves: Whether the figure has lines over eps, which need several eps.

    Returns:
        The series of this norm that are not variants and, for curves, have several eps; and a sentence on those that
        are left out, "" if there are none.
    """
    mine = [s for s in series if s.arm.norm == norm]
    plain = [s for s in mine if not s.variant]
    drawn = [s for s in plain if s.budgets > 1 or not curves]
    omitted = [
        f"{show_plural(count, noun)} {rest}"
        for count, noun, rest in (
            (len(mine) - len(plain), "further variant", "with other settings"),
            (len(plain) - len(drawn), "attack", "with a single eps"),
        )
        if count
    ]
    return tuple(drawn), f"Only in the tables: {' and '.join(omitted)}." if omitted else ""


def find_label(series: Sequence[Series], arm: Arm) -> str:
    """Return the label of an arm's series."""
    return next(s.label for s in series if s.arm == arm)


def _name(arm: Arm, arms: Sequence[Arm]) -> str:
    """Return attack and loss; settings and norm are added only where needed to distinguish arms."""
    parts = ["worst case" if arm.attack == WORST else arm.attack, arm.loss]
    if sum(replace(other, settings=arm.settings) == arm for other in arms) > 1:
        parts += [f"{name}={value}" for name, value in arm.options.items()] or ["default"]
    if sum(replace(other, norm=arm.norm) == arm for other in arms) > 1:
        parts.append(NORMS.get(arm.norm, arm.norm))
    return " ".join(part for part in parts if part)
