"""Chooses the next job: every unit once, after its model is ready, preferably where the model is loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from advseg_bench.running.work import RunUnit, Train, Unit


class Schedule:
    """The order of a run's jobs. It is independent of executors and results; callers report when trainings end.

    A worker keeps one model in memory. It continues with that model while units of it are left, then takes a model
    that no worker has started, and then helps with the model that has most units left.

    Args:
        units: Model -> units of work, in the order in which they should run.
    """

    def __init__(self, units: Mapping[str, Sequence[Unit]]) -> None:
        self._not_begun = deque(units)
        self._not_ready = {model: deque(wanted) for model, wanted in units.items()}
        self._ready: dict[str, deque[Unit]] = {}

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
        """Release the units of a model that has been trained."""
        self._ready[model] = self._not_ready.pop(model)

    def failed(self, model: str) -> None:
        """Drop the units of a model that could not be trained."""
        del self._not_ready[model]
