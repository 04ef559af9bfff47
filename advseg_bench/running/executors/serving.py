"""The main function of a worker process: it runs the jobs from its pipe until the pipe is closed."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import resource
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from multiprocessing import spawn, util
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from advseg_bench.instruments import profiling
from advseg_bench.running.outcomes import Outcome, attempt, reword, start

LOST = (EOFError, OSError)
"""Exceptions of a pipe whose other end is closed, even in the middle of a message."""
PR_SET_PDEATHSIG = 1
"""Option of Linux's `prctl`: the signal that a process gets when its parent dies."""


@dataclass(frozen=True, slots=True)
class Started:
    """First message of a worker process: it can import the package, and the caller's script if it has to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Message of a worker process after a job: the outcome, and measured times if profiling is on."""

    outcome: Outcome[Any]
    spent: dict[str, float]


class _Own:
    """The pipe of a worker process, which a forked copy of the process does not write to: it ends instead."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.pid = pipe, os.getpid()

    def send(self, message: object) -> None:
        """Send a message; the process ends if nobody listens, or if it is not the one that was started."""
        self.check()
        try:
            self.pipe.send(message)
        except LOST:
            os._exit(1)

    def check(self) -> None:
        """End a copy of the process."""
        if os.getpid() != self.pid:
            os._exit(0)


_importing_script = False


def end_in_script_import() -> None:
    """End a worker process that starts a run while it imports the caller's script; its parent describes the cause."""
    if _importing_script:
        sys.exit(1)


def serve(pipe: Connection, alive: int) -> NoReturn:
    """Run jobs until the pipe is closed, and exit.

    Args:
        pipe: Receives what `multiprocessing` needs to prepare a process, a `StartWorker`, and jobs.
        alive: A file descriptor that is closed when the parent is gone.
    """
    global _importing_script
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # even if user code keeps all threads waiting
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    faulthandler.enable()
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="replace")
    own = _Own(pipe)
    data = pipe.recv()
    _importing_script = True
    try:
        spawn.prepare(data)
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # at once, so that the parent does not take it for a process that hangs
    _importing_script = False
    own.send(Started())
    profiling.start_in_worker()
    do = start(pipe.recv(), own.send)
    gc.freeze()  # exclude objects that exist now from garbage collection: they stay alive
    while True:
        try:
            job = pipe.recv()
        except LOST:
            break
        try:
            outcome = attempt(do, job)
        except KeyboardInterrupt as error:  # raised by the code of the job, since SIGINT is ignored
            outcome = Outcome(error=reword(error))
        own.check()
        spent = profiling.take()
        try:
            own.send(Answer(outcome, spent))
        except Exception as error:  # it cannot be pickled
            own.send(Answer(Outcome(error=reword(error)), spent))
    with suppress(BaseException):
        util._exit_function()  # type: ignore[attr-defined]  # what multiprocessing does at the end of a process
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # without unloading libraries or waiting for threads that third-party code left running


def _end_with_parent(alive: int) -> None:
    with suppress(OSError):
        os.read(alive, 1)
    os._exit(1)
