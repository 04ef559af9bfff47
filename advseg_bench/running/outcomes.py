"""How a job ended, in a form that one process can send to another."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from advseg_bench.errors import UserError, one_line
from advseg_bench.running.work import Emit, Job

R = TypeVar("R")

Do = Callable[[Job[Any]], Any]
"""What a worker is to an executor: a function that does a job and returns its result."""

StartWorker = Callable[[Emit], Do]
"""Makes a worker in the process that calls it. Picklable, so that it can be sent there."""


class JobError(Exception):
    """A job raised something that is not the user's to correct; the message names its type."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What a job returned, or why it failed.

    Attributes:
        value: What it returned; None if it failed.
        error: Why it failed, or None: one of the errors of `advseg_bench.errors`, or a `JobError`.
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
    """Do a job. Whatever it raises, the outcome can be pickled if the job's value can."""
    try:
        return Outcome(do(job))
    except (Exception, SystemExit) as error:
        return Outcome(error=reword(error))


def start(start_worker: StartWorker, emit: Emit) -> Do:
    """Make a worker. If that fails, each job that it is given fails for that reason."""
    try:
        return start_worker(emit)
    except (Exception, SystemExit) as error:
        reason = reword(error)

    def fail(job: Job[Any]) -> Any:
        raise reason

    return fail


def reword(error: BaseException) -> UserError | JobError:
    """Return the package's own errors as they are, and say in words what foreign code raised: it may not be picklable.

    The traceback is in the notes of a `JobError`.
    """
    if isinstance(error, JobError):
        return error
    if isinstance(error, UserError):
        return error if type(error).__module__ == UserError.__module__ else UserError(str(error))
    failed = JobError(one_line(error))
    failed.add_note("".join(traceback.format_exception(error)))
    return failed
