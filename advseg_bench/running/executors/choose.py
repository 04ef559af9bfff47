"""Opens the executor that its options name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any

from advseg_bench.running.executors.base import Executor, open_executor
from advseg_bench.running.executors.options import LocalOptions, Needs, Options, RayOptions
from advseg_bench.running.outcomes import StartWorker
from advseg_bench.running.work import Emit, Job

Opener = Callable[..., AbstractContextManager[Executor]]


@contextmanager
def _open_local(
    options: LocalOptions, start_worker: StartWorker, emit: Emit, *, needs: Needs, first: Job[Any] | None
) -> Iterator[Executor]:
    alone, script = options.isolate, options.import_script
    with open_executor(options.workers, start_worker, emit, isolate=alone, import_script=script) as executor:
        yield executor


def _open_ray(options: RayOptions, *arguments: Any, **named: Any) -> AbstractContextManager[Executor]:
    opener: Opener = import_module("advseg_bench.running.executors.ray").open_ray
    return opener(options, *arguments, **named)


OPENERS: dict[type, Opener] = {LocalOptions: _open_local, RayOptions: _open_ray}
"""Options -> a function that opens their executor; an executor on other machines is imported when it is chosen."""


def open_chosen(
    options: Options, start_worker: StartWorker, emit: Emit, *, needs: Needs, first: Job[Any] | None = None
) -> AbstractContextManager[Executor]:
    """Open an executor; its context manager shuts it down on exit.

    Args:
        options: Options of the executor.
        start_worker: Called once in each process that runs jobs.
        emit: Called in this thread with the messages that workers send during jobs.
        needs: What one worker takes of a machine.
        first: The first job of each machine other than this one. Its result has a method `contradict`, by which results
            of two machines are compared; a machine that contradicts the first one gets no other job.

    Raises:
        UserError: If the executor cannot be opened; one line.
    """
    return OPENERS[type(options)](options, start_worker, emit, needs=needs, first=first)
