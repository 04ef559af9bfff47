"""The tests themselves: none asserts how long something took, for that depends on what else the machine does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clocks import SteadyMachine, Time, count_calls

TIMERS = re.compile(r"\b(perf_counter|process_time|thread_time|monotonic|ru_utime|ru_stime)|\btime\.time\b|\btimeit\b")
LIMIT_OF_A_WAIT = re.compile(r"\bdeadline\b")
"""A test may stop waiting for what never comes: `while not there() and time.monotonic() < deadline`."""


def find_timed(text: str) -> list[str]:
    """The lines that read a clock of the system for more than the limit of a wait."""
    return [line.strip() for line in text.splitlines() if TIMERS.search(line) and not LIMIT_OF_A_WAIT.search(line)]


def test_no_test_reads_the_clock():
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    assert len(files) > 70
    found = {path.name: find_timed(path.read_text()) for path in files if path.name != Path(__file__).name}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "started = time.perf_counter()",
        "assert time.time() - started < 3",
        "from time import monotonic",
        "spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime",
    ],
)
def test_the_check_above_can_fail(line):
    assert find_timed(line) == [line]


def test_waiting_has_a_limit_and_files_have_times():
    assert not find_timed(
        "while not done() and time.monotonic() < deadline:\n    time.sleep(0.1)\npath.stat().st_mtime_ns"
    )


def test_calls_are_counted_and_do_not_depend_on_the_clock():
    assert count_calls(lambda: [abs(n) for n in range(10)]) - count_calls(lambda: [abs(n) for n in range(4)]) == 6


def test_a_steady_machine_takes_as_long_as_its_operations():
    import torch

    a = torch.ones(10, 20)
    with SteadyMachine(flops_per_s=8000.0, start_s=0.25) as machine:
        a @ a.T
        a + a
    assert machine.now() == 0.25 + 2 * 10 * 20 * 10 / 8000
    time = Time()
    time.pass_by(2)
    assert time() == 1002
