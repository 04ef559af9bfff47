"""How numbers and verdicts are put into the sentences of the claims."""

from __future__ import annotations

from advseg_bench.claims.evidence import Evidence
from advseg_bench.stats import PairedTest, Verdict
from advseg_bench.suite.cells import show_eps

ENDINGS: dict[Verdict, str] = {
    "supported": "The claim is supported.",
    "contradicted": "The claim is contradicted.",
    "undecided": "The claim is undecided: {n} show neither it nor its opposite.",
    "undecidable": "The claim is undecidable: no data of {n} could have decided it.",
}


def conclude(verdict: Verdict, count: int, noun: str) -> str:
    """Return the last sentence of an answer that rests on so many subjects or models."""
    return ENDINGS[verdict].format(n=show_count(count, noun))


def say_where(evidence: Evidence, test: PairedTest | None = None) -> str:
    """Return the data set, the subjects that a test rests on, by default all, and the budget."""
    assert evidence.eps is not None, "there are results"
    subjects = test.n if test else evidence.run.rows["subject"].n_unique()
    data = evidence.run.about.data.name
    return f"On {data} ({show_count(subjects, 'subject')}) at eps {show_eps(evidence.eps)}"


def show_models(evidence: Evidence) -> str:
    """Return how many models there are, and of how many that were planned if some have no results."""
    count, planned = len(evidence.models), len(evidence.run.model_names)
    return show_count(count, "model") if count == planned else f"{count:,} of {show_count(planned, 'model')}"


def show_difference(test: PairedTest) -> str:
    """Return a mean difference with its interval."""
    if test.mean is None:
        return "an unknown amount"
    ends = test.interval
    return (
        f"{test.mean:.3f} ({'no interval' if ends is None else f'95 % interval {ends.lower:.3f} to {ends.upper:.3f}'})"
    )


def show_correlation(value: float, lower: float | None, upper: float | None) -> str:
    """Return a correlation with its interval, if it has one."""
    ends = "no interval" if lower is None or upper is None else f"95 % interval {lower:.2f} to {upper:.2f}"
    return f"{value:+.2f} ({ends})"


def show_p(p: float | None) -> str:
    """Return a p value."""
    return "unknown" if p is None else f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def show_count(count: int, noun: str) -> str:
    """Return "1 model" or "5 models"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
