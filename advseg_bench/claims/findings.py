"""Families of tests over subjects, each with what it says alone and what all say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advseg_bench.stats import PairedTest, Verdict, decide, holm
from advseg_bench.stats.paired import find_smallest_p

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Finding:
    """One test that a claim rests on.

    Attributes:
        what: What is compared, such as a model's name.
        test: Estimate, interval and p; the estimate is above 0 where the claim is right.
        adjusted_p: p by Holm's method in the family of the claim's findings.
        verdict: What the finding says; by its own p if the claim needs all of them, else by the adjusted one.
    """

    what: str
    test: PairedTest
    adjusted_p: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Shortage:
    """What a run has too little of for a claim to be decided by any data.

    Attributes:
        noun: "subject" or "model".
        needed: The fewest that could decide it.
        there: How many there are.
    """

    noun: str
    needed: int
    there: int


def sort_out(names: Sequence[str], tests: Sequence[PairedTest], *, needs_all: bool = False) -> tuple[Finding, ...]:
    """Judge each test of a family.

    Args:
        names: What each compares.
        tests: As many.
        needs_all: Whether the claim is that all differences are above 0. Then each is tested at the full level,
            since all have to pass (intersection-union test); one below 0 that contradicts the claim is still one of
            several, so it is adjusted.
    """
    adjusted = holm([test.p for test in tests])
    smallest = holm([test.smallest_p for test in tests])
    findings = []
    for name, test, p, least in zip(names, tests, adjusted, smallest, strict=True):
        right = needs_all and (test.mean or 0.0) > 0
        verdict = decide(test, test.p, test.smallest_p, ALPHA) if right else decide(test, p, least, ALPHA)
        findings.append(Finding(name, test, p, verdict))
    return tuple(findings)


def judge_all(findings: Sequence[Finding]) -> Verdict:
    """Judge a claim that needs all of its findings.

    Returns:
        "supported" if all are, "contradicted" if any is; else "undecidable" if no data of so few subjects could have
        supported the claim, else "undecided".

    Source:
        Berger 1982, Technometrics 24, for the intersection-union test.
    """
    verdicts = {finding.verdict for finding in findings}
    if "contradicted" in verdicts:
        return "contradicted"
    if verdicts == {"supported"}:
        return "supported"
    return "undecidable" if any(finding.test.smallest_p > ALPHA for finding in findings) else "undecided"


def find_largest_p(tests: Sequence[PairedTest]) -> float | None:
    """The largest p, or None if one could not be made."""
    known = [test.p for test in tests if test.p is not None]
    return max(known) if len(known) == len(tests) else None


def find_shortage(tests: Sequence[PairedTest]) -> Shortage | None:
    """Return what tests that all have to be significant lack, if no data of so few subjects could have been."""
    fewest = min((test.n for test in tests if test.smallest_p > ALPHA), default=None)
    return None if fewest is None else Shortage("subject", count_subjects_needed(), fewest)


def count_subjects_needed() -> int:
    """Return how few subjects can make one test significant."""
    n = 2
    while find_smallest_p(n) > ALPHA:
        n += 1
    return n
