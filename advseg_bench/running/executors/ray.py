"""Runs jobs on a Ray cluster: one Ray actor for each worker, on every machine with enough resources.

An actor keeps one worker process, as `processes` starts them, which keeps data and a model between jobs. So a job that
crashes or hangs costs its process alone, is described as on one machine, and does not harm Ray. Ray places, watches
and restarts actors, and repeats the job of an actor that was killed. The jobs of a machine that is gone are repeated on
other machines by this executor. They can be repeated, since jobs only return results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from advseg_bench.errors import WorkerError
from advseg_bench.instruments import profiling
from advseg_bench.running.executors.options import Needs, RayOptions
from advseg_bench.running.executors.ray_actor import Begun, News
from advseg_bench.running.executors.ray_cluster import connect
from advseg_bench.running.executors.ray_crew import Crew, Worker
from advseg_bench.running.interrupts import interrupts_noted
from advseg_bench.running.outcomes import Death, Outcome, StartWorker, WorkerDied
from advseg_bench.running.work import Emit, Job

NEWS_S = 5.0
"""Seconds to wait for the last messages of a job that has ended."""
MOST_TRIES = 3
"""Actors that may begin a job before it counts as what kills them."""


class OnRay:
    """An `Executor` of actors on a cluster; opened by `open_ray`. Its capacity follows the machines of the cluster.

    Args:
        emit: Called with the messages of the workers.
    """

    def __init__(self, emit: Emit) -> None:
        self.crew: Crew
        self._emit = emit
        self._idle: list[Worker] = []
        self._unplaced: deque[Job[Any]] = deque()
        self._ended: deque[tuple[Worker, Job[Any], Outcome[Any]]] = deque()
        self._jobs = 0

    @property
    def capacity(self) -> int:
        """Number of workers on machines that are alive."""
        return self.crew.started

    def submit(self, job: Job[Any]) -> None:
        """Send a job to an idle worker, or keep it until there is one if the last one has just been lost."""
        self._unplaced.append(job)
        self._place()

    def wait(self) -> tuple[Job[Any], Outcome[Any]]:
        """Wait until a job has ended; return it with its outcome. Messages are passed to `emit` while waiting.

        Raises:
            WorkerError: If the cluster has had no worker for a minute, or no worker process can be started.
        """
        with profiling.span(profiling.WAITING):
            while not self._ended:
                self._place()
                self.crew.step()
        worker, job, outcome = self._ended.popleft()
        if worker in self.crew.all:
            self._idle.append(worker)
        return job, outcome

    def use(self, worker: Worker) -> None:
        """Use a new worker, after those that have a model in memory."""
        self._idle.insert(0, worker)

    def lose(self, worker: Worker) -> None:
        """Repeat the job of a worker that is gone on another one."""
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.job is not None:
            self._unplaced.appendleft(worker.job)
            worker.job = None

    def _place(self) -> None:
        """Send the jobs that wait to idle workers."""
        while self._idle and self._unplaced:
            worker, job = self._idle.pop(), self._unplaced.popleft()
            self._jobs += 1
            worker.job, worker.number = job, self._jobs
            worker.began.clear()
            result = worker.actor.do.remote(worker.number, job)
            self.crew.await_answer(result, partial(self._finish, worker))
            self._listen(worker)

    def _listen(self, worker: Worker) -> None:
        worker.news = worker.actor.hear.remote(worker.number)
        self.crew.await_answer(worker.news, partial(self._hear, worker))

    def _hear(self, worker: Worker, answer: Any) -> None:
        """Pass on messages of a job; give up a job whose actors die."""
        if worker.job is None or answer is not worker.news or (news := self.crew.get(answer, worker)) is None:
            return
        self._tell(worker, news)
        if len(worker.began) <= MOST_TRIES:
            self._listen(worker)
            return
        job, worker.job = worker.job, None
        death = Death(f"the loss of its Ray worker, {MOST_TRIES} times in a row")
        self._ended.append((worker, job, Outcome(error=WorkerDied(death))))
        self.crew.drop(worker)

    def _finish(self, worker: Worker, answer: Any) -> None:
        if (result := self.crew.get(answer, worker)) is None or worker.job is None:
            return
        later, outcome, spent = result
        if self.crew.take_answer(worker.news, NEWS_S):
            self._tell(worker, self.crew.get(worker.news) or [])
        self._tell(worker, later)
        profiling.add(spent)
        if isinstance(outcome.error, WorkerError):
            raise outcome.error
        job, worker.job = worker.job, None
        self._ended.append((worker, job, outcome))

    def _tell(self, worker: Worker, news: News) -> None:
        for message in news:
            if isinstance(message, Begun):
                worker.began.add(message.pid)
            else:
                self._emit(message)


@contextmanager
def open_ray(
    options: RayOptions, start_worker: StartWorker, emit: Emit, *, needs: Needs, first: Job[Any] | None = None
) -> Iterator[OnRay]:
    """Open workers on a cluster, and end them on exit. After an error, unfinished jobs are lost.

    Args:
        options: Options of the executor.
        start_worker: Called in each worker process.
        emit: Called in this thread with the messages of the workers.
        needs: What one worker takes of a machine.
        first: First job of each machine, see `choose.open_chosen`.

    Raises:
        UserError: If the cluster cannot be used; one line.
    """
    executor = OnRay(emit)
    noted: list[bool] = []

    def note() -> None:
        noted.append(True)
        if hasattr(executor, "crew"):
            executor.crew.interrupted = True

    with interrupts_noted(note), connect(options, needs) as ray:
        crew = Crew(ray, needs, options.workers, start_worker, first, executor.use, executor.lose)
        executor.crew = crew
        crew.interrupted = bool(noted)
        try:
            crew.start()
            yield executor
        finally:
            crew.close()
