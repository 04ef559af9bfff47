"""Replay of the reference step by step, from the points at which another implementation asks for gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from advseg_bench.attacks.apgd import APGD, FIRST_STEP, StepControl
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.batches import Batch
from advseg_bench.geometry import project
from advseg_bench.types import Bounds, Budget

Reference = FGSM | ProjectedAscent
"""The attacks that can be replayed."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Gradient and value of the objectives at a point.

    Attributes:
        gradient: Gradient of the objective that the step follows, (N, C, *S).
        value: The fixed objective that judges iterates, (N,).
        slack: What is added to a value where it is compared with an earlier one: 0, or the rounding of a value, to see
            whether a decision depends on it.
    """

    gradient: Tensor
    value: Tensor
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class State:
    """Where an attack stands after a gradient.

    Attributes:
        x: The iterate that the next step starts from, (N, C, *S).
        memory: The accumulated gradient, which determines the direction, (N, C, *S).
        before: The iterate that the step before started from; None before the first step, and without such a rule.
        control: The step sizes; None where they are fixed.
        slack: As in `Seen`.
    """

    x: Tensor
    memory: Tensor
    before: Tensor | None = None
    control: StepControl | None = None
    slack: float = 0.0


class Stepwise(Protocol):
    """An attack that can be replayed: point and gradient -> state -> next point."""

    @property
    def steps(self) -> int:
        """Number of gradients that a step follows."""

    @property
    def remembers(self) -> bool:
        """Whether a step depends on earlier gradients."""

    @property
    def keeps(self) -> bool:
        """Whether it returns one of its iterates, which may be any, and not the point after the last step."""

    def climb(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the objective whose gradient a step follows, (N,)."""

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the fixed objective, (N,)."""

    def observe(self, state: State | None, point: Tensor, seen: Seen, batch: Batch, budget: Budget) -> State:
        """Return the state after a gradient at `point`; the state before is None at the first one."""

    def move(self, state: State, batch: Batch, budget: Budget, *, last: bool) -> Tensor:
        """Return the point of the next gradient, or the iterate after the last step."""


@dataclass(frozen=True, slots=True)
class OneStep:
    """FGSM as a stepwise attack of one step; `nan_to_zero` is as in `Ascent`."""

    attack: FGSM
    nan_to_zero: bool = False
    steps: int = 1
    remembers: bool = False
    keeps: bool = False

    def climb(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return FGSM's objective."""
        return self.attack.objective(logits, batch)

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return FGSM's objective."""
        return self.attack.objective(logits, batch)

    def observe(self, state: State | None, point: Tensor, seen: Seen, batch: Batch, budget: Budget) -> State:
        """Return the gradient."""
        return State(point, nan_to_zero(seen.gradient) if self.nan_to_zero else seen.gradient)

    def move(self, state: State, batch: Batch, budget: Budget, *, last: bool) -> Tensor:
        """Return FGSM's result."""
        return self.attack.step(batch, state.memory, budget)


@dataclass(frozen=True, slots=True)
class Ascent:
    """Steps of fixed size.

    Attributes:
        attack: The attack.
        nan_to_zero: Whether a gradient of NaN counts as 0.
        bounds_first: Whether an iterate is clipped to the bounds before it is brought into the budget.
        looks: Whether the point ahead of an iterate is used, if the attack has one; else gradients are at the iterates.
    """

    attack: ProjectedAscent
    nan_to_zero: bool = False
    bounds_first: bool = False
    looks: bool = True

    @property
    def steps(self) -> int:
        """Number of gradients that a step follows."""
        return self.attack.moves

    @property
    def remembers(self) -> bool:
        """Whether a step depends on earlier gradients."""
        return self.attack.remembers

    @property
    def keeps(self) -> bool:
        """The last iterate is returned."""
        return False

    def climb(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the objective whose gradient a step follows, (N,)."""
        return self.attack.climb(logits, batch, step)

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the fixed objective, (N,)."""
        return self.attack.aim(self.attack.judged_by)(logits, batch)

    def observe(self, state: State | None, point: Tensor, seen: Seen, batch: Batch, budget: Budget) -> State:
        """Return the iterate behind the point, and the accumulated gradient."""
        gradient = nan_to_zero(seen.gradient) if self.nan_to_zero else seen.gradient
        if state is None:
            return State(point, self.attack.accumulate(None, gradient))
        ahead = self._look(point, state.memory, budget) - point  # a point is ahead of its iterate by a known distance
        return State(point - ahead, self.attack.accumulate(state.memory, gradient))

    def move(self, state: State, batch: Batch, budget: Budget, *, last: bool) -> Tensor:
        """Return the point of the next gradient, or the iterate after the last step."""
        if self.bounds_first:
            free = self.attack.stride(state.x, state.memory, budget)
            x = bring_back(free.clamp(batch.bounds.lower, batch.bounds.upper), batch, budget)
        else:
            x = self.attack.move(state.x, state.memory, batch, budget)
        return x if last else self._look(x, state.memory, budget)

    def _look(self, x: Tensor, memory: Tensor, budget: Budget) -> Tensor:
        return self.attack.look_from(x, memory, budget) if self.looks else x


@dataclass(frozen=True, slots=True)
class Adaptive:
    """APGD: steps whose size follows the progress of each image, see `StepControl`.

    Attributes:
        attack: The attack.
        control: The rule of the step sizes.
    """

    attack: APGD
    control: type[StepControl] = StepControl

    @property
    def steps(self) -> int:
        """Number of gradients that a step follows."""
        return self.attack.moves

    @property
    def remembers(self) -> bool:
        """A step depends on all earlier gradients."""
        return True

    @property
    def keeps(self) -> bool:
        """One of the iterates is returned."""
        return True

    def climb(self, logits: Tensor, batch: Batch, step: int) -> Tensor:
        """Return the objective whose gradient a step follows, (N,)."""
        return self.attack.climb(logits, batch, min(step, self.steps - 1))

    def judge(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the fixed objective, (N,)."""
        return self.attack.aim(self.attack.judged_by)(logits, batch)

    def observe(self, state: State | None, point: Tensor, seen: Seen, batch: Batch, budget: Budget) -> State:
        """Return where the next step starts, and how long it is."""
        if state is None:
            control = self.control(point, seen.gradient, seen.value, FIRST_STEP * budget.eps, self.steps)
            return State(point, seen.gradient, control=control)
        control = take_control(state)
        best = control.best_value
        x = control.update(point, seen.gradient, seen.value + slack_of(seen.value, seen.slack))
        if seen.slack:  # the next comparison is with the value itself
            found = settle(control.best_value > best, seen.value, best)
            at_check = control.value_at_check
            control.value_at_check = torch.where(at_check == control.best_value, found, at_check)
            control.value, control.best_value = seen.value, found
        return State(x, control.gradient, state.x, control)

    def move(self, state: State, batch: Batch, budget: Budget, *, last: bool) -> Tensor:
        """Return the next iterate."""
        control = take_control(state)
        control.gradient = state.memory
        before = state.x if state.before is None else state.before
        return self.attack.advance(state.x, before, control, batch, budget, first=state.before is None)


def as_stepwise(attack: Reference) -> Stepwise:
    """Return a reference attack in a form that can be replayed step by step."""
    if isinstance(attack, FGSM):
        return OneStep(attack)
    return Adaptive(attack) if isinstance(attack, APGD) else Ascent(attack)


def take_control(state: State) -> StepControl:
    """Return a copy of the step sizes, which an update does not change in the state."""
    assert state.control is not None, "every state of an adaptive attack has one"
    return copy.copy(state.control)


def slack_of(value: Tensor, slack: float) -> Tensor:
    """Return the amount by which rounding may move values, a view's formula included, times `slack`, (N,)."""
    return slack * torch.finfo(torch.float32).eps * (1 + value.abs())


def settle(higher: Tensor, value: Tensor, best: Tensor) -> Tensor:
    """Return the best values, where `higher` marks those that exceed the ones before; in a tie they do by 1 ulp."""
    return torch.where(higher, torch.maximum(value, torch.nextafter(best, torch.full_like(best, torch.inf))), best)


def nan_to_zero(gradient: Tensor) -> Tensor:
    """Return the gradient with 0 for NaN."""
    return torch.where(gradient.isnan(), 0, gradient)


def bring_back(x_adv: Tensor, batch: Batch, budget: Budget) -> Tensor:
    """Project onto the budget and leave the bounds alone."""
    return project(x_adv, batch.x, budget, Bounds(-torch.inf, torch.inf))


def turn(state: State, sign: float) -> State:
    """Return the state with the same gradient everywhere."""
    return replace(state, memory=torch.full_like(state.memory, sign))
