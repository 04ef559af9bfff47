"""Handles Ctrl-C (SIGINT) while worker processes exist: it is neither lost nor raised at an unsafe moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
