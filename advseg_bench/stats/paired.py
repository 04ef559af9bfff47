"""Does the mean difference between two attacks, losses or models on the same subjects differ from zero?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from advseg_bench.stats.intervals import HIGHEST_LEVEL, Floats, Interval, check_share, subject_interval

Method: TypeAlias = Literal["exact sign flip", "Monte Carlo sign flip"]

MOST_EXACT = 17
"""Up to this many subjects, all sign flips are enumerated."""

FLIPS = 99_999
"""Random sign flips above that; the smallest p, 1 / 100,000, does not exceed that of 17 subjects."""

_SEED = 11224
_ROWS_AT_ONCE = 8192
_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A paired comparison of two conditions on the same subjects.

    Attributes:
        n: Number of subjects.
        mean: Mean difference; None without subjects.
        interval: Its confidence interval; None for fewer than five subjects.
        d_z: Mean divided by standard deviation of the differences (Cohen 1988); None for fewer than two subjects and
            where the differences do not vary.
        rank_biserial: Matched-pairs rank-biserial correlation (Kerby 2014), -1 to 1: the share of the rank sum with a
            positive sign minus the share with a negative one; None where every difference is 0.
        p: Two-sided p value of "no difference"; None for fewer than two subjects.
        smallest_p: The smallest p that any data of n subjects can give; 1 for fewer than two subjects.
        method: How p was computed.

    Example:
        >>> import advseg_bench as ab
        >>> test = ab.stats.compare_paired([0.25, 0.5, 0.75])
        >>> test.mean, test.interval, test.p, test.smallest_p, test.rank_biserial
        (0.5, None, 0.25, 0.25, 1.0)
    """

    n: int
    mean: float | None
    interval: Interval | None
    d_z: float | None
    rank_biserial: float | None
    p: float | None
    smallest_p: float
    method: Method


def compare_paired(differences: Sequence[float] | Floats, level: float = 0.95) -> PairedTest:
    """Test whether the mean of paired differences is zero, by a sign-flip permutation test.

    Under "no difference" between a and b, the sign of each subject's difference is arbitrary. p is the share of all
    sign flips whose mean is at least as far from zero as the observed one. The test is exact for any distribution that
    is symmetric under "no difference", handles ties and zeros, and concerns the same mean as the interval. Wilcoxon's
    test concerns ranks: for a skewed difference of mean zero, its false-positive rate grows with the number of subjects
    (docs/statistics.md). All 2**n flips are enumerated for up to 17 subjects; above, 99,999 random ones are used
    (p = (1 + hits) / 100,000; fixed seed).

    Args:
        differences: Mean of (a - b) over the images of each subject, (subjects,), finite.
        level: Confidence level of the interval, above 0 and up to 0.999.

    Returns:
        Estimate and interval in the unit of the score, effect sizes and p.

    Raises:
        SpecError: If the level is out of range.

    Cost:
        O(n 2**n) for up to 17 subjects, O(100,000 n) above; see `sign_flip_ps` for many tests at once.

    Source:
        Fisher 1935, section 21; Phipson and Smyth 2010 for the random flips.

    Example:
        >>> import advseg_bench as ab
        >>> test = ab.stats.compare_paired([0.11, 0.08, 0.15, 0.02, 0.09, 0.12])
        >>> f"mean {test.mean:.3f}, p = {test.p:.5f}, {test.method}"
        'mean 0.095, p = 0.03125, exact sign flip'
    """
    check_share("level", level, HIGHEST_LEVEL)
    values = np.asarray(differences, dtype=np.float64)
    assert values.ndim == 1, "one difference per subject"
    assert np.isfinite(values).all(), "leave out subjects without a score"
    n = len(values)
    p = float(sign_flip_ps(values[None])[0]) if n >= 2 else None
    return PairedTest(
        n=n,
        mean=float(values.mean()) if n else None,
        interval=subject_interval(values, range(n), level),
        d_z=_standardise(values),
        rank_biserial=_correlate_ranks(values),
        p=p,
        smallest_p=find_smallest_p(n),
        method="exact sign flip" if n <= MOST_EXACT else "Monte Carlo sign flip",
    )


def find_smallest_p(n: int) -> float:
    """Return the smallest two-sided p that n paired differences can give: 2 / 2**n, but at least 1e-5."""
    if n < 2:
        return 1.0
    return 2 / 2**n if n <= MOST_EXACT else 1 / (FLIPS + 1)


def sign_flip_ps(differences: Floats) -> Floats:
    """Compute the p values of many paired tests at once, as `compare_paired` does.

    Args:
        differences: Paired differences, (tests, subjects), finite, at least two subjects.

    Returns:
        Two-sided p of each row, (tests,).

    Cost:
        One matrix product of (flips, subjects) with (subjects, tests): 2**(n - 1) flips for up to n = 17 subjects,
        99,999 above. The table of flips is shared by all calls.

    Example:
        >>> import numpy as np
        >>> import advseg_bench as ab
        >>> ab.stats.sign_flip_ps(np.array([[1.0, 2.0, 3.0, 4.0], [1.0, -2.0, 3.0, -2.0]])).tolist()
        [0.125, 1.0]
    """
    tests, n = differences.shape
    assert n >= 2, "a test needs at least two subjects"
    assert np.isfinite(differences).all(), "leave out subjects without a score"
    flips = _list_flips(n)
    hits = np.zeros(tests, dtype=np.int64)
    step = max(1, _VALUES_AT_ONCE // _ROWS_AT_ONCE)
    for start in range(0, tests, step):
        part = differences[start : start + step]
        sizes = np.abs(part).sum(axis=1)
        least = np.abs(part.sum(axis=1)) - 1e-12 * sizes
        for row in range(0, len(flips), _ROWS_AT_ONCE):
            sums = flips[row : row + _ROWS_AT_ONCE].astype(np.float64) @ part.T
            hits[start : start + step] += (np.abs(sums) >= least).sum(axis=0)
    return hits / len(flips) if n <= MOST_EXACT else (1 + hits) / (len(flips) + 1)


def joint_sign_flip_ps(differences: Floats) -> Floats:
    """Compute p values of many paired tests on the same subjects, adjusted for choosing the largest mean among them.

    All tests share each sign flip. The adjusted p of a test is the share of flips in which the mean of *any* test is at
    least as far from zero as its own. So the test of the largest of many means keeps the error rate of one test,
    whatever the dependence of the tests. It is stronger than Holm's method for tests that resemble each other, and its
    smallest p is that of one test. Means are compared as they are, so all differences need the same unit.

    Args:
        differences: Paired differences, (tests, subjects), finite, at least two subjects.

    Returns:
        Adjusted two-sided p of each test, (tests,); for a single test that of `sign_flip_ps`.

    Cost:
        That of `sign_flip_ps`.

    Source:
        Westfall and Young 1993, the single-step maxT method, with sign flips.

    Example:
        >>> import numpy as np
        >>> import advseg_bench as ab
        >>> differences = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 3.0, -4.0]])
        >>> ab.stats.sign_flip_ps(differences).tolist(), ab.stats.joint_sign_flip_ps(differences).tolist()
        ([0.125, 0.75], [0.25, 1.0])
    """
    tests, n = differences.shape
    assert n >= 2, "a test needs at least two subjects"
    assert np.isfinite(differences).all(), "leave out subjects without a score"
    flips, hits = _list_flips(n), np.zeros(tests, dtype=np.int64)
    least = np.abs(differences.sum(axis=1)) - 1e-12 * np.abs(differences).sum(axis=1)
    step = max(1, min(_ROWS_AT_ONCE, _VALUES_AT_ONCE // tests))
    for row in range(0, len(flips), step):
        largest = np.abs(flips[row : row + step].astype(np.float64) @ differences.T).max(axis=1)
        hits += len(largest) - np.searchsorted(np.sort(largest), least)
    return hits / len(flips) if n <= MOST_EXACT else (1 + hits) / (len(flips) + 1)


@lru_cache(maxsize=16)
def _list_flips(n: int) -> NDArray[np.int8]:
    """Return the signs of each flip, (flips, n): random, or all with the first sign fixed (-x is as far from 0)."""
    if n <= MOST_EXACT:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
        return np.where(bits & 1, -1, 1).astype(np.int8)
    generator = np.random.default_rng((_SEED, n))
    return (2 * generator.integers(0, 2, size=(FLIPS, n), dtype=np.int8) - 1).astype(np.int8)


def _standardise(values: Floats) -> float | None:
    """Return the mean divided by the standard deviation; None where that is undefined."""
    if len(values) < 2:
        return None
    spread = float(values.std(ddof=1))
    return float(values.mean()) / spread if spread > 1e-12 * float(np.abs(values).max()) else None


def _correlate_ranks(values: Floats) -> float | None:
    """Return the matched-pairs rank-biserial correlation; differences of zero are left out, as in Wilcoxon's test."""
    from scipy.stats import rankdata  # heavy to import

    moved = values[values != 0]
    if not len(moved):
        return None
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())
