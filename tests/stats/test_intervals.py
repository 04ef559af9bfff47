"""Intervals over subjects: against SciPy and enumeration, degenerate data, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from advseg_bench.errors import SpecError
from advseg_bench.stats import Interval, group_intervals, subject_interval, subject_intervals, subject_means
from advseg_bench.stats.intervals import _VALUES_AT_ONCE, RESAMPLES, _draw_weights


@pytest.mark.parametrize(("n", "level"), [(5, 0.9), (6, 0.95), (30, 0.95), (30, 0.999)])
def test_quantiles_equal_those_of_random_weights(n, level):
    generator = np.random.default_rng(n)
    values = generator.beta(9, 1.5, size=n)
    quotients = []
    for weights in generator.beta(0.5, 1.5, size=(400_000, n)).reshape(40, -1, n):
        means = np.average(np.broadcast_to(values, weights.shape), axis=1, weights=weights)
        squares = np.average((values - means[:, None]) ** 2, axis=1, weights=weights)
        quotients.append((means - values.mean()) / np.sqrt(squares))
    low, high = np.quantile(np.concatenate(quotients), [0.5 - level / 2, 0.5 + level / 2])
    interval = subject_interval(values, range(n), level)
    assert interval is not None
    tolerance = 0.03 if level < 0.99 else 0.2
    assert (interval.mean - interval.lower) / values.std() == pytest.approx(high, rel=tolerance)
    assert (interval.mean - interval.upper) / values.std() == pytest.approx(low, rel=tolerance)
    assert (interval.mean, interval.n_subjects, interval.level) == (pytest.approx(values.mean()), n, level)


@pytest.mark.parametrize("level", [1e-9, 0.3, 0.5, 0.8, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("n", [5, 12, 40])
def test_ends_are_the_order_statistics_that_sorting_finds(n, level):
    means = np.sort(np.random.default_rng(n).beta(9, 1.5, size=(60, n)), axis=1)
    centre, spread = means.mean(axis=1, keepdims=True), means.std(axis=1, keepdims=True)
    scaled, weights = (means - centre) / spread, _draw_weights(n)
    shifts = scaled @ weights
    ordered = np.sort(shifts / np.sqrt(scaled**2 @ weights - shifts**2), axis=1)
    nth = int((RESAMPLES + 1) * (1 - level) / 2)
    lower, upper = subject_intervals(means, level)
    assert lower == pytest.approx(centre[:, 0] - ordered[:, -nth] * spread[:, 0], rel=1e-10)
    assert upper == pytest.approx(centre[:, 0] - ordered[:, nth - 1] * spread[:, 0], rel=1e-10)


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
    assert interval.lower == interval.upper == pytest.approx(interval.mean)


def student(values: np.ndarray) -> tuple[float, float]:
    return scipy.stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values))


@pytest.mark.parametrize("values", [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0.3, 0.3, 0.3, 0.1 + 0.2, 0.5]])
def test_two_values_of_which_one_is_rare_get_students_interval(values):
    interval = subject_interval(values, range(len(values)))
    assert interval is not None
    assert (interval.lower, interval.upper) == pytest.approx(student(np.array(values)))


@pytest.mark.parametrize("values", [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0.5, 0], [1, 1, 1, 1, 1, 0.5, 0]])
def test_other_coarse_scores_are_resampled(values):
    interval = subject_interval(values, range(len(values)))
    assert interval is not None
    assert (interval.lower, interval.upper) != pytest.approx(student(np.array(values)), rel=0.02)


def test_near_ties_do_not_make_the_interval_explode():
    # Drawn with replacement, resamples of 0 and 0.002 alone have next to no spread: the lower end was -123.
    interval = subject_interval([0, 0, 0.002, 0.5, 0.875], range(5))
    assert interval is not None
    assert -1 < interval.lower < 0.1
    assert 0.5 < interval.upper < 4


def test_above_two_hundred_subjects_it_is_students_and_the_step_is_small():
    values = np.random.default_rng(5).beta(9, 1.5, size=201)
    many, fewer = subject_interval(values, range(201)), subject_interval(values[:200], range(200))
    assert many is not None
    assert fewer is not None
    assert (many.lower, many.upper) == pytest.approx(student(values))
    assert (fewer.lower, fewer.upper) == pytest.approx(student(values[:200]), abs=0.3 * values.std() / np.sqrt(200))


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
    many = np.random.default_rng(2).beta(5, 2, size=(700, 5))
    lower, upper = subject_intervals(many)
    assert len(many) > _VALUES_AT_ONCE // RESAMPLES
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
