"""Projected gradient ascent: the one loop behind all gradient attacks of several steps."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, cost_if_same
from advseg_bench.attacks.objective import Aim, find_loss, refuse_target, settle_objective, why_loss_unfit
from advseg_bench.attacks.stepping import Answer, Query, SteppedAttack, Steps
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError
from advseg_bench.geometry import align, project, random_in_ball, steepest
from advseg_bench.losses import Loss, loss_at
from advseg_bench.registry.ascents import ASCENT_STEPS, Stage, ascent_traits, read_stages, split_steps
from advseg_bench.types import Budget, Traits

Climb = Generator[Query, Answer, tuple[Tensor, Tensor | None]]
"""A started ascent; returns images (N, C, *S), and the value of each by which it was kept, (N,), if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedAscent(SteppedAttack):
    """Projected gradient ascent: steps of fixed size, each followed by a projection onto budget and bounds.

    x_{t+1} = P(x_t + step_size * eps * d(m_t)), where d is the direction of steepest ascent in the norm of the budget
    (the sign for L_inf, g / ||g||_2 for L2), m_t = g_t without momentum and m_t = decay * m_{t-1} + g_t / ||g_t||_1
    with it, and g_t is the gradient of the sum of one loss value per image. P clips first the perturbation to the
    budget and then the image to the bounds. Where a gradient is NaN, an L_inf attack does not change the value, since
    the sign of NaN is 0 in torch; an L2 attack sets the image to NaN.

    Attributes:
        loss: The loss whose gradient is followed: a name or a function, see `advseg_bench.losses`. It may change with
            the steps, as `segpgd` and `tsallis` do.
        steps: Number of forward passes, at least 1; equals the number of gradient steps unless `keep` is "best".
        step_size: Step size as a fraction of eps; None means `travel` / number of gradient steps.
        random_start: Start at a uniform sample from the ball, clipped to the bounds, instead of the clean image.
        decay: Weight of the accumulated gradient; None means no momentum and no normalisation.
        momentum_norm: Normalisation of a gradient before it is accumulated: its "l1" or "l2" norm per image, the "mean"
            of its absolute values (same directions as "l1"), or "none". "sign" accumulates signs instead.
        label: Labels of the loss: the "true" labels or the "empty" mask.
        targeted: Decrease the loss instead.
        keep: "last" returns the last iterate. "best" returns the iterate of each image with the largest value of
            `keep_by`, the first one in a tie, and not the clean image; the last forward pass then evaluates the last
            iterate, so there are `steps` - 1 gradient steps.
        objective: What step sizes and the choice of an iterate depend on, while the loss may change: a loss,
            "entropy" (mean cross-entropy, binary or softmax by the task) or "hard_dice". None means the loss itself, or
            "entropy" for a loss that masks pixels or changes with the steps.
        keep_by: What the kept iterate and the kept restart maximise; None means the objective.
        restarts: Number of runs, all but the first one from a random start; the best result of each image is kept.
        radius_schedule: Pairs (multiple of eps, share of the steps) whose last multiple is 1: each ball is searched in
            turn, from the projected result of the ball before. "shrinking" is 2, 1.5, 1 for .3, .3, .4 of the steps
            (arXiv:2306.12941, section 3.5). Step size, momentum and the loss's schedule begin anew in each.

    Cost:
        `restarts` times `steps` forwards and `moves` backwards; with `keep` "last" and several restarts 1 more forward
        for each of them.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.ProjectedAscent(loss="dice", steps=5, keep="best")(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    travel: ClassVar[float] = 1.0  # length of the path of all steps as a multiple of eps, without a step size

    loss: Loss | str
    steps: int = ASCENT_STEPS
    step_size: float | None = None
    random_start: bool = False
    decay: float | None = None
    momentum_norm: Literal["l1", "l2", "mean", "sign", "none"] = "l1"
    label: Literal["true", "empty"] = "true"
    targeted: bool = False
    keep: Literal["last", "best"] = "last"
    objective: Loss | str | None = None
    keep_by: Loss | str | None = None
    restarts: int = 1
    radius_schedule: Sequence[Sequence[float]] | str | None = None

    def __post_init__(self) -> None:
        """Resolve the names of losses and validate the settings."""
        object.__setattr__(self, "loss", find_loss(self.loss))
        refuse_target(self.targeted, self.loss, self.judged_by, self.kept_by)
        for name in ("steps", "restarts"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}: expected a whole number of at least 1, got {value!r}.")
        if self.step_size is not None and not self.step_size > 0:
            raise SettingError(f"step_size: expected a positive share of eps, such as 0.25, got {self.step_size!r}.")
        if self.label not in ("true", "empty"):
            raise SettingError(f"label: expected 'true' or 'empty', got {self.label!r}.")
        if self.momentum_norm not in (norms := ("l1", "l2", "mean", "sign", "none")):
            raise SettingError(f"momentum_norm: expected one of {', '.join(norms)}, got {self.momentum_norm!r}.")
        if self.keep not in ("last", "best"):
            raise SettingError(f"keep: expected 'last' or 'best', got {self.keep!r}.")
        if self.keep == "best" and self.steps < 2:
            raise SettingError(f"steps: expected at least 2 for keep 'best', got {self.steps}. Use keep 'last'.")
        if not isinstance(self.radius_schedule, str):
            object.__setattr__(self, "radius_schedule", read_stages(self.radius_schedule))
        least = 2 if self.keep == "best" else 1
        if any(stage.count < least for stage in self.stages):
            raise SettingError(f"steps: expected at least {least} in each ball of radius_schedule, got {self.steps}.")

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass with a loop of its own."""
        settings = {name: getattr(self, name) for name in ("steps", "keep", "random_start", "restarts")}
        traits = ascent_traits(settings | {"radius_schedule": self.radius_schedule})
        return cost_if_same(traits, self, ProjectedAscent, "perturb", "begin", "climb_ball")

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    @property
    def judged_by(self) -> Loss:
        """The fixed objective: that of the settings, or the one that suits the loss."""
        return settle_objective(self.loss, self.objective)

    @property
    def kept_by(self) -> Loss:
        """What decides which iterate is kept: that of the settings, or the objective."""
        return self.judged_by if self.keep_by is None else settle_objective(self.loss, self.keep_by)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The balls that are searched in turn: each with its multiple of eps and its number of steps."""
        return split_steps(read_stages(self.radius_schedule), self.steps)

    @property
    def moves(self) -> int:
        """The number of gradient steps of one run in one ball."""
        return self.steps - (self.keep == "best")

    @property
    def share(self) -> float:
        """The step size as a fraction of eps."""
        return self.travel / self.moves if self.step_size is None else self.step_size

    @property
    def path(self) -> float | None:
        """The length of all steps as a multiple of eps; None where step sizes adapt."""
        return self.share * self.moves

    @property
    def remembers(self) -> bool:
        """Whether a direction depends on earlier gradients."""
        return self.decay is not None

    def begin(self, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Steps:
        """Start the attack: each restart searches each ball of the schedule in turn, see `SteppedAttack.begin`."""
        best: tuple[Tensor, Tensor] | None = None
        x_adv = batch.x  # every restart replaces it
        for restart in range(self.restarts):
            first = self if restart == 0 else replace(self, random_start=True)
            x_adv, value = first.start(batch, budget, generators), None
            for stage in self.stages:
                ball = replace(budget, eps=budget.eps * stage.radius) if stage.radius != 1 else budget
                inner = self if len(self.stages) == 1 else replace(self, steps=stage.count, radius_schedule=None)
                if len(self.stages) > 1:
                    x_adv = confine(x_adv, batch, ball)
                x_adv, value = yield from inner.climb_ball(x_adv, batch, ball)
            if self.restarts > 1:
                if value is None:
                    value = (yield Query(x_adv, judge=self.aim(self.kept_by))).value
                best = better(best, x_adv, value)
        return x_adv if best is None else best[0]

    def climb_ball(self, x_adv: Tensor, batch: Batch, budget: Budget) -> Climb:
        """Climb in one ball from a first iterate: the loop of gradient steps.

        Args:
            x_adv: The first iterate, (N, C, *S).
            batch: Images and labels.
            budget: The ball.

        Returns:
            The result, and the value of each image by which it was kept, None with `keep` "last".
        """
        memory, best, judge = None, None, self.aim(self.kept_by) if self.keep == "best" else None
        for step in range(self.moves):
            answer = yield Query(self.look_from(x_adv, memory, budget), self.aim(self.loss, step), judge)
            if judge:
                best = better(best, x_adv, spare_clean(answer.value, x_adv, batch))
            memory = self.accumulate(memory, answer.gradient)
            x_adv = self.move(x_adv, memory, batch, budget)
        if judge:
            return better(best, x_adv, (yield Query(x_adv, judge=judge)).value)
        return x_adv, None

    def aim(self, loss: Loss | str | None, step: int = 0) -> Aim:
        """Return what a loss makes of logits at a gradient step, with the labels and the direction of the attack."""
        assert callable(loss), "names of losses are resolved when the attack is made"
        return Aim(loss_at(loss, step, self.moves), self.label, self.targeted)

    def climb(self, logits: Tensor, batch: Batch, step: int = 0) -> Tensor:
        """Return the objective whose gradient is followed at a step, (N,)."""
        return self.aim(self.loss, step)(logits, batch)

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the first iterate, (N, C, *S)."""
        if not self.random_start:
            return batch.x
        offset = budget.eps * random_in_ball(batch.x, budget.norm, generators)
        return confine(batch.x + offset, batch, budget)

    def look_from(self, x_adv: Tensor, memory: Tensor | None, budget: Budget) -> Tensor:
        """Return the point at which the next gradient is asked for: the iterate itself."""
        return x_adv

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the accumulated gradient, from the previous one (None at the first step) and the new gradient."""
        if self.decay is None:
            return gradient
        if self.momentum_norm in ("sign", "l2"):
            gradient = steepest(gradient, "linf" if self.momentum_norm == "sign" else "l2")
        elif self.momentum_norm != "none":
            sizes = gradient.abs().flatten(1)
            size = sizes.sum(1) if self.momentum_norm == "l1" else sizes.mean(1)
            # A gradient that is zero everywhere adds zero, not NaN.
            gradient = gradient / align(torch.where(size > 0, size, 1), gradient)
        return gradient if memory is None else self.decay * memory + gradient

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return the next iterate, projected."""
        return confine(self.stride(x_adv, memory, budget), batch, budget)

    def stride(self, x_adv: Tensor, memory: Tensor, budget: Budget) -> Tensor:
        """Return the next iterate before the projection."""
        return x_adv + budget.eps * self.share * steepest(memory, budget.norm)


def spare_clean(value: Tensor, x_adv: Tensor, batch: Batch) -> Tensor:
    """Return the values of iterates, -inf where the iterate is the clean image, which is no result of an attack."""
    return torch.where((x_adv == batch.x).flatten(1).all(1), -torch.inf, value)


def better(best: tuple[Tensor, Tensor] | None, x_adv: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each image, the better of the best so far and the new one, with its value; the first in a tie."""
    if best is None:
        return x_adv, value
    larger = (value > best[1]) | best[1].isnan()
    return torch.where(align(larger, x_adv), x_adv, best[0]), torch.where(larger, value, best[1])


def confine(x_adv: Tensor, batch: Batch, budget: Budget) -> Tensor:
    """Clip the perturbation to the budget, then the image to the bounds.

    For L_inf this clips the perturbation, as the toolkits do; `geometry.project` clips the image to x +- eps. The two
    differ by rounding, and rounding of an iterate can flip signs of the next gradient.
    """
    if budget.norm == "l2":
        return project(x_adv, batch.x, budget, batch.bounds)
    delta = (x_adv - batch.x).clamp(-budget.eps, budget.eps)
    return (batch.x + delta).clamp(batch.bounds.lower, batch.bounds.upper)
