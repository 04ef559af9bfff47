"""The cause of a disagreement in one line, from the steps of the other implementation."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from advseg_bench import geometry
from advseg_bench.checks.results import find_tolerance
from advseg_bench.crosscheck.judge import StepVerdict, compare
from advseg_bench.crosscheck.replay import as_stepwise
from advseg_bench.crosscheck.trace import Trace
from advseg_bench.crosscheck.verdict import Case

REGION = 0.5
"""Real disagreements are reported as a region if more than this share of them is connected."""
SMALL = 0.1
"""Disagreements are at small gradients if their median is under this share of the median gradient."""


def diagnose(case: Case, theirs: Trace, steps: StepVerdict | None) -> str:
    """Describe a real disagreement in one line."""
    if torch.equal(theirs.x_adv, case.batch.x):
        return "returned the clean image"
    if theirs.points is None:
        return f"computed {theirs.backwards:g} gradients per image, which cannot be replayed step by step"
    if len(theirs.points) > 1 and all(torch.equal(point, theirs.points[0]) for point in theirs.points):
        return "computed every gradient at the same point"
    if len(theirs.points) > 1 and torch.equal(theirs.points[0], theirs.points[1]):
        return "computed the first two gradients at the same point"
    if steps is None:
        stepwise = as_stepwise(case.reference)
        wanted = f"{stepwise.steps} or {stepwise.steps + 1}" if stepwise.keeps else str(stepwise.steps)
        return f"computed {len(theirs.points)} gradients, the reference {wanted}"
    if steps.last and as_stepwise(case.reference).keeps:
        images = int(steps.real.flatten(1).any(1).sum())
        what = "its length or the iterate that it starts from is not that of the step-size rule"
        return f"wrong step {steps.last + 1} in {images} of {len(steps.real)} images: {what}"
    if steps.opposite > 0.9:
        return f"wrong sign: moves against the gradient on {steps.opposite:.0%} of the values"
    if abs(steps.size - 1) > 0.01:
        return f"wrong step size: {steps.size:.4g} times that of the reference"
    where = f"{float(steps.real.double().mean()):.2%} of the values, {_describe_place(steps.real)}"
    if steps.weight < SMALL:
        where += ", where it is small, as in lower precision"
    elif case.budget.norm == "linf" and steps.turned < 0.5:
        return f"moves in the same direction, but not as far or farther, on {where}"
    return f"wrong gradient on {where}"


def describe_start(case: Case, theirs: Trace) -> str:
    """Return the convention if the other did not start at the clean image; its random numbers always differ."""
    if not theirs.points or compare(theirs.points[0], case.batch.x).max_ulp <= 1:
        return ""
    moved = geometry.distance(theirs.points[0], case.batch.x, case.budget.norm)
    if float(moved.max()) > case.budget.eps + find_tolerance(case.batch.bounds):
        return f"random start: {float(moved.max() / case.budget.eps):.3g} times eps away"
    return "random start: inside the budget, with other random numbers"


def describe_rounding(steps: StepVerdict) -> str:
    """Describe the disagreements that rounding explains."""
    if steps.disagree == 0:
        return "every step within 4 ulp"
    return f"{steps.disagree} of {steps.values} values differ where the gradient is rounding noise"


def _describe_place(real: Tensor) -> str:
    """Describe whether the disagreements of all images are scattered or connected."""
    total = inside = 0
    box = ""
    for image in real.any(1).cpu().numpy():
        regions, count = ndimage.label(image, structure=np.ones((3,) * image.ndim))
        if not count:
            continue
        sizes = np.bincount(regions.ravel())[1:]
        largest = int(sizes.argmax())
        total += int(image.sum())
        inside += int(sizes[largest])
        where = ndimage.find_objects(regions)[largest]
        edges = [axis.stop - axis.start for axis in where]
        shape = "band" if max(edges) >= 4 * min(edges) else "region"
        box = f"{shape} (pixels {' x '.join(f'{axis.start}-{axis.stop - 1}' for axis in where)})"
    if total >= 8 and inside > REGION * total:
        return f"in one connected {box} of each image"
    return "scattered"
