"""Which job comes next: every unit once, after its model is there, and rather where that model is already loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from advseg_bench.running.work import RunUnit, Train, Unit


class Schedule:
    """The order of a run's jobs. It knows no executor and no results: it is asked, and told how trainings ended.

    A worker keeps one model in memory. It goes on with that model while there are units of it, then takes a model
    that nobody has begun, and only then helps with the model that has most left.

    Args:
        units: Model -> units of work, in the order in which they should be done.
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
            A job that is not handed out again, or None if there is nothing to do until a training ends.
        """
        if not self._ready.get(held):
            if self._not_begun:
                return Train(self._not_begun.popleft())
            held = max(self._ready, key=lambda model: len(self._ready[model]), default="")
        left = self._ready.get(held)
        return RunUnit(left.popleft()) if left else None

    def ready(self, model: str) -> None:
        """Release a model's units: it has been trained."""
        self._ready[model] = self._not_ready.pop(model)

    def failed(self, model: str) -> None:
        """Drop a model's units: it could not be trained."""
        del self._not_ready[model]
