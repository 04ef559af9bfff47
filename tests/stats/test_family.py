"""Holm's worked example, his best case, and the four verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.errors import SpecError
from advseg_bench.stats import compare_paired, decide, holm, holm_level

PS = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_a_worked_example():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") gives 0.03 0.06 0.06 0.02.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_tests_that_could_not_be_made_do_not_count():
    assert holm([None, 0.01, None, 0.04]) == [None, pytest.approx(0.02), None, pytest.approx(0.04)]
    assert holm([None]) == [None]
    assert holm([]) == []


def test_no_p_exceeds_one():
    assert holm([0.9, 0.8, 1.0]) == [1.0, 1.0, 1.0]


@settings(max_examples=100, deadline=None)
@given(PS, st.floats(0.001, 0.5))
def test_adjusted_at_most_alpha_is_the_step_down_rule(ps, alpha):
    rejected = set()
    for rank, place in enumerate(np.argsort(ps, kind="stable"), 1):
        if ps[place] > holm_level(len(ps), rank, alpha):
            break
        rejected.add(int(place))
    adjusted = holm(ps)
    near = any(abs(a - alpha) < 1e-9 for a in adjusted)
    assert near or {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_smaller_ps_never_raise_an_adjusted_one(pairs):
    # What makes `holm` of the smallest ps the best case of every test.
    low, high = holm([min(pair) for pair in pairs]), holm([max(pair) for pair in pairs])
    assert all(a <= b for a, b in zip(low, high, strict=True))


def test_levels():
    assert [holm_level(4, rank) for rank in (1, 2, 3, 4)] == pytest.approx([0.0125, 0.05 / 3, 0.025, 0.05])
    with pytest.raises(SpecError, match="alpha: expected a number between 0 and 1, got 5"):
        holm_level(4, alpha=5)


def verdicts(rows, **settings):
    tests = [compare_paired(row) for row in rows]
    adjusted, best = holm([t.p for t in tests]), holm([t.smallest_p for t in tests])
    return [decide(t, a, b, **settings) for t, a, b in zip(tests, adjusted, best, strict=True)]


def test_verdicts():
    rise = np.linspace(0.1, 0.3, 8)
    assert verdicts([rise, -rise, rise * np.tile([1, -1], 4)]) == [
        "supported",
        "contradicted",
        "undecided",
    ]
    assert verdicts([rise, -rise], expected_sign=-1) == ["contradicted", "supported"]


def test_five_subjects_decide_nothing_at_five_per_cent():
    assert verdicts([[0.1, 0.2, 0.3, 0.4, 0.5]]) == ["undecidable"]
    assert verdicts([[0.1, 0.2, 0.3, 0.4, 0.5]], alpha=0.0625) == ["supported"]
    assert verdicts([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]) == ["supported"]
    assert verdicts([[-0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]) == ["undecided"]


def test_a_family_can_grow_too_large_for_its_subjects():
    # Six subjects: 2 / 64 = 0.03125 is under 0.05, but over 0.05 / 2.
    agreed = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert verdicts([agreed, agreed]) == ["undecidable", "undecidable"]
    # Beside a test of 12 subjects it is tested at 0.05 once the other is rejected: undecided, for it could have been.
    mixed = np.tile([0.1, -0.1], 6)
    assert verdicts([agreed, mixed]) == ["undecided", "undecided"]
    assert verdicts([agreed, np.abs(mixed)]) == ["supported", "supported"]


@pytest.mark.parametrize("values", [[], [0.3]])
def test_without_two_subjects_there_is_nothing_to_decide(values):
    assert verdicts([values]) == ["undecidable"]


def test_settings_out_of_range():
    test = compare_paired([0.1, 0.2])
    with pytest.raises(SpecError, match="alpha: expected a number between 0 and 1, got 0"):
        decide(test, 0.5, 0.5, alpha=0)
    with pytest.raises(AssertionError, match="a p value lies between 0 and 1"):
        holm([0.5, float("nan")])
    with pytest.raises(AssertionError, match="a claim predicts a direction"):
        decide(test, 0.5, 0.5, expected_sign=0)
