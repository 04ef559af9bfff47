"""The reference with one rule changed: conventions, in which implementations legitimately differ, and known faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from advseg_bench import losses
from advseg_bench.attacks.apgd import APGD
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.nifgsm import NIFGSM
from advseg_bench.crosscheck import controls
from advseg_bench.crosscheck.replay import Adaptive, Ascent, OneStep, Reference, Stepwise
from advseg_bench.losses import Loss
from advseg_bench.losses.scheduled import ScheduledLoss, SegPGDSchedule, TwoPartCE

MOMENTUM: dict[Literal["l1", "l2", "mean", "sign", "none"], str] = {
    "l1": "gradients are divided by the L1 norm",
    "mean": "gradients are divided by the mean absolute value",
    "none": "gradients are not normalised",
    "sign": "signs of gradients are accumulated",
    "l2": "gradients are divided by the L2 norm",
}


def conventions(
    attack: Reference, evaluate: Callable[[Tensor], Tensor], *, finite: bool
) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield the conventions in which implementations legitimately differ.

    Toolkits and papers are known to differ in these choices, and none of them is a fault. A wrong sign and a wrong
    gradient are faults, so they are not among them.

    Args:
        attack: The reference.
        evaluate: Images (N, C, *S) -> the objective of each, (N,).
        finite: Whether its result is finite; if so, the treatment of NaN makes no difference.

    Yields:
        Name of the convention, the reference with it changed, and whether the objective is still the same.
    """
    if isinstance(attack, FGSM):
        if not finite:
            yield "NaN to 0: a gradient of NaN counts as 0", OneStep(attack, nan_to_zero=True), True
        if attack.label == "true":
            yield "label: the model's own prediction", OneStep(replace(attack, label="predicted")), False
        return
    for name, loss in _other_losses(attack.loss):
        yield name, _as_stepwise(replace(attack, loss=loss)), False
    if isinstance(attack, APGD):
        yield from _of_control(attack, evaluate)
        return
    if not finite:
        yield "NaN to 0: a gradient of NaN counts as 0", Ascent(attack, nan_to_zero=True), True
    yield from _of_momentum(attack)
    yield from _of_steps(attack)
    yield "projection order: bounds first, budget second", Ascent(attack, bounds_first=True), True


def faults(attack: Reference) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield known faults, to name one as the cause of a real difference; see `conventions`."""
    if isinstance(attack, FGSM):
        return
    if isinstance(attack.loss, SegPGDSchedule):
        for name, share in _SEGPGD_FAULTS.items():
            yield f"wrong schedule: {name}", _as_stepwise(replace(attack, loss=_Scheduled(share))), False
    if isinstance(attack, APGD):
        for name, control in controls.FAULTS.items():
            yield f"wrong step-size rule: {name}", Adaptive(attack, control), True
    if isinstance(attack, NIFGSM):
        yield "no lookahead: gradients at the iterates, as in MI-FGSM", Ascent(attack, looks=False), True


def _as_stepwise(attack: ProjectedAscent) -> Stepwise:
    return Adaptive(attack) if isinstance(attack, APGD) else Ascent(attack)


def _of_momentum(attack: ProjectedAscent) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield other normalisations of the momentum."""
    if attack.decay is None:
        return
    for norm, name in MOMENTUM.items():
        if norm != attack.momentum_norm:
            yield f"momentum normalisation: {name}", Ascent(replace(attack, momentum_norm=norm)), True
    yield "momentum normalisation: none, and no momentum", Ascent(replace(attack, decay=None)), True


def _of_steps(attack: ProjectedAscent) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield other numbers of steps and step sizes."""
    size = attack.share
    for steps in (attack.steps - 1, attack.steps + 1):
        if steps:
            same = replace(attack, steps=steps, step_size=size)
            scheduled = isinstance(attack.loss, ScheduledLoss)  # another number of steps changes what each one follows
            yield f"step rule: {steps} steps instead of {attack.steps}", Ascent(same), not scheduled
            other = f"step rule: steps of eps / {steps} instead of {size:.4g} * eps"
            yield other, Ascent(replace(attack, step_size=1 / steps)), True
    if size != 1 / attack.moves:
        yield "step rule: steps of eps / steps", Ascent(replace(attack, step_size=1 / attack.moves)), True


def _of_control(attack: APGD, evaluate: Callable[[Tensor], Tensor]) -> Iterator[tuple[str, Stepwise, bool]]:
    """Yield other rules of the step sizes."""
    for name, control in controls.CONVENTIONS.items():
        yield f"step-size rule: {name}", Adaptive(attack, control), True
    yield f"step-size rule: {controls.OF_ART}", controls.LikeArt(attack, evaluate=evaluate), True


@dataclass(frozen=True, slots=True)
class _Scheduled(ScheduledLoss):
    """SegPGD's loss with another share of the wrong decisions."""

    share: Callable[[int, int], float]

    def at(self, step: int, steps: int) -> TwoPartCE:
        return TwoPartCE(self.share(step, steps))


_SEGPGD_FAULTS: dict[str, Callable[[int, int], float]] = {
    "reversed, from all decisions to the correct ones": lambda step, steps: (steps - 1 - step) / (2 * steps),
    "correct and wrong decisions are exchanged": lambda step, steps: 1 - step / (2 * steps),
    "the share of the wrong decisions ends at 1 instead of 1/2": lambda step, steps: step / steps,
    "the first loss is followed in every step": lambda step, steps: 0.0,
}


def _other_losses(loss: Loss | str) -> Iterator[tuple[str, Loss]]:
    """Yield the published variants of a loss."""
    if isinstance(loss, SegPGDSchedule):
        late = _Scheduled(lambda step, steps: (step + 1) / (2 * steps))
        yield "schedule: steps are counted from 1, so that wrong decisions have the weight (t + 1) / (2 T)", late
    if loss is losses.cosine:
        yield "normaliser: sigmoids of the logits instead of their softmax", losses.cosine_sigmoid
    if loss is losses.cosine_sigmoid:
        yield "normaliser: the softmax of the logits instead of sigmoids", losses.cosine
