"""Spans of time: what is charged to what, over processes too, and that nothing happens unless it is asked for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time

import pytest

from advseg_bench.instruments import profiling
from advseg_bench.instruments.profiling import (
    IMPORTS,
    REST,
    SWITCH,
    WAITING,
    add,
    list_shares,
    measure_times,
    span,
    take,
    timed,
)


@pytest.fixture(autouse=True)
def _no_imports(monkeypatch):
    monkeypatch.setattr(profiling, "FOR_REPORTS", ())
    monkeypatch.setattr(profiling, "FOR_JOBS", ())


@timed("work")
def work(seconds: float) -> float:
    """Doc."""
    time.sleep(seconds)
    return seconds


def test_a_span_inside_another_takes_its_time_from_it():
    started = time.perf_counter()
    with measure_times() as spent, span("outer"):
        time.sleep(0.02)
        assert work(0.05) == 0.05
        time.sleep(0.02)
    passed = time.perf_counter() - started
    assert spent["work"] == pytest.approx(0.05, abs=0.03)
    assert spent["outer"] == pytest.approx(0.04, abs=0.03)
    assert sum(spent.values()) == pytest.approx(passed, abs=0.01)
    assert set(spent) == {"work", "outer", REST, IMPORTS}


def test_without_asking_nothing_is_kept():
    with span("work"):
        work(0.0)
    assert take() == {}
    with measure_times() as spent:
        pass
    assert "work" not in spent
    assert SWITCH not in os.environ


def test_an_error_closes_its_spans():
    with measure_times() as spent:
        with pytest.raises(ZeroDivisionError), span("broken"):
            raise ZeroDivisionError
        time.sleep(0.02)
    assert spent["broken"] < 0.01
    assert spent[REST] > 0.015


def test_a_decorated_function_stays_itself():
    assert (work.__name__, work.__doc__) == ("work", "Doc.")


JOBS = """
import gc, sys
from advseg_bench.instruments import profiling

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
profiling.prepare_for_jobs()
print(len(collections), gc.isenabled(), "advseg_bench.running.jobs" in sys.modules)
"""


def test_jobs_are_imported_without_a_look_for_garbage():
    told = subprocess.run([sys.executable, "-c", JOBS], check=True, capture_output=True, text=True).stdout
    collections, collecting, imported = told.split()
    assert (int(collections) <= 2, collecting, imported) == (True, "True", "True")  # over a thousand otherwise
    gc.disable()
    try:
        profiling.prepare_for_jobs()
        assert not gc.isenabled()  # who has it off wants it off
    finally:
        gc.enable()


def test_what_workers_measured_is_added():
    with measure_times() as spent:
        add({"work": 3.0})
        add({"work": 4.0})
    assert spent["work"] == 7.0


def test_shares_leave_out_imports_and_waiting():
    spent = {"attack: forwards": 8.0, "metrics": 1.0, REST: 1.0, IMPORTS: 50.0, WAITING: 60.0}
    rows, around = list_shares(spent)
    assert rows[0] == ("attack: forwards", 8.0, 0.8)
    assert {name for name, *_ in rows} == {"attack: forwards", "metrics", REST}
    assert around == pytest.approx(0.2)
