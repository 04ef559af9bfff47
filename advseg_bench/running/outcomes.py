"""Outcomes of jobs: a value or an error, in a form that can be sent between processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from advseg_bench.errors import UserError, one_line
from advseg_bench.running.work import Emit, Job, Running

R = TypeVar("R")

Do = Callable[[Job[Any]], Any]
"""A worker as seen by an executor: a function that runs a job and returns its result."""

StartWorker = Callable[[Emit], Do]
"""Creates a worker in the calling process. Picklable, so that it can be sent to a process."""


TIMEOUT = "time limit"
"""Cause of the death of a worker that was killed because a call exceeded `max_seconds`."""
TAINTED = "changed process"
"""Cause of the death of a worker that was replaced because its job raised `TaintedError`."""
LONGEST = 500
"""Most characters of the description of a death."""


class JobError(Exception):
    """A job raised an exception that is not a `UserError`; the message names its type."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended during a job.

    Attributes:
        cause: A signal such as "SIGSEGV", an exit code such as "exit code 1", `TIMEOUT`, or `TAINTED`.
        running: The last `Running` of the job; None if no attack had begun.
        peak_bytes: Largest memory of the process; None if unknown.
        last_words: The end of what it wrote to stdout and stderr, in one line; "" if it wrote nothing.
    """

    cause: str
    running: Running | None = None
    peak_bytes: int | None = None
    last_words: str = ""

    def describe(self) -> str:
        """Return one line of at most `LONGEST` characters with cause, memory and last words."""
        how = f"its worker process ended with {self.cause}"
        if self.cause == TIMEOUT:
            seconds = self.running.seconds if self.running else None
            how = f"its worker process was stopped after {seconds or 0:g} s, the limit of compute.max_seconds"
        elif self.cause == TAINTED:
            how = "its worker process was replaced"
        elif self.cause == "SIGKILL":
            how += ", probably because memory ran out"
        memory = "" if self.peak_bytes is None else f"; peak memory {self.peak_bytes / 2**30:.2f} GiB"
        words = f"; last words: {self.last_words}" if self.last_words else ""
        return f"{how}{memory}{words}"[:LONGEST]


class WorkerDied(JobError):  # noqa: N818  an event that the run survives
    """The worker of a job died or was killed after its time limit; a fresh one has taken its place. Picklable.

    Args:
        death: How it ended.
    """

    def __init__(self, death: Death) -> None:
        super().__init__(death)
        self.death = death

    def __str__(self) -> str:
        return self.death.describe()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """The return value of a job, or the error it raised.

    Attributes:
        value: Return value; None if the job failed.
        error: An error of `advseg_bench.errors` or a `JobError`; None if the job succeeded.
    """

    value: R | None = None
    error: UserError | JobError | None = None

    def result(self) -> R:
        """Return the value.

        Raises:
            UserError, JobError: If the job failed.
        """
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def attempt(do: Do, job: Job[R]) -> Outcome[R]:
    """Run a job and return its outcome, which can be pickled if the job's value can."""
    try:
        return Outcome(do(job))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # user code may stop with SystemExit and its like
        return Outcome(error=reword(error))


def start(start_worker: StartWorker, emit: Emit) -> Do:
    """Create a worker. If that fails, every job submitted to it fails with the same error."""
    try:
        return start_worker(emit)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = reword(error)

    def fail(job: Job[Any]) -> Any:
        raise reason

    return fail


def reword(error: BaseException) -> UserError | JobError:
    """Return the package's errors unchanged, and others as a `JobError`, since they may not be picklable.

    The notes of a `JobError` contain the traceback.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, UserError):
        return error if type(error).__module__ == UserError.__module__ else UserError(str(error))
    failed = JobError(one_line(error))
    failed.add_note("".join(traceback.format_exception(error)))
    return failed
