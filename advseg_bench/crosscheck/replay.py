"""Replay of the reference step by step, and with one convention changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import Batch
from advseg_bench.geometry import project
from advseg_bench.types import Bounds, Budget

MOMENTUM: dict[Literal["l1", "l2", "mean", "sign", "none"], str] = {
    "l1": "gradients are divided by the L1 norm",
    "mean": "gradients are divided by the mean absolute value",
    "none": "gradients are not normalised",
    "sign": "signs of gradients are accumulated",
    "l2": "gradients are divided by the L2 norm",
}


class Stepwise(Protocol):
    """An attack that can be replayed from any iterate: gradient -> memory -> next iterate."""

    @property
    def steps(self) -> int:
        """Number of gradients."""

    @property
    def remembers(self) -> bool:
        """Whether a direction depends on earlier gradients."""

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the first iterate."""

    def climb(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the objective to increase, (N,)."""

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the accumulated gradient, which determines the direction."""

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return the next iterate."""


@dataclass(frozen=True, slots=True)
class OneStep:
    """FGSM as a stepwise attack of one step."""

    attack: FGSM
    steps: int = 1
    remembers: bool = False

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the images."""
        return batch.x

    def climb(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return FGSM's objective."""
        return self.attack.objective(logits, batch)

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the gradient."""
        return gradient

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return FGSM's result."""
        return self.attack.step(batch, memory, budget)


def as_stepwise(attack: FGSM | ProjectedAscent) -> Stepwise:
    """Return a reference attack in a form that can be replayed step by step."""
    return OneStep(attack) if isinstance(attack, FGSM) else attack


def conventions(attack: FGSM | ProjectedAscent, *, finite: bool) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield the conventions in which implementations legitimately differ.

    Toolkits and papers are known to differ in these choices, and none of them is a fault. A wrong sign and a wrong
    gradient are faults, so they are not among them.

    Args:
        attack: The reference.
        finite: Whether its result is finite; if so, the treatment of NaN makes no difference.

    Yields:
        Name of the convention, the reference with it changed, and whether the objective is still the same.
    """
    if not finite:
        yield "NaN to 0: a gradient of NaN counts as 0", _NanToZero(as_stepwise(attack)), True
    if isinstance(attack, FGSM):
        if attack.label == "true":
            yield "label: the model's own prediction", OneStep(replace(attack, label="predicted")), False
        return
    if attack.decay is not None:
        for norm, name in MOMENTUM.items():
            if norm != attack.momentum_norm:
                yield f"momentum normalisation: {name}", replace(attack, momentum_norm=norm), True
        yield "momentum normalisation: none, and no momentum", replace(attack, decay=None), True
    size = attack.share
    for steps in (attack.steps - 1, attack.steps + 1):
        if steps:
            yield (
                f"step rule: {steps} steps instead of {attack.steps}",
                replace(attack, steps=steps, step_size=size),
                True,
            )
            other = f"step rule: steps of eps / {steps} instead of {size:.4g} * eps"
            yield other, replace(attack, step_size=1 / steps), True
    if size != 1 / attack.moves:
        yield "step rule: steps of eps / steps", replace(attack, step_size=1 / attack.moves), True
    yield "projection order: bounds first, budget second", _BoundsFirst(attack), True


class _Changed:
    """A replay that delegates to another one, except where a subclass overrides it."""

    def __init__(self, inner: Stepwise) -> None:
        self.inner, self.steps, self.remembers = inner, inner.steps, inner.remembers

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        return self.inner.start(batch, budget, generators)

    def climb(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.inner.climb(logits, batch)

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        return self.inner.accumulate(memory, gradient)

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        return self.inner.move(x_adv, memory, batch, budget)


class _NanToZero(_Changed):
    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        return self.inner.accumulate(memory, torch.where(gradient.isnan(), 0, gradient))


class _BoundsFirst(_Changed):
    def __init__(self, attack: ProjectedAscent) -> None:
        super().__init__(attack)
        self.attack = attack

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        step = self.attack.stride(x_adv, memory, budget).clamp(batch.bounds.lower, batch.bounds.upper)
        return project(step, batch.x, budget, Bounds(-torch.inf, torch.inf))
