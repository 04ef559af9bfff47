"""Means over subjects and their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from advseg_bench.errors import SpecError, expected

Floats: TypeAlias = NDArray[np.float64]

FEWEST_SUBJECTS = 5
"""The fewest subjects for which an interval is computed."""

RESAMPLES = 2**13
"""Resamples of a bootstrap: half are sampled, half are their mirror images."""

MOST_RESAMPLED = 200
"""Above this many subjects the interval is Student's t, which is as accurate there and needs no memory."""

HIGHEST_LEVEL = 0.999
"""The highest confidence level: above it, fewer than four resamples would lie beyond each end."""

_SEED = 2401
_VALUES_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over subjects with its confidence interval.

    Attributes:
        mean: Mean of the subjects' means; every subject counts once, however many images it has.
        lower: Lower end. It may be outside [0, 1], since the method does not use the range of a score.
        upper: Upper end. The interval need not be symmetric about the mean.
        n_subjects: Number of subjects.
        level: Confidence level, such as 0.95.

    Example:
        >>> import advseg_bench as ab
        >>> found = ab.stats.subject_interval([0.8, 0.7, 0.9, 0.6, 0.8], range(5), level=0.9)
        >>> found.lower < found.mean < found.upper, found.n_subjects, found.level
        (True, 5, 0.9)
    """

    mean: float
    lower: float
    upper: float
    n_subjects: int
    level: float


def check_share(name: str, value: float, highest: float = 1.0) -> None:
    """Reject a level, an error rate or the margin of a correlation that does not lie between 0 and `highest`."""
    if not 0 < value <= highest or value == 1:
        what = "a number between 0 and 1" if highest == 1 else f"a number above 0 and up to {highest}"
        raise SpecError(expected(name, what, value))


def subject_means(
    values: Sequence[float] | Floats, subjects: Sequence[Hashable]
) -> tuple[Floats, tuple[Hashable, ...]]:
    """Average the values of each subject, which turns scores of images into independent observations.

    Args:
        values: One finite score per image, (n,); an image with several repeats may have one entry per repeat.
        subjects: The subject of each value, (n,).

    Returns:
        One mean per subject, (subjects,), and the subjects, both in order of first appearance.

    Cost:
        O(n).

    Example:
        >>> import advseg_bench as ab
        >>> means, subjects = ab.stats.subject_means([0.5, 0.75, 0.25], ["anna", "anna", "ben"])
        >>> means.tolist(), subjects
        ([0.625, 0.25], ('anna', 'ben'))
    """
    assert len(values) == len(subjects), "one subject for each value"
    scores = np.asarray(values, dtype=np.float64)
    assert np.isfinite(scores).all(), "leave out images without a score"
    index = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
    which = np.array([index[subject] for subject in subjects], dtype=np.intp)
    return np.bincount(which, weights=scores) / np.bincount(which), tuple(index)


def subject_interval(
    values: Sequence[float] | Floats, subjects: Sequence[Hashable], level: float = 0.95
) -> Interval | None:
    """Compute a confidence interval for the mean score of the population that the subjects come from.

    Images of one subject resemble each other, so the observations are the subjects' means; an interval over images
    would be far too narrow. The method is that of `subject_intervals`.

    Args:
        values: One finite score per image, (n,).
        subjects: The subject of each image, (n,).
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        The interval, in the unit of the score; None for fewer than five subjects.

    Raises:
        SpecError: If the level is out of range.

    Cost:
        As `subject_intervals` for one group.

    Example:
        >>> import advseg_bench as ab
        >>> dice = [0.81, 0.83, 0.74, 0.90, 0.66, 0.79, 0.85]
        >>> found = ab.stats.subject_interval(dice, ["a", "a", "b", "c", "d", "e", "f"])
        >>> f"{found.mean:.3f} ({found.n_subjects} subjects)"
        '0.793 (6 subjects)'
    """
    means, _ = subject_means(values, subjects)
    if len(means) < FEWEST_SUBJECTS:
        check_share("level", level, HIGHEST_LEVEL)
        return None
    lower, upper = subject_intervals(means[None], level)
    return Interval(
        mean=float(means.mean()), lower=float(lower[0]), upper=float(upper[0]), n_subjects=len(means), level=level
    )


def subject_intervals(means: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Compute the intervals of many groups of equally many subjects by a studentised bootstrap over subjects.

    Each resample gives the subjects random weights and has a mean m* and a standard deviation s*. The quantiles q of
    (m* - m) / s* replace those of Student's t in m - q s. The interval adapts to skewed scores, where the coverage of
    Student's is too low, and to few subjects, where that of a percentile bootstrap is (85 % instead of 95 % at five).
    The weights are Beta(1/2, 3/2). The usual choice, sampling subjects with replacement, gives some resamples hardly
    any spread where most subjects are alike (a success rate of 1, a Dice near 0), and intervals a hundred times as wide
    as the data.

    The weights depend only on the number of subjects and a fixed seed: equal data give equal intervals, the order of
    the subjects does not matter, and the interval of -x is the mirror image of that of x.

    If a group has only two distinct values, one of them in fewer than three subjects, (m* - m) / s* has no finite
    variance, and the interval is Student's t, as it is above 200 subjects. If all its subjects are equal, the interval
    has zero width and carries no information about the spread of the population.

    Args:
        means: Subject means, (groups, subjects), finite, at least five subjects.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        Lower and upper ends, (groups,) each, in the unit of the means.

    Raises:
        SpecError: If the level is out of range.

    Cost:
        Two matrix products of (groups, subjects) with (subjects, 8,192), and two partitions; equal groups are computed
        once.

    Source:
        Owen 2025, arXiv:2508.10083; Davison and Hinkley 1997, section 5.2.1; Student 1908. Measured coverage:
        docs/statistics.md.

    Example:
        >>> import numpy as np
        >>> import advseg_bench as ab
        >>> means = np.array([[0.7, 0.8, 0.6, 0.9, 0.8], [0.1, 0.1, 0.1, 0.1, 0.1]])
        >>> lower, upper = ab.stats.subject_intervals(means)
        >>> ((lower <= means.mean(axis=1)) & (means.mean(axis=1) <= upper)).tolist()
        [True, True]
    """
    check_share("level", level, HIGHEST_LEVEL)
    assert means.shape[1] >= FEWEST_SUBJECTS, "an interval needs at least five subjects"
    assert np.isfinite(means).all(), "leave out subjects without a score"
    distinct, which = np.unique(np.sort(means, axis=1), axis=0, return_inverse=True)
    lower, upper = np.empty(len(distinct)), np.empty(len(distinct))
    step = max(1, _VALUES_AT_ONCE // RESAMPLES)
    for start in range(0, len(distinct), step):
        part = slice(start, start + step)
        lower[part], upper[part] = _bound(distinct[part], level)
    return lower[which.ravel()], upper[which.ravel()]


def group_intervals(
    groups: Sequence[Sequence[float] | Floats], level: float = 0.95
) -> list[tuple[float, float] | None]:
    """Compute the intervals of many groups of different numbers of subjects, as `subject_intervals` does.

    Args:
        groups: Subject means of each group, (subjects,) each, finite.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        Lower and upper end for each group; None for a group of fewer than five subjects.

    Raises:
        SpecError: If the level is out of range.

    Cost:
        One call of `subject_intervals` for each distinct number of subjects.

    Example:
        >>> import advseg_bench as ab
        >>> few, enough = ab.stats.group_intervals([[0.7, 0.8, 0.6], [0.7, 0.8, 0.6, 0.9, 0.8]])
        >>> few is None, enough[0] < 0.76 < enough[1]
        (True, True)
    """
    check_share("level", level, HIGHEST_LEVEL)
    places: dict[int, list[int]] = {}
    for place, means in enumerate(groups):
        places.setdefault(len(means), []).append(place)
    ends: list[tuple[float, float] | None] = [None] * len(groups)
    for n, mine in places.items():
        if n >= FEWEST_SUBJECTS:
            lower, upper = subject_intervals(np.array([groups[i] for i in mine], dtype=np.float64), level)
            for i, pair in zip(mine, zip(lower.tolist(), upper.tolist(), strict=True), strict=True):
                ends[i] = pair
    return ends


def _bound(means: Floats, level: float) -> tuple[Floats, Floats]:
    """Return lower and upper ends from sorted subject means, (groups, subjects)."""
    n = means.shape[1]
    centre, spread = means.mean(axis=1), means.std(axis=1)
    equal = spread <= 1e-12 * np.abs(means).max(axis=1)
    spread[equal] = 0.0
    student = float(stdtrit(n - 1, 0.5 + level / 2)) / math.sqrt(n - 1)
    if n > MOST_RESAMPLED:
        return centre - student * spread, centre + student * spread
    scaled = np.where(equal[:, None], 0.0, means - centre[:, None]) / np.where(equal, 1.0, spread)[:, None]
    weights = _draw_weights(n)
    shifts = scaled @ weights
    variances = (scaled * scaled) @ weights - shifts * shifts
    quotients = shifts / np.sqrt(np.maximum(variances, 1e-12))
    tail = math.floor((RESAMPLES + 1) * (1 - level) / 2)
    quotients.partition(tail - 1, axis=1)  # NumPy vectorises a partition at one index, but not at two
    quotients[:, tail:].partition(RESAMPLES - 2 * tail, axis=1)
    low, high = quotients[:, tail - 1], quotients[:, RESAMPLES - tail]
    coarse = _is_coarse(scaled)
    return centre - np.where(coarse, student, high) * spread, centre - np.where(coarse, -student, low) * spread


def _is_coarse(scaled: Floats) -> NDArray[np.bool_]:
    """Return for each sorted row whether it has at most two distinct values, one of them fewer than three times."""
    steps = np.diff(scaled, axis=1) > 1e-9
    first = steps.argmax(axis=1) + 1
    coarse: NDArray[np.bool_] = (steps.sum(axis=1) < 2) & (np.minimum(first, scaled.shape[1] - first) < 3)
    return coarse


@lru_cache(maxsize=8)
def _draw_weights(n: int) -> Floats:
    """Return the weight of each of n sorted subjects in each resample, (n, resamples); weights sum to 1 over subjects.

    The second half mirrors the first: the largest value gets the weight that the smallest has there. The points are
    Sobol's rather than random, so that the width of an interval varies less over seeds.
    """
    from scipy.stats import qmc  # heavy to import

    points = qmc.Sobol(n, seed=_SEED).random(RESAMPLES // 2)
    drawn = betaincinv(0.5, 1.5, np.maximum(points, 1e-12))
    drawn /= drawn.sum(axis=1, keepdims=True)
    weights = np.ascontiguousarray(np.concatenate([drawn, drawn[:, ::-1]]).T)
    weights.setflags(write=False)
    return weights
