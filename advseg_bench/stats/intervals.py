"""Means over subjects and their intervals."""

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
"""Under this many subjects no population interval is given."""

RESAMPLES = 2**13
"""Resamples of a bootstrap: half are drawn, half are their mirror images."""

MOST_RESAMPLED = 200
"""Above this many subjects the interval is Student's t, which then is as good and needs no memory."""

HIGHEST_LEVEL = 0.999
"""Above this level fewer than four resamples would lie beyond an end."""

_SEED = 2401
_VALUES_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over subjects with its confidence interval.

    Attributes:
        mean: Mean of the subjects' means; every subject counts once, however many images it has.
        lower: Lower end. It may leave [0, 1]: the interval knows nothing of a score's range.
        upper: Upper end. The mean need not be in the middle.
        n_subjects: Number of subjects.
        level: Confidence level, such as 0.95.
    """

    mean: float
    lower: float
    upper: float
    n_subjects: int
    level: float


def check_share(name: str, value: float, highest: float = 1.0) -> None:
    """Refuse a level, an error rate or the margin of a correlation that does not lie between 0 and `highest`."""
    if not 0 < value <= highest or value == 1:
        what = "a number between 0 and 1" if highest == 1 else f"a number above 0 and up to {highest}"
        raise SpecError(expected(name, what, value))


def subject_means(
    values: Sequence[float] | Floats, subjects: Sequence[Hashable]
) -> tuple[Floats, tuple[Hashable, ...]]:
    """Average the values of each subject: the one step that turns images into observations.

    Args:
        values: One finite score per image; several per image, such as draws, may follow each other.
        subjects: Whom each image shows; same length.

    Returns:
        One mean per subject, and the subjects, in order of first appearance.

    Cost:
        One pass.
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
    """Give a confidence interval for the mean score of the population that the subjects come from.

    Images of one subject resemble each other, so the observations are the subjects' means; over images the
    interval would be far too narrow. `subject_intervals` says how it is made.

    Args:
        values: One finite score per image.
        subjects: Whom each image shows; same length.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        The interval, or None when there are fewer than five subjects.

    Cost:
        Under a millisecond, after 0.1 s for the first interval with this many subjects.

    Raises:
        SpecError: If the level is out of range.
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
    """Give the intervals of many groups with equally many subjects: studentised bootstrap over subjects.

    Each resample weighs the subjects anew and has its own mean m* and standard deviation s*; the quantiles of
    (m* - m) / s* take the place of Student's in m - q s. That follows a skewed score, where Student's interval
    covers too little, and few subjects, where a percentile bootstrap does (85 % instead of 95 % at five). The
    weights are Beta(1/2, 3/2): drawing subjects with replacement, the usual choice, leaves some resamples
    with next to no spread where most subjects are alike (a success rate of 1, a Dice near 0), and so
    intervals a hundred times as wide as the data.

    The weights depend on the number of subjects and a fixed seed alone: equal data give equal intervals, the
    order of subjects does not matter, and the interval of -x is the mirror image of that of x.

    If a group has two different values, one of them in fewer than three subjects, (m* - m) / s* has no finite
    variance, and the interval is Student's t, as it is above 200 subjects. If all its subjects are equal the
    interval has no width: then it says nothing about how far other subjects may differ.

    Args:
        means: Subject means, (groups, subjects), finite, at least five subjects.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        Lower and upper ends, (groups,).

    Cost:
        8,192 resamples as two matrix products and two partitions, once for equal groups; 5,000 groups of 40 subjects
        take about a second.

    Raises:
        SpecError: If the level is out of range.

    Source:
        Owen 2025, arXiv:2508.10083; Davison and Hinkley 1997, section 5.2.1; Student 1908. Measured coverage:
        docs/statistics.md.
    """
    check_share("level", level, HIGHEST_LEVEL)
    assert means.shape[1] >= FEWEST_SUBJECTS, "fewer than five subjects have no interval"
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
    """Give the intervals of many groups with different numbers of subjects, see `subject_intervals`.

    Args:
        groups: Subject means of each group, finite.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        Lower and upper end of each group; None under five subjects.

    Cost:
        Groups of equal size are one batch.

    Raises:
        SpecError: If the level is out of range.
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
    """Lower and upper ends from sorted subject means, (groups, subjects)."""
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
    quotients.partition(tail - 1, axis=1)  # one end at a time: NumPy has vectors for one place, but not for two
    quotients[:, tail:].partition(RESAMPLES - 2 * tail, axis=1)
    low, high = quotients[:, tail - 1], quotients[:, RESAMPLES - tail]
    coarse = _is_coarse(scaled)
    return centre - np.where(coarse, student, high) * spread, centre - np.where(coarse, -student, low) * spread


def _is_coarse(scaled: Floats) -> NDArray[np.bool_]:
    """Whether a sorted row has at most two values, one of them fewer than three times."""
    steps = np.diff(scaled, axis=1) > 1e-9
    first = steps.argmax(axis=1) + 1
    coarse: NDArray[np.bool_] = (steps.sum(axis=1) < 2) & (np.minimum(first, scaled.shape[1] - first) < 3)
    return coarse


@lru_cache(maxsize=8)
def _draw_weights(n: int) -> Floats:
    """How much each of n sorted subjects counts in each resample, (n, resamples); the sum over subjects is 1.

    The second half mirrors the first: it gives the largest what the first gave the smallest. Sobol points
    rather than random ones, so that the width of an interval varies less over seeds.
    """
    from scipy.stats import qmc  # heavy to import

    points = qmc.Sobol(n, seed=_SEED).random(RESAMPLES // 2)
    drawn = betaincinv(0.5, 1.5, np.maximum(points, 1e-12))
    drawn /= drawn.sum(axis=1, keepdims=True)
    weights = np.ascontiguousarray(np.concatenate([drawn, drawn[:, ::-1]]).T)
    weights.setflags(write=False)
    return weights
