"""Intervals over subjects: against SciPy and enumeration, degenerate data, and what must not matter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.errors import SpecError
from advseg_bench.stats import Interval, group_intervals, subject_interval, subject_intervals, subject_means
from advseg_bench.stats.intervals import RESAMPLES


def quotients(values: np.ndarray, resamples: np.ndarray) -> np.ndarray:
    """(m* - m) / s* of each resample, with NumPy's own mean and standard deviation."""
    drawn = values[resamples]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(len(values))
    with np.errstate(divide="ignore"):
        return (drawn.mean(axis=1) - values.mean()) / errors


def test_five_subjects_against_all_resamples():
    values = np.array([0.61, 0.70, 0.72, 0.78, 0.93])
    every = np.array(list(itertools.product(range(5), repeat=5)))
    low, high = np.quantile(quotients(values, every), [0.05, 0.95])
    error = values.std(ddof=1) / np.sqrt(5)
    interval = subject_interval(values, range(5), level=0.9)
    assert interval is not None
    # 10,000 resamples instead of all 3,125: the ends differ by a few per cent of the width.
    width = (high - low) * error
    assert interval.lower == pytest.approx(values.mean() - high * error, abs=0.06 * width)
    assert interval.upper == pytest.approx(values.mean() - low * error, abs=0.06 * width)
    assert (interval.mean, interval.n_subjects, interval.level) == (pytest.approx(values.mean()), 5, 0.9)


def test_thirty_subjects_against_other_resamples():
    generator = np.random.default_rng(0)
    values = generator.beta(9, 1.5, size=30)
    found = quotients(values, generator.integers(0, 30, size=(100_000, 30)))
    low, high = np.quantile(found, [0.025, 0.975])
    error = values.std(ddof=1) / np.sqrt(30)
    interval = subject_interval(values, range(30))
    assert interval is not None
    assert interval.lower == pytest.approx(values.mean() - high * error, abs=0.1 * error)
    assert interval.upper == pytest.approx(values.mean() - low * error, abs=0.1 * error)


def test_many_normal_subjects_come_close_to_student():
    values = scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200)
    interval = subject_interval(values, range(200), level=0.8)
    assert interval is not None
    expected = scipy.stats.t.interval(0.8, 199, loc=0, scale=scipy.stats.sem(values))
    assert (interval.lower, interval.upper) == pytest.approx(expected, rel=0.04)


def test_a_left_tail_makes_the_lower_arm_longer():
    interval = subject_interval([0.3, 0.7, 0.85, 0.9, 0.92, 0.93, 0.95, 0.96], range(8))
    assert interval is not None
    assert interval.mean - interval.lower > 2 * (interval.upper - interval.mean)


@pytest.mark.parametrize("n", [0, 1, 4])
def test_fewer_than_five_subjects_give_no_interval(n):
    subjects = [i % n for i in range(100 * n)] if n else []
    assert subject_interval([0.5] * len(subjects), subjects) is None


def test_every_subject_counts_once_however_many_images_it_has():
    values = [0.0] * 96 + [1.0, 0.9, 1.0, 0.8]
    subjects = ["a"] * 96 + ["b", "c", "d", "e"]
    means, names = subject_means(values, subjects)
    assert names == ("a", "b", "c", "d", "e")
    assert means.tolist() == [0.0, 1.0, 0.9, 1.0, 0.8]
    assert subject_interval(values, subjects) == subject_interval(means, names)


def test_equal_subjects_give_an_interval_of_no_width():
    assert subject_interval([0.25] * 10, list("aabbccddee")) == Interval(0.25, 0.25, 0.25, 5, 0.95)
    apart_by_rounding = [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3]
    interval = subject_interval(apart_by_rounding, range(5))
    assert interval is not None
    assert interval.upper - interval.lower < 1e-15


@pytest.mark.parametrize("values", [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0.3, 0.3, 0.3, 0.1 + 0.2, 0.5]])
def test_where_too_many_resamples_repeat_one_value_the_interval_is_students(values):
    values = np.array(values)
    interval = subject_interval(values, range(5))
    assert interval is not None
    expected = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    assert (interval.lower, interval.upper) == pytest.approx(expected)


def test_the_quotient_of_a_resample_that_repeats_the_mean_is_zero():
    # A third of the subjects sit on the mean; were 0 / 0 not 0, a NaN would reach the ends.
    lower, upper = subject_intervals(np.array([[0.0, 0.5, 0.5, 1.0, 0.2, 0.8]]))
    assert 0 < lower[0] < 0.5 < upper[0] < 1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_order_and_repetition_of_images_do_not_matter(data):
    values = data.draw(st.lists(st.floats(0, 1).map(lambda v: round(v, 3)), min_size=6, max_size=20))
    subjects = [i % 6 for i in range(len(values))]
    pairs = data.draw(st.permutations(list(zip(values, subjects, strict=True))))
    one = subject_interval(values, subjects)
    two = subject_interval([v for v, _ in pairs] * 3, [s for _, s in pairs] * 3)
    assert one is not None
    assert two is not None
    assert (two.mean, two.lower, two.upper) == pytest.approx((one.mean, one.lower, one.upper), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1).map(lambda v: round(v, 3)), min_size=5, max_size=12), st.sampled_from([-2.0, 0.5, 3.0]))
def test_unit_and_sign_carry_over(values, factor):
    one = subject_interval(values, range(len(values)))
    two = subject_interval([factor * v + 7 for v in values], range(len(values)))
    assert one is not None
    assert two is not None
    ends = sorted((factor * one.lower + 7, factor * one.upper + 7))
    assert [two.lower, two.upper] == pytest.approx(ends, abs=1e-9)


def test_groups_of_every_size_at_once_equal_one_by_one():
    generator = np.random.default_rng(1)
    groups = [generator.beta(5, 2, size=n).tolist() for n in (5, 4, 9, 0, 5, 40, 9)]
    found = group_intervals(groups, 0.9)
    for group, ends in zip(groups, found, strict=True):
        interval = subject_interval(group, range(len(group)), 0.9)
        assert ends == (interval and pytest.approx((interval.lower, interval.upper)))
    assert [ends is None for ends in found] == [False, True, False, True, False, False, False]


def test_more_groups_than_one_batch_holds():
    many = np.random.default_rng(2).beta(5, 2, size=(20_000_000 // RESAMPLES // 7, 5))
    lower, upper = subject_intervals(many)
    last = subject_intervals(many[-1:])
    assert (lower[-1], upper[-1]) == pytest.approx((last[0][0], last[1][0]))
    assert (lower < many.mean(axis=1)).all()
    assert (upper > many.mean(axis=1)).all()


@pytest.mark.parametrize("level", [0.0, 1.0, 0.9995, 95, float("nan")])
def test_a_level_that_cannot_be_had(level):
    for values in ([0.1, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5]):
        with pytest.raises(SpecError, match=r"level: expected a number above 0 and up to 0\.999, got"):
            subject_interval(values, range(len(values)), level)
    with pytest.raises(SpecError, match="level: expected"):
        group_intervals([], level)


def test_a_score_that_is_missing_is_our_mistake():
    with pytest.raises(AssertionError, match="leave out images without a score"):
        subject_interval([0.1, float("nan")], "ab")
    with pytest.raises(AssertionError, match="one subject for each value"):
        subject_interval([0.1], "ab")
