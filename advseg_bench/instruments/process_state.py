"""Detects and reverts what code leaves changed in the process: state that other results depend on.

`ENTRIES` is the table of all states; a further one is one more line in `process_python.py` or `process_torch.py`. A
snapshot and its comparison take less time than a forward of a small network. Not covered: what only C code can see, and
threads that were started without `threading`.
"""

from __future__ import annotations

import ctypes
import random
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from advseg_bench.errors import TaintedError, one_line
from advseg_bench.instruments.process_entry import CHANGED, Entry
from advseg_bench.instruments.process_python import PYTHON, Descriptors
from advseg_bench.instruments.process_torch import TORCH

ENTRIES: tuple[Entry, ...] = (*TORCH, *PYTHON)
"""All states, in the order in which they are restored."""

RANDOM = frozenset(entry.name for entry in ENTRIES if entry.kind == "restored")
"""Names of the random states, whose changes are never flagged."""

THREADS, DESCRIPTORS = "threads left running", "file descriptors"
"""Names of what is in no entry: both can only be compared with the time before, not with a value."""

WAIT_S = 1.0
"""Seconds for which threads left running may go on, and once more after they were asked to end."""

_LIBRARIES = ("tqdm", "torch")
"""Packages with threads of their own, which touch nothing of others: a clock, and a pool of compilers."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the process at one moment.

    Attributes:
        values: Value of each entry, or the exception that reading it raised.
        modules: Number of imported modules.
    """

    values: tuple[Any, ...]
    modules: int


def snapshot() -> Snapshot:
    """Return the state of the process."""
    return Snapshot(tuple(_read(entry) for entry in ENTRIES), len(sys.modules))


def compare(before: Snapshot, after: Snapshot) -> list[str]:
    """Return the names of the states that differ."""
    return [entry.name for entry in _find_changed(before, after)]


def restore(before: Snapshot, *, random_too: bool = True) -> list[str]:
    """Restore the state of a snapshot; what libraries set when they are imported is left to them.

    Args:
        before: The snapshot.
        random_too: Whether to restore the random states.

    Returns:
        The names of what was restored.

    Raises:
        TaintedError: Something could not be restored.
    """
    after = snapshot()
    imported = after.modules > before.modules
    left = {entry.name for entry in ENTRIES if imported and entry.kind == "imports"}
    left |= set() if random_too else RANDOM
    found = [entry for entry in _find_changed(before, after) if entry.name not in left]
    known = {entry.name: value for entry, value in zip(ENTRIES, before.values, strict=True)}
    remaining = found
    for _ in range(2):  # a state may follow another one, which is restored later
        for entry in remaining:
            _write(entry, known[entry.name])
        remaining = [entry for entry in found if _read(entry) != known[entry.name]]
    if remaining:
        raise _describe_taint(", ".join(entry.name for entry in remaining), "restored", "Let it leave this unchanged.")
    return [entry.name for entry in found]


@dataclass(slots=True)
class Changes:
    """What code changed in the process; filled when `watched` ends.

    Attributes:
        names: Names of the states, in the order of `ENTRIES`; without those that are not flagged.
        random: Names of the random states that were used, and restored.
    """

    names: list[str] = field(default_factory=list)
    random: list[str] = field(default_factory=list)

    @property
    def left_threads(self) -> bool:
        """Whether threads were left running."""
        return THREADS in self.names


def make_flags(names: Collection[str]) -> set[str]:
    """Return the flags of a row for names of changed states."""
    return {CHANGED, *(f"{CHANGED}:{name}" for name in names)} if names else set()


@contextmanager
def watched(*, seed: int | None = None, random_too: bool = True, wait: bool = True) -> Iterator[Changes]:
    """Context for code of others: afterwards the process is as it was before, also after an error.

    Random states are restored without a word, since honest code uses the global generators.

    Args:
        seed: Seed of the global generators inside; by default they keep their states.
        random_too: Whether to restore the random states.
        wait: Whether to wait for threads left running; else they are only noted, as for imports, since libraries keep
            threads of their own.

    Yields:
        What was changed, known after the end.

    Raises:
        TaintedError: A thread does not end, or something could not be restored. The process must not be used further.
    """
    changes, before = Changes(), snapshot()
    threads, descriptors = _Threads(), Descriptors()
    if seed is not None:
        seed_globals(seed)
    try:
        yield changes
    finally:
        found: list[str] = []
        try:
            found += threads.settle() if wait else threads.note()
        finally:
            try:
                found += [DESCRIPTORS] if _put_back(descriptors) else []
                found += restore(before, random_too=random_too)
            finally:
                descriptors.close()
                changes.names += [name for name in found if name not in RANDOM]
                changes.random += [name for name in found if name in RANDOM]


def seed_globals(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python; use it inside `watched`."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


class _Threads:
    """The threads that run at one moment; those that were started without `threading` are not seen."""

    def __init__(self) -> None:
        self.known = set(threading.enumerate())

    def note(self) -> list[str]:
        """Return `[THREADS]` if threads that were started since then are running, else nothing."""
        return [THREADS] if self._find_new() else []

    def settle(self) -> list[str]:
        """Wait for the threads that were started since then.

        Returns:
            `[THREADS]` if any was left running, else nothing.

        Raises:
            TaintedError: One of them does not end.
        """
        found = self.note()
        for ask in (False, True) if found else ():
            for thread in self._find_new() if ask else ():
                _ask_to_end(thread)
            until = time.monotonic() + WAIT_S
            while self._find_new() and time.monotonic() < until:
                time.sleep(0.001)
        if found and self._find_new():
            raise _describe_taint("a thread", "ended", "Let it join its threads before it returns.")
        return found

    def _find_new(self) -> list[threading.Thread]:
        there = (thread for thread in threading.enumerate() if thread not in self.known)
        return [t for t in there if not isinstance(t, threading._DummyThread) and not _is_of_library(t)]


def _is_of_library(thread: threading.Thread) -> bool:
    """Whether a thread is one that a library of `_LIBRARIES` keeps for itself."""
    makers = type(thread), getattr(thread, "_target", None)
    return any(str(getattr(each, "__module__", "")).partition(".")[0] in _LIBRARIES for each in makers)


def _ask_to_end(thread: threading.Thread) -> None:
    """Raise SystemExit in a thread, which ends it at its next line of Python, unless it catches that."""
    number = ctypes.c_ulong(thread.ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))


def _put_back(descriptors: Descriptors) -> bool:
    try:
        return descriptors.restore()
    except OSError as error:
        raise _describe_taint(one_line(error), "restored", "Let it close only what it has opened.") from None


def _read(entry: Entry) -> Any:
    try:
        return entry.read()
    except Exception as error:  # such as one of a mode that was left on; it is unequal to any other value
        return error


def _write(entry: Entry, value: Any) -> None:
    if entry.write is None or isinstance(value, Exception):
        return
    try:
        entry.write(value)
    except Exception:  # what is not restored is found by the next comparison
        return


def _find_changed(before: Snapshot, after: Snapshot) -> list[Entry]:
    pairs = zip(ENTRIES, before.values, after.values, strict=True)
    return [entry for entry, old, new in pairs if old is not new and old != new]


def _describe_taint(what: str, verb: str, remedy: str) -> TaintedError:
    return TaintedError(
        f"process: expected code of others to leave it as it was, got {what} that could not be {verb}. {remedy}"
    )
