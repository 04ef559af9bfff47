"""Watch an attack from outside: what it costs, and at which points it asked for a gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch, copy_batch
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.protocols import Attack
from advseg_bench.types import Budget


@dataclass(frozen=True, slots=True)
class Trace:
    """One call of an attack on a batch of N images.

    Attributes:
        x_adv: What it returned, detached, (N, C, *S).
        points: Where it asked for gradients, in order, each (N, C, *S); None if they cannot be told apart by image.
        alone: Whether it put the images to the model one by one.
        forwards: Images put to the model, over N.
        backwards: Images whose gradient was asked for, over N.
        seconds: Of the call.
        changed: Whether it changed the model (put back since).
    """

    x_adv: Tensor
    points: list[Tensor] | None
    alone: bool
    forwards: float
    backwards: float
    seconds: float
    changed: bool


def run_traced(
    attack: Attack,
    model: nn.Module,
    batch: Batch,
    budget: Budget,
    generators: Sequence[torch.Generator],
    guard: ModelGuard | None = None,
) -> Trace:
    """Run an attack and record where it asks for gradients.

    Args:
        attack: What to run.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        generators: One per image.
        guard: Of `model`, to save the copy of its weights where many attacks meet it.

    Returns:
        What it did.

    Cost:
        That of the attack, and a copy of each point.
    """
    guard, n = guard or ModelGuard(model), len(batch.x)
    with Counter(model).count(n, points=True) as tally:
        started = time.perf_counter()
        try:
            x_adv = attack(model, copy_batch(batch), budget=budget, generators=generators)
        finally:
            seconds = time.perf_counter() - started
            changed = guard.restore()
    found = tally.points or []
    sizes = [len(point) for point in found]
    whole, alone = all(size == n for size in sizes), all(size == 1 for size in sizes)
    points = None
    if sizes and whole:
        points = found
    elif sizes and alone and len(sizes) % n == 0:
        points = _sort_out(found, batch.x)
    return Trace(
        x_adv=x_adv.detach() if isinstance(x_adv, Tensor) else x_adv,
        points=points,
        alone=alone and n > 1,
        forwards=tally.all_forwards / n,
        backwards=tally.all_backwards / n,
        seconds=seconds,
        changed=changed,
    )


def _sort_out(points: list[Tensor], x: Tensor) -> list[Tensor]:
    """Join points that came one by one, all of an image after each other or all of a step: each near its own image."""
    n, each = len(x), len(points) // len(x)
    orders = ([points[t::each] for t in range(each)], [points[t * n : (t + 1) * n] for t in range(each)])
    joined = [[torch.cat(step) for step in order] for order in orders]
    return min(joined, key=lambda steps: max(float((step - x).abs().max()) for step in steps))
