"""State of Python and of the operating system that code can leave behind: a table of entries."""

from __future__ import annotations

import gc
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from advseg_bench.instruments.process_entry import Entry

TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2, "__stdin__": 0, "__stdout__": 1, "__stderr__": 2}
"""Name in `sys` -> file descriptor."""

_substitutes: dict[int, tuple[Any, Any]] = {}
"""Identity of a substitute -> the closed stream for which it stands, and itself."""

_SIGNALS = sorted(int(number) for number in signal.valid_signals())
_ENVIRONMENT = getattr(os.environ, "_data", os.environb)  # read without decoding, which takes longer than all else
_get_handler = import_module("_signal").getsignal  # that of `signal` also finds an enumeration's member


@dataclass(frozen=True, slots=True)
class _Timer:
    """A timer: whether it is armed, its interval, and the seconds that it had left, which no comparison uses."""

    armed: bool
    interval: float
    left: float = field(compare=False)


def _read_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - a string is cheap
    except OSError:  # it was deleted
        return None


def _write_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _read_environment() -> dict[bytes, bytes]:
    return dict(_ENVIRONMENT)


def _write_environment(before: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - before.keys():
        del os.environb[name]
    for name, value in before.items():
        if os.environb.get(name) != value:
            os.environb[name] = value


def _read_umask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def _read_handlers() -> dict[int, Any]:
    return {number: _get_handler(number) for number in _SIGNALS}


def _write_handlers(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if handler is not None and _get_handler(number) is not handler:  # None: not set from Python
            signal.signal(number, handler)


def _read_timers() -> list[_Timer]:
    found = (signal.getitimer(which) for which in TIMERS)
    return [_Timer(left > 0, interval, left) for left, interval in found]


def _write_timers(before: list[_Timer]) -> None:
    for which, timer in zip(TIMERS, before, strict=True):
        signal.setitimer(which, timer.left, timer.interval)


def _read_filters() -> tuple[Any, ...]:
    return (*warnings.filters, warnings.showwarning, warnings.formatwarning)


def _write_filters(before: tuple[Any, ...]) -> None:
    *filters, warnings.showwarning, warnings.formatwarning = before
    warnings.resetwarnings()  # which also forgets what was filtered before
    warnings.filters[:] = filters  # type: ignore[index]


def _read_streams() -> list[tuple[Any, bool]]:
    """The streams, and whether they are closed; a substitute counts as the stream that it stands for."""
    streams = [getattr(sys, name) for name in STREAMS]
    closed = [bool(getattr(stream, "closed", False)) for stream in streams]
    return [
        (_substitutes.get(id(stream), (stream, None))[0], flag) for stream, flag in zip(streams, closed, strict=True)
    ]


def _write_streams(before: list[tuple[Any, bool]]) -> None:
    """Put the streams back; one that was closed gets a substitute on the same descriptor."""
    for (name, descriptor), (stream, was_closed) in zip(STREAMS.items(), before, strict=True):
        put = stream
        if getattr(stream, "closed", False) and not was_closed:
            put = next((new for old, new in _substitutes.values() if old is stream and not new.closed), None)
            if put is None:
                mode = "r" if descriptor == 0 else "w"
                put = open(  # noqa: SIM115 - for as long as the process runs
                    descriptor, mode, buffering=1, closefd=False, errors="backslashreplace"
                )
                _substitutes[id(put)] = stream, put
        setattr(sys, name, put)


def _read_hooks() -> tuple[Any, ...]:
    return sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook


def _write_hooks(before: tuple[Any, ...]) -> None:
    sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook = before


def _write_tracing(before: tuple[Any, Any]) -> None:
    sys.settrace(before[0])
    sys.setprofile(before[1])


def _write_collector(before: tuple[bool, tuple[int, int, int]]) -> None:
    enabled, thresholds = before
    gc.set_threshold(*thresholds)
    (gc.enable if enabled else gc.disable)()


def _read_numpy_errors() -> tuple[Any, Any]:
    return np.geterr(), np.geterrcall()


def _write_numpy_errors(before: tuple[Any, Any]) -> None:
    np.seterr(**before[0])
    np.seterrcall(before[1])


def _read_numpy_random() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return kind, np.asarray(keys).tobytes(), *rest


def _write_numpy_random(before: tuple[Any, ...]) -> None:
    kind, keys, *rest = before
    np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))  # noqa: NPY002


def _set_path(before: Iterable[str]) -> None:
    sys.path[:] = before


PYTHON = (
    Entry("working directory", _read_folder, _write_folder),
    Entry("environment variables", _read_environment, _write_environment, "imports"),
    Entry("umask", _read_umask, os.umask),
    Entry("signal handlers", _read_handlers, _write_handlers),
    Entry(
        "signal mask",
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda mask: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
    ),
    Entry("timers", _read_timers, _write_timers),
    Entry("warning filters", _read_filters, _write_filters, "imports"),
    Entry("NumPy error handling", _read_numpy_errors, _write_numpy_errors),
    Entry("standard streams", _read_streams, _write_streams),
    Entry("sys.path", lambda: list(sys.path), _set_path, "imports"),
    Entry("exception hooks", _read_hooks, _write_hooks),
    Entry("tracing", lambda: (sys.gettrace(), sys.getprofile()), _write_tracing),
    Entry("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Entry("switch interval", sys.getswitchinterval, sys.setswitchinterval),
    Entry("garbage collection", lambda: (gc.isenabled(), gc.get_threshold()), _write_collector),
    Entry("locale", lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    Entry("random numbers of Python", random.getstate, random.setstate, "restored"),
    Entry("random numbers of NumPy", _read_numpy_random, _write_numpy_random, "restored"),
)
"""The entries, restored in this order."""


class Descriptors:
    """The open file descriptors, each with a copy, so that one that code closes or redirects can be put back.

    Those that code opens are its own affair. A closed regular file counts only together with another loss, since a
    file that nobody uses may be closed at any time.
    """

    MOST = 64
    """Number of descriptors that are protected: the lowest ones."""

    def __init__(self) -> None:
        import fcntl
        import resource

        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        above = 512 if soft == resource.RLIM_INFINITY else max(64, min(soft // 2, 8192))
        self._copies: dict[int, tuple[int, tuple[int, int, int]]] = {}
        try:
            numbers = sorted(int(name) for name in os.listdir("/dev/fd"))  # noqa: PTH208
        except OSError:
            numbers = [0, 1, 2]
        for number in numbers[: self.MOST]:
            if number < above and (found := _identify(number)) is not None:  # that of listdir is closed already
                with suppress(OSError):
                    self._copies[number] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, above), found

    def restore(self) -> bool:
        """Put back what was closed or redirected; return whether it was more than unused regular files.

        Raises:
            OSError: A copy is closed, too.
        """
        lost = {number: copy for number, copy in self._copies.items() if _identify(number) != copy[1]}
        if not any(number < 3 or not _is_regular(known) for number, (_, known) in lost.items()):
            return False
        for number, (copy, known) in lost.items():
            if _identify(copy) != known:
                raise OSError(f"file descriptor {number} is lost")
            os.dup2(copy, number, inheritable=number < 3)
        return True

    def close(self) -> None:
        """Close the copies."""
        for copy, known in self._copies.values():
            if _identify(copy) == known:
                os.close(copy)
        self._copies.clear()


def _identify(number: int) -> tuple[int, int, int] | None:
    """Device, inode and type of an open file; None if it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mode >> 12


def _is_regular(known: tuple[int, int, int]) -> bool:
    return known[2] == 0o10
