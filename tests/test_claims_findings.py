"""Families of tests: where Holm's method counts, where every line has to pass, and what no data could have shown."""

from __future__ import annotations

import numpy as np
import pytest

from advseg_bench.claims import NO_CORRELATION
from advseg_bench.claims.findings import find_deciding, judge_all, sort_out
from advseg_bench.claims.wording import show_correlation, show_difference
from advseg_bench.stats import compare_paired


def make_tests(*signs: int, subjects: int = 6):
    """Tests over few subjects: as significant as can be above or below 0, or not at all."""
    spread = np.linspace(-0.3, 0.3, subjects)
    return [compare_paired(spread + sign) for sign in signs]


def judge(*signs: int, needs_all: bool, subjects: int = 6) -> list[str]:
    tests = make_tests(*signs, subjects=subjects)
    return [finding.verdict for finding in sort_out([str(s) for s in signs], tests, needs_all=needs_all)]


def test_six_subjects_reach_five_percent_alone_but_not_as_one_of_two():
    assert judge(1, needs_all=False) == ["supported"]
    assert judge(1, 1, needs_all=False) == ["undecidable"] * 2
    assert judge(1, 1, needs_all=False, subjects=7) == ["supported"] * 2


def test_a_line_that_has_to_pass_with_all_others_has_the_whole_level():
    assert judge(1, 1, 1, needs_all=True) == ["supported"] * 3


def test_a_line_against_the_claim_is_one_of_several():
    assert judge(1, -1, needs_all=True) == ["supported", "undecidable"]
    assert judge(1, -1, needs_all=True, subjects=7) == ["supported", "contradicted"]


def test_the_adjusted_p_is_holms():
    tests = make_tests(1, 0, 1)
    adjusted = [finding.adjusted_p for finding in sort_out("abc", tests)]
    assert adjusted == pytest.approx([3 * tests[0].p, 1.0, 3 * tests[2].p])


def test_one_line_with_too_few_subjects_makes_the_whole_undecidable():
    tests = [*make_tests(1, subjects=8), *make_tests(1, subjects=4)]
    assert judge_all(sort_out("ab", tests, needs_all=True)) == "undecidable"
    assert judge_all(sort_out("ab", make_tests(1, 0), needs_all=True)) == "undecided"
    assert judge_all(sort_out("ab", make_tests(1, 1), needs_all=True)) == "supported"
    assert judge_all(sort_out("ab", make_tests(1, -1, subjects=7), needs_all=True)) == "contradicted"


def test_the_p_that_decides_is_the_largest_or_that_against_the_claim():
    tests = make_tests(1, 0)
    assert find_deciding(sort_out("ab", tests, needs_all=True))[1] == tests[1].p
    assert find_deciding(sort_out("abc", [*tests, compare_paired([])], needs_all=True))[1] is None
    findings = sort_out("abc", make_tests(1, -1, 0, subjects=8), needs_all=True)
    decided, p, adjusted = find_deciding(findings)
    assert (decided.what, p, adjusted) == ("b", findings[1].adjusted_p, True)
    assert p == pytest.approx(3 * 2 / 2**8)


def test_a_tenth_of_the_variance_is_no_correlation():
    assert NO_CORRELATION == 0.3


def test_no_number_is_a_negative_zero():
    values = np.array([-0.09, -0.05, -0.01, -0.07, 0.05, 0.02, 0.14])
    test = compare_paired(values - values.mean() - 1e-5)
    assert show_difference(test).startswith("0.000 (95 % interval -0.")
    assert show_correlation(-0.001, -0.9, -0.004) == "+0.00 (95 % interval -0.90 to 0.00)"
