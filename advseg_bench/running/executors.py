"""Where jobs run: in this process, or in worker processes. Results do not depend on the choice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, cast

from advseg_bench.running.outcomes import Do, Outcome, StartWorker, attempt, start
from advseg_bench.running.processes import open_processes
from advseg_bench.running.work import Emit, Job, MakePanels, RunUnit, Train

R = TypeVar("R")
J = TypeVar("J", bound=Train | RunUnit | MakePanels)


class Executor(Protocol):
    """Runs jobs on workers. This is what to implement for another place to run, such as a cluster.

    A class that implements it is made by a context manager like `open_executor`, which is given a picklable
    `StartWorker`, and calls it once in each place where jobs are to run. It guarantees:

    - A worker lives as long as the executor and does one job at a time: it keeps data and a model between jobs.
    - Every job that was submitted is returned by `wait` exactly once. No result depends on which worker did it; but
      the job that is submitted next should go to the worker whose job `wait` returned last, since it has the model.
    - A job that raises is an `Outcome` with an error (`outcomes.attempt` makes it) and harms no other job.
    - A worker that is lost with its job is a `WorkerError` from `submit` or `wait`: the run ends, and can be resumed.
    - `emit` is called in the thread that calls `submit` and `wait`.
    - When the context manager ends, nothing is left behind. If it ends by an error, Ctrl-C among them, it waits for no
      job.
    """

    @property
    def capacity(self) -> int:
        """How many jobs can be under way; callers submit no more."""
        ...

    def submit(self, job: Job[Any]) -> None:
        """Start a job."""
        ...

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Wait until a job has ended; return it and how it ended. There must be one under way."""
        ...


@contextmanager
def open_executor(workers: int, start_worker: StartWorker, emit: Emit) -> Iterator[Executor]:
    """Provide an executor and leave nothing behind.

    Args:
        workers: 1 runs the jobs in this process; more start so many processes.
        start_worker: Called once in each process that is to run jobs.
        emit: Called in this thread with what workers tell of their progress.
    """
    if workers == 1:
        yield InProcess(start(start_worker, emit))
    else:
        with open_processes(workers, start_worker, emit) as pool:
            yield pool


class InProcess:
    """An `Executor` that does each job when it is submitted."""

    capacity = 1

    def __init__(self, do: Do) -> None:
        self._do = do
        self._ended: deque[tuple[Job[Any], Outcome[Any]]] = deque()

    def submit(self, job: Job[Any]) -> None:
        """Do a job."""
        self._ended.append((job, attempt(self._do, job)))

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Return the job that was done."""
        return self._ended.popleft()


def call(executor: Executor, job: Job[R]) -> R:
    """Run one job while nothing else is under way, and return its result.

    Raises:
        UserError, JobError: If the job failed.
    """
    executor.submit(job)
    outcome: Outcome[R] = executor.wait()[1]
    return outcome.result()


def keep_busy(executor: Executor, choose: Callable[[str], J | None]) -> Iterator[tuple[J, Outcome[Any]]]:
    """Run jobs on all workers until there are none left.

    Args:
        executor: With no job under way.
        choose: Returns the next job, or None if there is none for the moment. It is given the model that the free
            worker has in memory, "" for none, and is asked again whenever a job has ended.

    Yields:
        Each job and how it ended; what the caller learns from it may decide what `choose` returns next.
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
