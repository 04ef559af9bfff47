"""Two one-sided tests against SciPy and a worked example; margins that are none."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from advseg_bench.errors import SpecError
from advseg_bench.stats import equivalence, equivalent_correlation


@pytest.mark.parametrize("mean", [0.0, 0.03, -0.06, 0.2])
def test_equals_scipys_one_sided_tests(mean):
    values = np.random.default_rng(0).normal(mean, 0.1, size=14)
    found = equivalence(values, margin=0.08)
    above = scipy.stats.ttest_1samp(values, -0.08, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(values, 0.08, alternative="less").pvalue
    assert found.p == pytest.approx(max(above, below))
    expected = scipy.stats.t.interval(0.9, 13, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (found.lower, found.upper) == pytest.approx(expected)
    assert found.level == pytest.approx(0.9)
    assert found.equivalent == (found.lower > -0.08 and found.upper < 0.08)


def test_an_example_worked_by_hand():
    # Mean 0.01, standard deviation 0.05, n = 25: error 0.01; t = (0.01 - 0.03) / 0.01 = -2 and 4 with 24 degrees
    # of freedom, whose one-sided p are 0.0285 and 0.0003; t(0.95, 24) = 1.711.
    raw = np.linspace(-1, 1, 25)
    values = 0.01 + 0.05 * raw / raw.std(ddof=1)
    found = equivalence(values, margin=0.03)
    assert found.p == pytest.approx(0.0285, abs=5e-5)
    assert (found.lower, found.upper) == pytest.approx((0.01 - 0.01711, 0.01 + 0.01711), abs=1e-5)
    assert found.equivalent
    assert not equivalence(values, margin=0.03, alpha=0.025).equivalent


def test_equal_subjects():
    assert equivalence([0.0] * 6, margin=0.01).p == 0
    assert equivalence([0.02] * 6, margin=0.01).p == 1
    assert not equivalence([0.02] * 6, margin=0.01).equivalent


@pytest.mark.parametrize("n", [0, 1, 4])
def test_too_few_subjects_are_never_equivalent(n):
    found = equivalence([0.0] * n, margin=1)
    assert (found.p, found.lower, found.equivalent, found.margin) == (None, None, False, 1)
    assert found.estimate == (0 if n else None)


def test_a_correlation_worked_by_hand():
    # r = 0.02, n = 71: z = 0.0200, margin 0.24 -> 0.2448, error 1 / sqrt(68) = 0.12127; (0.0200 - 0.2448) / 0.12127
    # = -1.8536, one-sided p 0.0319.
    found = equivalent_correlation(0.02, 71, margin=0.24)
    assert found.p == pytest.approx(0.0319, abs=5e-5)
    assert found.equivalent
    assert (found.lower, found.upper) == pytest.approx((np.tanh(0.02 - 0.19947), np.tanh(0.02 + 0.19947)), abs=1e-5)
    assert equivalent_correlation(-0.02, 71, margin=0.24).p == pytest.approx(found.p)


def test_four_models_cannot_show_that_size_does_not_matter():
    assert not equivalent_correlation(0.0, 4, margin=0.9).equivalent
    assert equivalent_correlation(0.0, 3, margin=0.9).p is None
    assert equivalent_correlation(None, 9, margin=0.9).p is None
    assert equivalent_correlation(1.0, 9, margin=0.9).p == 1


@pytest.mark.parametrize("margin", [0, -0.1, float("nan"), float("inf")])
def test_a_margin_that_is_none(margin):
    with pytest.raises(SpecError, match=r"margin: expected a finite number above 0, got"):
        equivalence([0.1, 0.2], margin)
    with pytest.raises(SpecError, match="margin: expected a finite number above 0"):
        equivalent_correlation(0.1, 9, margin)


def test_settings_out_of_range():
    with pytest.raises(SpecError, match=r"margin of a correlation: expected a number between 0 and 1, got 1\.5"):
        equivalent_correlation(0.1, 9, 1.5)
    with pytest.raises(SpecError, match=r"alpha: expected a number above 0 and below 0\.5, got 0\.5"):
        equivalence([0.1, 0.2], 0.1, alpha=0.5)
    with pytest.raises(AssertionError, match="leave out subjects without a score"):
        equivalence([float("nan")] * 6, 0.1)
