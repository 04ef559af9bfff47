"""The claims of arXiv 2401.11224, each as a question that was fixed before the data, and what a run answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from advseg_bench.claims.evidence import Arm, Contrast, Evidence, average, make_arm
from advseg_bench.results import Run
from advseg_bench.stats import (
    Correlation,
    Equivalence,
    PairedTest,
    Verdict,
    correlate,
    decide,
    equivalent_correlation,
    holm,
)

ALPHA = 0.05
NO_CORRELATION = 0.3
"""The largest correlation that counts as none: a property that explains less than a tenth of the variance."""
FEWEST_FOR_RANKS = 5
"""Under this many models no order of them is rarer than 5 %."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One test that a claim rests on.

    Attributes:
        what: What is compared, such as a model's name.
        test: Estimate, interval and p; the estimate is above 0 where the claim is right.
        adjusted_p: p by Holm's method in the family of the claim's findings.
        smallest_adjusted: What it could at best have been.
        verdict: What the finding alone says.
    """

    what: str
    test: PairedTest
    adjusted_p: float | None
    smallest_adjusted: float | None
    verdict: Verdict


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
        findings: The tests behind it.
    """

    name: str
    statement: str
    question: str
    verdict: Verdict | None
    answer: str
    estimate: PairedTest | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Association:
    """How a property of the models goes with attack success: Diff of the reference arm.

    Attributes:
        what: The property.
        models: Those whose property is known.
        x: Its values.
        y: Attack success.
        correlation: Linear and rank correlation.
        equivalence: Whether the linear one is small enough to count as none.
    """

    what: str
    models: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    correlation: Correlation
    equivalence: Equivalence


@dataclass(frozen=True, slots=True)
class Crossing:
    """BCE against the training loss under one argument order and step form, on the mean over models.

    Attributes:
        order: "defined" or "released".
        form: "additive", "blend" or "blend_released".
        bce: Drop of Dice under BCE.
        other: Drop of Dice under the training loss.
        linf: Mean measured L_inf under either, in image units.
        finding: bce less other.
    """

    order: str
    form: str
    bce: PairedTest
    other: PairedTest
    linf: tuple[float | None, float | None]
    finding: Finding


def judge_claims(run: Run) -> tuple[Claim, ...]:
    """Judge every claim on a run.

    Returns: One `Claim` each, in the order of the study; without a verdict where the run lacks an arm. Cost: some
        tests over subjects; no model is run.
    """
    evidence = Evidence(run)
    if evidence.reference is None:
        reason = "The run has no result of FGSM under an L_inf budget."
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
        "On every model, does FGSM with the training loss lower Dice more than each noise of equal L_inf norm? "
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
        "Does the model with the best clean Dice lose more beyond random noise of equal norm than every other model? "
        "Supported if every difference is significant, so that p is the largest of them; contradicted if another model "
        "loses significantly more (Holm).",
    ),
}


def _judge_vulnerable(evidence: Evidence) -> Claim:
    """Claim 1."""
    text = _TEXTS["vulnerable"]
    fgsm = evidence.reference
    assert fgsm is not None
    if not evidence.controls:
        return Claim("vulnerable", *text, None, "Not asked: the run has no noise of equal norm to compare with.")
    pairs = [(model, control) for model in evidence.models for control in evidence.controls]
    tests = [evidence.compare(average(fgsm, [m]) - average(c, [m])) for m, c in pairs]
    findings = _sort_out([f"{model}: FGSM less {control.label}" for model, control in pairs], tests)
    strongest = max(evidence.controls, key=lambda c: evidence.compare(average(c, evidence.models)).mean or -math.inf)
    overall = evidence.compare(average(fgsm, evidence.models) - average(strongest, evidence.models))
    verdict = _judge_all(findings)
    answer = (
        f"{_where(evidence)}, {fgsm.label} lowers Dice by {_tell(overall)} more than {strongest.label}, the most harmful "
        f"noise of equal L_inf norm, on the mean of {_plural(len(evidence.models), 'model')}; largest p of "
        f"{_plural(len(findings), 'comparison')}: {_show_p(_largest(t.p for t in tests))}. "
        f"{_conclude(verdict, overall, len(findings))}"
    )
    return Claim("vulnerable", *text, verdict, answer, overall, findings)


def _judge_bce(evidence: Evidence) -> Claim:
    """Claim 3."""
    text, other = _TEXTS["bce"], evidence.training_loss
    arms = make_arm("fgsm", "bce"), make_arm("fgsm", other)
    if other == "bce":
        return Claim("bce", *text, None, "Not asked: the models were trained with BCE itself.")
    if missing := [arm.label for arm in arms if arm not in evidence.arms]:
        return Claim("bce", *text, None, f"Not asked: the run has no result of {' and '.join(missing)}.")
    each = [evidence.compare(average(arms[0], [model]) - average(arms[1], [model])) for model in evidence.models]
    findings = _sort_out(list(evidence.models), each)
    overall = evidence.compare(average(arms[0], evidence.models) - average(arms[1], evidence.models))
    verdict = decide(overall, overall.p, overall.smallest_p)
    won = sum((test.mean or 0) > 0 for test in each)
    answer = (
        f"{_where(evidence)}, FGSM with BCE lowers Dice by {_tell(overall)} more than with {other}, the training loss, "
        f"on the mean of {_plural(len(evidence.models), 'model')}, and by more on {won} of them; "
        f"p = {_show_p(overall.p)}. {_conclude(verdict, overall)}"
    )
    return Claim("bce", *text, verdict, answer, overall, findings)


def _judge_best(evidence: Evidence) -> Claim:
    """Claim 4."""
    text = _TEXTS["best"]
    fgsm = evidence.reference
    assert fgsm is not None
    if len(evidence.models) < 2 or not evidence.controls:
        lacks = "a second model" if len(evidence.models) < 2 else "noise of equal norm to compare with"
        return Claim("best", *text, None, f"Not asked: the run lacks {lacks}.")
    noise = evidence.controls[0]
    clean = {m: evidence.compare(average(fgsm, [m], "dice_clean")).mean or 0.0 for m in evidence.models}
    best, second = sorted(clean, key=lambda m: -clean[m])[:2]
    lead = evidence.compare(average(fgsm, [best], "dice_clean") - average(fgsm, [second], "dice_clean"))
    beyond = {m: average(fgsm, [m]) - average(noise, [m]) for m in evidence.models}
    others = [model for model in evidence.models if model != best]
    tests = [evidence.compare(beyond[best] - beyond[model]) for model in others]
    findings = _sort_out([f"{best} less {model}" for model in others], tests)
    verdict = _judge_all(findings)
    closest = min(tests, key=lambda test: -math.inf if test.mean is None else test.mean)
    led = lead.p is not None and lead.p <= ALPHA
    answer = (
        f"{_where(evidence)}, {best} has the best clean Dice ({clean[best]:.3f}; the lead over {second} is "
        f"{'significant' if led else 'not significant'}, p = {_show_p(lead.p)}). To {fgsm.label} it loses "
        f"{_tell(closest)} more beyond {noise.label} than the model that loses most of the others; largest p of "
        f"{_plural(len(findings), 'comparison')}: {_show_p(_largest(t.p for t in tests))}. "
        f"{_conclude(verdict, closest, len(findings))}"
    )
    return Claim("best", *text, verdict, answer, closest, findings)


def _judge_size(evidence: Evidence) -> Claim:
    """Claim 2."""
    text = _TEXTS["size"]
    size = associate(evidence, "parameters")
    n, spearman, pearson = len(size.models), size.correlation.spearman, size.correlation.pearson
    if spearman is None or pearson is None:
        return Claim("size", *text, None, f"Not asked: the correlation is undefined, since {size.correlation.reason}.")
    needed = _models_needed()
    verdict: Verdict = "undecided"
    if size.equivalence.equivalent:
        verdict = "supported"
    elif n >= FEWEST_FOR_RANKS and spearman.p is not None and spearman.p <= ALPHA:
        verdict = "contradicted"
    elif n < FEWEST_FOR_RANKS:
        verdict = "undecidable"
    detectable = pearson.smallest_detectable
    answer = (
        f"{_where(evidence)}, log parameters and Diff of {n} models have r = {_show_r(pearson.value)}"
        f"{_show_ends(pearson.lower, pearson.upper)} and rank correlation {_show_r(spearman.value)}, p = "
        f"{_show_p(spearman.p)}. "
        + (f"With {n} models only |r| of {detectable:.2f} or more can be told from chance" if detectable else "")
        + f", and at least {needed} are needed to show that there is none (within {NO_CORRELATION:g}). "
        f"{_END[verdict].format(n=_plural(n, 'model'))}"
    )
    return Claim("size", *text, verdict, answer)


def associate(evidence: Evidence, what: str) -> Association:
    """Correlate a property of the models with Diff of the reference arm.

    Args:
        evidence: The results.
        what: "parameters", "flops" (both as logarithms), "receptive_field" or "clean Dice".
    """
    fgsm = evidence.reference
    assert fgsm is not None
    points = []
    for model in evidence.models:
        drop = evidence.compare(average(fgsm, [model])).mean
        clean = evidence.compare(average(fgsm, [model], "dice_clean")).mean
        known = clean if what == "clean Dice" else evidence.run.models.get(model, {}).get(what)
        if drop is None or not clean or known is None:
            continue
        x = math.log10(known) if what in ("parameters", "flops") and known > 0 else float(known)
        points.append((model, x, drop / clean))
    models, x, y = (tuple(column) for column in zip(*points, strict=True)) if points else ((), (), ())
    correlation = correlate(x, y)
    r = correlation.pearson.value if correlation.pearson else None
    return Association(what, models, x, y, correlation, equivalent_correlation(r, len(points), NO_CORRELATION))


def cross(evidence: Evidence) -> tuple[Crossing, ...]:
    """Compare BCE with the training loss under every argument order and step form that was run with both."""
    made: list[tuple[str, str, Arm, Arm]] = []
    for order in ("defined", "released"):
        for form in ("additive", "blend", "blend_released"):
            settings = {k: v for k, v in (("order", order), ("form", form)) if v not in ("defined", "additive")}
            bce, other = (make_arm("fgsm", loss, settings) for loss in ("bce", evidence.training_loss))
            if bce != other and {bce, other} <= evidence.arms:
                made.append((order, form, bce, other))
    models = evidence.models
    tests = [evidence.compare(average(bce, models) - average(other, models)) for _, _, bce, other in made]
    findings = _sort_out([f"{order}, {form}" for order, form, _, _ in made], tests)
    measure: Callable[[Arm], PairedTest] = lambda arm: evidence.compare(average(arm, models))  # noqa: E731
    linf: Callable[[Arm], float | None] = lambda arm: evidence.compare(average(arm, models, "linf")).mean  # noqa: E731
    return tuple(
        Crossing(order, form, measure(bce), measure(other), (linf(bce), linf(other)), finding)
        for (order, form, bce, other), finding in zip(made, findings, strict=True)
    )


def compare_orders(evidence: Evidence) -> PairedTest | None:
    """Return how much of BCE's lead comes from swapped arguments: lead as released less lead as defined, additive."""
    losses = ("bce", evidence.training_loss)
    arms = {
        order: [make_arm("fgsm", loss, {} if order == "defined" else {"order": order}) for loss in losses]
        for order in ("defined", "released")
    }
    if not {arm for pair in arms.values() for arm in pair} <= evidence.arms or len(set(losses)) < 2:
        return None
    lead = {order: average(a, evidence.models) - average(b, evidence.models) for order, (a, b) in arms.items()}
    return evidence.compare(lead["released"] - lead["defined"])


def _sort_out(names: Sequence[str], tests: Sequence[PairedTest]) -> tuple[Finding, ...]:
    """Adjust a family of tests for their number, and judge each."""
    adjusted = holm([test.p for test in tests])
    smallest = holm([test.smallest_p for test in tests])
    return tuple(
        Finding(name, test, p, least, decide(test, p, least, ALPHA))
        for name, test, p, least in zip(names, tests, adjusted, smallest, strict=True)
    )


def _judge_all(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim that says something of all of its findings: each must hold by itself, so none is adjusted."""
    single = [decide(f.test, f.test.p, f.test.smallest_p, ALPHA) for f in findings]
    if any(finding.verdict == "contradicted" for finding in findings):
        return "contradicted"
    if "undecidable" in single:
        return "undecidable"
    return "supported" if set(single) == {"supported"} else "undecided"


def _largest(ps: object) -> float | None:
    """The largest p, or None if one could not be made."""
    values = list(ps)  # type: ignore[call-overload]
    return None if not values or None in values else max(values)


def _models_needed() -> int:
    """How many models an observed correlation of 0 would need to count as none."""
    n = 4
    while not equivalent_correlation(0.0, n, NO_CORRELATION, ALPHA).equivalent:
        n += 1
    return n


_END: dict[Verdict, str] = {
    "supported": "The claim is supported.",
    "contradicted": "The claim is contradicted.",
    "undecided": "The claim is undecided: the data of {n} show neither it nor its opposite.",
    "undecidable": "The claim is undecidable with {n}: no data of so few could have decided it.",
}


def _conclude(verdict: Verdict, test: PairedTest, comparisons: int = 1) -> str:
    """The last sentence of an answer about subjects."""
    return _END[verdict].format(n=_plural(test.n, "subject"))


def _where(evidence: Evidence) -> str:
    """Data and budget."""
    from advseg_bench.cells import show_eps

    assert evidence.eps is not None
    subjects = evidence.run.rows["subject"].n_unique()
    return f"On {evidence.run.info['data']['name']} ({_plural(subjects, 'subject')}) at eps {show_eps(evidence.eps)}"


def _tell(test: PairedTest) -> str:
    """A mean difference with its interval."""
    if test.mean is None:
        return "an unknown amount"
    ends = test.interval and f" (95 % interval {test.interval.lower:.3f} to {test.interval.upper:.3f})"
    return f"{test.mean:.3f}{ends or ' (no interval)'}"


def _show_ends(lower: float | None, upper: float | None) -> str:
    return "" if lower is None or upper is None else f" (95 % interval {lower:.2f} to {upper:.2f})"


_show_r = partial(format, format_spec="+.2f") if False else (lambda value: f"{value:+.2f}")


def _show_p(p: float | None) -> str:
    return "none" if p is None else f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
