"""What follows from the death of a worker: which units are run again, and which cells are given up.

The unit of a worker that died is run again in parts, first the cell that was running. A cell that was running alone
when two workers died, without having ended well in between, is given up on its model: it is a failure, and is not run
on the images that are left. One death is enough if it exceeded its time limit. So a worker that is killed from outside
costs no cell.

Cells whose results depend on each other, such as those of a battery or of a model that is random, stay in one unit. If
its worker dies and several cells may be the cause, each is first run alone, and its rows are discarded; the unit is
then run without those that are given up. If there are none and its worker dies again, all that were running are.

A model is given up if two workers die before its first attack, or `MOST_DEATHS` in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from advseg_bench.running.outcomes import TIMEOUT, Death
from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import Cell

ENOUGH = 2
"""Deaths after which a cell or a model is given up."""
MOST_DEATHS = 200
"""Most deaths on one model, whatever their causes."""
LOADING = ""
"""In place of the id of a cell, while a worker loads a model."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from the death of the worker that ran a unit.

    Attributes:
        units: Units to run next, in this order.
        lost: Cells that are given up by this death.
        model: Whether the whole model is given up by it.
    """

    units: tuple[Unit, ...] = ()
    lost: tuple[Cell, ...] = ()
    model: bool = False


@dataclass(slots=True, eq=False)
class _Chain:
    """A unit that waits until each of its cells has been run alone, and how many have not ended."""

    unit: Unit
    left: int


class Recovery:
    """Decides what is run again after deaths of workers.

    Args:
        random: Names of the models that are random in eval mode.

    Attributes:
        lost_rows: Number of rows that will never be.
    """

    def __init__(self, random: Collection[str] = ()) -> None:
        self._random = random
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._total: Counter[str] = Counter()
        self.lost_rows = 0
        self._lost: set[tuple[str, str]] = set()
        self._failed: set[str] = set()
        self._waiting: dict[Unit, _Chain] = {}
        self._tried: set[Unit] = set()

    def try_training_again(self, model: str) -> bool:
        """Note that a worker died while it trained or loaded a model; return whether it is tried again."""
        self._total[model] += 1
        self._deaths[model, LOADING] += 1
        return self._deaths[model, LOADING] < ENOUGH

    def has_deaths(self, model: str) -> bool:
        """Return whether a worker has died on a model."""
        return self._total[model] > 0

    def after_end(self, unit: Unit) -> tuple[Unit, ...]:
        """Note that a unit has ended well; return the unit that has waited for it, if there is one."""
        for name in (LOADING, *(cell.id for cell in unit.all_cells)):
            self._deaths[unit.model, name] = 0
        return self._release(unit)

    def after_death(self, unit: Unit, death: Death) -> Verdict:
        """Decide what follows from the death of the worker that ran a unit."""
        model = unit.model
        self._total[model] += 1
        self._deaths[model, LOADING] += death.running is None
        if model in self._failed:
            return Verdict(self.reduce(unit))
        if self._deaths[model, LOADING] >= ENOUGH or self._total[model] >= MOST_DEATHS:
            self._fail(unit)
            return Verdict(model=True)
        if death.running is None:
            return Verdict((unit,))
        running = [cell for cell in unit.all_cells if cell.id in death.running.cells]
        lost = self._charge(unit, running, death.cause)
        left = self._without_lost(unit)
        return Verdict(self._release(unit) if left is None else self._divide(left, running), lost)

    def reduce(self, unit: Unit) -> tuple[Unit, ...]:
        """Return what to run instead of a unit: without the cells that are given up, or else what has waited for it."""
        left = self._without_lost(unit)
        return self._release(unit) if left is None else (left,)

    def _without_lost(self, unit: Unit) -> Unit | None:
        """A unit without the cells that are given up; None if nothing is left to do. The rows of others are lost."""
        kept = [cell for cell in unit.all_cells if (unit.model, cell.id) not in self._lost]
        left = None if unit.model in self._failed else unit.only(kept)
        self.lost_rows += unit.rows - (left.rows if left else 0)
        return left

    def _fail(self, unit: Unit) -> None:
        """Give up the model of a unit."""
        self._failed.add(unit.model)
        waiting = {chain for probe, chain in self._waiting.items() if probe.model == unit.model}
        self._waiting = {probe: chain for probe, chain in self._waiting.items() if chain not in waiting}
        self.lost_rows += unit.rows + sum(chain.unit.rows for chain in waiting)

    def _charge(self, unit: Unit, running: Sequence[Cell], cause: str) -> tuple[Cell, ...]:
        """Count a death for the cell that was running alone; return the cells that are given up."""
        if len(running) != 1 and unit not in self._tried:
            return ()
        weight = 1 if cause != TIMEOUT and len(running) == 1 else ENOUGH
        lost = []
        for cell in running:
            key = unit.model, cell.id
            self._deaths[key] += weight
            if self._deaths[key] >= ENOUGH and key not in self._lost:
                self._lost.add(key)
                lost.append(cell)
        return tuple(lost)

    def _divide(self, unit: Unit, running: Sequence[Cell]) -> tuple[Unit, ...]:
        """The units in which a unit is run again, those of the cells that were running first."""
        parts = self._split(unit)
        if len(parts) > 1:
            return tuple(sorted(parts, key=lambda part: not set(part.all_cells) & set(running)))
        if len(running) == 1 or unit in self._tried:
            return (unit,)
        probes = tuple(Unit(unit.model, unit.indices, (), (cell,)) for cell in unit.all_cells)
        self._waiting |= dict.fromkeys(probes, _Chain(unit, len(probes)))
        return probes

    def _split(self, unit: Unit) -> list[Unit]:
        """Parts of a unit whose results do not depend on each other."""
        linked = any(cell.skip_finished or cell.warm_start for cell in unit.all_cells)
        groups: dict[object, list[Cell]] = {}
        for cell in unit.all_cells:
            key: object = cell.id
            if unit.model in self._random:
                key = cell.draw  # the cells of a repeat share a generator
            elif linked and cell.member is not None:
                key = "battery"
            groups.setdefault(key, []).append(cell)
        parts = []
        for group in groups.values():
            cells = tuple(cell for cell in group if cell in unit.cells)
            if cells or not unit.cells:
                parts.append(replace(unit, cells=cells, again=tuple(cell for cell in group if cell in unit.again)))
        return parts

    def _release(self, unit: Unit) -> tuple[Unit, ...]:
        """Note that a unit has ended in whatever way; return the one that has waited for it, if it is the last."""
        chain = self._waiting.pop(unit, None)
        if chain is None:
            return ()
        chain.left -= 1
        if chain.left:
            return ()
        left = self._without_lost(chain.unit)
        if left == chain.unit:
            self._tried.add(left)
        return () if left is None else (left,)
