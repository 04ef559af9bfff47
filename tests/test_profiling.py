"""Spans of time: what is charged to what, over processes too, and that nothing happens unless it is asked for."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest
from clocks import Time

from advseg_bench.instruments import profiling
from advseg_bench.instruments.profiling import (
    IMPORTS,
    REST,
    SWITCH,
    WAITING,
    add,
    import_ahead,
    is_on,
    list_shares,
    measure_times,
    span,
    take,
    timed,
)


@pytest.fixture(autouse=True)
def _no_imports(monkeypatch):
    monkeypatch.setattr(profiling, "FOR_REPORTS", ())


@timed("work")
def work(time: Time, seconds: float) -> float:
    """Doc."""
    time.pass_by(seconds)
    return seconds


def test_a_span_inside_another_takes_its_time_from_it():
    time = Time()
    with measure_times(time) as spent:
        time.pass_by(16)
        with span("outer"):
            time.pass_by(1)
            assert work(time, 8) == 8
            time.pass_by(2)
        time.pass_by(32)
    assert spent == {"work": 8, "outer": 3, REST: 48, IMPORTS: 0}


def test_spans_of_one_name_are_added():
    time = Time()
    with measure_times(time) as spent:
        work(time, 1)
        work(time, 2)
    assert spent["work"] == 3


def test_without_asking_nothing_is_kept():
    time = Time()
    with span("work"):
        assert work(time, 1) == 1
    assert (take(), is_on()) == ({}, False)
    with measure_times(time) as spent:
        assert is_on()
    assert "work" not in spent
    assert SWITCH not in os.environ


def test_an_error_closes_its_spans():
    time = Time()
    with measure_times(time) as spent:
        with pytest.raises(ZeroDivisionError), span("broken"):
            time.pass_by(1 / 0)
        time.pass_by(2)
    assert (spent["broken"], spent[REST]) == (0, 2)
    with pytest.raises(ZeroDivisionError), measure_times(time):
        raise ZeroDivisionError
    assert not is_on()


def test_a_decorated_function_stays_itself():
    assert (work.__name__, work.__doc__) == ("work", "Doc.")


IMPORTS_MUCH = """
import gc, sys
from advseg_bench.instruments import profiling

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
profiling.import_ahead("pydantic", "advseg_bench.suite")
print(len(collections), gc.isenabled(), "advseg_bench.suite" in sys.modules)
"""


def test_modules_are_imported_without_a_look_for_garbage():
    told = subprocess.run([sys.executable, "-c", IMPORTS_MUCH], check=True, capture_output=True, text=True).stdout
    collections, collecting, imported = told.split()
    assert (int(collections) <= 2, collecting, imported) == (True, "True", "True")  # tens of them otherwise
    gc.disable()
    try:
        import_ahead("json")
        assert not gc.isenabled()  # who has it off wants it off
    finally:
        gc.enable()


def test_modules_that_are_imported_ahead_are_charged_to_imports(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import test_profiling\ntest_profiling.TIME.pass_by(4)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with measure_times(TIME) as spent, span("work"):
        import_ahead("slow_module")
    assert (spent[IMPORTS], spent["work"]) == (4, 0)


TIME = Time()


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
