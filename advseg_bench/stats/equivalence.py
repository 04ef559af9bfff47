"""Is a difference or a correlation negligible? A test that is not significant does not show that it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from advseg_bench.errors import SpecError, expected
from advseg_bench.stats.intervals import FEWEST_SUBJECTS, Floats, check_share


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Result of two one-sided tests (TOST) of "at least as far from zero as the margin".

    Attributes:
        n: Number of subjects, or of points of a correlation.
        estimate: Mean difference, or the correlation; None without data.
        margin: Largest value that counts as negligible, in the unit of the estimate; chosen before seeing the data.
        lower: Lower end of the confidence interval; None where there are too few data for one.
        upper: Its upper end. The estimate is equivalent to zero exactly if the interval lies within the margin.
        level: Level of the interval, 1 - 2 alpha.
        p: The larger of the two p values; None where there are too few data.
        equivalent: Whether p is at most alpha.

    Example:
        >>> import advseg_bench as ab
        >>> found = ab.stats.equivalence([0.01, 0.02, 0.0], margin=0.05)
        >>> found.n, found.p, found.equivalent  # too few subjects for a test
        (3, None, False)
    """

    n: int
    estimate: float | None
    margin: float
    lower: float | None
    upper: float | None
    level: float
    p: float | None
    equivalent: bool


def equivalence(differences: Sequence[float] | Floats, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether a mean difference lies within a margin around zero.

    Args:
        differences: Mean of (a - b) over the images of each subject, (subjects,), finite.
        margin: Largest difference that counts as negligible, above 0, in the unit of the score.
        alpha: Error rate, above 0 and below 0.5.

    Returns:
        One-sided Student's t tests against both ends of the margin. With fewer than five subjects, `p` and the interval
        are None and `equivalent` is False.

    Raises:
        SpecError: If margin or alpha is out of range.

    Cost:
        O(subjects).

    Source:
        Schuirmann 1987; Lakens 2017.

    Example:
        >>> import advseg_bench as ab
        >>> found = ab.stats.equivalence([0.004, -0.002, 0.001, 0.003, -0.001, 0.0], margin=0.02)
        >>> found.equivalent, f"{found.lower:.4f} to {found.upper:.4f}"
        (True, '-0.0011 to 0.0027')
    """
    _check_settings(margin, alpha)
    values = np.asarray(differences, dtype=np.float64)
    assert values.ndim == 1, "one difference per subject"
    assert np.isfinite(values).all(), "leave out subjects without a score"
    n = len(values)
    mean = float(values.mean()) if n else None
    if mean is None or n < FEWEST_SUBJECTS:
        return Equivalence(n, mean, margin, None, None, 1 - 2 * alpha, None, False)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 1 - alpha)) * error
    if error > 1e-12 * float(np.abs(values).max()):
        p = float(max(stdtr(n - 1, -(mean + margin) / error), stdtr(n - 1, (mean - margin) / error)))
    else:
        p = float(abs(mean) >= margin)
    return Equivalence(n, mean, margin, mean - half, mean + half, 1 - 2 * alpha, p, p <= alpha)


def equivalent_correlation(r: float | None, n: int, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether a correlation lies within a margin around zero, on Fisher's scale.

    Args:
        r: Pearson's correlation, -1 to 1; None where it is undefined.
        n: Number of points.
        margin: Largest absolute correlation that counts as negligible, between 0 and 1.
        alpha: Error rate, above 0 and below 0.5.

    Returns:
        One-sided tests of Fisher's z against both ends of the margin. With fewer than four points, `p` and the interval
        are None and `equivalent` is False.

    Raises:
        SpecError: If margin or alpha is out of range.

    Cost:
        O(1).

    Source:
        Goertzen and Cribbie 2010; Fisher 1921.

    Example:
        >>> import advseg_bench as ab
        >>> ab.stats.equivalent_correlation(0.0, n=5, margin=0.3).equivalent
        False
        >>> ab.stats.equivalent_correlation(0.0, n=50, margin=0.3).equivalent
        True
    """
    _check_settings(margin, alpha)
    check_share("margin of a correlation", margin)
    if r is None or n < 4:
        return Equivalence(n, r, margin, None, None, 1 - 2 * alpha, None, False)
    assert -1 <= r <= 1, "a correlation lies between -1 and 1"
    with np.errstate(divide="ignore"):
        z = float(np.arctanh(r))
    bound, error = math.atanh(margin), 1 / math.sqrt(n - 3)
    p = float(max(ndtr(-(z + bound) / error), ndtr((z - bound) / error)))
    half = float(ndtri(1 - alpha)) * error
    return Equivalence(n, r, margin, math.tanh(z - half), math.tanh(z + half), 1 - 2 * alpha, p, p <= alpha)


def _check_settings(margin: float, alpha: float) -> None:
    """Reject a margin that is not positive and finite, and an error rate outside (0, 0.5)."""
    if not 0 < margin < math.inf:
        raise SpecError(expected("margin", "a finite number above 0", margin, "Zero would mean exact equality."))
    if not 0 < alpha < 0.5:
        raise SpecError(expected("alpha", "a number above 0 and below 0.5", alpha))
