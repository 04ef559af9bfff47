"""The workers of a Ray cluster: found, compared and started on every machine that is alive and large enough."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from advseg_bench.errors import UserError, WorkerError, expected, one_line
from advseg_bench.running.executors.options import Needs
from advseg_bench.running.executors.ray_actor import Place
from advseg_bench.running.executors.ray_cluster import (
    COMPARED,
    Machine,
    Surroundings,
    compare_versions,
    list_machines,
    make_look,
    refuse_needs,
)
from advseg_bench.running.outcomes import StartWorker
from advseg_bench.running.work import Job

LOOK_S = 1.0
"""Seconds after which the list of machines is read again."""
START_S = 60.0
"""Seconds for a machine to start a worker, and for a cluster without workers to get one."""
MOST_FAILED_STARTS = 3
"""Workers of a machine that may fail to start before it is left out."""


@dataclass(slots=True, eq=False)
class Worker:
    """An actor as the owner of the run sees it.

    Attributes:
        machine: Where it is.
        actor: Its handle.
        started: Whether it can take jobs.
        job: The job that it runs.
        number: Number of that job.
        news: Reference to the next messages of the job.
        began: Ids of the processes of the actor that have begun the job; there are several if it was restarted.
    """

    machine: Machine
    actor: Any
    started: bool = False
    job: Job[Any] | None = None
    number: int = -1
    news: Any = None
    began: set[int] = field(default_factory=set)


class Crew:
    """All workers of a run. They follow the machines of the cluster, which are listed every `LOOK_S`.

    Args:
        ray: The module, connected.
        needs: What one worker takes of a machine.
        most: Most workers; no limit if None.
        start_worker: Called in each worker process.
        first: First job of each machine, see `choose.open_chosen`.
        on_free: Called with each worker that has started.
        on_loss: Called with each worker that is lost with its machine.
    """

    def __init__(
        self,
        ray: Any,
        needs: Needs,
        most: int | None,
        start_worker: StartWorker,
        first: Job[Any] | None,
        on_free: Callable[[Worker], None],
        on_loss: Callable[[Worker], None],
    ) -> None:
        self.all: list[Worker] = []
        self.interrupted = False
        self._ray, self._needs, self._most, self._first = ray, needs, most, first
        self._on_free, self._on_loss = on_free, on_loss
        self._start = (start_worker, Surroundings.describe())
        self._actor = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=2)(Place)
        self._look = ray.remote(num_cpus=0)(make_look())
        self._standard: Any = None
        self._machines: dict[str, Machine] = {}
        self._refused: dict[str, UserError] = {}
        self._awaited: dict[Any, Callable[[Any], None]] = {}
        self._looked, self._alive = -LOOK_S, time.monotonic()

    @property
    def started(self) -> int:
        """Number of workers that can take jobs, or have one."""
        return sum(worker.started for worker in self.all)

    def start(self) -> None:
        """Find the machines, check that they agree, and start workers.

        Raises:
            UserError: If a machine differs or has not what the run needs, or no worker starts in `START_S`; one line.
        """
        self._find_machines()
        if not self._machines:
            raise refuse_needs(self._ray, self._needs)
        until = time.monotonic() + START_S
        while not self._is_settled(late=time.monotonic() > until):
            self.step()
            for error in self._refused.values():
                raise error

    def step(self) -> None:
        """Wait for an answer of the cluster, at most `LOOK_S`, and deal with all that are there.

        Raises:
            KeyboardInterrupt: If `interrupted` was set.
            WorkerError: If there has been no worker for `START_S`.
        """
        if time.monotonic() - self._looked >= LOOK_S:
            self._find_machines()
        ready: list[Any] = []
        if self._awaited:
            ready, others = self._ray.wait(list(self._awaited), num_returns=1, timeout=LOOK_S)
            if ready and others:
                ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        else:
            time.sleep(LOOK_S)
        if self.interrupted:
            raise KeyboardInterrupt
        for answer in ready:
            if (react := self._awaited.pop(answer, None)) is not None:
                react(answer)
        if self.all:
            self._alive = time.monotonic()
        elif time.monotonic() - self._alive > START_S:
            raise WorkerError(
                f"The Ray cluster has had no worker for {START_S:g} s. Finished rows are kept. Start a node with "
                f"{self._needs}, and run the same command again."
            )

    def await_answer(self, answer: Any, react: Callable[[Any], None]) -> None:
        """Have a function called with a reference once its value is there, or an error."""
        self._awaited[answer] = react

    def take_answer(self, answer: Any, seconds: float) -> bool:
        """Wait for a value; return whether it is there. It is not awaited any more."""
        self._awaited.pop(answer, None)
        return bool(self._ray.wait([answer], timeout=seconds)[0])

    def get(self, answer: Any, worker: Worker | None = None) -> Any:
        """Return a value that is there; None if it was lost with its machine, upon which its worker is dropped too.

        Raises:
            WorkerError: If the code of an actor raised an exception.
        """
        try:
            value = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerError(f"A Ray worker failed: {one_line(error.cause)}.") from error
        except self._ray.exceptions.RayError:
            if worker is not None:
                self.drop(worker)
            return None
        return value if worker is None or worker in self.all else None

    def drop(self, worker: Worker) -> None:
        """Kill a worker, and report its loss."""
        if worker in self.all:
            self.all.remove(worker)
            with suppress(Exception):  # it is gone, or the connection is
                self._ray.kill(worker.actor)
            self._on_loss(worker)

    def close(self) -> None:
        """Kill all workers."""
        for worker in self.all:
            with suppress(Exception):  # the connection may be lost
                self._ray.kill(worker.actor)

    def _is_settled(self, late: bool) -> bool:
        """Return whether the run can begin: all machines are ready, or some are and others are in use elsewhere."""
        machines = self._machines.values()
        wanted = min(len(machines), self._most or len(machines))
        ready = sum(machine.admitted for machine in machines)
        if not late or ready >= wanted:
            return 0 < wanted <= ready
        if not any(machine.began for machine in machines):
            what = f"free resources on the Ray cluster for a worker ({self._needs})"
            remedy = (
                "Wait until others have finished, or ask for less by the keys cpus, gpus and memory_gb of [compute]."
            )
            raise WorkerError(expected("compute", what, f"none within {START_S:g} s", remedy))
        return all(machine.admitted for machine in machines if machine.began)

    def _find_machines(self) -> None:
        """Note machines that have come or gone. A new one first reports its versions."""
        self._looked = time.monotonic()
        alive = list_machines(self._ray, self._needs)
        for gone in [machine for name, machine in self._machines.items() if name not in alive]:
            del self._machines[gone.id]
            for worker in [worker for worker in self.all if worker.machine is gone]:
                self.drop(worker)
        for name in [name for name in alive if name not in self._machines and name not in self._refused]:
            machine = self._machines[name] = alive[name]
            answer = self._look.options(scheduling_strategy=self._stay(machine)).remote(COMPARED)
            self.await_answer(answer, partial(self._compare, machine))
        self._grow()

    def _stay(self, machine: Machine) -> Any:
        strategies = self._ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(machine.id, soft=False)

    def _compare(self, machine: Machine, answer: Any) -> None:
        found = self.get(answer)
        if found is None:
            self._machines.pop(machine.id, None)  # it is listed again if it is alive
        elif differs := compare_versions(machine, found):
            self._refuse(machine, WorkerError(differs))
        else:
            machine.compared = True
            self._grow()

    def _grow(self) -> None:
        """Start a worker on each machine, and others where the first has been admitted, spread evenly."""
        while self._most is None or len(self.all) < self._most:
            counts = {machine.id: 0 for machine in self._machines.values() if machine.compared}
            for worker in self.all:
                counts[worker.machine.id] += 1
            free = [name for name in counts if counts[name] < self._machines[name].limit]
            if not free:
                return
            self._add(self._machines[min(free, key=counts.__getitem__)])

    def _add(self, machine: Machine) -> None:
        needs = {"num_cpus": self._needs.cpus, "num_gpus": self._needs.gpus}
        if self._needs.memory_bytes:
            needs["memory"] = self._needs.memory_bytes
        actor = self._actor.options(**needs, scheduling_strategy=self._stay(machine)).remote(*self._start)
        worker = Worker(machine, actor)
        self.all.append(worker)
        self.await_answer(actor.begin.remote(*machine.data), partial(self._begin, worker))

    def _begin(self, worker: Worker, answer: Any) -> None:
        """The actor of a worker has started: give the first one of a machine the first job, and use the others."""
        machine = worker.machine
        if self.get(answer, worker) is None:
            machine.failed_starts += 1
            if machine.failed_starts == MOST_FAILED_STARTS and machine.id in self._machines:
                self._refuse(machine, WorkerError(f"machine {machine.name}: workers cannot be started by Ray."))
            return
        machine.began = True
        if machine.admitted or self._first is None:
            self._use(worker)
            return
        outcome, data = worker.actor.admit.options(num_returns=2, max_task_retries=0).remote(self._first)
        self.await_answer(outcome, partial(self._judge, worker, data))

    def _judge(self, worker: Worker, data: Any, answer: Any) -> None:
        """Admit a machine, unless the result of its first job contradicts that of another machine."""
        outcome, machine = self.get(answer, worker), worker.machine
        if outcome is None:
            return
        if outcome.error is not None:
            where = f"machine {machine.name}: " if len(self._machines) > 1 else ""
            self._refuse(machine, WorkerError(f"{where}{one_line(outcome.error)}"))
            return
        self._standard = self._standard or outcome.value
        if differs := self._standard.contradict(outcome.value):
            remedy = "Rows would differ. Install the same versions and data on all machines, or leave this one out."
            self._refuse(machine, WorkerError(f"machine {machine.name}: {differs} {remedy}"))
            return
        machine.data = (data,)
        self._use(worker)

    def _use(self, worker: Worker) -> None:
        worker.started = worker.machine.admitted = True
        self._on_free(worker)
        self._grow()

    def _refuse(self, machine: Machine, error: UserError) -> None:
        """Leave a machine out. Before the run begins `start` raises the error; later one line reports it."""
        self._refused[machine.id] = error
        if self.started:
            print(f"left out: {error}", file=sys.stderr)
        for worker in [worker for worker in self.all if worker.machine is machine]:
            self.drop(worker)
        self._machines.pop(machine.id, None)
