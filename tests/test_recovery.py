"""Whatever kills workers, every good cell is done once on every image, and what kills is given up in bounded time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advseg_bench.running.benchmark import _compute
from advseg_bench.running.outcomes import TIMEOUT, Death, Outcome, WorkerDied
from advseg_bench.running.recovery import MOST_DEATHS, Recovery
from advseg_bench.running.work import Failure, Running, RunUnit, Train, Unit
from advseg_bench.suite.cells import CLEAN, Cell


def make_cells(alone: int, packed: int = 0, battery: int = 0) -> tuple[Cell, ...]:
    """Cells that run one by one, stepped ones that run together, and stepped ones of a battery, of a model "a"."""
    names = [*(f"s{i}" for i in range(alone)), *(f"p{i}" for i in range(packed))]
    cells = [Cell(name, "a", CLEAN, 0.0, 0, name, None) for name in names]
    chain = [
        Cell(f"b{i}", "a", CLEAN, 0.0, 0, "", None, battery="x", member=i, skip_finished=True) for i in range(battery)
    ]
    return (*cells, *chain)


@dataclass
class Mortal:
    """An executor in which some cells kill the worker; it does what the protocol says, with nothing in the jobs.

    Attributes:
        deadly: Ids of cells -> cause of the death; "load" for one before the first attack.
        kills: How often a worker is killed from outside, at a random moment.
    """

    capacity: int
    deadly: dict[str, str]
    chance: random.Random
    kills: int = 0
    jobs: list[Any] = field(default_factory=list)
    done: Counter[tuple[str, int]] = field(default_factory=Counter)
    chains: list[tuple[str, ...]] = field(default_factory=list)
    deaths: int = 0

    def submit(self, job: Any) -> None:
        self.jobs.append(job)

    def wait(self) -> tuple[Any, Outcome[Any]]:
        job = self.jobs.pop(self.chance.randrange(len(self.jobs)))
        if isinstance(job, Train):
            return job, Outcome()
        death = self.find_death(job.unit)
        if death is not None:
            self.deaths += 1
            assert self.deaths < 1000
            return job, Outcome(error=WorkerDied(death))
        self.done += Counter((cell.id, i) for cell in job.unit.cells for i in job.unit.indices)
        chain = tuple(cell.id for cell in job.unit.all_cells if cell.member is not None)
        if chain and job.unit.cells:
            self.chains.append(chain)
        return job, Outcome()

    def find_death(self, unit: Unit) -> Death | None:
        if "load" in self.deadly:
            return Death(self.deadly["load"])
        ids = [cell.id for cell in unit.all_cells]
        killers = [name for name in sorted(ids, key=lambda name: name[0] != "s") if name in self.deadly]
        cause = self.deadly[killers[0]] if killers else ""
        if self.kills and self.chance.random() < 0.5:
            self.kills -= 1
            if self.chance.random() < 0.2:
                return Death("SIGKILL")
            killers, cause = [self.chance.choice(ids)], "SIGKILL"
        if not killers:
            return None
        together = killers if killers[0][0] == "s" else [name for name in ids if name[0] != "s"]
        return Death(cause, Running("a", tuple(together), ("i",)))


class Notes:
    """Stands for a `Recorder`, and writes nothing."""

    def __init__(self) -> None:
        self.failed: list[str | None] = []
        self.lost = 0

    def record_model(self, name: str, outcome: Outcome[Any]) -> bool:
        return outcome.error is None

    def record_unit(self, unit: Unit, outcome: Outcome[Any]) -> None:
        assert outcome.error is None

    def record_deaths(self, model: str, cells: Any, death: Death) -> None:
        self.failed += [cell and cell.id for cell in cells]

    def leave_out(self, rows: int) -> None:
        self.lost += rows

    def record_lost(self, model: str, cells: Any) -> None:
        assert not list(cells)

    def recall(self, failure: Failure) -> None:
        self.failed.append(failure.cell)


def run(executor: Mortal, cells: tuple[Cell, ...], images: int = 4, shard: int = 2, random_models: Any = ()) -> Notes:
    """Run the cells on the images as a run does."""
    units = [Unit("a", tuple(range(i, min(i + shard, images))), cells) for i in range(0, images, shard)]
    notes = Notes()
    _compute({"a": units}, executor, notes, Recovery(random_models), [])
    wanted = sum(unit.rows for unit in units)
    assert sum(executor.done.values()) + notes.lost == wanted, "each row is done or lost"
    assert max(executor.done.values(), default=1) == 1, "none is done twice"
    return notes


@given(
    counts=st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 4)).filter(any),
    which=st.sets(st.integers(0, 10)),
    capacity=st.integers(1, 3),
    cause=st.sampled_from(["SIGSEGV", TIMEOUT]),
    chance=st.randoms(use_true_random=False),
)
def test_a_cell_that_always_kills_is_given_up_and_costs_no_other(counts, which, capacity, cause, chance):
    cells = make_cells(*counts)
    deadly = {cell.id: cause for i, cell in enumerate(cells) if i in which}
    executor = Mortal(capacity, deadly, chance)
    notes = run(executor, cells)
    assert sorted(notes.failed) == sorted(deadly)
    good = [cell.id for cell in cells if cell.id not in deadly]
    assert set(executor.done) == {(name, i) for name in good for i in range(4)}
    assert set(executor.chains) <= {tuple(name for name in good if name[0] == "b")}
    assert executor.deaths <= 2 * len(deadly) + 3 * capacity


@given(st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_worker_that_is_killed_from_outside_costs_no_cell(capacity, chance):
    executor = Mortal(capacity, {}, chance, kills=1)
    notes = run(executor, make_cells(2, 2, 3))
    assert notes.failed == []
    assert len(executor.done) == 7 * 4


def test_cells_of_a_random_model_stay_together_by_repeat():
    cells = tuple(Cell(f"s{i}", "a", CLEAN, 0.0, i % 2, "", None) for i in range(6))
    executor = Mortal(1, {"s3": "SIGSEGV"}, random.Random(0))
    units: list[Unit] = []
    submit = executor.submit
    executor.submit = lambda job: (units.append(job.unit) if isinstance(job, RunUnit) else None, submit(job))
    assert run(executor, cells, images=1, random_models={"a"}).failed == ["s3"]
    assert [[cell.id for cell in unit.cells] for unit in units[-2:]] == [["s1", "s5"], ["s0", "s2", "s4"]]


def test_a_battery_that_dies_only_as_a_whole_is_given_up():
    class Together(Mortal):
        def find_death(self, unit: Unit) -> Death | None:
            ids = tuple(cell.id for cell in unit.all_cells if cell.member is not None)
            return Death("SIGSEGV", Running("a", ids, ("i",))) if len(ids) > 1 else None

    executor = Together(1, {}, random.Random(0))
    notes = run(executor, make_cells(2, 0, 3))
    assert notes.failed == ["b0", "b1", "b2"]
    assert len(executor.done) == 2 * 4


@pytest.mark.parametrize(("deadly", "deaths"), [({"load": "SIGKILL"}, 2), ({"s": "SIGSEGV"}, MOST_DEATHS)])
def test_a_model_is_given_up_as_a_whole(deadly, deaths):
    cells = make_cells(MOST_DEATHS)
    executor = Mortal(1, deadly if "load" in deadly else {cell.id: "SIGSEGV" for cell in cells}, random.Random(0))
    notes = run(executor, cells, images=1)
    assert notes.failed[-1] is None
    assert executor.deaths == deaths


def test_what_killed_in_an_earlier_run_is_left_out():
    cells = make_cells(2, 0, 2)
    units = {"a": [Unit("a", (0,), cells)], "b": [Unit("b", (0,), (Cell("c", "b", CLEAN, 0.0, 0, "", None),))]}
    known = [Failure("a", "attack", name, "", "SIGSEGV") for name in ("s0", "b1", "elsewhere")]
    executor, notes = Mortal(1, {}, random.Random(0)), Notes()
    _compute(units, executor, notes, Recovery(), [*known, Failure("b", "train", None, "", "SIGSEGV")])
    assert notes.failed == ["s0", "b1", None]
    assert set(executor.done) == {("s1", 0), ("b0", 0)}
    assert notes.lost == 3
