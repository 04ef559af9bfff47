"""Faults in attacks of several steps, planted in the package's own; they join `faults.FAULTS`.

`FOR_CROSSCHECK` holds those that no rule of the contract can see, since they are sound attacks with other numbers: a
schedule that runs backwards or is shifted by a step, and checkpoints that are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from faults import BOTH, Planted, _attack_of, fault
from torch import Tensor

from advseg_bench import losses
from advseg_bench.attacks import APGD, BIM, MIFGSM, PGD, SegPGD, Square
from advseg_bench.attacks.apgd import RISES, StepControl
from advseg_bench.attacks.objective import Aim
from advseg_bench.attacks.stepping import Query
from advseg_bench.geometry import align
from advseg_bench.losses.scheduled import TwoPartCE
from advseg_bench.registry.ascents import Stage
from advseg_bench.types import Traits

RANDOM = Traits(random=True)
FOR_CROSSCHECK: dict[str, type[Planted]] = {}


def for_crosscheck(function: Any) -> Any:
    FOR_CROSSCHECK[function.__name__] = _attack_of(function, Traits())
    return function


def of_the_batch(measure: Any) -> Any:
    """The mean of a measure over the batch, for each of its images."""

    def mean(*arguments: Any) -> Tensor:
        value = measure(*arguments)
        return value.mean(0, keepdim=True).expand_as(value)

    return mean


def run(attack, model, batch, budget, generators):
    return attack.perturb(model, batch, budget=budget, generators=generators)


# State that the images of a batch share.


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumOfTheBatch(MIFGSM):
    def accumulate(self, memory, gradient):
        gradient = gradient / gradient.abs().sum().clamp(min=1e-12)
        return gradient if memory is None else 0.9 * memory + gradient


@fault("neighbours", r"expected image . to have one result", Traits(norms=("l2",)))
def normalises_the_momentum_by_the_batch(loss, model, batch, budget, generators):
    """The first gradients of an image weigh more or less than its later ones, as those of its neighbours do."""
    return run(MomentumOfTheBatch(loss=loss, step_size=0.3), model, batch, budget, generators)


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumUntilTheBatchTurns(MIFGSM):
    def accumulate(self, memory, gradient):
        gradient = gradient / align(gradient.abs().flatten(1).sum(1).clamp(min=1e-12), gradient)
        turned = memory is None or bool((memory * gradient).flatten(1).sum(1).mean() < 0.6 * memory.square().sum())
        return gradient if turned else 0.9 * memory + gradient


@fault("neighbours", r"expected image . to have one result", Traits(norms=("l2",)))
def resets_the_momentum_of_the_batch(loss, model, batch, budget, generators):
    return run(MomentumUntilTheBatchTurns(loss=loss, step_size=0.5), model, batch, budget, generators)


@fault("neighbours", r"expected image . to have one result", BOTH)
def keeps_the_best_iterate_of_the_batch(loss, model, batch, budget, generators):
    attack = BIM(loss=loss, steps=5, step_size=1.5, keep="best", keep_by=of_the_batch(loss))
    return run(attack, model, batch, budget, generators)


@fault("neighbours", r"expected image . to have one result", BOTH)
def keeps_by_hard_dice_of_the_batch(loss, model, batch, budget, generators):
    """As if the batch, padded or not, were one image."""

    def pooled(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        one = [part.movedim(0, -1).unsqueeze(0) for part in (logits, y, valid)]
        return losses.hard_dice(*one, task).expand(len(logits))

    attack = BIM(loss=loss, steps=4, step_size=1.5, keep="best", keep_by=pooled)
    return run(attack, model, batch, budget, generators)


@fault("neighbours", r"expected image . to have one result", RANDOM)
def keeps_the_restart_of_the_batch(loss, model, batch, budget, generators):
    attack = PGD(loss=loss, steps=2, step_size=0.6, restarts=2, keep_by=of_the_batch(loss))
    return run(attack, model, batch, budget, generators)


class HalvedTogether(StepControl):
    def _check(self, x_adv):
        few = self.rises.mean() <= RISES * self.interval
        self.rises = torch.full_like(self.rises, 0.0 if few else 2.0 * self.interval)
        self.halved = torch.ones_like(self.halved)
        return StepControl._check(self, x_adv)


@dataclass(frozen=True, slots=True, kw_only=True)
class APGDWith(APGD):
    control: Any

    def climb_ball(self, x_adv, batch, budget):
        """The loop of APGD with another step control."""
        judge = Aim(self.judged_by)
        answer = yield Query(x_adv, self.aim(self.loss), judge)
        control = self.control(x_adv, answer.gradient, answer.value, 2 * budget.eps, self.steps)
        before = x_adv
        for step in range(self.steps):
            x_adv, before = self.advance(x_adv, before, control, batch, budget, first=step == 0), x_adv
            answer = yield Query(x_adv, self.aim(self.loss), judge)
            x_adv = control.update(x_adv, answer.gradient, answer.value)
        return control.best, None


@fault("neighbours", r"expected image . to have one result", Traits(norms=("l2",)))
def halves_the_step_of_the_batch(loss, model, batch, budget, generators):
    return run(APGDWith(loss=loss, steps=8, control=HalvedTogether), model, batch, budget, generators)


@fault("neighbours", r"expected image . to have one result", BOTH)
def counts_the_classes_of_the_batch(loss, model, batch, budget, generators):
    """Each pixel weighs 1 / pixels of its class in the batch."""

    def balanced(logits: Tensor, y: Tensor, valid: Tensor, task: Any) -> Tensor:
        one = [part.movedim(0, -1).unsqueeze(0) for part in (logits, y, valid)]
        return losses.balanced_ce(*one, task).expand(len(logits)) / len(logits)

    return run(BIM(loss=balanced, steps=2), model, batch, budget, generators)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWindow(Square):
    def draw_moves(self, batch, budget, generators):
        moves = Square.draw_moves(self, batch, budget, generators)
        return moves._replace(
            first=moves.first[:1].expand_as(moves.first), sides=moves.sides[:1].expand_as(moves.sides)
        )


@fault("neighbours", r"expected image . to have one result", Traits(gradient=False, random=True))
def chooses_one_window_for_the_batch(loss, model, batch, budget, generators):
    return run(OneWindow(queries=20), model, batch, budget, generators)


# Schedules.


@dataclass(frozen=True, slots=True, kw_only=True)
class EndsWide(BIM):
    @property
    def stages(self):
        return (Stage(2.0, 3), Stage(1.5, 7))


@fault("budget", r"got 0\.15, 1\.5 times as far", BOTH)
def ends_in_a_ball_of_one_and_a_half_eps(loss, model, batch, budget, generators):
    return run(EndsWide(loss=loss, step_size=0.5), model, batch, budget, generators)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedBySchedule(SegPGD):
    """The best iterate is the one of the largest scheduled loss, whatever the step."""

    def climb_ball(self, x_adv, batch, budget):
        best, value = x_adv, None
        for step in range(self.steps):
            answer = yield Query(x_adv, self.aim(self.loss, step))
            larger = answer.height > (value if value is not None else -torch.inf)
            best = torch.where(align(larger, x_adv), x_adv, best)
            value = answer.height if value is None else torch.where(larger, answer.height, value)
            x_adv = self.move(x_adv, answer.gradient, batch, budget)
        return best, None


@fault("optimum", r"of the exact optimum, got", Traits(norms=("linf",), random=True))
def keeps_the_best_of_the_scheduled_loss(loss, model, batch, budget, generators):
    return run(JudgedBySchedule(steps=6), model, batch, budget, generators)


# Sound attacks with other numbers: for cross-validation.


class Backwards(losses.ScheduledLoss):
    def at(self, step: int, steps: int) -> TwoPartCE:
        return TwoPartCE((steps - 1 - step) / (2 * steps))


class Shifted(losses.ScheduledLoss):
    def at(self, step: int, steps: int) -> TwoPartCE:
        return TwoPartCE((step + 1) / (2 * steps))


@for_crosscheck
def runs_the_schedule_backwards(loss, model, batch, budget, generators):
    return run(SegPGD(loss=Backwards()), model, batch, budget, generators)


@for_crosscheck
def shifts_the_schedule_by_a_step(loss, model, batch, budget, generators):
    return run(SegPGD(loss=Shifted()), model, batch, budget, generators)


class LateCheck(StepControl):
    def __post_init__(self):
        StepControl.__post_init__(self)
        self.interval += 1


@for_crosscheck
def checks_a_step_late(loss, model, batch, budget, generators):
    return run(APGDWith(loss=loss, control=LateCheck), model, batch, budget, generators)
