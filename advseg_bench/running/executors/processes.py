"""Worker processes, each with its own pipe. They ignore SIGINT and exit with their parent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from multiprocessing.context import SpawnProcess
from typing import Any

from advseg_bench.errors import WorkerError
from advseg_bench.instruments import profiling
from advseg_bench.running.interrupts import interrupts_blocked, interrupts_noted
from advseg_bench.running.outcomes import Outcome, StartWorker, attempt, reword, start
from advseg_bench.running.work import Emit, Job

LOST = (EOFError, OSError)
"""Exceptions of a pipe whose other end is closed, even in the middle of a message."""
GRACE_S = 5.0
"""Seconds to wait for the exit code of a process that has closed its pipe."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """Message of a worker process after a job: the outcome, and measured times if profiling is on."""

    outcome: Outcome[Any]
    spent: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Started:
    """First message of a worker process: it has imported the caller's script."""


@dataclass(slots=True, eq=False)
class _Process:
    """A worker process in its parent: the parent's end of the pipe, the current job, and whether it sent `_Started`."""

    process: SpawnProcess
    pipe: Connection
    job: Job[Any] | None = None
    started: bool = False


class Processes:
    """An `Executor` of worker processes; opened by `open_processes`.

    The next job goes to the worker whose job `wait` returned last. Everything runs in the thread of the caller.
    """

    def __init__(self, emit: Emit) -> None:
        self.killed = False
        self._emit = emit
        self._all: list[_Process] = []
        self._idle: list[_Process] = []
        self._ended: deque[tuple[_Process, _Answer]] = deque()

    @property
    def capacity(self) -> int:
        """Number of workers."""
        return len(self._all)

    def submit(self, job: Job[Any]) -> None:
        """Send a job to an idle worker.

        Raises:
            WorkerError: If that worker has died.
        """
        assert self._idle, "callers submit at most `capacity` jobs"
        worker = self._idle.pop()
        worker.job = job
        try:
            worker.pipe.send(job)
        except LOST:
            raise _describe_death(worker) from None

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Wait until a job has ended; return it with its outcome. Progress is passed to `emit` while waiting.

        Raises:
            WorkerError: If a worker has died, busy or idle.
        """
        with profiling.span(profiling.WAITING):
            while not self._ended:
                self._listen()
        worker, answer = self._ended.popleft()
        profiling.add(answer.spent)
        assert worker.job is not None
        job, worker.job = worker.job, None
        self._idle.append(worker)
        return job, answer.outcome

    def start(self, start_worker: StartWorker) -> None:
        """Start one more worker."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, start_worker))
        process.start()
        theirs.close()  # so that the pipe ends when the worker does
        self._all.append(_Process(process, ours))
        self._idle.append(self._all[-1])

    def kill(self) -> None:
        """Kill all workers, so that `close` does not wait for their jobs."""
        self.killed = True
        for worker in self._all:
            worker.process.kill()

    def close(self) -> None:
        """Close the pipes, upon which workers exit, and wait for them."""
        for worker in self._all:
            worker.pipe.close()
        for worker in self._all:
            worker.process.join()

    def _listen(self) -> None:
        """Receive one message from each worker that has sent one; wait until there is at least one."""
        ready = wait_for([worker.pipe for worker in self._all])
        for worker in [worker for worker in self._all if worker.pipe in ready]:
            try:
                message = worker.pipe.recv()
            except LOST:
                raise _describe_death(worker) from None
            if isinstance(message, _Answer):
                self._ended.append((worker, message))
            elif isinstance(message, _Started):
                worker.started = True
            else:
                self._emit(message)


@contextmanager
def open_processes(workers: int, start_worker: StartWorker, emit: Emit) -> Iterator[Processes]:
    """Open worker processes, and end them on exit. After an error, unfinished jobs are lost."""
    pool = Processes(emit)
    with interrupts_noted(pool.kill):
        try:
            with interrupts_blocked():
                for _ in range(workers):
                    pool.start(start_worker)
            if pool.killed:
                raise KeyboardInterrupt
            yield pool
        except BaseException:
            pool.kill()  # do not wait for a training
            raise
        finally:
            pool.close()


def _describe_death(worker: _Process) -> WorkerError:
    """The error for a worker process that has ended, with the cause that its exit code shows."""
    worker.process.join(GRACE_S)
    code = worker.process.exitcode
    with suppress(*LOST):
        while worker.pipe.poll():
            worker.started |= isinstance(worker.pipe.recv(), _Started)
    if code is not None and code >= 0 and not worker.started:
        script = getattr(sys.modules["__main__"], "__file__", "the script")
        return WorkerError(
            f"{script}: expected a script that worker processes can import, got one that starts a run or fails when it "
            'is imported. Put what it does under `if __name__ == "__main__":`, or use workers=1.'
        )
    kept = "Finished rows are kept. Run the same command again"
    if code is None or code == -signal.SIGKILL:
        return WorkerError(
            f"A worker process was killed, probably because memory ran out. {kept} with fewer --workers."
        )
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return WorkerError(
        f"A worker process was killed or ended by itself ({cause}): a library or the code of a model, an attack or a "
        f"data set crashed or called exit. {kept} with one worker to find which."
    )


def end_in_script_import() -> None:
    """End a worker process that starts a run while it imports the caller's script; its parent describes the cause."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)


def _serve(pipe: Connection, start_worker: StartWorker) -> None:
    """Main function of a worker process: run the jobs from the pipe until it is closed."""
    with suppress(*LOST):  # the parent may be gone
        pipe.send(_Started())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    profiling.start_in_worker()
    do = start(start_worker, pipe.send)
    gc.freeze()  # exclude objects that exist now from garbage collection: they stay alive
    while True:
        try:
            job = pipe.recv()
        except LOST:
            break
        try:
            outcome, spent = attempt(do, job), profiling.take()
        except KeyboardInterrupt as error:  # raised by the code of the job, since SIGINT is ignored
            outcome, spent = Outcome(error=reword(error)), profiling.take()
        try:
            pipe.send(_Answer(outcome, spent))
        except Exception as error:  # it cannot be pickled
            pipe.send(_Answer(Outcome(error=reword(error)), spent))
    # Undocumented in Python: after its own clean-up the process exits here, without unloading libraries or waiting
    # for threads that third-party code left running.
    util.Finalize(None, _leave, exitpriority=-100)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
