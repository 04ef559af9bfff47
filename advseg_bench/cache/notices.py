"""Lines about the cache that a user should read: what was damaged and is made again, and for whom a process waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]

_listeners: list[Listener] = []


def report(text: str) -> None:
    """Give one line to the innermost `reported_to` of this process; without one it is printed on standard error."""
    line = " ".join(text.split())
    if _listeners:
        _listeners[-1](line)
    else:
        print(f"advseg-bench: {line}", file=sys.stderr, flush=True)


@contextmanager
def reported_to(listener: Listener) -> Iterator[None]:
    """Give the lines of `report` to a function, such as one that sends them to the process that shows progress."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
