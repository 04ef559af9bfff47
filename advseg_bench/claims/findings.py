"""Families of tests over subjects: the verdict on each test, and the verdict on the whole family."""

from __future__ import annotations

import math
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
        test: Estimate, interval and p; the estimate is above 0 where the claim holds.
        adjusted_p: p after Holm's correction over the findings of the claim.
        verdict: The verdict on this comparison: from the unadjusted p if the claim needs all findings, else from the
            adjusted one.
    """

    what: str
    test: PairedTest
    adjusted_p: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Shortage:
    """The sample that a run has too little of: no data of this size can decide the claim.

    Attributes:
        noun: "subject" or "model".
        needed: The smallest number that can decide it.
        there: The number in the run.
    """

    noun: str
    needed: int
    there: int


def sort_out(names: Sequence[str], tests: Sequence[PairedTest], *, needs_all: bool = False) -> tuple[Finding, ...]:
    """Judge each test of a family.

    Args:
        names: What each test compares.
        tests: The tests, one per name.
        needs_all: Whether the claim is that all differences are above 0. Each is then tested at the full level, since
            all have to be significant (intersection-union test). A difference below 0 contradicts the claim by itself,
            so its p is adjusted.

    Returns:
        One finding per test.
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
        "supported" if all are, "contradicted" if any is; else "undecidable" if no data of so few subjects can support
        the claim, else "undecided".

    Source:
        Berger 1982, Technometrics 24, for the intersection-union test.
    """
    verdicts = {finding.verdict for finding in findings}
    if "contradicted" in verdicts:
        return "contradicted"
    if verdicts == {"supported"}:
        return "supported"
    return "undecidable" if any(finding.test.smallest_p > ALPHA for finding in findings) else "undecided"


def find_deciding(findings: Sequence[Finding]) -> tuple[Finding, float | None, bool]:
    """Return the finding that decides a claim which needs all of them, its p, and whether this p is adjusted.

    A claim is contradicted by the finding below 0 with the smallest adjusted p. Else the finding with the largest p
    decides, where a finding below 0 counts with its adjusted p, since it would contradict the claim by itself.
    """
    against = [finding for finding in findings if finding.verdict == "contradicted"]
    if against:
        chosen = min(against, key=lambda finding: (finding.adjusted_p or 0.0, finding.test.mean or 0.0))
        return chosen, chosen.adjusted_p, len(findings) > 1

    def p_of(finding: Finding) -> float | None:
        return finding.adjusted_p if (finding.test.mean or 0.0) < 0 else finding.test.p

    chosen = max(findings, key=lambda finding: math.inf if p_of(finding) is None else p_of(finding) or 0.0)
    return chosen, p_of(chosen), len(findings) > 1 and (chosen.test.mean or 0.0) < 0


def find_shortage(tests: Sequence[PairedTest]) -> Shortage | None:
    """Return the shortage of subjects if one of the tests cannot be significant with any data of its size."""
    fewest = min((test.n for test in tests if test.smallest_p > ALPHA), default=None)
    return None if fewest is None else Shortage("subject", count_subjects_needed(), fewest)


def count_subjects_needed() -> int:
    """Return the smallest number of subjects with which one test can be significant."""
    n = 2
    while find_smallest_p(n) > ALPHA:
        n += 1
    return n
