"""Is BCE's advantage an artefact of swapped arguments? The losses under every argument order and step form."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.claims.evidence import Evidence, average, make_arm
from advseg_bench.claims.findings import Finding, sort_out
from advseg_bench.stats import PairedTest
from advseg_bench.suite.cells import Arm


@dataclass(frozen=True, slots=True)
class Crossing:
    """BCE compared with the training loss under one argument order and step form, averaged over models.

    Attributes:
        order: "defined" or "released".
        form: "additive", "blend" or "blend_released".
        bce: Drop of Dice under BCE.
        other: Drop of Dice under the training loss.
        linf: Mean measured L_inf under BCE and under the training loss, in image units.
        finding: Test of `bce` minus `other`.
    """

    order: str
    form: str
    bce: PairedTest
    other: PairedTest
    linf: tuple[float | None, float | None]
    finding: Finding


def cross(evidence: Evidence) -> tuple[Crossing, ...]:
    """Compare BCE with the training loss under every argument order and step form that was run with both losses."""
    made: list[tuple[str, str, Arm, Arm]] = []
    for order in ("defined", "released"):
        for form in ("additive", "blend", "blend_released"):
            settings = {k: v for k, v in (("order", order), ("form", form)) if v not in ("defined", "additive")}
            bce, other = (make_arm("fgsm", loss, settings) for loss in ("bce", evidence.training_loss))
            if bce != other and {bce, other} <= evidence.arms:
                made.append((order, form, bce, other))
    models = evidence.models
    tests = [evidence.compare(average(bce, models) - average(other, models)) for _, _, bce, other in made]
    findings = sort_out([f"{order}, {form}" for order, form, _, _ in made], tests)
    return tuple(
        Crossing(
            order,
            form,
            evidence.compare(average(bce, models)),
            evidence.compare(average(other, models)),
            (_mean_linf(evidence, bce), _mean_linf(evidence, other)),
            finding,
        )
        for (order, form, bce, other), finding in zip(made, findings, strict=True)
    )


def _mean_linf(evidence: Evidence, arm: Arm) -> float | None:
    """Return the measured L_inf of an arm, averaged over models and subjects."""
    return evidence.compare(average(arm, evidence.models, "linf")).mean


def compare_orders(evidence: Evidence) -> PairedTest | None:
    """Test how much of BCE's advantage comes from swapped arguments.

    Returns:
        The advantage with swapped arguments minus that with the arguments as defined, both with the additive step; None
        if the run lacks an arm.
    """
    losses = ("bce", evidence.training_loss)
    arms = {
        order: [make_arm("fgsm", loss, {} if order == "defined" else {"order": order}) for loss in losses]
        for order in ("defined", "released")
    }
    if not {arm for pair in arms.values() for arm in pair} <= evidence.arms or len(set(losses)) < 2:
        return None
    lead = {order: average(a, evidence.models) - average(b, evidence.models) for order, (a, b) in arms.items()}
    return evidence.compare(lead["released"] - lead["defined"])
