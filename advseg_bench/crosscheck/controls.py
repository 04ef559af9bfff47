"""Step-size rules of APGD by other rules: those of papers and toolkits, and known faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from advseg_bench.attacks.apgd import FRESH, RISES, StepControl
from advseg_bench.batches import Batch
from advseg_bench.crosscheck.replay import Adaptive, Seen, State, bring_back, settle, slack_of, take_control
from advseg_bench.geometry import align, steepest
from advseg_bench.types import Budget


@dataclass(slots=True)
class FewerThan(StepControl):
    """Halves at fewer than 75 % of increases, as the paper writes, instead of at most 75 %."""

    def update(self, x_adv: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """Count the increases such that a share of exactly 75 % is above the threshold; see `StepControl.update`."""
        if self.since + 1 == self.interval:
            self.rises = self.rises + 0.25  # 75 % of an interval is a whole number of quarters
        return StepControl.update(self, x_adv, gradient, value)


@dataclass(slots=True)
class RisesOverBest(StepControl):
    """Counts as progress only what exceeds the best value so far."""

    def update(self, x_adv: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """Compare with the best value; see `StepControl.update`."""
        self.value = self.best_value
        return StepControl.update(self, x_adv, gradient, value)


@dataclass(slots=True)
class FirstRises(StepControl):
    """Counts the first step as an increase, since it compares with 0 where there is no earlier value."""

    def __post_init__(self) -> None:
        """Forget the value at the start, which is then below any other."""
        StepControl.__post_init__(self)
        self.value = torch.full_like(self.value, -math.inf)


@dataclass(slots=True)
class FirstFromZero(StepControl):
    """Counts the steps of the first interval from 0, so that it is one step longer."""

    def __post_init__(self) -> None:
        """Start one step before the first interval."""
        StepControl.__post_init__(self)
        self.since = -1


@dataclass(slots=True)
class Late(FirstFromZero):
    """Checks one step late in every interval."""

    def _check(self, x_adv: Tensor) -> Tensor:
        found = StepControl._check(self, x_adv)
        self.since = -1
        return found


@dataclass(slots=True)
class Early(StepControl):
    """Checks one step early in every interval that is longer than one step."""

    def __post_init__(self) -> None:
        """Start with a step of the first interval."""
        StepControl.__post_init__(self)
        self.since = int(self.interval > 1)

    def _check(self, x_adv: Tensor) -> Tensor:
        found = StepControl._check(self, x_adv)
        self.since = int(self.interval > 1)
        return found


@dataclass(slots=True)
class Never(StepControl):
    """Keeps the step size."""

    def __post_init__(self) -> None:
        """Put the first check after the last step."""
        StepControl.__post_init__(self)
        self.interval = self.steps + 1


@dataclass(slots=True)
class WithItself(StepControl):
    """Compares the best value with itself, so that one of two checkpoints always halves; adv-lib's rule."""

    def __post_init__(self) -> None:
        """Compare the best value at the first check, too."""
        StepControl.__post_init__(self)
        self.halved = torch.zeros_like(self.halved)

    def _check(self, x_adv: Tensor) -> Tensor:
        found = StepControl._check(self, x_adv)
        self.value_at_check = torch.full_like(self.best_value, math.inf)
        return found


@dataclass(slots=True)
class Together(StepControl):
    """Halves all images of the batch where one of them makes no progress."""

    def update(self, x_adv: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """Let the worst image decide for all; see `StepControl.update`."""
        if self.since + 1 == self.interval:
            rises = self.rises + (value > self.value)
            stuck = ~self.halved & (self.value_at_check >= torch.maximum(value, self.best_value))
            if bool(((rises <= RISES * self.interval) | stuck).any()):
                self.rises = torch.full_like(self.rises, -math.inf)
        return StepControl.update(self, x_adv, gradient, value)


CONVENTIONS: dict[str, type[StepControl]] = {
    "halved below 75 % of increases, not at 75 % (the paper's text)": FewerThan,
    "progress is an increase above the best value, not above the last one": RisesOverBest,
    "the first step counts as an increase whatever it reaches (the released code)": FirstRises,
    "the first interval is one step longer, since its steps are counted from 0": FirstFromZero,
}
"""Rules of the paper's text or of toolkits."""

FAULTS: dict[str, type[StepControl]] = {
    "every checkpoint is one step late": Late,
    "every checkpoint is one step early": Early,
    "the step size is never halved": Never,
    "the best value is compared with itself, so that at least every second checkpoint halves": WithItself,
    "the images of a batch are halved together": Together,
}
"""Rules that no paper has."""

OF_ART = (
    "checkpoints at the paper's shares of the steps, counted from 0; halved below 75 % of increases above the best "
    "value, or without one, also after a halving; continued with the step that led to the best iterate"
)


@dataclass(slots=True)
class ArtControl(StepControl):
    """The rule of ART's AutoProjectedGradientDescent.

    Attributes:
        before: The iterates that the next step counts as the one before.
    """

    before: Tensor = field(init=False)
    best_before: Tensor = field(init=False)
    count: int = field(init=False, default=0)

    def follow(self, x: Tensor, z: Tensor, value: Tensor, clean: Tensor, slack: float) -> Tensor:
        """Note the iterate `z` that a step from `x` has reached; return where the next step starts."""
        if self.count == 0:
            self.best_before = clean
        compared = value + slack_of(value, slack)
        higher = compared > self.best_value if self.count else compared >= self.best_value
        wide = align(higher, z)
        self.rises = self.rises + higher
        self.best = torch.where(wide, z, self.best)
        self.best_value = (
            settle(higher, value, self.best_value) if slack else torch.where(higher, value, self.best_value)
        )
        if self.count:
            self.best_before = torch.where(wide, x, self.best_before)
        self.before = x
        step, self.count = self.count, self.count + 1
        checks = _checks_of_art(self.steps)
        if step == 0 or step not in checks:
            return z
        few = self.rises < RISES * (step - checks[checks.index(step) - 1])
        halved = few | (self.value_at_check == self.best_value)
        wide = align(halved, z)
        self.size = torch.where(halved, self.size / 2, self.size)
        self.before = torch.where(wide, self.best_before, x)
        self.rises, self.value_at_check = torch.zeros_like(self.rises), self.best_value
        return torch.where(wide, self.best, z)


def _checks_of_art(steps: int) -> list[int]:
    """Return 0 and the numbers of the steps, from 0, after which ART checks the progress."""
    shares = [0.0, 0.22]
    while (following := shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06)) <= 1:
        shares.append(following)
    return [math.ceil(share * steps) for share in shares]


@dataclass(frozen=True, slots=True)
class LikeArt(Adaptive):
    """ART's AutoProjectedGradientDescent: it asks for gradients where steps start, not at the iterates they reach.

    Attributes:
        evaluate: Images (N, C, *S) -> the objective of each, (N,).
    """

    control: type[StepControl] = ArtControl
    evaluate: Callable[[Tensor], Tensor] = field(kw_only=True)

    def observe(self, state: State | None, point: Tensor, seen: Seen, batch: Batch, budget: Budget) -> State:
        """Return where the next step starts, and how long it is."""
        if state is None:
            return Adaptive.observe(self, None, point, seen, batch, budget)
        control, _ = self._follow(state, batch, budget)
        return State(point, seen.gradient, control.before, control, seen.slack)

    def move(self, state: State, batch: Batch, budget: Budget, *, last: bool) -> Tensor:
        """Return the point of the next gradient."""
        return self._follow(state, batch, budget)[1]

    def _follow(self, state: State, batch: Batch, budget: Budget) -> tuple[ArtControl, Tensor]:
        control = take_control(state)
        assert isinstance(control, ArtControl), "the first state has one"
        z = self._step(state, control.size, batch, budget)
        value = self.evaluate(z.to(batch.x)).to(control.value)
        return control, control.follow(state.x, z, value, batch.x.to(z), state.slack)

    def _step(self, state: State, size: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return the iterate that the step reaches, clipped to the bounds first and to the budget second."""
        bounds = batch.bounds

        def confine(x_adv: Tensor) -> Tensor:
            return bring_back(x_adv.clamp(bounds.lower, bounds.upper), batch, budget)

        x = state.x
        ahead = confine(x + align(size, x) * steepest(state.memory, budget.norm))
        if state.before is None:
            return ahead
        return confine(x + FRESH * (ahead - x) + (1 - FRESH) * (x - state.before))
