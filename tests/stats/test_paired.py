"""Sign flips against SciPy, enumeration and printed values; effect sizes; the smallest p."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.stats import compare_paired, joint_sign_flip_ps, sign_flip_ps
from advseg_bench.stats.paired import FLIPS, MOST_EXACT

DARWIN = [6.125, -8.375, 1, 2, 0.75, 2.875, 3.5, 5.125, 1.75, 3.625, 7, 3, 9.375, 7.5, -6]
"""Heights of crossed less self-fertilised maize in inches: the example of Fisher 1935, section 21."""


def test_fishers_own_example():
    # Of the 32,768 flips 863 have a sum of at least 314 eighths, and as many one of at most -314.
    test = compare_paired(DARWIN)
    assert test.p == 2 * 863 / 2**15
    assert test.mean == pytest.approx(314 / 8 / 15)
    assert test.method == "exact sign flip"


@pytest.mark.parametrize("n", [2, 3, 8, 11])
def test_exact_p_equals_that_of_scipy(n):
    values = np.random.default_rng(n).normal(0.4, 1, size=n)
    expected = scipy.stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**n)
    assert compare_paired(values).p == pytest.approx(expected.pvalue)


def test_on_signed_ranks_it_is_wilcoxons_test():
    ranks = np.array([1, 2, -3, 4, 5, 6, -7, 8, 9, 10.0])
    assert compare_paired(ranks).p == pytest.approx(scipy.stats.wilcoxon(ranks, method="exact").pvalue)
    # Printed tables: for n = 8, W = 3 is the largest sum significant at 0.05 on two sides, with p = 0.0391.
    assert compare_paired([-1, -2, 3, 4, 5, 6, 7, 8]).p == pytest.approx(0.0391, abs=5e-5)
    assert compare_paired([-1, 2, -3, 4, 5, 6, 7, 8]).p == pytest.approx(0.0547, abs=5e-5)


@pytest.mark.parametrize("n", [MOST_EXACT + 1, 40])
def test_random_flips_come_close_to_the_truth(n):
    values = np.random.default_rng(n).normal(0.35, 1, size=n)
    # The exact distribution of a sum of +-integers, by convolution.
    steps = np.rint(values * 100).astype(int)
    ways = np.ones(1)
    for step in np.abs(steps):
        wider = np.zeros(len(ways) + 2 * step)
        wider[: len(ways)] += ways
        wider[2 * step :] += ways
        ways = wider / 2
    sums = np.arange(len(ways)) - np.abs(steps).sum()
    exact = ways[np.abs(sums) >= abs(steps.sum())].sum()
    test = compare_paired(steps)
    assert test.method == "Monte Carlo sign flip"
    assert test.p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / FLIPS) + 1e-5)
    assert test.p == compare_paired(steps).p, "the flips are the same each time"


def test_equal_steps_are_ties_whatever_rounding_makes_of_them():
    values = [0.1, 0.2, -0.3, 0.1 + 0.2, 0.7 - 0.4, 0.1, -0.1, 0.2]
    tenths = [1, 2, -3, 3, 3, 1, -1, 2]
    assert compare_paired(values).p == compare_paired(tenths).p


@pytest.mark.parametrize(
    ("n", "smallest"), [(0, 1), (1, 1), (2, 0.5), (5, 0.0625), (6, 0.03125), (17, 2**-16), (18, 1e-5), (85, 1e-5)]
)
def test_the_smallest_p_is_attained_when_all_subjects_agree(n, smallest):
    test = compare_paired(0.5 + np.random.default_rng(0).random(n))
    assert test.smallest_p == smallest
    assert test.p == (None if n < 2 else pytest.approx(smallest, abs=1.1e-5 if n == 18 else 1e-12))


def test_effect_sizes():
    test = compare_paired([1, 2, 3, -4, 5, 0])
    values = np.array([1, 2, 3, -4, 5, 0])
    assert test.d_z == pytest.approx(values.mean() / values.std(ddof=1))
    # t is d_z times the root of n.
    assert test.d_z * np.sqrt(6) == pytest.approx(scipy.stats.ttest_1samp(values, 0).statistic)
    assert test.rank_biserial == pytest.approx((1 + 2 + 3 + 5 - 4) / 15)
    assert test.interval is not None
    assert test.interval.lower < test.mean < test.interval.upper


def test_kerbys_bounds():
    assert compare_paired([0.1, 0.3, 0.2]).rank_biserial == 1
    assert compare_paired([-0.1, -0.3, -0.2]).rank_biserial == -1
    assert compare_paired([-0.1, 0.1]).rank_biserial == 0


@pytest.mark.parametrize("n", [0, 1, 2, 6, 30])
def test_no_difference_at_all(n):
    test = compare_paired([0.0] * n)
    assert test.p == (1.0 if n >= 2 else None)
    assert (test.d_z, test.rank_biserial) == (None, None)
    assert test.mean == (0 if n else None)
    assert (test.interval is None) == (n < 5)


def test_the_same_difference_in_every_subject_has_no_standard_size():
    assert compare_paired([0.2] * 6).d_z is None
    assert compare_paired([0.2] * 6).p == 2 / 64


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 2)), min_size=2, max_size=9))
def test_swapping_the_two_turns_the_sign_and_nothing_else(values):
    one, two = compare_paired(values), compare_paired([-v for v in reversed(values)])
    assert two.p == pytest.approx(one.p)
    assert two.mean == pytest.approx(-one.mean)
    assert two.p >= two.smallest_p


def test_many_rows_at_once_equal_one_by_one():
    rows = np.random.default_rng(3).normal(0.2, 1, size=(700, 9))
    assert sign_flip_ps(rows)[[0, 500, 699]].tolist() == [compare_paired(rows[i]).p for i in (0, 500, 699)]


def test_the_joint_p_counts_flips_in_which_any_mean_is_as_large():
    """From the definition, flip by flip."""
    rows = np.random.default_rng(4).normal(0.3, 1, size=(3, 6))
    flips = np.array(list(itertools.product((1, -1), repeat=6)))
    largest = np.abs(flips @ rows.T).max(axis=1)
    expected = [(largest >= abs(row.sum()) - 1e-9).mean() for row in rows]
    assert joint_sign_flip_ps(rows).tolist() == expected


@pytest.mark.parametrize("n", [7, 20])
def test_the_joint_p_of_one_test_or_of_equal_ones_is_its_own(n):
    row = np.random.default_rng(5).normal(0.4, 1, size=n)
    own = compare_paired(row).p
    assert joint_sign_flip_ps(row[None]).tolist() == [own]
    assert joint_sign_flip_ps(np.stack([row, row, -row])).tolist() == [own] * 3


def test_wrong_input_is_our_mistake():
    with pytest.raises(AssertionError, match="leave out subjects without a score"):
        compare_paired([0.1, float("nan")])
    with pytest.raises(AssertionError, match="one difference per subject"):
        compare_paired(np.zeros((2, 3)))
