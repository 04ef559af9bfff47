"""Tests the study's claims on a run: one answer and one verdict for each question."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from advseg_bench.claims.associations import NO_CORRELATION, associate, count_models_needed
from advseg_bench.claims.evidence import Evidence, average, make_arm, name_arm
from advseg_bench.claims.findings import ALPHA, Finding, Shortage, find_shortage, judge_all, sort_out
from advseg_bench.claims.questions import BCE, BEST, SIZE, VULNERABLE, Question
from advseg_bench.claims.wording import (
    conclude,
    describe_data,
    show_correlation,
    show_count,
    show_deciding,
    show_difference,
    show_models,
    show_p,
    show_wins,
)
from advseg_bench.results.arms import WORST
from advseg_bench.results.run import Run
from advseg_bench.stats import PairedTest, Verdict, decide
from advseg_bench.suite.cells import Arm

FEWEST_FOR_RANKS = 5
"""The fewest models with which a rank correlation can be significant at 5 %."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of arXiv 2401.11224, judged on one run.

    Attributes:
        name: Short name, for anchors and files: "vulnerable", "size", "bce" or "best".
        statement: The claim in one sentence.
        question: The exact question that was tested, with its arms and its decision rule.
        verdict: "supported", "contradicted", "undecided" or "undecidable"; None if the run lacks an arm, which `answer`
            names.
        answer: The result in sentences that can be quoted.
        estimate: The main estimate with its test, in the unit of `measure`; None for a claim about a correlation.
        p: The p value that decides the verdict, two-sided; of a claim that needs every finding, the largest p, or the
            adjusted p of the finding that contradicts it.
        findings: The tests that the verdict is based on.
        measure: The quantity that the estimate and the findings are differences of.
        shortage: The sample that is too small, if the verdict is "undecidable".

    Source:
        arXiv 2401.11224.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> x = torch.linspace(0, 1, 512).reshape(2, 1, 16, 16)
        >>> batch = ab.Batch.of(x, x[:, 0] > 0.5, task="binary", subjects=["Anna", "Ben"])
        >>> run = ab.evaluate(torch.nn.SiLU(), batch, ab.attacks.FGSM(loss="bce"))
        >>> ab.judge_claims(run)[0].answer
        'Not asked: the run has no noise of equal norm to compare with.'
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
    """The result of a question. The attributes are those of `Claim`; `text` is its `answer`."""

    verdict: Verdict
    text: str
    estimate: PairedTest | None
    p: float | None
    findings: tuple[Finding, ...]
    shortage: Shortage | None
    measure: str = "drop of mean Dice"


def judge_claims(run: Run) -> tuple[Claim, ...]:
    """Judge the four claims of arXiv 2401.11224 on a run.

    Args:
        run: A run with FGSM and at least one noise baseline, finished or not.

    Returns:
        One `Claim` for each claim, in the order of the study; its verdict is None where the run lacks an arm.

    Raises:
        RecordError: If a file of the run is damaged.

    Cost:
        Tests over subjects; no forward or backward pass.

    Source:
        arXiv 2401.11224.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> x, model = torch.linspace(0, 1, 512).reshape(2, 1, 16, 16), torch.nn.SiLU()
        >>> attacks = [ab.attacks.FGSM(loss="bce"), ab.attacks.RandomSign()]
        >>> batch = ab.Batch.of(x, x[:, 0] > 0.5, task="binary", subjects=["Anna", "Ben"])
        >>> run = ab.evaluate(model, batch, attacks)
        >>> claim = ab.judge_claims(run)[0]
        >>> claim.name, claim.verdict, claim.shortage.needed
        ('vulnerable', 'undecidable', 6)
    """
    return judge(Evidence(run))


def judge(evidence: Evidence) -> tuple[Claim, ...]:
    """Judge the claims as `judge_claims` does, from evidence that was collected before."""
    return tuple(_ask(question, find_answer, evidence) for question, find_answer in _QUESTIONS)


def _ask(question: Question, find_answer: Callable[[Evidence, Arm], _Answer | str], evidence: Evidence) -> Claim:
    """Answer one question, or report what the run lacks for it."""
    found: _Answer | str = "the run has no result of FGSM as defined under an L_inf budget"
    if evidence.run.about.data.by_image:
        found = "no subjects were given, and the claims are about subjects"
    elif evidence.reference is not None:
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
    """Answer claim 1, or return what the run lacks."""
    if not evidence.controls:
        return "the run has no noise of equal norm to compare with"
    if gaps := evidence.find_gaps((fgsm, *evidence.controls)):
        return gaps
    pairs = [(model, control) for model in evidence.models for control in evidence.controls]
    tests = [evidence.compare(average(fgsm, [m]) - average(c, [m])) for m, c in pairs]
    names = [f"{model}: FGSM minus {name_arm(control)}" for model, control in pairs]
    findings = sort_out(names, tests, needs_all=True)
    strongest = _find_most_harmful(evidence)
    overall = evidence.compare(average(fgsm, evidence.models) - average(strongest, evidence.models))
    verdict, (deciding, p) = judge_all(findings), show_deciding(findings)
    text = (
        f"{describe_data(evidence, overall)}, the drop of Dice under {name_arm(fgsm)} minus that under "
        f"{name_arm(strongest)}, the most harmful noise of equal L_inf norm, is {show_difference(overall)} on average "
        f"over {show_models(evidence)}; {deciding}. "
        f"{conclude(verdict, overall.n, 'subject')}"
    )
    if verdict == "contradicted":
        text += " A gradient attack that is weaker than noise suggests gradient masking, not robustness."
    text += _describe_worst_case(evidence)
    return _Answer(verdict, text, overall, p, findings, find_shortage(tests))


def _describe_worst_case(evidence: Evidence) -> str:
    """Return a sentence on the worst case over the attacks, beside that on FGSM; "" if it is not known on each model.

    No claim rests on it, since it is chosen image by image.
    """
    worst = make_arm(WORST)
    if worst not in evidence.arms or evidence.find_gaps((worst,)):
        return ""
    drop = evidence.compare(average(worst, evidence.models))
    lowered = f"lowers Dice by {show_difference(drop)} on average over {show_models(evidence)}"
    return f" The worst case over the attacks, image by image, {lowered}."


def _answer_size(evidence: Evidence, _: Arm) -> _Answer | str:
    """Answer claim 2, or return what the run lacks."""
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
    detectable = "no correlation is" if least is None else f"a correlation under {least:.2f} is not"
    models = show_count(n, "model")
    text = (
        f"{describe_data(evidence)}, log number of parameters and Diff of {models} have the correlation "
        f"{show_correlation(pearson.value, pearson.lower, pearson.upper)} and the rank correlation "
        f"{spearman.value:+z.2f}, p = {show_p(spearman.p)}. With {models}, {detectable} significant; at least "
        f"{count_models_needed()} models are needed to show that it is negligible (within {NO_CORRELATION:g}). "
        f"{conclude(verdict, n, 'model')}"
    )
    return _Answer(verdict, text, None, spearman.p, (), Shortage("model", FEWEST_FOR_RANKS, n))


def _answer_bce(evidence: Evidence, _: Arm) -> _Answer | str:
    """Answer claim 3, or return what the run lacks."""
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
        f"{describe_data(evidence, overall)}, the drop of Dice under FGSM with BCE minus that with {other}, the "
        f"training loss, is {show_difference(overall)} on average over {show_models(evidence)}, and above 0 "
        f"{show_wins(won, len(each))}; p = {show_p(overall.p)}. {conclude(verdict, overall.n, 'subject')}"
    )
    findings = sort_out(list(evidence.models), each)
    return _Answer(verdict, text, overall, overall.p, findings, find_shortage([overall]))


def _answer_best(evidence: Evidence, fgsm: Arm) -> _Answer | str:
    """Answer claim 4, or return what the run lacks."""
    if len(evidence.models) < 2 or not evidence.controls:
        lacks = "a second model" if len(evidence.models) < 2 else "noise of equal norm to compare with"
        return f"the run lacks {lacks}"
    noise = _find_most_harmful(evidence)
    if gaps := evidence.find_gaps((fgsm, noise)):
        return gaps
    clean = {m: evidence.compare(average(fgsm, [m], "dice_clean")).mean or 0.0 for m in evidence.models}
    if lost := [model for model, dice in clean.items() if not dice]:
        return f"the clean Dice of {' and '.join(lost)} is 0"
    best, second = sorted(clean, key=lambda m: -clean[m])[:2]
    lead = evidence.compare(average(fgsm, [best], "dice_clean") - average(fgsm, [second], "dice_clean"))
    beyond = {m: (average(fgsm, [m]) - average(noise, [m])) / clean[m] for m in evidence.models}
    others = [model for model in evidence.models if model != best]
    tests = [evidence.compare(beyond[best] - beyond[model]) for model in others]
    findings = sort_out([f"{best} minus {model}" for model in others], tests, needs_all=True)
    verdict, (deciding, p) = judge_all(findings), show_deciding(findings)
    closest, rival = min(zip(tests, others, strict=True), key=lambda pair: _or_lowest(pair[0].mean))
    led = "significant" if lead.p is not None and lead.p <= ALPHA else "not significant"
    text = (
        f"{describe_data(evidence, closest)}, {best} has the best clean Dice ({clean[best]:.3f}; its lead over "
        f"{second} is {led}, p = {show_p(lead.p)}). The share of its clean Dice that it loses to {name_arm(fgsm)} "
        f"beyond {name_arm(noise)}, the most harmful noise of equal L_inf norm, minus that of {rival}, the largest "
        f"among the others, is {show_difference(closest)}; {deciding}. "
        f"{conclude(verdict, closest.n, 'subject')}"
    )
    if verdict == "contradicted":
        text += " This holds for these data; one data set cannot rule the claim out elsewhere."
    measure = "share of the clean Dice that is lost"
    return _Answer(verdict, text, closest, p, findings, find_shortage(tests), measure)


def _find_most_harmful(evidence: Evidence) -> Arm:
    """Return the noise baseline with the largest drop averaged over models; of equal ones, the first."""
    harm = {control: evidence.compare(average(control, evidence.models)).mean for control in evidence.controls}
    return max(evidence.controls, key=lambda control: _or_lowest(harm[control]))


def _or_lowest(value: float | None) -> float:
    """Return a sort key; an unknown value comes first."""
    return -math.inf if value is None else value


_QUESTIONS = (
    (VULNERABLE, _answer_vulnerable),
    (SIZE, _answer_size),
    (BCE, _answer_bce),
    (BEST, _answer_best),
)
"""Each question with the function that answers it, in the order of the study."""
