"""Replay the jobs of a suite on clusters of many sizes, whose workers fail, and print how long each takes.

    python benchmarks/simulate_cluster.py [--run RUN] [--workers 1,2,4] [--failures 0.02] [--restart 120] [--seed 0]

With a finished run, the times are the measured ones of its models on this machine, or else on the reference machine.
Without one they are made up: ten models of very different size, 30 cells, 5,000 slices. The order of jobs is that of
`running.schedule.Schedule`, which the simulation drives as a run does. A worker that fails loses its job, which is done
again (a training from its last whole epoch), and starts again after a while, with nothing in memory. No model is run.

Printed for each number of workers and each order: the makespan; `idle`, the share of the workers' time without a job,
after the start; `lost`, the share that was done again after failures; and `bound`, the makespan over the larger of two
lower bounds: all work divided by the workers, and the longest training with one unit of its model.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from advseg_bench.results.run import Run
from advseg_bench.running.parts import UNKNOWN_PASSES
from advseg_bench.running.schedule import Schedule
from advseg_bench.running.work import RunUnit, Train, Unit
from advseg_bench.suite.cost import estimate
from advseg_bench.suite.suite import Suite
from advseg_bench.suite.timing import START_SECONDS, recall

LOAD_SECONDS = 3.0
"""Seconds to load the weights of a trained model."""

WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)

EPOCHS = 20
"""Epochs of a training, which goes on after the last whole one when its worker failed."""

SHARED = 0.05
"""Share of a unit's time for the clean forward and the gradients, which both halves of a divided unit need."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one model.

    Attributes:
        model: Its name.
        train_seconds: Seconds of its training.
        units: Seconds of each of its units.
    """

    model: str
    train_seconds: float
    units: tuple[float, ...]

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return self.train_seconds + sum(self.units)


Job = Train | RunUnit


@dataclass(slots=True)
class Cluster:
    """Workers that fail, on a clock of their own.

    Attributes:
        workers: Number of workers.
        rate: Failures of a worker in an hour.
        restart: Seconds until a failed worker is there again.
        chance: Random numbers.
    """

    workers: int
    rate: float
    restart: float
    chance: random.Random
    lost: float = 0.0
    busy: float = 0.0
    loads: int = 0
    events: list[tuple[float, int, int, Job | None, bool]] = field(default_factory=list)

    def run(self, schedule: Schedule, seconds: Callable[[Job], float]) -> float:
        """Do all jobs; return the makespan."""
        held: list[str] = [""] * self.workers
        idle: list[int] = []
        again: list[Job] = []
        trained: set[str] = set()
        kept: dict[str, float] = {}
        now, count, running = START_SECONDS, self.workers, 0
        for worker in range(self.workers):
            heapq.heappush(self.events, (now, worker, worker, None, False))
        while self.events:
            now, _, worker, job, failed = heapq.heappop(self.events)
            if job is not None:
                running -= 1
                if failed:
                    again.append(job)
                elif isinstance(job, Train):
                    trained.add(job.model)
                    schedule.ready(job.model)
            if failed:
                held[worker] = ""
                heapq.heappush(self.events, (now + self.restart + START_SECONDS, count, worker, None, False))
                count += 1
            else:
                idle.append(worker)
            while idle:
                free = idle.pop()
                chosen = again.pop() if again else schedule.next(held[free])
                if chosen is None:
                    idle.append(free)
                    break
                loading = held[free] != chosen.model and (chosen.model in trained or isinstance(chosen, RunUnit))
                self.loads += loading
                held[free] = chosen.model
                length = seconds(chosen) - kept.get(chosen.model, 0.0) * isinstance(chosen, Train)
                length += LOAD_SECONDS * loading
                until = self.chance.expovariate(self.rate / 3600) if self.rate else float("inf")
                dies = until < length
                self.busy += min(until, length)
                if dies:
                    epoch = seconds(chosen) / EPOCHS if isinstance(chosen, Train) else float("inf")
                    whole = until - until % epoch
                    kept[chosen.model] = kept.get(chosen.model, 0.0) + (whole if isinstance(chosen, Train) else 0.0)
                    self.lost += until - (whole if isinstance(chosen, Train) else 0.0)
                heapq.heappush(self.events, (now + min(until, length), count, free, chosen, dies))
                count, running = count + 1, running + 1
            if not running and not again and not any(event[3] for event in self.events) and schedule.next() is None:
                return now
        return now


def make_up(chance: random.Random, models: int = 10, cells: int = 30, images: int = 5000, shard: int = 8) -> list[Work]:
    """Return the work of models whose time for one image varies by a factor of 30, in the order of a suite."""
    found = []
    for i in range(models):
        seconds = 0.004 * 30 ** (i / (models - 1)) if models > 1 else 0.02
        unit = shard * cells * 15 * seconds
        units = tuple(unit * chance.lognormvariate(0, 0.15) for _ in range(-(-images // shard)))
        found.append(Work(f"m{i}", 40_000 * seconds, units))
    chance.shuffle(found)
    return found


def read_work(run: Run, chance: random.Random, shard: int = 8) -> list[Work]:
    """Return the work of a finished run, from the recorded times of its models; `SystemExit` if there are none."""
    suite = Suite.model_validate(run.info["suite"])
    images, found = run.about.data.images, []
    for model in suite.models:
        timed = recall(suite, model)
        if timed is None:
            raise SystemExit(f"{run.path}: model {model.name} was never timed on this machine. Run the suite here.")
        cells = [cell for cell in run.about.cells if cell.model == model.name and cell.skip is None]
        known = [cell for cell in cells if estimate((cell,)) is not None]
        cost = estimate(tuple(known))
        passes = cost.shared_forwards + 2 * cost.shared_backwards + UNKNOWN_PASSES * (len(cells) - len(known))
        unit = shard * passes * timed[0].pass_seconds
        units = tuple(unit * chance.lognormvariate(0, 0.15) for _ in range(-(-images // shard)))
        found.append(Work(model.name, timed[0].train_seconds, units))
    return found


def order_longest_first(work: Sequence[Work], workers: int) -> list[Work]:
    """Put the models with most work first."""
    return sorted(work, key=lambda each: -each.total)


def split_tail(work: Sequence[Work], workers: int) -> list[Work]:
    """Put the models with most work first, and divide the last units of each into four, by cells."""
    found = []
    for each in order_longest_first(work, workers):
        tail = min(len(each.units), -(-workers // len(work)))
        whole, last = each.units[: len(each.units) - tail], each.units[len(each.units) - tail :]
        quarters = tuple(unit * (SHARED + (1 - SHARED) / 4) for unit in last for _ in range(4))
        found.append(Work(each.model, each.train_seconds, whole + quarters))
    return found


ORDERS: dict[str, Callable[[Sequence[Work], int], Sequence[Work]]] = {
    "suite": lambda work, workers: work,
    "shortest": lambda work, workers: sorted(work, key=lambda each: each.total),
    "longest": order_longest_first,
    "longest, tail split": split_tail,
}


def simulate(work: Sequence[Work], cluster: Cluster) -> float:
    """Run the jobs of models in the order given; return the makespan."""
    units = {each.model: [Unit(each.model, (i,), ()) for i in range(len(each.units))] for each in work}
    known = {each.model: each for each in work}

    def seconds(job: Job) -> float:
        each = known[job.model]
        return each.train_seconds if isinstance(job, Train) else each.units[job.unit.indices[0]]

    return cluster.run(Schedule(units), seconds)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table, see the module."""

    workers: int
    order: str
    hours: float
    idle: float
    lost: float
    bound: float


def find_bound(work: Sequence[Work], workers: int) -> float:
    """Return the larger of two lower bounds of the makespan."""
    return START_SECONDS + max(
        sum(each.total for each in work) / workers, max(each.train_seconds + max(each.units) for each in work)
    )


def compare(
    work: Sequence[Work], workers: Sequence[int], rate: float, restart: float, seeds: Sequence[int]
) -> list[Line]:
    """Simulate each order on each number of workers; return one line of figures for each, means over seeds."""
    lines = []
    for n in workers:
        for name, arrange in ORDERS.items():
            arranged = arrange(work, n)
            found = []
            for seed in seeds:
                cluster = Cluster(n, rate, restart, random.Random(seed))
                makespan = simulate(arranged, cluster)
                span = n * (makespan - START_SECONDS)
                bound = makespan / find_bound(work, n)
                found.append((makespan / 3600, 1 - cluster.busy / span, cluster.lost / span, bound))
            lines.append(Line(n, name, *(sum(each) / len(seeds) for each in zip(*found, strict=True))))
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="folder of a finished run")
    parser.add_argument("--workers", default=",".join(map(str, WORKERS)))
    parser.add_argument("--failures", type=float, default=0.02, help="failures of a worker in an hour")
    parser.add_argument("--restart", type=float, default=120, help="seconds until a failed worker is there again")
    parser.add_argument("--images", type=int, default=5000, help="test images of the suite that is made up")
    parser.add_argument("--trained", action="store_true", help="weights are given, so that no model is trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5, help="simulations of each line, with other failures")
    given = parser.parse_args()
    chance = random.Random(given.seed)
    work = read_work(Run(given.run), chance) if given.run else make_up(chance, images=given.images)
    if given.trained:
        work = [replace(each, train_seconds=LOAD_SECONDS) for each in work]
    hours = sum(each.total for each in work) / 3600
    print(f"{len(work)} models, {sum(len(each.units) for each in work):,} units, {hours:,.1f} hours of one worker")
    print(f"{given.failures:g} failures of a worker in an hour, {given.restart:g} s to restart")
    print(f"{'workers':>7}  {'order':<20} {'hours':>9} {'idle':>7} {'lost':>7} {'bound':>6}")
    numbers = [int(each) for each in given.workers.split(",")]
    seeds = range(given.seed, given.seed + given.repeats)
    for line in compare(work, numbers, given.failures, given.restart, seeds):
        print(
            f"{line.workers:7}  {line.order:<20} {line.hours:9.3f} {line.idle:7.1%} {line.lost:7.2%} {line.bound:6.2f}"
        )


if __name__ == "__main__":
    main()
