"""Intervals whose unit is the subject: slices of one head are one observation, not many."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

FEWEST_SUBJECTS = 5
"""Under this many subjects no population interval is given."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over subjects with its confidence interval.

    Attributes:
        mean: Mean of the subjects' means; every subject counts once, however many images it has.
        lower: Lower end. It may leave [0, 1]: Student's t knows nothing of a score's range.
        upper: Upper end.
        n_subjects: Number of subjects.
        level: Confidence level, such as 0.95.
    """

    mean: float
    lower: float
    upper: float
    n_subjects: int
    level: float


def subject_interval(values: Sequence[float], subjects: Sequence[Hashable], level: float = 0.95) -> Interval | None:
    """Give a confidence interval for the mean score of the population that the subjects come from.

    Images of one subject resemble each other, so the observations are the subjects' means, and the interval
    is Student's t on them. Over images it would be far too narrow; a percentile bootstrap over few subjects
    is too narrow as well (85 % instead of 95 % at five subjects).

    Args:
        values: One finite score per image.
        subjects: Whom each image shows; same length.
        level: Confidence level, between 0 and 1.
    Returns: The interval, or None when there are fewer than five subjects. Cost: none to speak of.
    Source: Student 1908; coverage at 5, 8 and 20 subjects is simulated in the tests.
    """
    assert len(values) == len(subjects), "one subject for each value"
    assert 0 < level < 1, "a confidence level lies between 0 and 1"
    index = {subject: i for i, subject in enumerate(dict.fromkeys(subjects))}
    n = len(index)
    if n < FEWEST_SUBJECTS:
        return None
    which = np.array([index[subject] for subject in subjects])
    scores = np.asarray(values, dtype=np.float64)
    assert np.isfinite(scores).all(), "leave out images without a score"
    means = np.bincount(which, weights=scores) / np.bincount(which)
    mean = float(means.mean())
    half = float(stdtrit(n - 1, 0.5 + level / 2) * means.std(ddof=1) / math.sqrt(n))
    return Interval(mean=mean, lower=mean - half, upper=mean + half, n_subjects=n, level=level)
