"""Is the mean difference between two attacks, losses or models on the same subjects other than zero?"""

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
"""Up to this many subjects every flip of signs is counted."""

FLIPS = 99_999
"""Random flips above that, so that the smallest p, 1 / 100,000, does not exceed that of 17 subjects."""

_SEED = 11224
_ROWS_AT_ONCE = 8192
_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A comparison of two things on the same subjects.

    Attributes:
        n: Number of subjects.
        mean: Mean difference; None without subjects.
        interval: Its interval; None under five subjects.
        d_z: Mean over standard deviation of the differences (Cohen 1988); None under two subjects and where
            the differences do not vary.
        rank_biserial: Matched-pairs rank-biserial correlation (Kerby 2014): share of the signed ranks that is
            positive less the share that is negative, -1 to 1; None where every difference is 0.
        p: Two-sided p of "no difference"; None under two subjects.
        smallest_p: The smallest p that any data of n subjects could have given; 1 under two subjects.
        method: How p was found.
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
    """Test whether the mean of paired differences is zero, by flipping signs.

    If nothing distinguishes a from b, each subject's difference could as well have had the other sign. p is
    the share of all flips whose mean is at least as far from zero as the one observed. The test is exact for
    any distribution that is symmetric under "no difference", takes ties and zeros as they are, and asks about
    the same mean as the interval; Wilcoxon's test asks about ranks and calls a lopsided difference of mean zero
    an effect the more often the more subjects there are (docs/statistics.md). So it serves for every n: all
    2**n flips up to 17 subjects, 99,999 random ones above (p = (1 + hits) / 100,000; fixed seed).

    Args:
        differences: Mean of (a - b) over the images of each subject, (subjects,), finite.
        level: Confidence level of the interval, above 0 and up to 0.999.

    Returns:
        Estimate, interval, effect sizes and p.

    Raises:
        SpecError: If the level is out of range.

    Source:
        Fisher 1935, section 21; Phipson and Smyth 2010 for the random flips.
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
    """Return the smallest two-sided p that a test of n paired differences can give: 2 / 2**n, at least 1e-5."""
    if n < 2:
        return 1.0
    return 2 / 2**n if n <= MOST_EXACT else 1 / (FLIPS + 1)


def sign_flip_ps(differences: Floats) -> Floats:
    """Test many rows of paired differences at once; `compare_paired` says how.

    Args:
        differences: (tests, subjects), finite, at least two subjects.

    Returns:
        Two-sided p of each row, (tests,).

    Cost:
        One matrix product with the table of flips, which is shared; 1,000 tests take about 1 s at 17 subjects and 2 s
        above.
    """
    tests, n = differences.shape
    assert n >= 2, "one difference has one sign"
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


@lru_cache(maxsize=16)
def _list_flips(n: int) -> NDArray[np.int8]:
    """Signs of each flip, (flips, n): all, with the first sign held since -x is as far from 0; or random ones."""
    if n <= MOST_EXACT:
        bits = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
        return np.where(bits & 1, -1, 1).astype(np.int8)
    generator = np.random.default_rng((_SEED, n))
    return (2 * generator.integers(0, 2, size=(FLIPS, n), dtype=np.int8) - 1).astype(np.int8)


def _standardise(values: Floats) -> float | None:
    """Mean over standard deviation, where there is one."""
    if len(values) < 2:
        return None
    spread = float(values.std(ddof=1))
    return float(values.mean()) / spread if spread > 1e-12 * float(np.abs(values).max()) else None


def _correlate_ranks(values: Floats) -> float | None:
    """Matched-pairs rank-biserial correlation; differences of zero are left out, as Wilcoxon did."""
    from scipy.stats import rankdata  # heavy to import

    moved = values[values != 0]
    if not len(moved):
        return None
    ranks = rankdata(np.abs(moved))
    return float((ranks * np.sign(moved)).sum() / ranks.sum())
