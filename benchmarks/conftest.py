"""Fixtures of the suites: the device, and a timer with warm-up and synchronisation."""

from __future__ import annotations

import os

import pytest
import torch

from advseg_bench.instruments import meter
from advseg_bench.instruments.allocator import keep_freed_memory
from advseg_bench.registry import environment

ROUNDS = 10


@pytest.fixture(scope="session")
def device() -> str:
    """Return the accelerator, or the CPU if there is none."""
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return str(meter.default_device())


@pytest.fixture
def timed(benchmark, device):
    """Return a function that times a call and records images per second, peak bytes and the device."""

    def run(work, images):
        def call():
            work()
            meter.synchronize(device)

        benchmark.pedantic(call, rounds=ROUNDS, warmup_rounds=2)
        benchmark.extra_info["images_per_s"] = images / benchmark.stats.stats.median
        benchmark.extra_info["peak_bytes"] = meter.peak_bytes(work, device)
        benchmark.extra_info["device"] = environment.describe_device(device)
        benchmark.extra_info["threads"] = torch.get_num_threads()

    return run
