"""A Ray actor that keeps one worker process, and hands jobs to it."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from advseg_bench.errors import WorkerError
from advseg_bench.instruments import profiling
from advseg_bench.running.executors.processes import Processes, open_processes
from advseg_bench.running.executors.ray_cluster import Surroundings
from advseg_bench.running.outcomes import Do, Outcome, StartWorker
from advseg_bench.running.work import Emit, Job, Note, PackData, Running, TakeData, Training


@dataclass(frozen=True, slots=True)
class Begun:
    """Message of an actor that it begins a job; an actor that was restarted has another process."""

    pid: int


News = list[Training | Running | Note | Begun]


@dataclass(frozen=True, slots=True)
class _Start:
    """A `StartWorker` for workers of a machine whose first worker has loaded the data set."""

    start_worker: StartWorker
    packed: bytes

    def __call__(self, emit: Emit) -> Do:
        do = self.start_worker(emit)
        do(TakeData(self.packed))
        return do


class Place:
    """A Ray actor with one worker process. One thread runs a job, another returns its messages.

    Args:
        start_worker: Called in the worker process.
        surroundings: Taken over from the process that owns the run.
    """

    def __init__(self, start_worker: StartWorker, surroundings: Surroundings) -> None:
        surroundings.enter()
        profiling.start_in_worker()
        self._start_worker = start_worker
        self._open = ExitStack()
        self._processes: Processes | None = None
        self._news: News = []
        self._ended = -1
        self._changed = threading.Condition()

    def begin(self, packed: bytes | None = None) -> bool:
        """Start the worker process. An actor that Ray has restarted does so at its next job, without `packed`.

        Args:
            packed: The data set, if another worker of this machine has loaded it.
        """
        start = self._start_worker if packed is None else _Start(self._start_worker, packed)
        self._processes = self._open.enter_context(open_processes(1, start, self._tell, import_script=False))
        return True

    def admit(self, job: Job[Any]) -> tuple[Outcome[Any], bytes | None]:
        """Run the first job of a machine. Returns: its outcome, and the data set for the machine's other workers."""
        outcome = self._run(job)
        packed = None if outcome.error else self._run(PackData()).value
        return outcome, packed

    def do(self, number: int, job: Job[Any]) -> tuple[News, Outcome[Any], dict[str, float]]:
        """Run a job. Returns: messages that `hear` has not returned, the outcome, and measured times."""
        self._tell(Begun(os.getpid()))
        outcome = self._run(job)
        with self._changed:
            self._ended = number
            news, self._news = self._news, []
            self._changed.notify_all()
        return news, outcome, profiling.take()

    def hear(self, number: int) -> News:
        """Wait for messages of a job, or its end, and return the messages."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._ended == number)
            news, self._news = self._news, []
        return news

    def _run(self, job: Job[Any]) -> Outcome[Any]:
        if self._processes is None:
            self.begin()
        assert self._processes is not None
        try:
            self._processes.submit(job)
            return self._processes.wait()[1]
        except WorkerError as error:  # no worker process can be started
            return Outcome(error=error)

    def _tell(self, message: Training | Running | Note | Begun) -> None:
        with self._changed:
            self._news.append(message)
            self._changed.notify_all()
