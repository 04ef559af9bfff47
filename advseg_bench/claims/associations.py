"""Correlation of model properties with attack success."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advseg_bench.claims.evidence import Evidence, average
from advseg_bench.claims.findings import ALPHA
from advseg_bench.stats import Correlation, Equivalence, correlate, equivalent_correlation

NO_CORRELATION = 0.3
"""The largest absolute correlation that counts as negligible: it explains less than a tenth of the variance."""

PROPERTIES = ("parameters", "flops", "receptive_field_px", "clean Dice")
"""Properties of a model; the first two are used on a logarithmic scale."""


@dataclass(frozen=True, slots=True)
class Association:
    """The correlation of a model property with attack success, which is Diff of the reference arm.

    Attributes:
        what: The property.
        models: The models for which the property is known.
        x: Its value for each of these models; log10 for the first two of `PROPERTIES`.
        y: Diff for each of these models, the share of the clean Dice that is lost.
        correlation: Linear and rank correlation.
        equivalence: Test of whether the linear correlation is negligible.
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
        evidence: The results, with a reference arm.
        what: One of `PROPERTIES`.

    Returns:
        The association over the models for which both values are known.
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
    """Return the smallest number of models at which an observed correlation of 0 is shown to be negligible."""
    n = 4
    while not equivalent_correlation(0.0, n, NO_CORRELATION, ALPHA).equivalent:
        n += 1
    return n
