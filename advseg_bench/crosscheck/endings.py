"""How another implementation ends: a step early, at the last evaluated iterate, or with one of restarts or iterates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advseg_bench.attacks.ascent import ProjectedAscent
from advseg_bench.crosscheck.judge import VALUE_ULP, StepVerdict, compare, judge_steps, list_path, look_at
from advseg_bench.crosscheck.replay import Ascent, Seen, State, Stepwise, as_stepwise, slack_of
from advseg_bench.crosscheck.trace import Trace
from advseg_bench.crosscheck.verdict import Case

COSTS = 1e-3
"""A step that adds at least this share of the loss increase costs loss where it is lost."""


def find_last_evaluated(case: Case, theirs: Trace) -> tuple[str, StepVerdict] | None:
    """Return the convention and the comparison if the result is the point of the last gradient, reached as expected."""
    points, reference = theirs.points, case.reference
    if not points or len(points) < 2 or not isinstance(as_stepwise(reference), Ascent):
        return None
    assert isinstance(reference, ProjectedAscent), "an ascent is one"
    steps = len(points) - 1
    if steps not in (reference.steps - 1, reference.steps) or compare(theirs.x_adv, points[-1]).max_ulp > 1:
        return None
    size = reference.share
    found = _replay(Ascent(replace(reference, steps=steps, step_size=size)), case, points, theirs.alone)
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
    return float((evaluate(case, more) - evaluate(case, x)).mean())


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
    if stepwise.keeps or rounds < 2 or len(points) != rounds * stepwise.steps:
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
    values = torch.stack([evaluate(case, end) for end in ends])
    kept = values.gather(0, chosen[None])[0]
    best, worst = bool((kept >= values.amax(0)).all()), bool((kept <= values.amin(0)).all())
    which = "the best" if best else "the worst" if worst else "neither the best nor the worst"
    return f"returns {which} of {rounds} restarts for each image; the reference has one start", best


def find_kept(case: Case, stepwise: Stepwise, theirs: Trace, known: dict[object, Any]) -> str:
    """Return which of its iterates an implementation returns, if it is another one than the reference's; else "".

    Args:
        case: Reference, model, images and budget.
        stepwise: The attack whose steps those of the implementation are.
        theirs: Its trace.
        known: Gradients and values at its points.

    Cost:
        1 forward; none if the implementation has a gradient at its last iterate.
    """
    path = list_path(stepwise, theirs.points or [], theirs.x_adv)
    reference = case.reference
    if path is None or not stepwise.keeps or not isinstance(reference, ProjectedAscent):
        return ""
    values = [_see(stepwise, case, path, t, theirs.alone, known).value for t in range(len(path))]
    if len(path) == stepwise.steps:
        path.append(_finish(stepwise, case, path, theirs.alone))
        values.append(evaluate(case, path[-1]))
    apart = torch.stack([(theirs.x_adv - x).abs().flatten(1).amax(1) for x in path])
    value, best = torch.stack(values), torch.stack(values).amax(0)
    near = apart <= COSTS * case.budget.eps
    if not bool(near.any(0).all()):
        return "returned iterate: none of those at which it computed a loss"
    kept = torch.where(near, value, -torch.inf).amax(0)
    slack = slack_of(best, VALUE_ULP)
    is_best, is_last = bool((kept >= best - slack).all()), bool(near[-1].all())
    if reference.keep == "last":
        return "" if is_last else "returned iterate: the best one, not the last one" if is_best else _OTHER
    return "" if is_best else "returned iterate: the last one, not the best one" if is_last else _OTHER


_OTHER = "returned iterate: neither the last one nor the one with the largest objective"


def _see(stepwise: Stepwise, case: Case, path: Sequence[Tensor], t: int, alone: bool, known: dict[object, Any]) -> Seen:
    """Return gradient and value at a point, which are cached."""
    if t not in known:
        known[t] = look_at(stepwise, case.model, case.batch, path[t], t, size=1 if alone else len(path[t]))
    seen: Seen = known[t]
    return seen


def _replay(stepwise: Stepwise, case: Case, path: Sequence[Tensor], alone: bool) -> StepVerdict:
    """Judge the steps of a path."""
    known: dict[object, Any] = {}
    return judge_steps(stepwise, case.model, case.batch, case.budget, path, alone=alone, known=known)


def _finish(stepwise: Stepwise, case: Case, path: Sequence[Tensor], alone: bool) -> Tensor:
    """Return the iterate after the last one of a path."""
    state: State | None = None
    first = 0 if stepwise.remembers else len(path) - 1
    for t in range(first, len(path)):
        seen = _see(stepwise, case, path, t, alone, {})
        state = stepwise.observe(state, path[t], seen, case.batch, case.budget)
    assert state is not None, "a path has a point"
    return stepwise.move(state, case.batch, case.budget, last=True)


def evaluate(case: Case, x: Tensor) -> Tensor:
    """Return the fixed objective of each image, (N,)."""
    with torch.no_grad():
        return as_stepwise(case.reference).judge(case.model(x), case.batch)
