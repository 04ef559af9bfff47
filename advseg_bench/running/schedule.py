"""Chooses the next job: every unit once, after its model is ready, preferably where the model is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from advseg_bench.running.work import Description, RunUnit, Train, Unit, list_sources
from advseg_bench.suite.cells import Cell
from advseg_bench.suite.suite import Suite
from advseg_bench.suite.timing import expect_models


class Schedule:
    """The order of a run's jobs. It is independent of executors and results; callers report when trainings end.

    A worker keeps one model in memory. It continues with that model while units of it are left, then takes a model
    that no worker has started, and then helps with the model that has most units left. The units of a model with
    transfer attacks also wait for the models that the images are made for, which are trained even if no unit of
    theirs is left.

    Args:
        units: Model -> units of work, in the order in which they should run.
    """

    def __init__(self, units: Mapping[str, Sequence[Unit]]) -> None:
        needs = {model: list_sources(cell for unit in wanted for cell in unit.cells) for model, wanted in units.items()}
        models = dict.fromkeys([*units, *(source for found in needs.values() for source in found)])
        self._not_begun = deque(models)
        self._waits = {model: {model, *needs.get(model, ())} for model in models}
        self._not_ready = {model: deque(units.get(model, ())) for model in models}
        self._ready: dict[str, deque[Unit]] = {}

    @property
    def models(self) -> set[str]:
        """Models that have not been trained."""
        return set(self._not_ready)

    def next(self, held: str = "") -> Train | RunUnit | None:
        """Take the next job.

        Args:
            held: The model that the free worker has in memory, "" for none.

        Returns:
            A job, each exactly once, or None if none is available until a training ends.
        """
        if not self._ready.get(held):
            if self._not_begun:
                return Train(self._not_begun.popleft())
            held = max(self._ready, key=lambda model: len(self._ready[model]), default="")
        left = self._ready.get(held)
        return RunUnit(left.popleft()) if left else None

    def ready(self, model: str) -> None:
        """Release the units that have waited for a model alone, now that it has been trained."""
        for waiting in self._waits.values():
            waiting.discard(model)
        for each in [each for each in self._not_ready if not self._waits[each]]:
            self._ready[each] = self._not_ready.pop(each)

    def failed(self, model: str) -> tuple[Cell, ...]:
        """Drop the units of a model that could not be trained, and the cells of others that need it.

        Returns:
            The cells of other models that were dropped.
        """
        del self._not_ready[model]
        if model in self._not_begun:
            self._not_begun.remove(model)
        dropped: dict[Cell, None] = {}
        for other, units in self._not_ready.items():
            if model not in self._waits[other]:
                continue
            dropped |= {cell: None for unit in units for cell in unit.cells if model in list_sources([cell])}
            kept = (replace(u, cells=tuple(c for c in u.cells if c not in dropped)) for u in units)
            self._not_ready[other] = deque(unit for unit in kept if unit.cells)
        self.ready(model)
        return tuple(dropped)

    def add(self, units: Sequence[Unit]) -> None:
        """Put units of one model that is ready before its others."""
        if units:
            self._ready.setdefault(units[0].model, deque()).extendleft(reversed(units))

    def train_again(self, model: str) -> None:
        """Take the training of a model once more, as the next job."""
        self._not_begun.appendleft(model)

    def change(self, model: str, change: Callable[[Unit], Sequence[Unit]]) -> None:
        """Replace each unit of a model that has not begun.

        Args:
            model: Name of the model.
            change: Returns the units to run instead.
        """
        for place in (self._ready, self._not_ready):
            if model in place:
                place[model] = deque(new for unit in place[model] for new in change(unit))


def put_longest_first(
    units: Mapping[str, list[Unit]], suite: Suite, cells: Sequence[Cell], here: Description
) -> dict[str, list[Unit]]:
    """Put the models that take longest first, so that no long training is left to the end; no result depends on it.

    Args:
        units: Model -> units, in the order of the suite.
        suite: The suite.
        cells: Its cells.
        here: The description of the data set.

    Returns:
        The same units. Their order stays that of the suite unless a time of every model is known.
    """
    images = here.data["splits"]["train"], len(here.images)
    seconds = {model: each for model, (each, _) in (expect_models(suite, tuple(cells), images) or {}).items()}
    return {model: units[model] for model in sorted(units, key=lambda name: -seconds.get(name, 0.0))}
