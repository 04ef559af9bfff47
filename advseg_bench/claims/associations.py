"""How properties of the models go with attack success."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advseg_bench.claims.evidence import Evidence, average
from advseg_bench.claims.findings import ALPHA
from advseg_bench.stats import Correlation, Equivalence, correlate, equivalent_correlation

NO_CORRELATION = 0.3
"""The largest correlation that counts as none: a property that explains less than a tenth of the variance."""

PROPERTIES = ("parameters", "flops", "receptive_field_px", "clean Dice")
"""Properties of a model; the first two enter as logarithms."""


@dataclass(frozen=True, slots=True)
class Association:
    """How a property of the models goes with attack success: Diff of the reference arm.

    Attributes:
        what: The property.
        models: Those whose property is known.
        x: Its values.
        y: Attack success.
        correlation: Linear and rank correlation.
        equivalence: Whether the linear one is small enough to count as none.
    """

    what: str
    models: tuple[str, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    correlation: Correlation
    equivalence: Equivalence


def associate(evidence: Evidence, what: str) -> Association:
    """Correlate a property of the models with Diff of the reference arm.

    Args:
        evidence: The results.
        what: One of `PROPERTIES`.
    """
    fgsm = evidence.reference
    assert fgsm is not None
    points: list[tuple[str, float, float]] = []
    for model in evidence.models:
        drop = evidence.compare(average(fgsm, [model])).mean
        clean = evidence.compare(average(fgsm, [model], "dice_clean")).mean
        left = evidence.compare(average(fgsm, [model], "dice")).mean
        known = clean if what == "clean Dice" else evidence.run.models.get(model, {}).get(what)
        if drop is None or left is None or known is None or drop + left <= 0:
            continue
        x = math.log10(known) if what in PROPERTIES[:2] and known > 0 else float(known)
        points.append((model, x, drop / (drop + left)))  # clean Dice of the images that have a drop
    models = tuple(model for model, _, _ in points)
    values, success = tuple(x for _, x, _ in points), tuple(y for _, _, y in points)
    correlation = correlate(values, success)
    r = correlation.pearson.value if correlation.pearson else None
    return Association(
        what, models, values, success, correlation, equivalent_correlation(r, len(points), NO_CORRELATION)
    )


def count_models_needed() -> int:
    """How many models an observed correlation of 0 would need to count as none."""
    n = 4
    while not equivalent_correlation(0.0, n, NO_CORRELATION, ALPHA).equivalent:
        n += 1
    return n
