"""Executors run jobs in this process or in worker processes. Results do not depend on the choice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from advseg_bench.errors import WorkerError
from advseg_bench.running.executors.processes import open_processes
from advseg_bench.running.outcomes import Do, Outcome, StartWorker, WorkerDied, attempt, start
from advseg_bench.running.work import Emit, Job, MakePanels, RunUnit, Train

R = TypeVar("R")
J = TypeVar("J", bound=Train | RunUnit | MakePanels)


class Executor(Protocol):
    """Runs jobs on workers. Implement this protocol to run elsewhere, such as on a cluster.

    An implementation is created by a context manager like `open_executor`, which receives a picklable `StartWorker`
    and calls it once in each process that runs jobs. It guarantees:

    - A worker lives as long as the executor and runs one job at a time. It keeps data and a model between jobs.
    - `wait` returns every submitted job exactly once. No result depends on which worker ran it, but the next job should
      go to the worker whose job `wait` returned last, since that worker has the model in memory.
    - A job that raises becomes an `Outcome` with an error (see `outcomes.attempt`) and does not affect other jobs.
    - A worker is replaced by a fresh one if its process ends during a job for whatever reason; if the time `seconds` of
      its last message `Running` has passed without another message or the end of the job, upon which it is killed; or
      if its job raised `TaintedError`. `wait` then returns the job with `Outcome(error=WorkerDied(death))`. The `Death`
      has the cause, the last `Running` of this job, and, where they are known, the peak memory and the last output. The
      next job that is submitted goes to the fresh worker. The executor never runs a job twice: that is its caller's
      decision. A worker that ends between two jobs is replaced without notice.
    - If fresh workers cannot be started, `submit` or `wait` raises `WorkerError`: the run ends, and can be resumed.
    - Only the process that was started as a worker answers; a copy of it that user code forks ends without answer.
    - What a worker writes to stdout and stderr neither fills memory or disk nor stops a job.
    - `emit` is called with each message of a worker, in the order in which that worker sent them and before its job is
      returned, in the thread that calls `submit` and `wait`.
    - When the context manager exits, no process is left. If it exits by an error, including Ctrl-C, it does not wait
      for unfinished jobs.
    """

    @property
    def capacity(self) -> int:
        """Largest number of jobs in progress at a time; callers submit no more."""
        ...

    def submit(self, job: Job[Any]) -> None:
        """Start a job."""
        ...

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Wait until a job has ended; return it with its outcome. At least one job must be in progress."""
        ...


@contextmanager
def open_executor(
    workers: int,
    start_worker: StartWorker,
    emit: Emit,
    *,
    isolate: bool = False,
    import_script: bool = True,
) -> Iterator[Executor]:
    """Open an executor, and shut it down on exit.

    Args:
        workers: Number of worker processes.
        start_worker: Called once in each process that runs jobs.
        emit: Called in this thread with the messages that workers send during jobs.
        isolate: Whether one worker is a process of its own; otherwise it runs the jobs in this process, in which
            nothing can be replaced and no time limit holds.
        import_script: Whether worker processes import the caller's script, so that its objects can be part of jobs.
    """
    if workers == 1 and not isolate:
        yield InProcess(start(start_worker, emit))
    else:
        with open_processes(workers, start_worker, emit, import_script) as pool:
            yield pool


class InProcess:
    """An `Executor` that runs each job in this process when it is submitted."""

    capacity = 1

    def __init__(self, do: Do) -> None:
        self._do, self._pid = do, os.getpid()
        self._ended: deque[tuple[Job[Any], Outcome[Any]]] = deque()

    def submit(self, job: Job[Any]) -> None:
        """Run a job."""
        outcome = attempt(self._do, job)
        if os.getpid() != self._pid:  # a copy of this process that user code forked
            os._exit(0)
        self._ended.append((job, outcome))

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Return the oldest finished job with its outcome."""
        return self._ended.popleft()


def call(executor: Executor, job: Job[R]) -> R:
    """Run one job while no other is in progress, and return its result.

    Raises:
        UserError, JobError: If the job failed; `WorkerError` if its worker died.
    """
    executor.submit(job)
    outcome: Outcome[R] = executor.wait()[1]
    if isinstance(outcome.error, WorkerDied):
        raise WorkerError(f"{type(job).__name__.lower()}: {outcome.error}. Finished rows are kept.")
    return outcome.result()


def keep_busy(executor: Executor, choose: Callable[[str], J | None]) -> Iterator[tuple[J, Outcome[Any]]]:
    """Run jobs on all workers until there are none left.

    Args:
        executor: An executor with no job in progress.
        choose: Returns the next job, or None if no job is available yet. It is called with the model that the free
            worker has in memory, "" for none, and is called again whenever a job has ended.

    Yields:
        Each job with its outcome, before `choose` is called again.
    """
    running, held = 0, ""
    while True:
        while running < executor.capacity and (job := choose(held)) is not None:
            executor.submit(job)
            running += 1
        if not running:
            return
        ended, outcome = executor.wait()
        running -= 1
        ended = cast("J", ended)
        held = ended.model
        yield ended, outcome
