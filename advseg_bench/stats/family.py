"""Many tests at once, and what may be said of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from advseg_bench.stats.intervals import check_share
from advseg_bench.stats.paired import PairedTest

Verdict: TypeAlias = Literal["supported", "contradicted", "undecided", "undecidable"]


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust the p values of a family so that the chance of any false alarm stays at the level of one test.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before it. Holm's
    method holds under any dependence between the tests. A test that could not be made (None) does not count.

    Args:
        ps: One p per test of the family, each from 0 to 1, or None.

    Returns:
        Adjusted p values in the same order; significant at alpha if at most alpha.

    Cost:
        A sort.

    Source:
        Holm 1979.
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
        size: Number of tests in the family that could be made.
        rank: 1 for the smallest p of the family.
        alpha: Error rate of the whole family.

    Raises:
        SpecError: If alpha does not lie between 0 and 1.
    """
    check_share("alpha", alpha)
    assert 1 <= rank <= size, "a rank lies in the family"
    return alpha / (size - rank + 1)


def decide(
    test: PairedTest,
    adjusted_p: float | None,
    smallest_adjusted: float | None,
    alpha: float = 0.05,
    expected_sign: Literal[-1, 1] = 1,
) -> Verdict:
    """Say what a test allows to be said of a claim "the mean difference has this sign".

    Args:
        test: The test.
        adjusted_p: Its p in the family, from `holm`; None if it could not be made.
        smallest_adjusted: What it would have been had every test of the family given its smallest p:
            `holm([t.smallest_p for t in tests])`. Holm's method never adjusts a p upwards because another
            one fell, so no data could have given less.
        alpha: Error rate of the whole family.
        expected_sign: Sign of the mean difference that the claim predicts.

    Returns:
        "supported" or "contradicted" if significant, by direction; "undecidable" if not, and no data of so few subjects
        could have been; else "undecided". Neither of the last two says "no difference": see `equivalence`.

    Raises:
        SpecError: If alpha does not lie between 0 and 1.
    """
    check_share("alpha", alpha)
    assert expected_sign in (-1, 1), "a claim predicts a direction"
    if adjusted_p is None or test.mean is None or smallest_adjusted is None:
        return "undecidable"
    if adjusted_p <= alpha:
        return "supported" if test.mean * expected_sign > 0 else "contradicted"
    return "undecidable" if smallest_adjusted > alpha else "undecided"
