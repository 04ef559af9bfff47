"""Handles Ctrl-C (SIGINT): neither lost nor raised at an unsafe moment, and not confused with what user code raises."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from advseg_bench.errors import PluginError, one_line


@contextmanager
def interrupts_noted(react: Callable[[], None]) -> Iterator[None]:
    """Call `react` on Ctrl-C, and raise `KeyboardInterrupt` only after the code inside has cleaned up.

    Raised immediately, it could occur while a worker starts or ends, or in a destructor, which would swallow it. Does
    nothing outside the main thread, or if the caller has installed another handler of SIGINT.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    noted = threading.Event()

    def note(number: int, frame: object) -> None:
        noted.set()
        react()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if noted.is_set():
            raise KeyboardInterrupt from None


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether an exception may stem from Ctrl-C; in a worker process, which ignores it, user code raised it."""
    return isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) != signal.SIG_IGN


@contextmanager
def contained() -> Iterator[None]:
    """Turn exceptions of user code that are meant to end programs or generators into a `PluginError`; not Ctrl-C."""
    try:
        yield
    except (Exception, SystemExit):
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise PluginError(one_line(error)) from error
