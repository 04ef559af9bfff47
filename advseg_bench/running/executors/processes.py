"""Worker processes, each with its own pipe. They never hear Ctrl-C, and exit with their parent."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any

from advseg_bench.errors import TaintedError, WorkerError
from advseg_bench.instruments import profiling
from advseg_bench.running.executors.child import GRACE_S, Child
from advseg_bench.running.executors.output import Budget
from advseg_bench.running.executors.serving import LOST, Answer, Started
from advseg_bench.running.interrupts import interrupts_noted
from advseg_bench.running.outcomes import TAINTED, TIMEOUT, Death, Outcome, StartWorker, WorkerDied
from advseg_bench.running.work import Emit, Job, Running

POLL_S = 0.5
"""Seconds after which processes are checked although none has sent anything."""
MOST_IDLE_DEATHS = 5
"""Most workers that may end without a job before the run is given up: they cannot live on this machine."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A place for a worker process: the process, its job, the last `Running` of it, and when that must have ended."""

    child: Child
    job: Job[Any] | None = None
    running: Running | None = None
    deadline: float | None = None


class Processes:
    """An `Executor` of worker processes; opened by `open_processes`.

    The next job goes to the worker whose job `wait` returned last. Everything runs in the thread of the caller.

    Args:
        start_worker: Called in each process.
        emit: Called with the messages of the workers.
        import_script: Whether the processes import the caller's script.
    """

    def __init__(self, start_worker: StartWorker, emit: Emit, import_script: bool) -> None:
        self.killed = False
        self._start_worker, self._emit, self._import_script = start_worker, emit, import_script
        self._budget = Budget()
        self._all: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._ended: deque[tuple[_Worker, Outcome[Any]]] = deque()
        self._idle_deaths = 0

    @property
    def capacity(self) -> int:
        """Number of workers."""
        return len(self._all)

    def submit(self, job: Job[Any]) -> None:
        """Send a job to an idle worker.

        Raises:
            WorkerError: If that worker has died, and no other can be started.
        """
        assert self._idle, "callers submit at most `capacity` jobs"
        worker = self._idle.pop()
        worker.child.output.forget()
        while True:
            try:
                worker.child.pipe.send(job)
                break
            except LOST:
                self._replace(worker)
        worker.job = job

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Wait until a job has ended; return it with its outcome. Messages are passed to `emit` while waiting.

        Raises:
            WorkerError: If a worker has died, and no other can be started.
        """
        with profiling.span(profiling.WAITING):
            while not self._ended:
                self._listen()
        worker, outcome = self._ended.popleft()
        assert worker.job is not None
        job, worker.job = worker.job, None
        self._idle.append(worker)
        return job, outcome

    def start(self) -> None:
        """Start one more worker."""
        self._all.append(_Worker(Child(self._start_worker, self._budget, self._import_script)))
        self._idle.append(self._all[-1])

    def kill(self) -> None:
        """Kill all workers, so that `close` does not wait for their jobs."""
        self.killed = True
        for worker in self._all:
            worker.child.kill()

    def close(self) -> None:
        """Close the pipes, upon which workers exit, and wait for them."""
        for worker in self._all:
            worker.child.pipe.close()
        for worker in self._all:
            worker.child.close()

    def _listen(self) -> None:
        """Wait until something happens to a worker, at most `POLL_S`, and deal with it."""
        outputs = [worker.child.output.end for worker in self._all if worker.child.output.end is not None]
        ready = wait_for([*(worker.child.pipe for worker in self._all), *outputs], POLL_S)
        if self.killed:
            raise WorkerError("stopped")  # as KeyboardInterrupt in the end
        for worker in self._all:
            worker.child.output.read()
            if worker.child.pipe in ready:
                self._receive(worker)
            elif worker.deadline is not None and time.monotonic() > worker.deadline:
                self._bury(worker, TIMEOUT)
            elif worker.child.has_ended() and not worker.child.pipe.poll():  # a forked process may hold the pipe
                self._bury(worker)

    def _receive(self, worker: _Worker) -> None:
        """Receive one message."""
        try:
            message = worker.child.pipe.recv()
        except Exception:  # the pipe is closed, or holds what user code has written
            self._bury(worker)
            return
        worker.deadline = None
        if isinstance(message, Answer):
            profiling.add(message.spent)
            if isinstance(message.outcome.error, TaintedError):
                self._bury(worker, TAINTED, str(message.outcome.error))
            else:
                self._finish(worker, message.outcome)
        elif isinstance(message, Started):
            worker.child.started = True
        else:
            if isinstance(message, Running):
                worker.running = message
                worker.deadline = None if message.seconds is None else time.monotonic() + message.seconds
            self._emit(message)

    def _bury(self, worker: _Worker, cause: str = "", last_words: str = "") -> None:
        """End a worker, put a fresh one in its place, and return its job, if it has one, as lost.

        Args:
            worker: A worker that has ended, closed its pipe, or has to be replaced.
            cause: Cause of its death; by default its signal or exit code.
            last_words: By default the end of its output.
        """
        if not cause:
            worker.child.wait(GRACE_S)
        worker.child.end(report=cause == TIMEOUT)
        child = worker.child
        last_words = last_words or child.output.find_last_words()
        death = Death(cause or child.name_end(), worker.running, child.peak_bytes, last_words)
        self._replace(worker)
        if worker.job is not None:
            self._finish(worker, Outcome(error=WorkerDied(death)))

    def _finish(self, worker: _Worker, outcome: Outcome[Any]) -> None:
        worker.running = worker.deadline = None
        self._ended.append((worker, outcome))

    def _replace(self, worker: _Worker) -> None:
        """Put a fresh process in the place of one that has ended."""
        child = worker.child
        child.end()
        child.close()
        if not child.started and child.code is not None and child.code >= 0:
            raise self._describe_start(child) from None
        self._idle_deaths += worker.job is None
        if self._idle_deaths > MOST_IDLE_DEATHS:
            words = child.output.find_last_words() or "no output"
            raise WorkerError(
                f"Worker processes end without work ({child.name_end()}): {words}. Finished rows are kept. Free memory "
                "or use fewer --workers, then run the same command again."
            )
        worker.child = Child(self._start_worker, self._budget, self._import_script)
        if self.killed:
            worker.child.kill()

    def _describe_start(self, child: Child) -> WorkerError:
        """The error for a process that ended by itself before it could receive a job."""
        words = child.output.find_last_words() or "no output"
        if not self._import_script:
            return WorkerError(f"A worker process cannot be started ({child.name_end()}): {words}.")
        script = getattr(sys.modules["__main__"], "__file__", "the script")
        return WorkerError(
            f"{script}: expected a script that worker processes can import, got one that starts a run or fails when it "
            'is imported. Put what it does under `if __name__ == "__main__":`, or use workers=1.'
        )


@contextmanager
def open_processes(
    workers: int, start_worker: StartWorker, emit: Emit, import_script: bool = True
) -> Iterator[Processes]:
    """Open worker processes, and end them on exit. After an error, unfinished jobs are lost.

    Args:
        workers: Number of processes.
        start_worker: Called in each process.
        emit: Called in this thread with the messages of the workers.
        import_script: Whether the processes import the caller's script, so that its objects can be part of jobs.
    """
    pool = Processes(start_worker, emit, import_script)
    with interrupts_noted(pool.kill):
        try:
            for _ in range(workers):
                pool.start()
            if pool.killed:
                raise KeyboardInterrupt
            yield pool
        except BaseException:
            pool.kill()  # do not wait for a training
            raise
        finally:
            pool.close()
