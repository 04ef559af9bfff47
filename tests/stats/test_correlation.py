"""Correlation against SciPy and printed tables, and what cannot be correlated."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from advseg_bench.errors import SpecError
from advseg_bench.stats import correlate


@pytest.mark.parametrize("n", [4, 8, 9, 30])
def test_pearson_equals_scipy(n):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    expected = scipy.stats.pearsonr(x, y)
    found = correlate(x * 1e9, y, level=0.9).pearson
    assert found is not None
    assert (found.value, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.lower, found.upper) == pytest.approx(tuple(expected.confidence_interval(0.9)))


@pytest.mark.parametrize("n", [9, 40])
def test_spearman_of_many_equals_scipy(n):
    x, y = np.round(np.random.default_rng(n).normal(size=(2, n)), 1)
    expected = scipy.stats.spearmanr(x, y)
    found = correlate(x, y).spearman
    assert found is not None
    assert (found.value, found.p) == pytest.approx((expected.statistic, expected.pvalue))


@pytest.mark.parametrize("n", [4, 7])
def test_spearman_of_few_equals_scipys_permutations(n):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    expected = scipy.stats.permutation_test(
        (x,), lambda a: scipy.stats.spearmanr(a, y).statistic, permutation_type="pairings", n_resamples=6000
    )
    found = correlate(x, y).spearman
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue)


def test_the_interval_of_bonett_and_wright():
    # rho = 0.5, n = 43: z = 0.5493, standard error sqrt(1.125 / 40) = 0.16771.
    x = np.arange(43.0)
    y = np.random.default_rng(3).permutation(43)
    found = correlate(x, y).spearman
    assert found is not None
    half = 1.959964 * np.sqrt((1 + found.value**2 / 2) / 40)
    assert np.arctanh(found.upper) - np.arctanh(found.value) == pytest.approx(half, rel=1e-6)
    assert np.arctanh(found.value) - np.arctanh(found.lower) == pytest.approx(half, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "critical"), [(3, 0.997), (4, 0.950), (5, 0.878), (10, 0.632), (22, 0.423), (102, 0.195)]
)
def test_the_printed_table_of_critical_r(n, critical):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    found = correlate(x, y).pearson
    assert found is not None
    assert found.smallest_detectable == pytest.approx(critical, abs=6e-4)


@pytest.mark.parametrize(("n", "critical"), [(4, None), (5, 1.0), (6, 0.886), (7, 0.786), (8, 0.738)])
def test_the_printed_table_of_critical_rho(n, critical):
    x, y = np.random.default_rng(n).normal(size=(2, n))
    found = correlate(x, y).spearman
    assert found is not None
    assert found.smallest_detectable == (critical and pytest.approx(critical, abs=6e-4))


def test_four_models_in_perfect_order_show_nothing():
    found = correlate([14.7e6, 17.3e6, 24.5e6, 138e6], [0.1, 0.2, 0.3, 0.4])
    assert found.spearman is not None
    assert (found.spearman.value, found.spearman.lower, found.spearman.upper) == (1, None, None)
    assert found.spearman.p == found.spearman.smallest_p == pytest.approx(1 / 12)
    assert found.spearman.smallest_detectable is None
    assert found.reason == ""


def test_a_straight_line():
    found = correlate([1, 2, 3, 4, 5], [10, 8, 6, 4, 2])
    assert found.pearson is not None
    assert (found.pearson.value, found.pearson.lower, found.pearson.upper, found.pearson.p) == (-1, -1, -1, 0)


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "there are no points"),
        ([1], [2], "there is only one point"),
        ([3, 3, 3], [1, 2, 3], "x does not vary"),
        ([1, 2, 3], [0.1 + 0.2, 0.3, 0.3], "y does not vary"),
        ([0, 0], [1, 1], "neither x nor y varies"),
    ],
)
def test_what_has_no_correlation_says_why(x, y, reason):
    found = correlate(x, y)
    assert (found.n, found.pearson, found.spearman, found.reason) == (len(x), None, None, reason)


@pytest.mark.parametrize("n", [2, 3])
def test_too_few_points_for_an_interval(n):
    found = correlate([1, 2, 5][:n], [2, 1, 9][:n])
    for coefficient in (found.pearson, found.spearman):
        assert coefficient is not None
        assert (coefficient.lower, coefficient.upper) == (None, None)
        assert (coefficient.p is None) == (n == 2)


def test_wrong_input():
    with pytest.raises(SpecError, match=r"level: expected a number above 0 and up to 0\.999, got 95"):
        correlate([1, 2], [1, 2], level=95)
    with pytest.raises(AssertionError, match="leave out items without a value"):
        correlate([1, 2], [1, float("nan")])
    with pytest.raises(AssertionError, match="x and y have the same length"):
        correlate([1, 2], [1])
