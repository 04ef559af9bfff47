"""The wording of numbers and verdicts in the answers to the claims."""

from __future__ import annotations

from collections.abc import Sequence

from advseg_bench.claims.evidence import Evidence
from advseg_bench.claims.findings import Finding, find_deciding
from advseg_bench.stats import PairedTest, Verdict
from advseg_bench.suite.cells import show_eps

ENDINGS: dict[Verdict, str] = {
    "supported": "The claim is supported.",
    "contradicted": "The claim is contradicted.",
    "undecided": "The claim is undecided: {n} support neither it nor its opposite.",
    "undecidable": "The claim is undecidable: no data of {n} can be significant.",
}


def conclude(verdict: Verdict, count: int, noun: str) -> str:
    """Return the concluding sentence of an answer that is based on so many subjects or models."""
    return ENDINGS[verdict].format(n=show_count(count, noun))


def describe_data(evidence: Evidence, test: PairedTest | None = None) -> str:
    """Return the data set, the number of subjects (of a test, or of the run) and the budget, as "On ... at eps ..."."""
    assert evidence.eps is not None, "there are results"
    subjects = test.n if test else evidence.subjects
    data = evidence.run.about.data
    return f"On {data.title} ({show_count(subjects, 'subject')}) at eps {show_eps(evidence.eps, data.width)}"


def show_models(evidence: Evidence) -> str:
    """Return the number of models, and the planned number if some have no results."""
    count, planned = len(evidence.models), len(evidence.run.model_names)
    return show_count(count, "model") if count == planned else f"{count:,} of {show_count(planned, 'model')}"


def show_difference(test: PairedTest) -> str:
    """Return a mean difference with its interval, if it has one."""
    if test.mean is None:
        return "an unknown amount"
    ends = test.interval
    shown = "no interval" if ends is None else f"95 % interval {ends.lower:z.3f} to {ends.upper:z.3f}"
    return f"{test.mean:z.3f} ({shown})"


def show_correlation(value: float, lower: float | None, upper: float | None) -> str:
    """Return a correlation with its interval, if it has one."""
    ends = "no interval" if lower is None or upper is None else f"95 % interval {lower:z.2f} to {upper:z.2f}"
    return f"{value:+z.2f} ({ends})"


def show_p(p: float | None) -> str:
    """Return a p value."""
    return "unknown" if p is None else f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def show_deciding(findings: Sequence[Finding]) -> tuple[str, float | None]:
    """Return the p that decides a claim which needs all of its findings, in words and as a number."""
    chosen, p, adjusted = find_deciding(findings)
    if len(findings) == 1:
        return f"p = {show_p(p)}", p
    if chosen.verdict == "contradicted" or adjusted:
        return (
            f"the comparison that decides is {chosen.what}, {show_difference(chosen.test)}, p = {show_p(p)} after "
            f"Holm's correction for {len(findings)} comparisons"
        ), p
    return f"the largest p of {len(findings)} comparisons is {show_p(p)}", p


def show_wins(won: int, of: int) -> str:
    """Return on how many of several models a difference is above 0."""
    return "on none of them" if not won else "on all of them" if won == of else f"on {won} of them"


def show_count(count: int, noun: str) -> str:
    """Return "1 model" or "5 models"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
