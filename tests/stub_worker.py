"""A worker for tests of executors: it calls what it is given, and imports nothing."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advseg_bench.errors import UserError
from advseg_bench.running.outcomes import Do
from advseg_bench.running.work import Emit, Job, Running, Training


@dataclass(frozen=True)
class Call(Job[Any]):
    """Call a function that the worker can import."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Tell(Job[str]):
    """Tell of some progress, and return a word."""

    steps: int
    word: str


IMPORTED = []
"""What a worker holds after its start, in place of libraries."""


tell: Emit
"""Sends the messages of the worker in this process."""


def start_worker(emit: Emit) -> Do:
    global tell
    tell = emit
    IMPORTED.extend([i] for i in range(200_000))

    def do(job: Job[Any]) -> Any:
        match job:
            case Call(function, arguments):
                return function(*arguments)
            case Tell(steps, word):
                for step in range(steps):
                    emit(Training(word, step + 1, steps))
                return word
        raise AssertionError(job)

    return do


def start_no_worker(emit: Emit) -> Do:
    import no_such_module  # noqa: F401

    raise AssertionError


class StubbornError(Exception):
    """Cannot be unpickled, and has a message of two lines."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}\n{two}")


class StubbornUserError(UserError):
    """The same of a plug-in that uses the package's errors."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def fail(kind: type[BaseException], *arguments: Any) -> None:
    raise kind(*arguments)


def make_a_function() -> Callable[[], None]:
    return lambda: None


def find_process(label: object) -> int:
    return os.getpid()


def sleep_and_touch(seconds: float, path: Path) -> None:
    time.sleep(seconds)
    path.touch()


def say(seconds: float | None = None) -> None:
    tell(Running("a", ("c",), ("i",), seconds))


def print_and_crash() -> None:
    say()
    print("before", flush=True)
    ctypes.string_at(0)


def say_and_exit(text: str, code: int) -> None:
    print(text, end="")
    sys.stdout.flush()
    os._exit(code)


def sleep_long(seconds: float) -> None:
    say(seconds)
    time.sleep(1000)


def spin(seconds: float) -> None:
    """Hold the interpreter's lock, so that no other thread of the process runs."""
    say(seconds)
    sum(itertools.repeat(0))


def fork_and_return() -> int:
    if os.fork() == 0:
        return -1
    time.sleep(0.1)
    return os.getpid()


def fork_and_die() -> None:
    """Leave a copy that has the pipes of the process open."""
    if os.fork() == 0:
        time.sleep(60)
    os._exit(1)


def print_much(times: int) -> int:
    for _ in range(times):
        print("x" * (1 << 20))
        print("\x1b[31mred", file=sys.stderr)
    return times
