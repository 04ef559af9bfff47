"""Outcomes of jobs: a value or an error, in a form that can be sent between processes."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from advseg_bench.errors import UserError, one_line
from advseg_bench.running.work import Emit, Job

R = TypeVar("R")

Do = Callable[[Job[Any]], Any]
"""A worker as seen by an executor: a function that runs a job and returns its result."""

StartWorker = Callable[[Emit], Do]
"""Creates a worker in the calling process. Picklable, so that it can be sent to a process."""


class JobError(Exception):
    """A job raised an exception that is not a `UserError`; the message names its type."""


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
