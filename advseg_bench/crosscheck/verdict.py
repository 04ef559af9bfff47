"""What is found about one implementation for one batch: verdict, evidence, violations and effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advseg_bench import metrics
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.objective import find_loss
from advseg_bench.batches import Batch
from advseg_bench.checks.results import inspect
from advseg_bench.crosscheck.judge import Difference, StepVerdict
from advseg_bench.types import Budget, Traits

Verdict = Literal[
    "identical", "equal up to rounding", "equal under a convention", "weaker", "stronger", "violates", "fails"
]
SOUND: tuple[Verdict, ...] = ("identical", "equal up to rounding", "equal under a convention")


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect of an attack on the model, as means over the images.

    Attributes:
        gain: Objective of the adversarial image minus objective of the clean image: the loss, or what judges iterates
            where the loss masks pixels or changes with the steps.
        dice: Mean Dice of the prediction with the labels; see `metrics.mean_dice`.
    """

    gain: float
    dice: float


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict with its evidence; evidence that is not available is None.

    Attributes:
        verdict: One of `Verdict`.
        reason: One line: the convention, the cause, the violation or the exception.
        difference: Value-by-value comparison of the two results.
        steps: Step-by-step comparison with the reference; None if the results are identical.
        ours: Effect of the reference.
        theirs: Effect of the other implementation.
        real: (N, C, *S) bool: where the disagreement is real; None if there is none.
    """

    verdict: Verdict
    reason: str = ""
    difference: Difference | None = None
    steps: StepVerdict | None = None
    ours: Effect | None = None
    theirs: Effect | None = None
    real: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """The inputs of both implementations, and the logits (N, K, *S) of the clean images."""

    reference: FGSM | ProjectedAscent
    model: nn.Module
    batch: Batch
    budget: Budget
    clean: Tensor


def find_violation(x_adv: object, batch: Batch, budget: Budget) -> str:
    """Return the first requirement of an adversarial image that the result violates, or ""."""
    if not isinstance(x_adv, Tensor):
        return f"returned {type(x_adv).__name__} instead of a tensor"
    if x_adv.shape != batch.x.shape or x_adv.dtype != batch.x.dtype:
        return f"returned {x_adv.dtype} {tuple(x_adv.shape)} instead of {batch.x.dtype} {tuple(batch.x.shape)}"
    if not bool(x_adv.isfinite().all()):
        return f"returned {int((~x_adv.isfinite()).sum())} values that are not finite"
    checked = inspect(x_adv, batch, budget, Traits())
    outside, over = float(checked.outside.max()), float(checked.moved.max()) - budget.eps
    flags = set().union(*checked.flags)
    if "out_of_bounds" in flags:
        return f"left the bounds by {outside:.3g}"
    return f"exceeded eps by {over:.3g} ({over / budget.eps:.1%})" if "over_budget" in flags else ""


def measure_effect(case: Case, x_adv: Tensor) -> Effect:
    """Return the effect of an adversarial image (N, C, *S) on the model.

    Cost:
        1 forward.
    """
    batch, reference = case.batch, case.reference
    loss = find_loss(reference.loss) if isinstance(reference, FGSM) else reference.judged_by
    with torch.no_grad():
        attacked = case.model(x_adv)
        before, after = (loss(out, batch.y, batch.valid, batch.task) for out in (case.clean, attacked))
    counts = metrics.count(metrics.predict(attacked, batch.task), metrics.predict(case.clean, batch.task), batch)
    dice = metrics.mean_dice(counts, batch.task)
    return Effect(gain=float((after - before).mean()), dice=float(dice.nanmean()))
