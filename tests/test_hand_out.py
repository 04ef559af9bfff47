"""How a run's jobs are handed to its workers: every one once, and a worker keeps its model. On a clock of its own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from advseg_bench.running import benchmark
from advseg_bench.running.work import Unit

UNITS = 6
"""Of each model."""


class Factory:
    """An executor whose workers take made-up times; a model that a worker has not in memory takes it longer."""

    def __init__(self, workers: int, seed: int, ties: bool) -> None:
        self.capacity = workers
        self.times = (1.0, 1.0, 2.0) if ties else [1 + random.Random(seed + i).random() for i in range(1000)]
        self.random = random.Random(seed)
        self.now = 0.0
        self.held = [""] * workers
        self.busy: dict[Future[Any], tuple[float, int]] = {}
        self.done: list[tuple[str, Any]] = []
        self.loads = 0

    def submit(self, job: str, context: Any, what: Any) -> Future[Any]:
        free = [i for i in range(self.capacity) if i not in {worker for _, worker in self.busy.values()}]
        assert free, "no job waits for a worker"
        worker = self.random.choice(free)
        name = what if job == "train" else what.model
        self.loads += self.held[worker] != name
        seconds = (5 if self.held[worker] != name else 0) + self.random.choice(self.times)
        self.held[worker] = name
        self.done.append((job, what))
        future: Future[Any] = Future()
        self.busy[future] = (self.now + seconds, worker)
        return future

    def wait(self, waiting: Any, return_when: str) -> tuple[set[Future[Any]], set[Future[Any]]]:
        """What ends first, and all that ends at the same time."""
        assert set(waiting) == set(self.busy)
        self.now = min(end for end, _ in self.busy.values())
        ended = {future for future, (end, _) in self.busy.items() if end == self.now}
        for future in ended:
            del self.busy[future]
            future.set_result(None)
        return ended, set(self.busy)


def hand_out(
    monkeypatch: pytest.MonkeyPatch,
    models: int,
    workers: int,
    seed: int,
    broken: Collection[str] = (),
    ties: bool = False,
) -> Factory:
    factory = Factory(workers, seed, ties)
    units = {f"m{m}": [Unit(f"m{m}", (i,), ()) for i in range(UNITS)] for m in range(models)}
    recorded: list[Unit] = []
    monkeypatch.setattr(benchmark, "wait", factory.wait)
    monkeypatch.setattr(benchmark, "_missing", lambda *_: units)
    monkeypatch.setattr(benchmark, "_record_model", lambda state, name, future: name not in broken)
    monkeypatch.setattr(benchmark, "_record_rows", lambda state, unit, future: recorded.append(unit))
    benchmark._compute(SimpleNamespace(executor=factory, context=None), (), ())  # type: ignore[arg-type]
    wanted = [unit for name, found in units.items() if name not in broken for unit in found]
    assert Counter(recorded) == Counter(wanted)
    assert Counter(factory.done) == Counter([*(("train", name) for name in units), *(("attack", u) for u in wanted)])
    return factory


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("broken", [(), ("m0",), ("m0", "m1", "m2", "m3", "m4")], ids=["", "one fails", "all fail"])
@pytest.mark.parametrize(("models", "workers"), [(0, 2), (1, 1), (1, 3), (2, 4), (5, 1), (5, 2), (5, 3)])
def test_every_job_is_done_once_and_before_it_its_model_is_there(monkeypatch, models, workers, broken, seed):
    factory = hand_out(monkeypatch, models, workers, seed, broken, ties=True)
    trained = set()
    for job, what in factory.done:
        if job == "train":
            trained.add(what)
        else:
            assert what.model in trained


@pytest.mark.parametrize(("models", "workers"), [(5, 1), (5, 2), (8, 2), (12, 3)])
def test_workers_keep_to_their_model(monkeypatch, models, workers):
    loads = [hand_out(monkeypatch, models, workers, seed).loads for seed in range(20)]
    assert min(loads) >= models
    assert max(loads) < models + workers, "at the end the others help with the last"
