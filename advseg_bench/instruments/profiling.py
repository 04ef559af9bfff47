"""Where the wall time of a run goes: named spans, summed over processes; off, and then free, unless asked for.

A span inside another one takes its time from it, so that the sum of all is the time that passed.
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
"""The environment variable by which worker processes learn that times are wanted."""

MODEL = ("models and training", "attack: forwards", "attack: backwards", "scoring: forwards")
"""Spans of the model at work; everything else is around it."""

IMPORTS, WAITING, REST = "imports", "waiting for workers", "everything else"

FOR_REPORTS = ("advseg_bench.report", "scipy.stats")
"""What a report imports sooner or later; first where times are wanted, to keep that out of other spans."""


class _Clock:
    """The spans of this process that are open, and what each name has taken so far."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.spent: dict[str, float] = {}
        self.open: list[str] = []
        self.mark = 0.0

    def turn(self) -> None:
        """Charge the time since the last change to the innermost open span."""
        now = self.now()
        if self.open:
            self.spent[self.open[-1]] = self.spent.get(self.open[-1], 0.0) + now - self.mark
        self.mark = now


_clock: _Clock | None = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """Charge the time inside to a name, if times are wanted."""
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
    """Return a decorator: charge the calls of a function to a name, if times are wanted."""

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
    """Measure what happens inside, in this process and the workers that it starts.

    Args:
        now: The clock of this process, in seconds.

    Yields:
        Name -> seconds, filled at the end; `REST` is what no span was open for, `WAITING` left to the workers.
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
    """Return whether times are wanted in this process."""
    return _clock is not None


def start_in_worker() -> None:
    """Measure from here on, if the parent of this process measures."""
    global _clock
    if SWITCH in os.environ:
        _clock = _Clock(time.perf_counter)


def import_ahead(*modules: str) -> None:
    """Import modules now, at no other span's cost, and without looking for garbage meanwhile."""
    with without_collector(), span(IMPORTS):
        for name in modules:
            import_module(name)


def take() -> dict[str, float]:
    """Return what was measured in this worker since the last call."""
    if _clock is None:
        return {}
    spent, _clock.spent = _clock.spent, {}
    return spent


def add(spent: dict[str, float]) -> None:
    """Add what a worker measured."""
    if _clock is not None:
        for name, seconds in spent.items():
            _clock.spent[name] = _clock.spent.get(name, 0.0) + seconds


def list_shares(spent: dict[str, float]) -> tuple[list[tuple[str, float, float]], float]:
    """Return the spans, largest first, as name, seconds and share; and the share of what is around the model.

    Imports and waiting count in no share.
    """
    counted = {name: seconds for name, seconds in spent.items() if name not in (IMPORTS, WAITING)}
    total = sum(counted.values()) or 1.0
    rows = sorted(((name, seconds, seconds / total) for name, seconds in counted.items()), key=lambda row: -row[1])
    return rows, sum(share for name, _, share in rows if name not in MODEL)
