"""Simulated studies with clustered slices: intervals cover, tests keep their level, and docs/statistics.md says so."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import studies

from advseg_bench.stats import correlate, equivalence, holm, sign_flip_ps

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
SEEDS = studies.SEEDS[:2]
SOFT = [score for score in studies.SCORES if score not in studies.HARD]


def printed(first: str, second: str, column: int) -> list[float]:
    """Mean, lowest and highest share of a cell of the tables in docs/statistics.md."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == [first, second]:
            return [float(number) / 100 for number in re.findall(r"[\d.]+", cells[column])]
    raise AssertionError(f"docs/statistics.md has no row {first!r}, {second!r}")


def check_printed(shares: list[float], first: str, second: str, column: int) -> None:
    """The page's range of five seeds holds what two of them give here; other libraries may draw a little otherwise."""
    _, low, high = printed(first, second, column)
    assert low - 0.004 <= min(shares), "print the tables anew: python tests/studies.py"
    assert max(shares) <= high + 0.004, "print the tables anew: python tests/studies.py"


@pytest.mark.parametrize("n", [8, 20, 40])
@pytest.mark.parametrize("score", SOFT)
def test_intervals_cover(score, n):
    """In each 1,000 studies; a seed's own error is 0.7 points, and the limits are met all the same."""
    shares = [studies.covered(score, n, seed)[0] for seed in SEEDS]
    assert min(shares) >= 0.93
    assert max(shares) <= 0.97
    check_printed(shares, score, "bootstrap", 2 + (5, 8, 20, 40).index(n))


@pytest.mark.parametrize(("score", "n", "least"), [("lost Dice, near 0 in most", 8, 0.91), (SOFT[2], 5, 0.90)])
def test_where_few_skewed_subjects_are_covered_less_student_is_worse(score, n, least):
    shares = np.mean([studies.covered(score, n, seed) for seed in SEEDS], axis=0)
    assert least <= shares[0] <= 0.95
    assert shares[1] < shares[0] - 0.02


def test_one_outcome_per_subject_is_covered_badly_because_subjects_agree():
    """At 0.8 success, 0.8**8 = 17 % of studies of eight see nothing but successes, and no width."""
    share = studies.covered(studies.HARD[1], 8, 1)[0]
    assert share == pytest.approx(1 - 0.8**8, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 8, 20, 40])
def test_outright_failures_that_few_subjects_do_not_meet_are_covered_badly(n):
    """At 15 %, 0.85**5 = 44 % of studies of five meet no failure."""
    shares = [studies.covered(studies.HARD[2], n, seed)[0] for seed in SEEDS]
    check_printed(shares, studies.HARD[2], "bootstrap", 2 + (5, 8, 20, 40).index(n))
    assert (np.mean(shares) < 0.85) == (n < 20)


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 20, 40])
@pytest.mark.parametrize("null", [null for null in studies.NULLS if null != "lopsided, mean 0"])
def test_no_effect_is_rarely_called_one(null, n):
    shares = [studies.alarms(null, n, seed) for seed in SEEDS]
    assert max(shares) <= 0.065
    assert np.mean(shares) >= 0.03, "nor does the test never speak"
    check_printed(shares, null, "sign flip", 2 + (8, 20, 40).index(n))


def test_lopsided_differences_mislead_a_rank_test_more_than_the_sign_flip():
    flip, ranks = studies.alarms("lopsided, mean 0", 40, 1), studies.rank_alarms("lopsided, mean 0", 40, 1)
    assert flip < 0.08
    assert ranks > 0.13


def test_slices_as_observations_call_half_of_nothing_an_effect():
    assert studies.slice_alarms("normal", 8, 1) > 0.3
    assert studies.slice_alarms("normal", 20, 1) > 0.3


@pytest.mark.parametrize("real", [0, 3])
def test_holm_keeps_the_error_of_the_family(real):
    """Ten tests of 12 subjects that share a subject effect, of which some have a true effect."""
    generator = np.random.default_rng(real)
    shared = generator.normal(0, 0.05, size=(1000, 1, 12))
    means = shared + generator.normal(0, 0.05, size=(1000, 10, 12))
    means[:, :real] += 0.2
    ps = sign_flip_ps(means.reshape(-1, 12)).reshape(1000, 10)
    adjusted = np.array([holm(row) for row in ps])
    assert (adjusted[:, real:] <= 0.05).any(axis=1).mean() <= 0.065
    assert (ps[:, real:] <= 0.05).any(axis=1).mean() > 0.15
    if real:
        assert (adjusted[:, :real] <= 0.05).all(axis=1).mean() > 0.9


def test_power_grows_with_the_effect():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, size=(1000, 12))
    found = [float((sign_flip_ps(noise + shift) <= 0.05).mean()) for shift in (0.0, 0.05, 0.1)]
    assert found[0] < 0.065 < 0.2 < found[1] < 0.8 < found[2]


@pytest.mark.parametrize(("n", "rho"), [(8, 0.0), (8, 0.6), (20, 0.6)])
def test_correlation_intervals_cover(n, rho):
    generator = np.random.default_rng(n)
    x = generator.normal(size=(1000, n))
    y = rho * x + np.sqrt(1 - rho**2) * generator.normal(size=(1000, n))
    found = [correlate(a, b) for a, b in zip(x, y, strict=True)]
    ranks = 6 / np.pi * np.arcsin(rho / 2)
    linear = np.mean([c.pearson.lower <= rho <= c.pearson.upper for c in found])
    ranked = np.mean([c.spearman.lower is None or c.spearman.lower <= ranks <= c.spearman.upper for c in found])
    assert 0.93 <= linear <= 0.97
    assert 0.92 <= ranked <= 0.98
    if rho == 0:
        assert np.mean([c.pearson.p <= 0.05 for c in found]) <= 0.065
        assert np.mean([c.spearman.p <= 0.05 for c in found]) <= 0.065


def test_a_difference_as_large_as_the_margin_is_rarely_called_none():
    generator = np.random.default_rng(7)
    values = generator.normal(0, 0.05, size=(1000, 12))
    at_margin = np.mean([equivalence(row + 0.05, margin=0.05).equivalent for row in values])
    at_zero = np.mean([equivalence(row, margin=0.05).equivalent for row in values])
    assert 0.03 <= at_margin <= 0.065
    assert at_zero > 0.85


@pytest.mark.parametrize("equal", studies.EQUALS)
def test_the_strongest_of_many_attacks_is_rarely_called_stronger_than_noise_of_equal_effect(equal):
    """Its own p calls it that the more often the more attacks there are; the p of the largest of them does not."""
    shares = {arms: [studies.best_alarms(equal, arms, 8, seed) for seed in SEEDS] for arms in studies.ARMS}
    alone, jointly = ({arms: [s[i] for s in found] for arms, found in shares.items()} for i in (0, 1))
    assert alone[1] == jointly[1]
    assert min(alone[12]) > 0.07
    for place, arms in enumerate(studies.ARMS):
        assert max(jointly[arms]) <= 0.07
        check_printed(alone[arms], equal, "the strongest alone", 2 + place)
        check_printed(jointly[arms], equal, "the largest of all", 2 + place)
