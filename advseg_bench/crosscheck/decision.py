"""The decision on one implementation for one batch: equal, equal under a convention, or different, and why."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from advseg_bench.crosscheck.diagnosis import describe_rounding, describe_start, diagnose
from advseg_bench.crosscheck.endings import (
    evaluate,
    find_gain_of_a_step,
    find_kept,
    find_last_evaluated,
    find_restarts,
    loses_loss,
)
from advseg_bench.crosscheck.judge import StepVerdict, compare, judge_steps, list_path
from advseg_bench.crosscheck.replay import Stepwise, as_stepwise
from advseg_bench.crosscheck.trace import Trace
from advseg_bench.crosscheck.variants import conventions, faults
from advseg_bench.crosscheck.verdict import Case, Effect, Finding, Verdict, find_violation, measure_effect


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
        convention tried, most of them without new gradients. A disagreement that no convention explains costs at most
        2 forwards and backwards per gradient more.
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
    started = describe_start(case, theirs)
    if steps is not None and steps.agrees:
        if name := _join(started, find_kept(case, stepwise, theirs, known)):
            return Finding("equal under a convention", name, difference, steps, effect, outcome)
        reason = describe_rounding(steps)
        return Finding("equal up to rounding", reason, difference, steps, effect, outcome)
    finite = bool(ours.isfinite().all())
    for name, variant, same in conventions(case.reference, partial(evaluate, case), finite=finite):
        seen = known if same else {}
        found = _replay(variant, case, theirs, seen)
        if found is not None and found.agrees:
            name = _join(name, started, find_kept(case, variant, theirs, seen))
            if variant.steps < stepwise.steps and loses_loss(
                added := find_gain_of_a_step(case, variant, theirs), outcome.gain
            ):
                reason = f"a step is lost, which would add {added:.2g} to the loss: {name}"
                return Finding("weaker", reason, difference, steps, effect, outcome)
            return Finding("equal under a convention", name, difference, steps, effect, outcome)
    if last := find_last_evaluated(case, theirs):
        return Finding("equal under a convention", _join(last[0], started), difference, last[1], effect, outcome)
    if restarts := find_restarts(case, theirs):
        kept, best = restarts
        stronger = best and outcome.gain > effect.gain
        return Finding("stronger" if stronger else "weaker", kept, difference, steps, effect, outcome)
    verdict: Verdict = "stronger" if outcome.gain > effect.gain else "weaker"
    reason = _find_fault(case, theirs, known) or diagnose(case, theirs, steps)
    return Finding(verdict, reason, difference, steps, effect, outcome, steps.real if steps else None)


def _join(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)


def _find_fault(case: Case, theirs: Trace, known: dict[object, Any]) -> str:
    """Return the known fault whose steps those of the other implementation are, or ""."""
    for name, variant, same in faults(case.reference):
        seen = known if same else {}
        found = _replay(variant, case, theirs, seen)
        if found is not None and found.agrees:
            return _join(name, find_kept(case, variant, theirs, seen))
    return ""


def _replay(stepwise: Stepwise, case: Case, theirs: Trace, known: dict[object, Any]) -> StepVerdict | None:
    """Judge the steps of the other implementation; None if their number differs."""
    path = list_path(stepwise, theirs.points or [], theirs.x_adv)
    if path is None:
        return None
    return judge_steps(stepwise, case.model, case.batch, case.budget, path, alone=theirs.alone, known=known)
