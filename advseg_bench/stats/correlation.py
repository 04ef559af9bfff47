"""Are two properties of the models correlated? The results include the smallest correlation that n models can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from advseg_bench.stats.intervals import HIGHEST_LEVEL, Floats, check_share

MOST_EXACT_RANKS = 8
"""Up to this many points, all orders are enumerated (40,320 for eight)."""


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One correlation coefficient.

    Attributes:
        value: The coefficient, from -1 to 1.
        lower: Lower end of its confidence interval; None for fewer than four points, and for a perfect rank order,
            whose interval on Fisher's scale has zero width at any n.
        upper: Upper end of the interval; None where `lower` is.
        p: Two-sided p value of "no association"; None for fewer than three points.
        smallest_p: The smallest p that n points can give: 0 for Pearson's r, 2 / n! for Spearman's rho.
        smallest_detectable: The smallest absolute value that is significant at 1 - level with n points; None if no
            value is.

    Example:
        >>> import advseg_bench as ab
        >>> r = ab.stats.correlate([1.0, 2.0, 3.0, 4.0], [0.1, 0.3, 0.2, 0.4]).pearson
        >>> f"r = {r.value:.2f}, significant from {r.smallest_detectable:.2f} on"
        'r = 0.80, significant from 0.95 on'
    """

    value: float
    lower: float | None
    upper: float | None
    p: float | None
    smallest_p: float
    smallest_detectable: float | None


@dataclass(frozen=True, slots=True)
class Correlation:
    """Linear and rank correlation of n points.

    Attributes:
        n: Number of points.
        pearson: Linear correlation; None where it is undefined.
        spearman: Rank correlation; None where it is undefined.
        level: Confidence level of the intervals; `smallest_detectable` refers to a test at 1 - level.
        reason: Why the coefficients are undefined; "" if they are defined.

    Example:
        >>> import advseg_bench as ab
        >>> found = ab.stats.correlate([1.0, 2.0, 3.0], [0.5, 0.5, 0.5])
        >>> found.pearson, found.reason
        (None, 'y does not vary')
    """

    n: int
    pearson: Coefficient | None
    spearman: Coefficient | None
    level: float
    reason: str


def correlate(x: Sequence[float] | Floats, y: Sequence[float] | Floats, level: float = 0.95) -> Correlation:
    """Correlate two properties of the same items, such as number of parameters and attack success of models.

    The p value of Pearson's r is from Student's t with n - 2 degrees of freedom, its interval from Fisher's z. The p
    value of Spearman's rho is exact (all orders, ties kept) for up to eight points and from Student's t above; its
    interval is from Fisher's z with the variance (1 + rho**2 / 2) / (n - 3).

    Args:
        x: One finite number per item, (n,), in any unit.
        y: One finite number per item, (n,), in any unit.
        level: Confidence level, above 0 and up to 0.999.

    Returns:
        Both coefficients. They are None, with the reason, for fewer than two points and where x or y is constant.

    Raises:
        SpecError: If the level is out of range.

    Cost:
        O(n log n) time; for up to eight points, also O(n! n) time and memory, shared by calls of equal n.

    Source:
        Fisher 1921; Bonett and Wright 2000 for the interval of Spearman's rho.

    Example:
        >>> import advseg_bench as ab
        >>> found = ab.stats.correlate([1.0, 2.0, 3.0, 4.0, 5.0], [0.2, 0.1, 0.4, 0.3, 0.5])
        >>> f"{found.spearman.value:.2f}, p = {found.spearman.p:.3f}, n = {found.n}"
        '0.80, p = 0.133, n = 5'
    """
    check_share("level", level, HIGHEST_LEVEL)
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert a.ndim == 1, "one number per item"
    assert a.shape == b.shape, "x and y have the same length"
    assert np.isfinite(a).all(), "leave out items without a value"
    assert np.isfinite(b).all(), "leave out items without a value"
    n = len(a)
    if reason := _find_obstacle(a, b):
        return Correlation(n, None, None, level, reason)
    return Correlation(n, _measure_linear(a, b, level), _measure_ranks(a, b, level), level, "")


def _find_obstacle(x: Floats, y: Floats) -> str:
    """Return why the correlation of two properties is undefined; "" if it is defined."""
    if len(x) < 2:
        return "there is only one point" if len(x) else "there are no points"
    still = [name for name, values in (("x", x), ("y", y)) if _is_constant(values)]
    if len(still) == 2:
        return "neither x nor y varies"
    return f"{still[0]} does not vary" if still else ""


def _is_constant(values: Floats) -> bool:
    """Return whether the values are equal up to rounding."""
    return float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max())


def _measure_linear(x: Floats, y: Floats, level: float) -> Coefficient:
    """Return Pearson's coefficient."""
    n, r = len(x), _cosine(x, y)
    lower, upper = _bound(r, n, level, 1.0)
    critical = None
    if n >= 3:
        quantile = float(stdtrit(n - 2, 0.5 + level / 2))
        critical = quantile / math.sqrt(n - 2 + quantile**2)
    return Coefficient(r, lower, upper, _test_t(r, n), 0.0 if n >= 3 else 1.0, critical)


def _measure_ranks(x: Floats, y: Floats, level: float) -> Coefficient:
    """Return Spearman's coefficient."""
    from scipy.stats import rankdata  # heavy to import

    n = len(x)
    first, second = rankdata(x), rankdata(y)
    rho = _cosine(first, second)
    lower, upper = _bound(rho, n, level, 1 + rho**2 / 2) if abs(rho) < 1 else (None, None)
    smallest_p = min(1.0, 2 / math.factorial(n))
    if n > MOST_EXACT_RANKS:
        quantile = float(stdtrit(n - 2, 0.5 + level / 2))
        return Coefficient(rho, lower, upper, _test_t(rho, n), smallest_p, quantile / math.sqrt(n - 2 + quantile**2))
    centred, orders = second - second.mean(), _list_orders(n)
    products = np.abs((first - first.mean())[orders] @ centred)
    p = float((products >= abs((first - first.mean()) @ centred) - 1e-9).mean()) if n >= 3 else None
    return Coefficient(rho, lower, upper, p, smallest_p, _find_critical_rank(n, 1 - level))


def _cosine(x: Floats, y: Floats) -> float:
    """Return Pearson's r; values are scaled first, since parameter counts are large."""
    a, b = x - x.mean(), y - y.mean()
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    r = float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))
    return math.copysign(1.0, r) if abs(r) > 1 - 1e-12 else r


def _test_t(r: float, n: int) -> float | None:
    """Return the two-sided p value of a correlation by Student's t."""
    if n < 3:
        return None
    return 2 * float(stdtr(n - 2, -abs(r) * math.sqrt((n - 2) / (1 - r * r)))) if abs(r) < 1 else 0.0


def _bound(r: float, n: int, level: float, variance: float) -> tuple[float | None, float | None]:
    """Return the interval from Fisher's scale; the variance is in units of 1 / (n - 3)."""
    if n < 4:
        return None, None
    half = float(ndtri(0.5 + level / 2)) * math.sqrt(variance / (n - 3))
    z = math.atanh(r) if abs(r) < 1 else math.copysign(math.inf, r)
    return math.tanh(z - half), math.tanh(z + half)


@lru_cache(maxsize=MOST_EXACT_RANKS)
def _list_orders(n: int) -> NDArray[np.intp]:
    """Return all orders of n points, (n!, n)."""
    return np.array(list(itertools.permutations(range(n))), dtype=np.intp)


@lru_cache(maxsize=64)
def _find_critical_rank(n: int, alpha: float) -> float | None:
    """Return the smallest absolute rho of n points without ties whose exact p value is at most alpha."""
    ranks = np.arange(n) - (n - 1) / 2
    values = np.sort(np.abs(np.round(ranks[_list_orders(n)] @ ranks / (ranks @ ranks), 12)))
    reached = [float(v) for v in np.unique(values) if float((values >= v).mean()) <= alpha + 1e-12]
    return min(reached, default=None)
