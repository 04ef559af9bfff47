"""Measure the cost of a suite's models on this machine for `advseg_bench/suite/shipped/timings.json`.

    python benchmarks/measure_timings.py wang2024 --profile full

One training step and one forward pass of each model are timed on random images and extrapolated to a training with a
thousand images, so that `plan` can estimate suites that take days. A real run measures both in full and stores the
result in the folder `timings` of the cache.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable

import torch

from advseg_bench.losses import Loss
from advseg_bench.models.build import build_model
from advseg_bench.registry.plugins import load_object
from advseg_bench.suite.suite import Suite
from advseg_bench.suite.timing import timing_key
from advseg_bench.types import Task

IMAGES = 1000
EVERYTHING_ELSE = 1.15
"""Overhead factor for loading, augmentation and metrics, measured with `wang2024 --profile cpu`."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the models of a suite.")
    parser.add_argument("suite")
    parser.add_argument("--profile")
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    suite = Suite.load(given.suite, profile=given.profile)
    torch.set_num_threads(suite.compute.threads)
    task = Task("multilabel", ("a", "b", "c"))
    loss: Loss = load_object("loss", suite.training.loss)
    for spec in suite.models:
        edges, channels, recipe = suite.data.edges, suite.data.channels, suite.training
        model = build_model(spec, channels=channels, task=task, size=edges, seed=0)
        x = torch.rand(recipe.batch, channels, *edges)
        y = torch.rand(recipe.batch, len(task.classes), *edges) < 0.1
        valid = torch.ones(recipe.batch, *edges, dtype=torch.bool)

        def step(model=model, x=x, y=y, valid=valid, amp=recipe.amp) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                logits = model(x)
            loss(logits.float(), y, valid, task).mean().backward()

        def forward(model=model, x=x[: suite.compute.batch]) -> None:
            with torch.no_grad():
                model(x)

        train = measure(step, given.repeats) * recipe.epochs * math.ceil(IMAGES / recipe.batch)
        model.eval()
        seconds = measure(forward, given.repeats) / min(len(x), suite.compute.batch)
        entry = {"train_seconds": train, "pass_seconds": seconds}
        entry = {name: round(EVERYTHING_ELSE * value, 5) for name, value in entry.items()} | {"train_images": IMAGES}
        print(json.dumps({timing_key(suite, spec): entry}), flush=True)


def measure(work: Callable[[], None], repeats: int) -> float:
    """Return the seconds of the fastest call after a warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    main()
