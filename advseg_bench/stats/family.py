"""Multiple testing: adjusted p values, and the verdict on each test of a family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from advseg_bench.stats.intervals import check_share
from advseg_bench.stats.paired import PairedTest

Verdict: TypeAlias = Literal["supported", "contradicted", "undecided", "undecidable"]
"""What a test shows about a claim that a mean difference has a certain sign.

"supported" and "contradicted": significant, in the predicted or the opposite direction. "undecided": not significant.
"undecidable": no data of so few subjects could have been significant.
"""


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of a family of tests so that the family-wise error rate stays at the level of one test.

    The smallest of m p values is multiplied by m, the next by m - 1, and so on; no adjusted p is below the one before
    it. Holm's method is valid under any dependence between the tests. A test without a p value (None) does not count.

    Args:
        ps: One p value per test, each from 0 to 1, or None.

    Returns:
        Adjusted p values in the same order; a test is significant at alpha if its adjusted p is at most alpha.

    Cost:
        O(m log m).

    Source:
        Holm 1979.

    Example:
        >>> import advseg_bench as ab
        >>> ab.stats.holm([0.01, None, 0.04, 0.03])
        [0.03, None, 0.06, 0.06]
    """
    known = [i for i, p in enumerate(ps) if p is not None]
    values = np.array([ps[i] for i in known], dtype=np.float64)
    assert ((values >= 0) & (values <= 1)).all(), "a p value lies between 0 and 1"
    order = np.argsort(values, kind="stable")
    stepped = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(known), 0, -1)))
    adjusted: list[float | None] = [None] * len(ps)
    for place, p in zip(order, stepped, strict=True):
        adjusted[known[place]] = float(p)
    return adjusted


def holm_level(size: int, rank: int = 1, alpha: float = 0.05) -> float:
    """Return the level at which Holm's method tests the p value of a rank: alpha / (size - rank + 1).

    Args:
        size: Number of tests of the family that have a p value.
        rank: Rank of the p value in the family, 1 for the smallest.
        alpha: Error rate of the whole family, between 0 and 1.

    Returns:
        The level; the p value of this rank is significant if it and all smaller ones are at most their level.

    Raises:
        SpecError: If alpha does not lie between 0 and 1.

    Source:
        Holm 1979.

    Example:
        >>> import advseg_bench as ab
        >>> ab.stats.holm_level(5), ab.stats.holm_level(5, rank=5)
        (0.01, 0.05)
    """
    check_share("alpha", alpha)
    assert 1 <= rank <= size, "a rank is from 1 to the size of the family"
    return alpha / (size - rank + 1)


def decide(
    test: PairedTest,
    adjusted_p: float | None,
    smallest_adjusted: float | None,
    alpha: float = 0.05,
    expected_sign: Literal[-1, 1] = 1,
) -> Verdict:
    """Decide what a test shows about the claim that the mean difference has a certain sign.

    Args:
        test: The test.
        adjusted_p: Its adjusted p value, from `holm`; None if the test has none.
        smallest_adjusted: The smallest adjusted p value that any data of as many subjects can give: its entry of
            `holm([t.smallest_p for t in tests])`. (Holm's method never raises a p value because another one falls.)
        alpha: Error rate of the whole family, between 0 and 1.
        expected_sign: Sign of the mean difference that the claim predicts.

    Returns:
        "supported" or "contradicted" if the test is significant, by direction; "undecidable" if no data of so few
        subjects can be significant; else "undecided". The last two do not mean "no difference": see `equivalence`.

    Raises:
        SpecError: If alpha does not lie between 0 and 1.

    Example:
        >>> import advseg_bench as ab
        >>> test = ab.stats.compare_paired([0.11, 0.08, 0.15, 0.02, 0.09, 0.12])
        >>> ab.stats.decide(test, test.p, test.smallest_p)
        'supported'
        >>> few = ab.stats.compare_paired([0.11, 0.08, 0.15])
        >>> ab.stats.decide(few, few.p, few.smallest_p)
        'undecidable'
    """
    check_share("alpha", alpha)
    assert expected_sign in (-1, 1), "a claim predicts a direction"
    if adjusted_p is None or test.mean is None or smallest_adjusted is None:
        return "undecidable"
    if adjusted_p <= alpha:
        return "supported" if test.mean * expected_sign > 0 else "contradicted"
    return "undecidable" if smallest_adjusted > alpha else "undecided"
