"""Trace an attack from outside: its cost, and the points at which it computes gradients."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch, copy_batch
from advseg_bench.instruments.counter import Counter
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.process_state import watched
from advseg_bench.protocols import Attack
from advseg_bench.types import Budget


@dataclass(frozen=True, slots=True)
class Trace:
    """Record of one call of an attack on a batch of N images.

    Attributes:
        x_adv: The result, detached, (N, C, *S).
        points: Points of the gradients, in order, each (N, C, *S); None if they cannot be assigned to images.
        alone: Whether the attack evaluated the images one by one.
        forwards: Forward passes per image.
        backwards: Backward passes per image.
        seconds: Duration of the call.
        changed: Whether the attack changed the model, which is restored afterwards.
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
    """Run an attack and record the points at which it computes gradients.

    Args:
        attack: The attack.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        generators: One per image.
        guard: Guard of `model`, shared between attacks to avoid a copy of the weights for each.

    Returns:
        The trace.

    Cost:
        That of the attack, and a copy of each point.
    """
    guard, n = guard or ModelGuard(model), len(batch.x)
    with Counter(model).count(n, points=True) as tally:
        started = time.perf_counter()
        try:
            with watched():
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
    """Group points of single images into steps, whether they came image by image or step by step.

    Of the two orders, the one whose points lie closer to their images is taken.
    """
    n, each = len(x), len(points) // len(x)
    orders = ([points[t::each] for t in range(each)], [points[t * n : (t + 1) * n] for t in range(each)])
    joined = [[torch.cat(step) for step in order] for order in orders]
    return min(joined, key=lambda steps: max(float((step - x).abs().max()) for step in steps))
