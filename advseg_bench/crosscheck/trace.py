"""Watch an attack from outside: what it costs, and at which points it asked for a gradient."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.types import Attack, Batch, Budget


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
    """Run an attack on a recording model.

    Args:
        attack: What to run.
        model: Images -> logits.
        batch: Images and labels.
        budget: Norm and radius.
        generators: One per image.
        guard: Of `model`, to save the copy of its weights where many attacks meet it.
    Returns: What it did. Cost: that of the attack, and a copy of each point.
    """
    recorder, guard = _Recorder(model), guard or ModelGuard(model)
    recorder.training = model.training  # its own flag only
    started = time.perf_counter()
    x_adv = attack(recorder, batch, budget=budget, generators=generators)
    seconds = time.perf_counter() - started
    changed = guard.restore()
    n = len(batch.x)
    sizes = [len(point) for point in recorder.points]
    whole, alone = all(size == n for size in sizes), all(size == 1 for size in sizes)
    points = None
    if sizes and whole:
        points = recorder.points
    elif sizes and alone and len(sizes) % n == 0:
        points = _sort_out(recorder.points, batch.x)
    return Trace(
        x_adv=x_adv.detach() if isinstance(x_adv, Tensor) else x_adv,
        points=points,
        alone=alone and n > 1,
        forwards=recorder.forwards / n,
        backwards=sum(sizes) / n,
        seconds=seconds,
        changed=changed,
    )


def _sort_out(points: list[Tensor], x: Tensor) -> list[Tensor]:
    """Join points that came one by one, all of an image after each other or all of a step: each near its own image."""
    n, each = len(x), len(points) // len(x)
    orders = ([points[t::each] for t in range(each)], [points[t * n : (t + 1) * n] for t in range(each)])
    joined = [[torch.cat(step) for step in order] for order in orders]
    return min(joined, key=lambda steps: max(float((step - x).abs().max()) for step in steps))


class _Recorder(nn.Module):
    """The model, with an eye on what goes in and on which results were differentiated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.points: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            point = x.detach().clone()
            logits.register_hook(lambda gradient: self.points.append(point))  # type: ignore[no-untyped-call]
        return logits
