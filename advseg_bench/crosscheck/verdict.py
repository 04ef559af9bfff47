"""The verdict on one implementation for one batch, with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from advseg_bench import geometry, metrics
from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.attacks.objective import find_loss
from advseg_bench.batches import Batch
from advseg_bench.checks.results import BUDGET_TOLERANCE, inspect
from advseg_bench.crosscheck.judge import Difference, StepVerdict, compare, judge_steps
from advseg_bench.crosscheck.replay import Stepwise, as_stepwise, conventions
from advseg_bench.crosscheck.trace import Trace
from advseg_bench.types import Budget, Traits

Verdict = Literal[
    "identical", "equal up to rounding", "equal under a convention", "weaker", "stronger", "violates", "fails"
]
SOUND: tuple[Verdict, ...] = ("identical", "equal up to rounding", "equal under a convention")
REGION = 0.5
"""Real disagreements are reported as a region if more than this share of them is connected."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Effect of an attack on the model, as means over the images.

    Attributes:
        gain: Loss of the adversarial image minus loss of the clean image.
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


def judge(case: Case, ours: Tensor, theirs: Trace, effect: Effect) -> Finding:
    """Compare another implementation's result with the reference's.

    Args:
        case: Reference, model, images and budget.
        ours: Result of the reference, (N, C, *S).
        theirs: Trace of the other implementation.
        effect: Effect of the reference.

    Returns:
        The finding.

    Cost:
        None if the results are identical; else 1 forward, the replay of each step, and one more replay for each
        convention tried, most of them without new gradients.
    """
    if broken := find_violation(theirs.x_adv, case.batch, case.budget):
        return Finding("violates", broken)
    if theirs.changed:
        return Finding("violates", "changed the model it attacked")
    difference = compare(ours, theirs.x_adv)
    if torch.equal(ours, theirs.x_adv):
        return Finding("identical", "", difference, None, effect, effect)
    outcome = measure_effect(case, theirs.x_adv)
    stepwise = as_stepwise(case.reference)
    known: dict[object, Any] = {}
    steps = _replay(stepwise, case, theirs, known)
    started = _describe_start(stepwise, case, theirs)
    if steps is not None and steps.agrees:
        if started:
            return Finding("equal under a convention", started, difference, steps, effect, outcome)
        reason = _describe_rounding(steps)
        return Finding("equal up to rounding", reason, difference, steps, effect, outcome)
    for name, variant, same in conventions(case.reference, finite=bool(ours.isfinite().all())):
        found = _replay(variant, case, theirs, known if same else {})
        if found is not None and found.agrees:
            name = f"{name}; {started}" if started else name
            return Finding("equal under a convention", name, difference, steps, effect, outcome)
    verdict: Verdict = "stronger" if outcome.gain > effect.gain else "weaker"
    reason = diagnose(case, theirs, steps)
    return Finding(verdict, reason, difference, steps, effect, outcome, steps.real if steps else None)


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
    batch, loss = case.batch, find_loss(case.reference.loss)
    with torch.no_grad():
        attacked = case.model(x_adv)
        before, after = (loss(out, batch.y, batch.valid, batch.task) for out in (case.clean, attacked))
    counts = metrics.count(metrics.predict(attacked, batch.task), metrics.predict(case.clean, batch.task), batch)
    dice = metrics.mean_dice(counts, batch.task)
    return Effect(gain=float((after - before).mean()), dice=float(dice.nanmean()))


def diagnose(case: Case, theirs: Trace, steps: StepVerdict | None) -> str:
    """Describe a real disagreement in one line."""
    if torch.equal(theirs.x_adv, case.batch.x):
        return "returned the clean image"
    if theirs.points is None:
        return f"computed {theirs.backwards:g} gradients per image, which cannot be replayed step by step"
    wanted = as_stepwise(case.reference).steps
    if len(theirs.points) > 1 and all(torch.equal(point, theirs.points[0]) for point in theirs.points):
        return "computed every gradient at the same point"
    if steps is None:
        return f"computed {len(theirs.points)} gradients, the reference {wanted}"
    if steps.opposite > 0.9:
        return f"wrong sign: moves against the gradient on {steps.opposite:.0%} of the values"
    if abs(steps.size - 1) > 0.01:
        return f"wrong step size: {steps.size:.4g} times that of the reference"
    share = float(steps.real.double().mean())
    return f"wrong gradient on {share:.2%} of the values, {_describe_place(steps.real)}"


def _replay(stepwise: Stepwise, case: Case, theirs: Trace, known: dict[object, Any]) -> StepVerdict | None:
    """Judge the steps of the other implementation; None if their number differs."""
    if theirs.points is None or len(theirs.points) != stepwise.steps:
        return None
    path = [*theirs.points, theirs.x_adv]
    return judge_steps(stepwise, case.model, case.batch, case.budget, path, alone=theirs.alone, known=known)


def _describe_start(stepwise: Stepwise, case: Case, theirs: Trace) -> str:
    """Return the convention if the other did not start at the clean image; its random numbers always differ."""
    if not theirs.points or compare(theirs.points[0], case.batch.x).max_ulp <= 1:
        return ""
    moved = geometry.distance(theirs.points[0], case.batch.x, case.budget.norm)
    if float(moved.max()) > case.budget.eps + BUDGET_TOLERANCE:
        return f"random start: {float(moved.max() / case.budget.eps):.3g} times eps away"
    return "random start: inside the budget, with other random numbers"


def _describe_rounding(steps: StepVerdict) -> str:
    """Describe the disagreements that rounding explains."""
    if steps.disagree == 0:
        return "every step within 4 ulp"
    return f"{steps.disagree} of {steps.values} values differ where the gradient is rounding noise"


def _describe_place(real: Tensor) -> str:
    """Describe whether the disagreements of all images are scattered or connected."""
    total = inside = 0
    box = ""
    for image in real.any(1).cpu().numpy():
        regions, count = ndimage.label(image, structure=np.ones((3,) * image.ndim))
        if not count:
            continue
        sizes = np.bincount(regions.ravel())[1:]
        largest = int(sizes.argmax())
        total += int(image.sum())
        inside += int(sizes[largest])
        where = ndimage.find_objects(regions)[largest]
        edges = [axis.stop - axis.start for axis in where]
        shape = "band" if max(edges) >= 4 * min(edges) else "region"
        box = f"{shape} (pixels {' x '.join(f'{axis.start}-{axis.stop - 1}' for axis in where)})"
    if total >= 8 and inside > REGION * total:
        return f"in one connected {box} of each image"
    return "scattered"
