"""Ctrl-C while there are worker processes: none is lost, and none comes at a bad moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def interrupts_noted(react: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C call `react`, and raise it when all inside is tidied up.

    Raised at once it could come while a worker is being started or ended, or in a destructor, which would swallow it.
    Only the main thread is ever interrupted, and a caller's own way with Ctrl-C is left alone.
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


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Start processes inside: they never hear Ctrl-C. This one hears it here or, if it has no other thread, later."""
    resource_tracker.ensure_running()  # the first process that is spawned starts it, which would end the blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
