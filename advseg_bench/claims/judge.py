"""The claims of arXiv 2401.11224, each as a question that was fixed before the data, and what a run answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advseg_bench.claims.associations import NO_CORRELATION, associate, count_models_needed
from advseg_bench.claims.evidence import Evidence, average, make_arm
from advseg_bench.claims.findings import ALPHA, Finding, find_largest_p, judge_all, sort_out
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


def judge_claims(run: Run) -> tuple[Claim, ...]:
    """Judge every claim on a run.

    Returns: One `Claim` each, in the order of the study; without a verdict where the run lacks an arm. Cost: some
        tests over subjects; no model is run.
    """
    return judge(Evidence(run))


def judge(evidence: Evidence) -> tuple[Claim, ...]:
    """Return what `judge_claims` returns, from evidence that is there already."""
    if evidence.reference is None:
        reason = "the run has no result of FGSM as it is defined under an L_inf budget."
        return tuple(Claim(name, *_TEXTS[name], None, f"Not asked: {reason}") for name in _TEXTS)
    return (
        _judge_vulnerable(evidence),
        _judge_size(evidence),
        _judge_bce(evidence),
        _judge_best(evidence),
    )


_TEXTS = {
    "vulnerable": (
        "Medical segmentation models are vulnerable to FGSM.",
        "On every model, does FGSM with the training loss (where that was not run, the first of the suite) lower Dice "
        "more than each noise of equal L_inf norm? "
        "Supported if every difference is significant, so that p is the largest of them; contradicted if on a model a "
        "noise is significantly the worse (Holm).",
    ),
    "size": (
        "The number of parameters and attack success are nearly uncorrelated.",
        f"Is the correlation of log parameters with Diff within +-{NO_CORRELATION:g} (two one-sided tests)? "
        "Contradicted if the rank correlation is significant (exact for up to 8 models).",
    ),
    "bce": (
        "BCE as the attack loss succeeds more than the loss used for training.",
        "On the mean over models, does FGSM with BCE lower Dice more than FGSM with the training loss? Losses called "
        "as they are defined, additive step, true labels.",
    ),
    "best": (
        "The model with the best clean score can be the most vulnerable.",
        "Does the model with the best clean Dice lose a larger share of it beyond random noise of equal norm than "
        "every other model? A share, since who has more can lose more. Supported if every difference is significant, "
        "so that p is the largest of them; contradicted, as far as these data go, if another model loses a "
        "significantly larger share (Holm).",
    ),
}


def _judge_vulnerable(evidence: Evidence) -> Claim:
    """Claim 1."""
    text = _TEXTS["vulnerable"]
    fgsm = evidence.reference
    assert fgsm is not None
    if not evidence.controls:
        return Claim("vulnerable", *text, None, "Not asked: the run has no noise of equal norm to compare with.")
    if gaps := evidence.find_gaps((fgsm, *evidence.controls)):
        return Claim("vulnerable", *text, None, f"Not asked: {gaps}.")
    pairs = [(model, control) for model in evidence.models for control in evidence.controls]
    tests = [evidence.compare(average(fgsm, [m]) - average(c, [m])) for m, c in pairs]
    findings = sort_out([f"{model}: FGSM less {c.label}" for model, c in pairs], tests, needs_all=True)
    harm = {control: evidence.compare(average(control, evidence.models)).mean for control in evidence.controls}
    strongest = max(evidence.controls, key=lambda control: _or_lowest(harm[control]))
    overall = evidence.compare(average(fgsm, evidence.models) - average(strongest, evidence.models))
    verdict, p = judge_all(findings), find_largest_p(tests)
    answer = (
        f"{say_where(evidence, overall)}, the drop of Dice under {fgsm.label}, less that under {strongest.label}, the "
        f"most harmful noise of equal L_inf norm, is {show_difference(overall)} on the mean of "
        f"{show_models(evidence)}; largest p of {show_count(len(findings), 'comparison')}: {show_p(p)}. "
        f"{conclude(verdict, overall.n, 'subject')}"
    )
    if verdict == "contradicted":
        answer += " A gradient that does less than noise misleads (it may be masked); that is no sign of robustness."
    return Claim("vulnerable", *text, verdict, answer, overall, p, findings)


def _judge_bce(evidence: Evidence) -> Claim:
    """Claim 3."""
    text, other = _TEXTS["bce"], evidence.training_loss
    arms = make_arm("fgsm", "bce"), make_arm("fgsm", other)
    if other == "bce":
        return Claim("bce", *text, None, "Not asked: the models were trained with BCE itself.")
    if missing := [arm.label for arm in arms if arm not in evidence.arms]:
        return Claim("bce", *text, None, f"Not asked: the run has no result of {' and '.join(missing)}.")
    if gaps := evidence.find_gaps(arms):
        return Claim("bce", *text, None, f"Not asked: {gaps}.")
    each = [evidence.compare(average(arms[0], [model]) - average(arms[1], [model])) for model in evidence.models]
    findings = sort_out(list(evidence.models), each)
    overall = evidence.compare(average(arms[0], evidence.models) - average(arms[1], evidence.models))
    verdict = decide(overall, overall.p, overall.smallest_p)
    won = sum((test.mean or 0) > 0 for test in each)
    answer = (
        f"{say_where(evidence, overall)}, the drop of Dice under FGSM with BCE, less that with {other}, the training "
        f"loss, is {show_difference(overall)} on the mean of {show_models(evidence)}, and above 0 on {won}; "
        f"p = {show_p(overall.p)}. {conclude(verdict, overall.n, 'subject')}"
    )
    return Claim("bce", *text, verdict, answer, overall, overall.p, findings)


def _judge_best(evidence: Evidence) -> Claim:
    """Claim 4."""
    text = _TEXTS["best"]
    fgsm = evidence.reference
    assert fgsm is not None
    if len(evidence.models) < 2 or not evidence.controls:
        lacks = "a second model" if len(evidence.models) < 2 else "noise of equal norm to compare with"
        return Claim("best", *text, None, f"Not asked: the run lacks {lacks}.")
    noise = evidence.controls[0]
    if gaps := evidence.find_gaps((fgsm, noise)):
        return Claim("best", *text, None, f"Not asked: {gaps}.")
    clean = {m: evidence.compare(average(fgsm, [m], "dice_clean")).mean or 0.0 for m in evidence.models}
    if lost := [model for model, dice in clean.items() if not dice]:
        return Claim("best", *text, None, f"Not asked: {' and '.join(lost)} has no clean Dice to lose a share of.")
    best, second = sorted(clean, key=lambda m: -clean[m])[:2]
    lead = evidence.compare(average(fgsm, [best], "dice_clean") - average(fgsm, [second], "dice_clean"))
    beyond = {m: (average(fgsm, [m]) - average(noise, [m])) / clean[m] for m in evidence.models}
    others = [model for model in evidence.models if model != best]
    tests = [evidence.compare(beyond[best] - beyond[model]) for model in others]
    findings = sort_out([f"{best} less {model}" for model in others], tests, needs_all=True)
    verdict, p = judge_all(findings), find_largest_p(tests)
    closest, rival = min(zip(tests, others, strict=True), key=lambda pair: _or_lowest(pair[0].mean))
    led = "significant" if lead.p is not None and lead.p <= ALPHA else "not significant"
    answer = (
        f"{say_where(evidence, closest)}, {best} has the best clean Dice ({clean[best]:.3f}; its lead over {second} "
        f"is {led}, p = {show_p(lead.p)}). The share that {fgsm.label} takes of it beyond {noise.label}, less the "
        f"share that it takes of {rival}'s, the largest among the others, is {show_difference(closest)}; largest p of "
        f"{show_count(len(findings), 'comparison')}: {show_p(p)}. "
        f"{conclude(verdict, closest.n, 'subject')}"
    )
    if verdict == "contradicted":
        answer += " That is so on these data; what can happen elsewhere, one data set cannot exclude."
    return Claim("best", *text, verdict, answer, closest, p, findings, "share of the clean Dice that is lost")


def _or_lowest(value: float | None) -> float:
    """A number to compare by; one that is not known comes first."""
    return -math.inf if value is None else value


def _judge_size(evidence: Evidence) -> Claim:
    """Claim 2."""
    text = _TEXTS["size"]
    size = associate(evidence, "parameters")
    n, spearman, pearson = len(size.models), size.correlation.spearman, size.correlation.pearson
    if spearman is None or pearson is None:
        return Claim("size", *text, None, f"Not asked: the correlation is undefined, since {size.correlation.reason}.")
    verdict: Verdict = "undecided"
    if size.equivalence.equivalent:
        verdict = "supported"
    elif spearman.p is not None and spearman.p <= ALPHA:
        verdict = "contradicted"
    elif n < FEWEST_FOR_RANKS:
        verdict = "undecidable"
    least = pearson.smallest_detectable
    detectable = "no correlation" if least is None else f"a correlation under {least:.2f}"
    power = f"{detectable} {'can' if least is None else 'cannot'} be told from chance"
    answer = (
        f"{say_where(evidence)}, log parameters and Diff of {show_count(n, 'model')} have the correlation "
        f"{show_correlation(pearson.value, pearson.lower, pearson.upper)} and the rank correlation "
        f"{spearman.value:+.2f}, p = {show_p(spearman.p)}. With {show_count(n, 'model')} {power}, "
        f"and showing that there is none (within {NO_CORRELATION:g}) takes "
        f"at least {count_models_needed()}. {conclude(verdict, n, 'model')}"
    )
    return Claim("size", *text, verdict, answer, p=spearman.p)
