"""Measures the wall time of a run by component: named spans, summed over processes. Off by default, without cost.

The time of a nested span is excluded from the outer one, so that all spans add up to the elapsed time.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import ParamSpec, TypeVar

from advseg_bench.instruments.allocator import without_collector

P = ParamSpec("P")
R = TypeVar("R")

SWITCH = "ADVSEG_BENCH_PROFILE_TIME"
"""Environment variable that enables profiling in worker processes."""

MODEL = ("models and training", "attack: forwards", "attack: backwards", "scoring: forwards")
"""Spans in which the model computes; all others are overhead."""

IMPORTS, WAITING, REST = "imports", "waiting for workers", "everything else"

FOR_REPORTS = ("advseg_bench.report", "scipy.stats")
"""Modules that a report imports; imported first when profiling, to exclude their time from other spans."""


class _Clock:
    """The open spans of this process, and the seconds of each name so far."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.spent: dict[str, float] = {}
        self.open: list[str] = []
        self.mark = 0.0

    def turn(self) -> None:
        """Add the time since the last change to the innermost open span."""
        now = self.now()
        if self.open:
            self.spent[self.open[-1]] = self.spent.get(self.open[-1], 0.0) + now - self.mark
        self.mark = now


_clock: _Clock | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """Add the time inside to a name, if profiling is on."""
    clock = _clock
    if clock is None:
        yield
        return
    clock.turn()
    clock.open.append(name)
    try:
        yield
    finally:
        clock.turn()
        clock.open.pop()


def timed(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that adds the time of a function's calls to a name, if profiling is on."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _clock is None:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def measure_times(now: Callable[[], float] = time.perf_counter) -> Iterator[dict[str, float]]:
    """Profile the code inside, in this process and the workers that it starts.

    Args:
        now: The clock of this process, in seconds.

    Yields:
        Name -> seconds, filled at the end; `REST` is time outside all spans, `WAITING` time spent waiting for workers.
    """
    global _clock
    os.environ[SWITCH] = "1"
    spent: dict[str, float] = {}
    _clock = _Clock(now)
    try:
        with span(REST):
            import_ahead(*FOR_REPORTS)
            yield spent
    finally:
        spent.update(_clock.spent)
        _clock = None
        del os.environ[SWITCH]


def is_on() -> bool:
    """Return whether profiling is on in this process."""
    return _clock is not None


def start_in_worker() -> None:
    """Start profiling if the parent process is profiling."""
    global _clock
    if SWITCH in os.environ:
        _clock = _Clock(time.perf_counter)


def import_ahead(*modules: str) -> None:
    """Import modules in a span of their own, with the garbage collector disabled."""
    with without_collector(), span(IMPORTS):
        for name in modules:
            import_module(name)


def take() -> dict[str, float]:
    """Return the seconds by name in this worker since the last call."""
    if _clock is None:
        return {}
    spent, _clock.spent = _clock.spent, {}
    return spent


def add(spent: dict[str, float]) -> None:
    """Add the seconds by name of a worker."""
    if _clock is not None:
        for name, seconds in spent.items():
            _clock.spent[name] = _clock.spent.get(name, 0.0) + seconds


def list_shares(spent: dict[str, float]) -> tuple[list[tuple[str, float, float]], float]:
    """Return the spans as (name, seconds, share), largest first, and the share of overhead around the model.

    Imports and waiting are excluded.
    """
    counted = {name: seconds for name, seconds in spent.items() if name not in (IMPORTS, WAITING)}
    total = sum(counted.values()) or 1.0
    rows = sorted(((name, seconds, seconds / total) for name, seconds in counted.items()), key=lambda row: -row[1])
    return rows, sum(share for name, _, share in rows if name not in MODEL)
