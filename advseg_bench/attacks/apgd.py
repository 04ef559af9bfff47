"""APGD: projected ascent that chooses its step size by the progress of each image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from advseg_bench.attacks.ascent import Climb, ProjectedAscent, better, confine, spare_clean
from advseg_bench.attacks.base import cost_if_same
from advseg_bench.attacks.objective import Aim
from advseg_bench.attacks.stepping import Query
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError
from advseg_bench.geometry import align, steepest
from advseg_bench.registry.ascents import ascent_traits
from advseg_bench.types import Budget, Traits

FIRST_STEP = 2.0
"""Step size at the start as a multiple of eps."""

FRESH = 0.75
"""Weight of the new step; the rest is the movement of the step before."""

RISES = 0.75
"""Share of the steps since the last checkpoint that must raise the objective to keep the step size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class APGD(ProjectedAscent):
    """APGD: steps of 2 eps, halved where an image makes no progress, then continued from its best iterate.

    z = P(x_k + eta d(g_k)), x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})), without the second term in the
    first step. At checkpoints, image by image: eta is halved, and the image goes back to the best iterate of the
    objective with its gradient, if at most 75 % of the steps since the last checkpoint raised the objective, or if
    neither eta nor the best objective has changed since. The first checkpoint comes after max(0.22 N, 1) steps; each
    interval is shorter than the one before by max(0.03 N, 1), and at least max(0.06 N, 1) long (rounded down).

    Of the settings of `ProjectedAscent`, `step_size` and `decay` have no meaning here. The loss may mask pixels or
    change with the steps; the objective that the step size depends on does not.

    Attributes:
        steps: Number N of gradient steps of one run.
        keep: "best" returns the iterate of each image with the largest value of `keep_by`; "last" the last one.

    Cost:
        `steps` + 1 forwards, `steps` backwards.

    Source:
        Croce and Hein, ICML 2020, arXiv:2003.01690, Algorithm 1, with checkpoints, rounding and "at most 75 %" of
        its released code; differs in the start, which is the clean image unless `random_start` is set, and in counting
        the progress of the first step from the start instead of from 0.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.APGD(loss="dice", steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    steps: int = 20
    keep: Literal["last", "best"] = "best"

    def __post_init__(self) -> None:
        """Validate the settings."""
        ProjectedAscent.__post_init__(self)
        for name in ("step_size", "decay"):
            if getattr(self, name) is not None:
                raise SettingError(f"{name}: expected none for apgd, which chooses its own steps. Remove the setting.")

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass with a loop of its own."""
        names = ("steps", "keep", "random_start", "restarts", "radius_schedule")
        traits = ascent_traits({name: getattr(self, name) for name in names}, evaluates=True)
        return cost_if_same(traits, self, APGD, "perturb", "begin", "climb_ball")

    @property
    def moves(self) -> int:
        """The number of gradient steps of one run in one ball."""
        return self.steps

    @property
    def path(self) -> None:
        """Unknown, since steps adapt."""

    def climb_ball(self, x_adv: Tensor, batch: Batch, budget: Budget) -> Climb:
        """Climb in one ball, see `ProjectedAscent.climb_ball`."""
        judge = Judges(self.aim(self.judged_by), self.aim(self.kept_by))
        answer = yield Query(x_adv, self.aim(self.loss, 0), judge)
        control = StepControl(x_adv, answer.gradient, answer.value[:, 0], FIRST_STEP * budget.eps, self.steps)
        kept = better(None, x_adv, spare_clean(answer.value[:, 1], x_adv, batch))
        before = x_adv
        for step in range(self.steps):
            x_adv, before = self.advance(x_adv, before, control, batch, budget, first=step == 0), x_adv
            more = step + 1 < self.steps
            answer = yield Query(x_adv, self.aim(self.loss, step + 1) if more else None, judge)
            kept = better(kept, x_adv, answer.value[:, 1])
            if more:
                x_adv = control.update(x_adv, answer.gradient, answer.value[:, 0])
        return kept if self.keep == "best" else (x_adv, answer.value[:, 1])

    def advance(
        self, x_adv: Tensor, before: Tensor, control: StepControl, batch: Batch, budget: Budget, *, first: bool
    ) -> Tensor:
        """Return the next iterate, from this one and the one before."""
        step = align(control.size, x_adv) * steepest(control.gradient, budget.norm)
        ahead = confine(x_adv + step, batch, budget)
        fresh = 1.0 if first else FRESH
        return confine(x_adv + fresh * (ahead - x_adv) + (1 - fresh) * (x_adv - before), batch, budget)


@dataclass(frozen=True, slots=True)
class Judges:
    """The objective and the value by which iterates are kept, as the two columns of an answer."""

    objective: Aim
    keep_by: Aim

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return (N, 2)."""
        value = self.objective(logits, batch)
        kept = value if self.keep_by == self.objective else self.keep_by(logits, batch)
        return torch.stack([value, kept], 1)


@dataclass(slots=True)
class StepControl:
    """The step size of each image, with its best iterate so far.

    Attributes:
        best: Best iterates by the objective, (N, C, *S).
        gradient: Gradients at the current iterates.
        value: Objective of the current iterates, (N,).
        first: Step size at the start.
        steps: Number N of gradient steps, which sets the checkpoints.
    """

    best: Tensor
    gradient: Tensor
    value: Tensor
    first: float
    steps: int
    size: Tensor = field(init=False)
    best_gradient: Tensor = field(init=False)
    best_value: Tensor = field(init=False)
    value_at_check: Tensor = field(init=False)
    halved: Tensor = field(init=False)
    rises: Tensor = field(init=False)
    interval: int = field(init=False)
    since: int = 0

    def __post_init__(self) -> None:
        """Start with the first iterate as the best one."""
        self.size = torch.full_like(self.value, self.first)
        self.best_gradient, self.best_value, self.value_at_check = self.gradient, self.value, self.value
        self.halved = torch.ones_like(self.value, dtype=torch.bool)  # the first check counts increases alone
        self.rises = torch.zeros_like(self.value)
        self.interval = max(int(0.22 * self.steps), 1)

    def update(self, x_adv: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
        """Note a new iterate with gradient and objective; return where the next step starts.

        Returns:
            The iterate, or the best one so far for images whose step size has just been halved.
        """
        self.rises = self.rises + (value > self.value)
        self.gradient, self.value = gradient, value
        higher = value > self.best_value
        wide = align(higher, x_adv)
        self.best = torch.where(wide, x_adv, self.best)
        self.best_gradient = torch.where(wide, gradient, self.best_gradient)
        self.best_value = torch.where(higher, value, self.best_value)
        self.since += 1
        return self._check(x_adv) if self.since == self.interval else x_adv

    def _check(self, x_adv: Tensor) -> Tensor:
        """Halve the step of images without progress, and take them back to their best iterate."""
        few = self.rises <= RISES * self.interval
        stuck = ~self.halved & (self.value_at_check >= self.best_value)
        self.halved = few | stuck
        wide = align(self.halved, x_adv)
        self.size = torch.where(self.halved, self.size / 2, self.size)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.value_at_check, self.rises = self.best_value, torch.zeros_like(self.rises)
        self.interval = max(self.interval - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
        self.since = 0
        return torch.where(wide, self.best, x_adv)
