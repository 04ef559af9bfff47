"""The largest batch an attack can be given: by doubling, then by bisection."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

from advseg_bench.instruments import meter
from advseg_bench.instruments.allocator import return_freed_memory
from advseg_bench.models.build import build_model
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.throughput.contenders import Work, draw_batch, list_contenders
from advseg_bench.types import Task

MOST = 4096
"""No larger batch is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is tried with more and more images.

    Attributes:
        work: The attack; only the reference is run.
        model: To be built with random weights.
        channels: Of an image.
        size: Edge length of the images in pixels.
        task: What the logits mean.
        preparation: Of the model, see `list_contenders`.
        precision: Name in `contenders.PRECISIONS`.
        device: Where.
        threads: Of PyTorch.
    """

    work: Work
    model: ModelSpec
    channels: int
    size: int | tuple[int, ...]
    task: Task
    preparation: str
    precision: str
    device: str
    threads: int


def find_largest(trial: Trial, memory_bytes: int | None = None) -> int:
    """Return how many images a call of the attack can take, 0 if not even one, `MOST` at most.

    On an accelerator its memory is the limit, and an attack that fills it is survived. On a CPU, where the system
    would kill the process, or others, an own process tries under a limit of its address space.

    Args:
        trial: What is tried.
        memory_bytes: The limit on a CPU, beyond what the process holds before the attack; by default nine tenths of
            what the machine has free.

    Cost:
        About 2 log2(n) calls, the largest of n images.
    """
    if torch.device(trial.device).type != "cpu":
        return search(lambda n: try_batch(trial, n))
    allowed = memory_bytes or free_bytes() * 9 // 10
    with _Cell() as cell:
        return search(lambda n: cell.run(trial, n, allowed))


def search(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Return the largest n up to `most` that fits, where every smaller one does too; 0 if none does."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def try_batch(trial: Trial, n: int) -> bool:
    """Run the attack once on n images. Returns: whether the memory was enough; other errors are raised."""
    model = _model(trial)
    full = False
    try:
        batch = draw_batch(trial.channels, trial.size, trial.task, n, torch.device(trial.device))
        reference = list_contenders(trial.work, model, batch, [trial.preparation], trial.precision)[1]
        reference.call()
    except (RuntimeError, MemoryError) as error:
        if not meter.is_full(error):
            raise
        full = True
    meter.free_memory()
    return not full


def free_bytes() -> int:
    """Return the memory of this machine that nobody uses."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


class _Cell:
    """A process of its own for what may die of it; a new one after each death."""

    def __enter__(self) -> _Cell:
        self._pool: ProcessPoolExecutor | None = None
        return self

    def __exit__(self, *exc: object) -> None:
        if self._pool:
            self._pool.shutdown()

    def run(self, trial: Trial, n: int, allowed: int) -> bool:
        self._pool = self._pool or ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self._pool.submit(_try_limited, trial, n, allowed).result()
        except BrokenProcessPool:
            self._pool = None
            return False


def _try_limited(trial: Trial, n: int, allowed: int) -> bool:
    """`try_batch`, with so many bytes of address space beyond what is mapped once it has run on one image."""
    torch.set_num_threads(trial.threads)
    return_freed_memory()  # else the limit would be above memory that earlier tries have left
    if repr(trial) not in _kept:
        try_batch(trial, 1)  # starts threads and loads kernels, which map memory that no image needs
    with _limited(allowed):
        return try_batch(trial, n)


@contextmanager
def _limited(allowed: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_kept: dict[str, nn.Module] = {}


def _model(trial: Trial) -> nn.Module:
    """The last trial's model stays in memory."""
    key = repr(trial)
    if key not in _kept:
        model = build_model(trial.model, channels=trial.channels, task=trial.task, size=trial.size)
        _kept.clear()
        _kept[key] = model.to(trial.device).eval().requires_grad_(False)
    return _kept[key]
