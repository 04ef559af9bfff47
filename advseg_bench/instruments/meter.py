"""Measures time and memory: interleaved runs after a warm-up, own overhead deducted, with confidence intervals."""

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

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise PyTorch's profiler prints to standard error

Work = Callable[[], object]

Clock = Callable[[], float]
"""Returns the present time in seconds, from any start."""

FASTER = 0.95
"""A run that takes less than this share of the fastest earlier run indicates that warm-up was not finished."""

SETTLED_RUNS = 2
"""Warm-up ends after this many consecutive runs that were no faster, as defined by `FASTER`."""

MOST_WARMUPS = 20
"""Warm-up ends after this many runs in any case."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Run times of a work in each round; equal rounds of works that were measured together are paired.

    Attributes:
        seconds: Wall time of each round in seconds, without the overhead of the measurement.
        device_seconds: Seconds between two events on the accelerator, nothing deducted; None on the CPU.
        warmups: Number of warm-up runs.
        settled: Whether warm-up ended because the last runs were no faster, see `measure`.
        own_seconds: Deducted overhead: the median time of an empty function.
        peak_bytes: Peak memory in bytes above the start, see `peak_bytes`; None if not requested or not available.
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
        """Return an interval for the median wall time, see `median_interval`; (0, inf) if rounds are too few."""
        low, high = median_interval(self.seconds, level)
        return max(low, 0.0), high


def default_device() -> torch.device:
    """Return the accelerator if one is available, else the CPU, also with a CUDA build on a machine without GPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize(device: torch.device | str) -> None:
    """Wait until an accelerator has finished all queued work; does nothing on the CPU."""
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
    """Time several works in interleaved order.

    Every round runs each work once, in random order, so that a slowdown of the machine affects all of them; compare
    them by `ratio`. An empty function is timed as well, and its median time is deducted. The garbage collector is
    disabled during runs. Warm-up ends when `SETTLED_RUNS` consecutive runs did not take less than `FASTER` times the
    fastest run before them, and after `MOST_WARMUPS` runs in any case.

    Args:
        works: Functions to time, by name. They must take much longer than an empty function (microseconds).
        device: Device that they compute on; on an accelerator each run ends when the device has finished.
        rounds: Number of samples of each work; fewer than 6 give no 95 % interval, and 12 or more are advisable.
        seed: Random seed of the orders.
        memory: Whether to run each work once more to measure its peak memory.
        now: Clock, in seconds.

    Returns:
        Samples by name.

    Raises:
        SpecError: If there is nothing to measure.

    Cost:
        `rounds` and at least `SETTLED_RUNS` + 1 runs of each work.
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

    A slowdown of a whole round cancels. The ratio of images per second, b over a, is the same number.

    Args:
        a: Samples of one work.
        b: Samples of the other, from the same call of `measure`.
        level: Confidence level.

    Returns:
        Estimate, lower and upper end of its confidence interval; (0, infinity) if there are too few rounds.

    Raises:
        SpecError: If the rounds cannot be paired, or b took no longer than an empty function.
    """
    if len(a.seconds) != len(b.seconds):
        found = (len(a.seconds), len(b.seconds))
        raise SpecError(expected("ratio", "samples of the same rounds", found, "Measure both in one call."))
    if min(b.seconds) <= 0:
        raise SpecError(expected("ratio", "a work that takes longer than an empty function", min(b.seconds)))
    quotients = np.array(a.seconds) / np.array(b.seconds)
    low, high = median_interval(quotients, level)
    return float(np.median(quotients)), max(low, 0.0), high


def median_interval(values: Sequence[float] | NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval for a median, from samples in the order in which they were measured.

    Its ends are order statistics, so it is robust to outliers and assumes no distribution. Consecutive samples may be
    correlated: n of them are treated as n / t independent ones, where t = (1 + r) / (1 - r) and r is the rank
    correlation of neighbouring samples. Coverage at 95 % with 12 to 40 samples, by simulation: 96-98 % for independent
    samples and for ratios of works under a common drift, 95-97 % at r = 0.3, 92-96 % at r = 0.6.

    Args:
        values: At least one sample.
        level: Confidence level, between 0 and 1.

    Returns:
        Lower and upper end; minus and plus infinity if there are too few samples for the level.

    Source:
        Thompson 1936 (order statistics); Bayley and Hammersley 1946 (effective number of samples).
    """
    if not 0 < level < 1:
        raise SpecError(expected("level", "a number between 0 and 1", level))
    n = len(values)
    worth = int(n / _correlation_time(np.asarray(values, dtype=np.float64)))
    # The number of independent samples below the median is binomial; `beyond` of them may be cut at either end.
    beyond = int((bdtr(np.arange(worth), worth, 0.5) <= (1 - level) / 2).sum())
    if beyond == 0:
        return -np.inf, np.inf
    place = max(1, int(beyond * (n + 1) / (worth + 1)))
    ordered = np.sort(values)
    return float(ordered[place - 1]), float(ordered[n - place])


def peak_bytes(work: Work, device: torch.device | str) -> int | None:
    """Return the peak memory of tensors in bytes during a run, above that at its start.

    On the CPU it is the maximum of the running sum of the profiler's memory events, since the resident set size
    includes caches of the allocator. The profiler does not record when earlier tensors are freed, so this does not
    offset new ones. On an accelerator it comes from the allocator's statistics; None if they lack the peak. Run the
    work before, since its first run may fill caches. Cost: one run.
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
    """Whether an error means that memory ran out; on a CPU it is a `RuntimeError`, with a vague message in oneDNN."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("allocate memory", "bad_alloc", "could not create a primitive"))


def free_memory() -> None:
    """Collect garbage, and empty the cache of an accelerator's allocator."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def matrix_peak(
    device: torch.device | str, dtype: torch.dtype = torch.float32, *, now: Clock = time.perf_counter
) -> float:
    """Return the peak rate of a product of two square matrices, in floating point operations per second.

    Sizes are doubled as long as the rate increases by 5 % and a product takes less than a second. On a CPU the rate
    depends on the number of threads.

    Args:
        device: Device of the matrices.
        dtype: Data type of the matrices.
        now: Clock, in seconds.
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
    """An empty function, whose run time is the overhead of the measurement."""


def _time(work: Work, device: torch.device, now: Clock) -> tuple[float, float | None]:
    """Return the wall time of one run in seconds, and on an accelerator the time between two events, else None."""
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
    """Run until runs get no faster. Returns: number of runs, and whether they settled."""
    fastest, unchanged = run()[0], 0
    for done in range(2, MOST_WARMUPS + 1):
        seconds, _ = run()
        unchanged = 0 if seconds < FASTER * fastest else unchanged + 1
        fastest = min(fastest, seconds)
        if unchanged == SETTLED_RUNS:
            return done, True
    return MOST_WARMUPS, False


def _correlation_time(values: NDArray[np.float64]) -> float:
    """The number of samples that count as one independent sample, at least 1."""
    n = len(values)
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable") - (n - 1) / 2
    total = float((ranks**2).sum())
    if n < 3 or total == 0:
        return 1.0
    r = min(float((ranks[1:] * ranks[:-1]).sum()) / total, 0.99)
    return max(1.0, (1 + r) / (1 - r))
