"""Families of tests over subjects, each with what it says alone and what all say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advseg_bench.stats import PairedTest, Verdict, decide, holm

ALPHA = 0.05


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


def sort_out(names: Sequence[str], tests: Sequence[PairedTest]) -> tuple[Finding, ...]:
    """Adjust a family of tests for their number, and judge each."""
    adjusted = holm([test.p for test in tests])
    smallest = holm([test.smallest_p for test in tests])
    return tuple(
        Finding(name, test, p, least, decide(test, p, least, ALPHA))
        for name, test, p, least in zip(names, tests, adjusted, smallest, strict=True)
    )


def judge_all(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim that says something of all of its findings: each must hold by itself, so none is adjusted."""
    single = [decide(f.test, f.test.p, f.test.smallest_p, ALPHA) for f in findings]
    if any(finding.verdict == "contradicted" for finding in findings):
        return "contradicted"
    if "undecidable" in single:
        return "undecidable"
    return "supported" if set(single) == {"supported"} else "undecided"


def find_largest_p(tests: Sequence[PairedTest]) -> float | None:
    """The largest p, or None if one could not be made."""
    known = [test.p for test in tests if test.p is not None]
    return max(known) if len(known) == len(tests) else None
