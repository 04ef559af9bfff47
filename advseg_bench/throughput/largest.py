"""Finds the largest batch of an attack that fits in memory, by doubling and then by bisection."""

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
"""Largest batch size that is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An attack to try with batches of increasing size.

    Attributes:
        work: The attack; only the reference is run.
        model: Model to build with random weights.
        channels: Number of image channels.
        size: Edge length of the images, or all edges, in pixels.
        task: Task type and classes.
        preparation: Preparation of the model, see `list_contenders`.
        precision: Name in `contenders.PRECISIONS`.
        device: Device to compute on.
        threads: Number of PyTorch threads.
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
    """Return the largest batch size of the attack that fits in memory, from 0 to `MOST`.

    On an accelerator the limit is its memory, and running out of it raises an error. On a CPU the system would kill
    processes, so each size is tried in a separate process with limited address space.

    Args:
        trial: The attack to try.
        memory_bytes: The limit on a CPU in bytes, on top of the memory in use before the attack; by default 90 % of
            the machine's available memory.

    Cost:
        About 2 log2(n) calls of the attack, the largest with n images.
    """
    if torch.device(trial.device).type != "cpu":
        return search(lambda n: try_batch(trial, n))
    allowed = memory_bytes or free_bytes() * 9 // 10
    with _Cell() as cell:
        return search(lambda n: cell.run(trial, n, allowed))


def search(fits: Callable[[int], bool], most: int = MOST) -> int:
    """Return the largest n up to `most` that fits, given that every smaller one fits too; 0 if none fits."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def try_batch(trial: Trial, n: int) -> bool:
    """Run the attack once on n images. Returns: whether memory sufficed. Raises: any other error."""
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
    """Return the available memory of this machine in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


class _Cell:
    """A separate process for trials that may be killed; restarted after each death."""

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
    """`try_batch` with limited address space: `allowed` bytes on top of those mapped after a run on one image."""
    torch.set_num_threads(trial.threads)
    return_freed_memory()  # otherwise the limit would include memory kept from earlier trials
    if repr(trial) not in _kept:
        try_batch(trial, 1)  # starts threads and loads kernels, whose memory does not grow with images
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
    """Return the model of a trial; the last one stays in memory."""
    key = repr(trial)
    if key not in _kept:
        model = build_model(trial.model, channels=trial.channels, task=trial.task, size=trial.size)
        _kept.clear()
        _kept[key] = model.to(trial.device).eval().requires_grad_(False)
    return _kept[key]
