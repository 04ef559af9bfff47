"""Time and memory as an instrument takes them: interleaved, warmed up, its own cost deducted, with intervals."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import bdtr
from torch.profiler import ProfilerActivity, profile

from advseg_bench.errors import SpecError, expected
from advseg_bench.instruments.allocator import without_collector

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else PyTorch's profiler tells standard error when it starts

Work = Callable[[], object]

Clock = Callable[[], float]
"""Returns the present time in seconds, from any start."""

FASTER = 0.95
"""A run that takes less than this share of the fastest before it shows that the work was still warming up."""

SETTLED_RUNS = 2
"""Warm-up ends when so many runs in a row were no faster, as compared by `FASTER`."""

MOST_WARMUPS = 20
"""Warm-up ends after so many runs in any case."""


@dataclass(frozen=True, slots=True)
class Samples:
    """How long a work took, round by round; round i of two works measured together belongs together.

    Attributes:
        seconds: Wall time of each round, the meter's own cost deducted.
        device_seconds: Time between two events on the accelerator, none deducted; None on the CPU.
        warmups: Runs before the first round.
        settled: Whether the last of them were no faster than those before, as `measure` asks for.
        own_seconds: What was deducted: the median time of doing nothing.
        peak_bytes: Memory above the start, see `peak_bytes`; None if it was not asked for or cannot be told.
    """

    seconds: tuple[float, ...]
    device_seconds: tuple[float, ...] | None
    warmups: int
    settled: bool
    own_seconds: float
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """The median wall time."""
        return float(np.median(self.seconds))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return an interval for the median wall time, see `median_interval`; (0, inf) of too few rounds."""
        low, high = median_interval(self.seconds, level)
        return max(low, 0.0), high


def default_device() -> torch.device:
    """Return the accelerator if there is one that works, else the CPU; a CUDA build needs no GPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize(device: torch.device | str) -> None:
    """Wait until an accelerator has done all it was asked to do; on the CPU there is nothing to wait for."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def measure(
    works: Mapping[str, Work],
    *,
    device: torch.device | str,
    rounds: int,
    seed: int = 0,
    memory: bool = False,
    now: Clock = time.perf_counter,
) -> dict[str, Samples]:
    """Time several works against each other.

    Every round runs each work once, in an order shuffled anew, so that a machine that slows down slows all of them
    down; compare them by `ratio`. Doing nothing takes part as one more work, and its median time is deducted. The
    garbage collector is off during a run and may work between runs. Warm-up ends when `SETTLED_RUNS` runs in a row did
    not take less than `FASTER` times the fastest before them, and after `MOST_WARMUPS` runs in any case.

    Args:
        works: What to run, by name. A work takes much longer than doing nothing (microseconds).
        device: Where they compute; on an accelerator each run ends when the device has finished.
        rounds: Samples of each work; under 6 there is no interval of 95 %, and 12 or more are advisable.
        seed: Of the orders.
        memory: Whether to run each work once more for its peak memory.
        now: The clock, in seconds.

    Returns:
        Samples by name.

    Cost:
        `rounds` and at least `SETTLED_RUNS` + 1 runs of each work.

    Raises:
        SpecError: If there is nothing to measure.
    """
    if not works or rounds < 1:
        raise SpecError(expected("meter", "works and at least one round", (len(works), rounds)))
    device = torch.device(device)
    timed = [partial(_time, work, device, now) for work in (_do_nothing, *works.values())]
    gc.collect()
    warm = [_warm_up(run) for run in timed]
    order, shuffler = list(range(len(timed))), random.Random(seed)
    taken: list[list[tuple[float, float | None]]] = [[] for _ in timed]
    for _ in range(rounds):
        shuffler.shuffle(order)
        for i in order:
            taken[i].append(timed[i]())
    own = float(np.median([wall for wall, _ in taken[0]]))
    samples = {}
    for (name, work), runs, (warmups, settled) in zip(works.items(), taken[1:], warm[1:], strict=True):
        on_device = tuple(seconds for _, seconds in runs if seconds is not None)
        samples[name] = Samples(
            seconds=tuple(wall - own for wall, _ in runs),
            device_seconds=on_device or None,
            warmups=warmups,
            settled=settled,
            own_seconds=own,
            peak_bytes=peak_bytes(work, device) if memory else None,
        )
    return samples


def ratio(a: Samples, b: Samples, level: float = 0.95) -> tuple[float, float, float]:
    """Compare two works that were measured together, by the median of a's time over b's in the same round.

    What slows down a whole round cancels. The images per second of b over those of a are the same number.

    Args:
        a: Samples of one work.
        b: Samples of the other, of the same call of `measure`.
        level: Confidence level.

    Returns:
        Estimate, lower and upper end; the ends are 0 and infinity if the rounds are too few for the level.

    Raises:
        SpecError: If the rounds cannot be paired, or b took no longer than doing nothing.
    """
    if len(a.seconds) != len(b.seconds):
        found = (len(a.seconds), len(b.seconds))
        raise SpecError(expected("ratio", "samples of the same rounds", found, "Measure both in one call."))
    if min(b.seconds) <= 0:
        raise SpecError(expected("ratio", "a work that takes longer than doing nothing", min(b.seconds)))
    quotients = np.array(a.seconds) / np.array(b.seconds)
    low, high = median_interval(quotients, level)
    return float(np.median(quotients)), max(low, 0.0), high


def median_interval(values: Sequence[float] | NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Give a confidence interval for a median from samples in the order in which they were taken.

    Its ends are order statistics, so no outlier moves them far and no distribution is assumed. Samples that follow
    each other may resemble each other: n of them are worth n / t independent ones, where t = (1 + r) / (1 - r) and r is
    the correlation of the ranks of neighbours. Coverage at 95 % with 12 to 40 samples, measured by simulation: 96-98 %
    if they are independent, or ratios of works under one drift; 95-97 % at r = 0.3, 92-96 % at r = 0.6.

    Args:
        values: At least one.
        level: Confidence level, between 0 and 1.

    Returns:
        Both ends; minus and plus infinity if the samples are too few for the level.

    Source:
        Thompson 1936 (order statistics); Bayley and Hammersley 1946 (effective number of samples).
    """
    if not 0 < level < 1:
        raise SpecError(expected("level", "a number between 0 and 1", level))
    n = len(values)
    worth = int(n / _correlation_time(np.asarray(values, dtype=np.float64)))
    # The number of independent samples under the median is binomial; so many may be left out at either end.
    beyond = int((bdtr(np.arange(worth), worth, 0.5) <= (1 - level) / 2).sum())
    if beyond == 0:
        return -np.inf, np.inf
    place = max(1, int(beyond * (n + 1) / (worth + 1)))
    ordered = np.sort(values)
    return float(ordered[place - 1]), float(ordered[n - place])


def peak_bytes(work: Work, device: torch.device | str) -> int | None:
    """Return the most bytes that tensors occupied at a time while a work ran, above those at its start.

    On the CPU that is the running sum of the profiler's memory events; resident set size would tell of the allocator's
    caches. The profiler does not see the release of what was there before, so it does not make up for what is new. On
    an accelerator it is the allocator's own statistics; None if it keeps none of its peak. The first run of a work may
    fill caches: run it before. Cost: one run.
    """
    device = torch.device(device)
    if device.type == "cpu":
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            work()
        assert watched.profiler is not None
        events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
        on_cpu = [event for event in events if event.device_type().name == "CPU"]
        changes = [event.nbytes() for event in sorted(on_cpu, key=lambda event: event.start_ns())]
        return max(0, int(np.cumsum(changes).max())) if changes else 0
    allocator = torch.get_device_module(device)
    if not hasattr(allocator, "max_memory_allocated"):
        return None
    synchronize(device)
    allocator.reset_peak_memory_stats(device)
    before = allocator.memory_allocated(device)
    work()
    synchronize(device)
    return int(allocator.max_memory_allocated(device) - before)


def is_full(error: Exception) -> bool:
    """Whether it says that memory is full; on a CPU that is a plain `RuntimeError`, in oneDNN one that hides why."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("allocate memory", "bad_alloc", "could not create a primitive"))


def free_memory() -> None:
    """Collect garbage, and give back what an accelerator's allocator keeps for later."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def matrix_peak(
    device: torch.device | str, dtype: torch.dtype = torch.float32, *, now: Clock = time.perf_counter
) -> float:
    """Return the largest rate of a product of two square matrices, in floating point operations per second.

    Sizes are doubled as long as the rate rises by a twentieth and a product takes less than a second. What it is on a
    CPU depends on the number of threads.

    Args:
        device: Where the matrices are.
        dtype: Of the matrices.
        now: The clock, in seconds.
    """
    best, size = 0.0, 256
    while size <= 16384:
        a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
        works = {"product": partial(torch.mm, a, b)}
        fastest = min(measure(works, device=device, rounds=5, now=now)["product"].seconds)
        rate = 2 * size**3 / fastest
        if rate < 1.05 * best or fastest > 1:
            return max(rate, best)
        best, size = rate, 2 * size
    return best


def _do_nothing() -> None:
    """The meter's own cost is what this seems to take."""


def _time(work: Work, device: torch.device, now: Clock) -> tuple[float, float | None]:
    """Wall time of one run, and that between two events on an accelerator."""
    with without_collector():
        if device.type == "cpu":
            started = now()
            work()
            return now() - started, None
        first, last = (torch.Event(device, enable_timing=True) for _ in range(2))
        synchronize(device)
        started = now()
        first.record()
        work()
        last.record()
        last.synchronize()
        return now() - started, first.elapsed_time(last) / 1000


def _warm_up(run: Callable[[], tuple[float, float | None]]) -> tuple[int, bool]:
    """Run until it gets no faster. Returns: number of runs, and whether it settled."""
    fastest, unchanged = run()[0], 0
    for done in range(2, MOST_WARMUPS + 1):
        seconds, _ = run()
        unchanged = 0 if seconds < FASTER * fastest else unchanged + 1
        fastest = min(fastest, seconds)
        if unchanged == SETTLED_RUNS:
            return done, True
    return MOST_WARMUPS, False


def _correlation_time(values: NDArray[np.float64]) -> float:
    """How many samples are worth one independent one, at least 1."""
    n = len(values)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable") - (n - 1) / 2
    total = float((ranks**2).sum())
    if n < 3 or total == 0:
        return 1.0
    r = min(float((ranks[1:] * ranks[:-1]).sum()) / total, 0.99)
    return max(1.0, (1 + r) / (1 - r))
