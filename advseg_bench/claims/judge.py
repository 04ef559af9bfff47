"""What a run answers to the questions of the study's claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from advseg_bench.claims.associations import NO_CORRELATION, associate, count_models_needed
from advseg_bench.claims.evidence import Evidence, average, make_arm, name_arm
from advseg_bench.claims.findings import ALPHA, Finding, Shortage, find_largest_p, find_shortage, judge_all, sort_out
from advseg_bench.claims.questions import BCE, BEST, SIZE, VULNERABLE, Question
from advseg_bench.claims.wording import (
    conclude,
    say_where,
    show_correlation,
    show_count,
    show_difference,
    show_models,
    show_p,
)
from advseg_bench.results.run import Run
from advseg_bench.stats import PairedTest, Verdict, decide
from advseg_bench.suite.cells import Arm

FEWEST_FOR_RANKS = 5
"""Under this many models no order of them is rarer than 5 %."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the study, judged on one run.

    Attributes:
        name: Short name, for anchors and files.
        statement: The claim in a sentence.
        question: What exactly was asked, of which arms, by which rule.
        verdict: None if the run lacks what the question needs; `answer` says what.
        answer: The sentence that may be quoted.
        estimate: The number that the claim is about, with its test; None for a claim about a correlation.
        p: What the verdict rests on: the largest p of a claim that needs every line.
        findings: The tests behind it.
        measure: What the estimate and the findings are differences in.
        shortage: What there is too little of, if the verdict is "undecidable".
    """

    name: str
    statement: str
    question: str
    verdict: Verdict | None
    answer: str
    estimate: PairedTest | None = None
    p: float | None = None
    findings: tuple[Finding, ...] = ()
    measure: str = "drop of mean Dice"
    shortage: Shortage | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a run answers; the attributes are those of `Claim`, `text` its `answer`."""

    verdict: Verdict
    text: str
    estimate: PairedTest | None
    p: float | None
    findings: tuple[Finding, ...]
    shortage: Shortage | None
    measure: str = "drop of mean Dice"


def judge_claims(run: Run) -> tuple[Claim, ...]:
    """Judge every claim on a run.

    Returns:
        One `Claim` each, in the order of the study; without a verdict where the run lacks an arm.

    Cost:
        Some tests over subjects; no model is run.
    """
    return judge(Evidence(run))


def judge(evidence: Evidence) -> tuple[Claim, ...]:
    """Return what `judge_claims` returns, from evidence that is there already."""
    return tuple(_ask(question, find_answer, evidence) for question, find_answer in _QUESTIONS)


def _ask(question: Question, find_answer: Callable[[Evidence, Arm], _Answer | str], evidence: Evidence) -> Claim:
    """Ask one question of a run that may lack what it needs."""
    found: _Answer | str = "the run has no result of FGSM as it is defined under an L_inf budget"
    if evidence.reference is not None:
        found = find_answer(evidence, evidence.reference)
    asked = (question.name, question.statement, question.text)
    if isinstance(found, str):
        return Claim(*asked, None, f"Not asked: {found}.")
    return Claim(
        *asked,
        found.verdict,
        found.text,
        found.estimate,
        found.p,
        found.findings,
        found.measure,
        found.shortage if found.verdict == "undecidable" else None,
    )


def _answer_vulnerable(evidence: Evidence, fgsm: Arm) -> _Answer | str:
    """Claim 1: the answer, or what the run lacks."""
    if not evidence.controls:
        return "the run has no noise of equal norm to compare with"
    if gaps := evidence.find_gaps((fgsm, *evidence.controls)):
        return gaps
    pairs = [(model, control) for model in evidence.models for control in evidence.controls]
    tests = [evidence.compare(average(fgsm, [m]) - average(c, [m])) for m, c in pairs]
    names = [f"{model}: FGSM less {name_arm(control)}" for model, control in pairs]
    findings = sort_out(names, tests, needs_all=True)
    harm = {control: evidence.compare(average(control, evidence.models)).mean for control in evidence.controls}
    strongest = max(evidence.controls, key=lambda control: _or_lowest(harm[control]))
    overall = evidence.compare(average(fgsm, evidence.models) - average(strongest, evidence.models))
    verdict, p = judge_all(findings), find_largest_p(tests)
    text = (
        f"{say_where(evidence, overall)}, the drop of Dice under {name_arm(fgsm)}, less that under "
        f"{name_arm(strongest)}, the most harmful noise of equal L_inf norm, is {show_difference(overall)} on the mean "
        f"of {show_models(evidence)}; largest p of {show_count(len(findings), 'comparison')}: {show_p(p)}. "
        f"{conclude(verdict, overall.n, 'subject')}"
    )
    if verdict == "contradicted":
        text += " A gradient that does less than noise misleads (it may be masked); that is no sign of robustness."
    return _Answer(verdict, text, overall, p, findings, find_shortage(tests))


def _answer_size(evidence: Evidence, _: Arm) -> _Answer | str:
    """Claim 2: the answer, or what the run lacks."""
    size = associate(evidence, "parameters")
    n, spearman, pearson = len(size.models), size.correlation.spearman, size.correlation.pearson
    if spearman is None or pearson is None:
        return f"the correlation is undefined, since {size.correlation.reason}"
    verdict: Verdict = "undecided"
    if size.equivalence.equivalent:
        verdict = "supported"
    elif spearman.p is not None and spearman.p <= ALPHA:
        verdict = "contradicted"
    elif n < FEWEST_FOR_RANKS:
        verdict = "undecidable"
    least = pearson.smallest_detectable
    detectable = "no correlation can" if least is None else f"a correlation under {least:.2f} cannot"
    models = show_count(n, "model")
    text = (
        f"{say_where(evidence)}, log parameters and Diff of {models} have the correlation "
        f"{show_correlation(pearson.value, pearson.lower, pearson.upper)} and the rank correlation "
        f"{spearman.value:+.2f}, p = {show_p(spearman.p)}. With {models} {detectable} be told from chance, "
        f"and showing that there is none (within {NO_CORRELATION:g}) takes "
        f"at least {count_models_needed()}. {conclude(verdict, n, 'model')}"
    )
    return _Answer(verdict, text, None, spearman.p, (), Shortage("model", FEWEST_FOR_RANKS, n))


def _answer_bce(evidence: Evidence, _: Arm) -> _Answer | str:
    """Claim 3: the answer, or what the run lacks."""
    other = evidence.training_loss
    arms = make_arm("fgsm", "bce"), make_arm("fgsm", other)
    if other == "bce":
        return "the models were trained with BCE itself"
    if missing := [name_arm(arm) for arm in arms if arm not in evidence.arms]:
        return f"the run has no result of {' and '.join(missing)}"
    if gaps := evidence.find_gaps(arms):
        return gaps
    each = [evidence.compare(average(arms[0], [model]) - average(arms[1], [model])) for model in evidence.models]
    overall = evidence.compare(average(arms[0], evidence.models) - average(arms[1], evidence.models))
    verdict = decide(overall, overall.p, overall.smallest_p)
    won = sum((test.mean or 0) > 0 for test in each)
    text = (
        f"{say_where(evidence, overall)}, the drop of Dice under FGSM with BCE, less that with {other}, the training "
        f"loss, is {show_difference(overall)} on the mean of {show_models(evidence)}, and above 0 on {won}; "
        f"p = {show_p(overall.p)}. {conclude(verdict, overall.n, 'subject')}"
    )
    findings = sort_out(list(evidence.models), each)
    return _Answer(verdict, text, overall, overall.p, findings, find_shortage([overall]))


def _answer_best(evidence: Evidence, fgsm: Arm) -> _Answer | str:
    """Claim 4: the answer, or what the run lacks."""
    if len(evidence.models) < 2 or not evidence.controls:
        lacks = "a second model" if len(evidence.models) < 2 else "noise of equal norm to compare with"
        return f"the run lacks {lacks}"
    noise = evidence.controls[0]
    if gaps := evidence.find_gaps((fgsm, noise)):
        return gaps
    clean = {m: evidence.compare(average(fgsm, [m], "dice_clean")).mean or 0.0 for m in evidence.models}
    if lost := [model for model, dice in clean.items() if not dice]:
        return f"{' and '.join(lost)} has no clean Dice to lose a share of"
    best, second = sorted(clean, key=lambda m: -clean[m])[:2]
    lead = evidence.compare(average(fgsm, [best], "dice_clean") - average(fgsm, [second], "dice_clean"))
    beyond = {m: (average(fgsm, [m]) - average(noise, [m])) / clean[m] for m in evidence.models}
    others = [model for model in evidence.models if model != best]
    tests = [evidence.compare(beyond[best] - beyond[model]) for model in others]
    findings = sort_out([f"{best} less {model}" for model in others], tests, needs_all=True)
    verdict, p = judge_all(findings), find_largest_p(tests)
    closest, rival = min(zip(tests, others, strict=True), key=lambda pair: _or_lowest(pair[0].mean))
    led = "significant" if lead.p is not None and lead.p <= ALPHA else "not significant"
    text = (
        f"{say_where(evidence, closest)}, {best} has the best clean Dice ({clean[best]:.3f}; its lead over {second} "
        f"is {led}, p = {show_p(lead.p)}). The share that {name_arm(fgsm)} takes of it beyond {name_arm(noise)}, less "
        f"the share that it takes of {rival}'s, the largest among the others, is {show_difference(closest)}; largest p "
        f"of {show_count(len(findings), 'comparison')}: {show_p(p)}. {conclude(verdict, closest.n, 'subject')}"
    )
    if verdict == "contradicted":
        text += " That is so on these data; what can happen elsewhere, one data set cannot exclude."
    measure = "share of the clean Dice that is lost"
    return _Answer(verdict, text, closest, p, findings, find_shortage(tests), measure)


def _or_lowest(value: float | None) -> float:
    """A number to compare by; one that is not known comes first."""
    return -math.inf if value is None else value


_QUESTIONS = (
    (VULNERABLE, _answer_vulnerable),
    (SIZE, _answer_size),
    (BCE, _answer_bce),
    (BEST, _answer_best),
)
"""In the order of the study."""
