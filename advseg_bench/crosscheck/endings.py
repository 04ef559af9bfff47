"""How another implementation ends: with a step less, at the last evaluated iterate, or with one of several restarts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.crosscheck.judge import StepVerdict, compare, gradient_at, judge_steps
from advseg_bench.crosscheck.replay import Stepwise, as_stepwise
from advseg_bench.crosscheck.trace import Trace
from advseg_bench.crosscheck.verdict import Case

COSTS = 1e-3
"""A step that adds at least this share of the loss increase costs loss where it is lost."""


def find_last_evaluated(case: Case, theirs: Trace) -> tuple[str, StepVerdict] | None:
    """Return the convention and the comparison if the result is the point of the last gradient, reached as expected."""
    points, reference = theirs.points, case.reference
    if not points or len(points) < 2 or not isinstance(reference, ProjectedAscent):
        return None
    steps = len(points) - 1
    if steps not in (reference.steps - 1, reference.steps) or compare(theirs.x_adv, points[-1]).max_ulp > 1:
        return None
    size = reference.share
    found = _replay(replace(reference, steps=steps, step_size=size), case, points, theirs.alone)
    without = "without its step" if steps < reference.steps else "with one gradient more than steps"
    return (f"returned iterate: the last evaluated one, {without}", found) if found.agrees else None


def find_gain_of_a_step(case: Case, stepwise: Stepwise, theirs: Trace) -> float:
    """Return the loss that one more step from the result of another implementation adds, mean over the images.

    Cost:
        1 forward and backward per step, and 2 forwards.
    """
    assert theirs.points is not None
    x = theirs.x_adv
    more = _finish(stepwise, case, [*theirs.points, x], theirs.alone)
    return float((_objective(case, more) - _objective(case, x)).mean())


def loses_loss(added: float, gain: float) -> bool:
    """Return whether a step that adds this much loss costs loss, beside the loss increase of the whole attack."""
    return added > COSTS * abs(gain)


def find_restarts(case: Case, theirs: Trace) -> tuple[str, bool] | None:
    """Describe which of several restarts was returned, if the gradients are those of restarts of the reference.

    Returns:
        A clause, and whether the result of each image is its best one; None if there were no restarts.

    Cost:
        1 forward and backward per gradient, and 1 forward per restart.
    """
    stepwise, points = as_stepwise(case.reference), theirs.points or []
    rounds = len(points) // stepwise.steps
    if rounds < 2 or len(points) != rounds * stepwise.steps:
        return None
    ends = []
    for start in range(0, len(points), stepwise.steps):
        path = points[start : start + stepwise.steps]
        end = _finish(stepwise, case, path, theirs.alone)
        if not _replay(stepwise, case, [*path, end], theirs.alone).agrees:
            return None
        ends.append(end)
    apart = torch.stack([(theirs.x_adv - end).abs().flatten(1).amax(1) for end in ends])
    nearest, chosen = apart.min(0)
    if float(nearest.max()) > COSTS * case.budget.eps:
        return None
    values = torch.stack([_objective(case, end) for end in ends])
    kept = values.gather(0, chosen[None])[0]
    best, worst = bool((kept >= values.amax(0)).all()), bool((kept <= values.amin(0)).all())
    which = "the best" if best else "the worst" if worst else "neither the best nor the worst"
    return f"returns {which} of {rounds} restarts for each image; the reference has one start", best


def _replay(stepwise: Stepwise, case: Case, path: Sequence[Tensor], alone: bool) -> StepVerdict:
    """Judge the steps of a path."""
    known: dict[object, Any] = {}
    return judge_steps(stepwise, case.model, case.batch, case.budget, path, alone=alone, known=known)


def _finish(stepwise: Stepwise, case: Case, path: Sequence[Tensor], alone: bool) -> Tensor:
    """Return the iterate after the last one of a path."""
    memory, points = None, path if stepwise.remembers else path[-1:]
    for point in points:
        size = 1 if alone else len(point)
        memory = stepwise.accumulate(memory, gradient_at(stepwise, case.model, case.batch, point, size=size))
    assert memory is not None, "a path has a point"
    return stepwise.move(path[-1], memory, case.batch, case.budget)


def _objective(case: Case, x: Tensor) -> Tensor:
    """Return the objective of each image, (N,)."""
    with torch.no_grad():
        return as_stepwise(case.reference).climb(case.model(x), case.batch)
