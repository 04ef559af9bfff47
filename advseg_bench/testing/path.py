"""The rule about the images at which an attack asks for gradients."""

from __future__ import annotations

from itertools import groupby

from torch import Tensor

from advseg_bench.batches import copy_batch, select_images
from advseg_bench.instruments.counter import Counter
from advseg_bench.testing.case import Case, check_form, show
from advseg_bench.testing.process import isolated
from advseg_bench.testing.rules import usual_budgets
from advseg_bench.testing.scenes import make_batch, make_coupled
from advseg_bench.testing.violations import ContractViolation, NotApplicable

UNMOVED = 1e-5
"""Two images are the same up to rounding if no value differs by more than this share of eps."""


def check_path(case: Case) -> None:
    """It asks for later gradients at moved images."""
    if case.traits.control or not case.traits.gradient:
        raise NotApplicable(f"it declares `{'control=True' if case.traits.control else 'gradient=False'}`")
    for scene, budget in usual_budgets(case):
        whole = make_batch(scene, case.device)
        reasons = []
        for image in range(scene.n):
            batch = select_images(whole, (image,))
            model = make_coupled(batch)
            with isolated(), Counter(model).count(1, points=True) as tally:
                result = case.call(model, copy_batch(batch), budget, scene)
            x_adv = check_form(result, batch, scene).detach()
            reasons.append(find_stale(tally.points or [], x_adv, UNMOVED * budget.eps))
        if all(reasons):
            raise ContractViolation(
                f"expected later gradients at moved images, got {reasons[0]} [{scene}, {show(budget)}]. Every step "
                "follows the gradient at the current images: evaluate it after each step, and use it for the next."
            )


def find_stale(points: list[Tensor], x_adv: Tensor, tolerance: float) -> str:
    """Describe gradients that were asked for at images that an attack has left, or should have left.

    Gradients of one forward pass count once. Several gradients at each image, as for a mean over transformations, are
    no fault; nor are gradients at the final image, where an attack can move no further.

    Args:
        points: The inputs at which gradients were computed, in order, of one image; several rows of one input count as
            its first.
        x_adv: The result, (1, C, *S).
        tolerance: Largest difference of two inputs that count as the same, in input units.

    Returns:
        A clause for a message; "" if there is no such gradient.
    """
    asked = [next(group)[:1] for _, group in groupby(points, key=id)]  # one tensor per forward pass
    runs: list[tuple[Tensor, int]] = []
    for point in asked:
        if runs and _same(runs[-1][0], point, tolerance):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((point, 1))
    if not runs or _same(runs[0][0], x_adv, tolerance):
        return ""
    lengths = [length for _, length in runs]
    if len(runs) == 1:
        return f"all {lengths[0]} at the same images" if lengths[0] > 1 else ""
    if lengths[0] > min(lengths[1:]):
        return f"the first {lengths[0]} of {len(asked)} at the same images"
    stays = lengths[-1] > 2 and lengths[-1] > max(lengths[:-1])
    if stays and not any(_same(point, x_adv, tolerance) for point, _ in runs):
        return f"the last {lengths[-1]} of {len(asked)} at the same images"
    return ""


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether two inputs are equal up to a tolerance."""
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance
