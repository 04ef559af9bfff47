"""The order of jobs: every unit once, after its model is trained, and rather where that model is loaded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import advseg_bench as ab
from advseg_bench.running.executors.base import keep_busy
from advseg_bench.running.outcomes import Outcome
from advseg_bench.running.schedule import Schedule, put_longest_first
from advseg_bench.running.work import Description, RunUnit, Train, Unit
from advseg_bench.suite.timing import Timing, remember


def make_units(*counts: int) -> dict[str, list[Unit]]:
    """Models m0, m1, ... with so many units."""
    return {f"m{m}": [Unit(f"m{m}", (i,), ()) for i in range(count)] for m, count in enumerate(counts)}


class Simulated:
    """An executor on a clock of its own, which does as the protocol says, with nothing in the jobs.

    Args:
        capacity: Workers.
        duration: Job, whether the worker has its model -> seconds.
    """

    def __init__(self, capacity: int, duration: Callable[[Train | RunUnit, bool], float]) -> None:
        self.capacity, self.duration = capacity, duration
        self.now = 0.0
        self.idle = list(range(capacity))
        self.under_way: list[tuple[float, int, Any]] = []
        self.held = [""] * capacity
        self.log: list[tuple[int, Any]] = []
        self.loads = 0

    def submit(self, job: Any) -> None:
        worker = self.idle.pop()
        loaded = self.held[worker] == job.model
        self.loads += not loaded
        self.held[worker] = job.model
        self.log.append((worker, job))
        self.under_way.append((self.now + self.duration(job, loaded), worker, job))

    def wait(self) -> tuple[Any, Outcome[Any]]:
        ended = min(self.under_way, key=lambda one: one[0])
        self.under_way.remove(ended)
        self.now, worker, job = ended
        self.idle.append(worker)
        return job, Outcome()


def work_off(units: dict[str, list[Unit]], executor: Simulated, broken: Collection[str] = ()) -> list[Any]:
    """Do all units as a run does; returns the jobs in the order in which they ended."""
    schedule, ended = Schedule(units), []
    for job, _ in keep_busy(executor, schedule.next):
        if isinstance(job, Train):
            (schedule.failed if job.model in broken else schedule.ready)(job.model)
        ended.append(job)
    assert schedule.next() is None
    return ended


@given(st.lists(st.integers(1, 5), max_size=5), st.integers(1, 4), st.sets(st.integers(0, 4)), st.randoms())
def test_every_unit_is_done_once_and_every_model_trained_once_before(counts, workers, failing, chance):
    units, broken = make_units(*counts), {f"m{m}" for m in failing}
    ended = work_off(units, Simulated(workers, lambda *_: chance.choice((1.0, 1.0, 2.0, 9.0))), broken)
    wanted = [RunUnit(unit) for model, of_model in units.items() if model not in broken for unit in of_model]
    assert Counter(ended) == Counter([*map(Train, units), *wanted])
    for job in wanted:
        assert ended.index(Train(job.model)) < ended.index(job)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 4), st.randoms())
def test_no_worker_rests_while_there_is_work_and_none_leaves_its_model(counts, workers, chance):
    units = make_units(*counts)
    schedule, under_way, held = Schedule(units), [], [""] * workers
    left = Counter({model: len(of_model) for model, of_model in units.items()})
    begun: set[str] = set()
    ready: set[str] = set()
    while True:
        for worker in set(range(workers)) - {worker for worker, _ in under_way}:
            job = schedule.next(held[worker])
            can_go_on = held[worker] in ready and left[held[worker]] > 0
            if job is None:
                assert not can_go_on
                assert begun == set(units)
                assert not any(left[model] for model in ready)
                continue
            assert not can_go_on or job.model == held[worker]
            if isinstance(job, Train):
                begun.add(job.model)
            else:
                others = [left[model] for model in ready]
                assert can_go_on or (begun == set(units) and left[job.model] == max(others)), "the one with most left"
                left[job.model] -= 1
            held[worker] = job.model
            under_way.append((worker, job))
        if not under_way:
            break
        _, job = under_way.pop(chance.randrange(len(under_way)))
        if isinstance(job, Train):
            schedule.ready(job.model)
            ready.add(job.model)
    assert not +left


@pytest.mark.parametrize(("models", "workers"), [(5, 1), (5, 2), (8, 2), (12, 3)])
def test_models_are_loaded_again_only_where_others_help_with_the_last(models, workers):
    loads = []
    for seed in range(20):
        chance = random.Random(seed)
        executor = Simulated(workers, lambda job, loaded, r=chance: (0 if loaded else 5) + 1 + r.random())
        work_off(make_units(*[6] * models), executor)
        loads.append(executor.loads)
    assert min(loads) >= models
    assert max(loads) < models + workers


@pytest.mark.parametrize(("units", "workers", "end"), [((1, 1, 1, 1), 4, 2), ((1, 1, 1, 1), 2, 4), ((6,), 3, 3)])
def test_all_workers_work(units, workers, end):
    executor = Simulated(workers, lambda *_: 1.0)
    work_off(make_units(*units), executor)
    assert executor.now == end


def test_a_model_is_trained_and_attacked_in_the_order_of_the_suite():
    executor = Simulated(1, lambda *_: 1.0)
    ended = work_off(make_units(2, 1), executor)
    assert [(type(job), job.model) for job in ended] == [
        (Train, "m0"),
        (RunUnit, "m0"),
        (RunUnit, "m0"),
        (Train, "m1"),
        (RunUnit, "m1"),
    ]
    assert [job.unit.indices for job in ended[1:3]] == [(0,), (1,)]


def test_nothing_to_do_is_nothing_done():
    assert work_off({}, Simulated(2, lambda *_: 1.0)) == []


def test_models_that_take_longest_come_first_if_all_times_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVSEG_BENCH_CACHE", str(tmp_path))
    suite = ab.Suite.load("smoke")
    suite = suite.model_copy(update={"seed": 99})  # of which no times are shipped
    here = Description({"splits": {"train": 10, "test": 8}}, {}, {}, {f"i{i}": i for i in range(8)})
    units = {model.name: [Unit(model.name, (0,), ())] for model in suite.models}
    first, second = suite.models
    assert list(put_longest_first(units, suite, ab.plan(suite), here)) == [first.name, second.name]
    remember(suite, first, Timing(1.0, 0.01, 10))
    assert list(put_longest_first(units, suite, ab.plan(suite), here)) == [first.name, second.name]
    remember(suite, second, Timing(60.0, 0.01, 10))
    assert put_longest_first(units, suite, ab.plan(suite), here) == units
    assert list(put_longest_first(units, suite, ab.plan(suite), here)) == [second.name, first.name]
