"""Inspection of attack results: measured in float64, flagged where they break a rule, and projected back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench import geometry
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.geometry import Moves
from advseg_bench.protocols import Attack
from advseg_bench.types import Bounds, Budget, Traits

BUDGET_TOLERANCE = 1e-6
"""Tolerance in input units for float32 rounding at the border of the budget; more is a violation."""


def find_tolerance(bounds: Bounds) -> float:
    """Return by how much rounding may move an image past its budget: more where intensities are large, as in HU."""
    return max(BUDGET_TOLERANCE, 4 * torch.finfo(torch.float32).eps * max(abs(bounds.lower), abs(bounds.upper)))


@dataclass(frozen=True, slots=True)
class Checked:
    """N adversarial images after inspection.

    Attributes:
        x_adv: The images; finite, and projected onto bounds and budget where they violated them.
        moves: Distances between `x_adv` and the clean images.
        flags: For each image the flags of the returned image: "non_finite", "out_of_bounds", "over_budget" (beyond the
            maximum of its traits), "beyond_eps" (beyond eps, within that maximum), "unchanged" (equal to the clean
            image).
        moved: Distance of each returned image from the clean one in the norm of the budget, float64 (N,).
        outside: Distance of each returned image from the bounds, float64 (N,); negative inside.
    """

    x_adv: Tensor
    moves: Moves
    flags: list[set[str]]
    moved: Tensor
    outside: Tensor


def traits_of(attack: Attack) -> Traits:
    """Return the declared traits of an attack, or the defaults if it declares none.

    Raises:
        SpecError: Its `traits` is not a `Traits`.
    """
    traits = getattr(attack, "traits", Traits())
    if not isinstance(traits, Traits):
        raise SpecError(expected(f"attack {name_of(attack)}", "`traits` to be a Traits", traits))
    return traits


def name_of(attack: Attack) -> str:
    """Return an attack's name for messages: its attribute `name`, the name of its function, or that of its class."""
    name = getattr(attack, "name", getattr(attack, "__name__", ""))
    return name if isinstance(name, str) and name else type(attack).__name__


def check_form(x_adv: object, batch: Batch, attack: str = "") -> Tensor:
    """Check that a result has the shape and dtype of the images.

    Args:
        x_adv: The return value of an attack.
        batch: The batch it attacked.
        attack: Name of the attack for the message, or "".

    Returns:
        The result, detached.

    Raises:
        IncompatibleError: It is not a tensor, or has another shape or dtype.
    """
    x = batch.x
    if isinstance(x_adv, Tensor) and x_adv.shape == x.shape and x_adv.dtype == x.dtype:
        return x_adv.detach()
    found = f"{x_adv.dtype} {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
    where = f"attack {attack}" if attack else "attack"
    wanted = f"{x.dtype} {tuple(x.shape)}"
    raise IncompatibleError(f"{where}: expected {wanted}, got {found}. Return the adversarial images.")


def inspect(x_adv: Tensor, batch: Batch, budget: Budget, traits: Traits) -> Checked:
    """Measure adversarial images in float64, flag violations, and project the images that have any.

    Args:
        x_adv: A tensor like `batch.x`, see `check_form`.
        batch: The clean images and their bounds.
        budget: Norm and radius.
        traits: Traits of the attack, with its maximum budget ratio.

    Returns:
        Projected images, distances and flags.
    """
    x, bounds = batch.x, batch.bounds
    is_finite = x_adv.isfinite()
    x_adv = torch.where(is_finite, x_adv, x)
    lowest, highest = x_adv.flatten(1).aminmax(dim=1)
    outside = torch.maximum(bounds.lower - lowest.double(), highest.double() - bounds.upper)
    moves = geometry.measure_moves(x_adv, x)
    moved = moves.linf if budget.norm == "linf" else moves.l2
    ratio = max(1.0, traits.max_budget_ratio)
    out = (lowest < bounds.lower) | (highest > bounds.upper)
    over = moved > ratio * budget.eps + find_tolerance(bounds)
    found = {
        "non_finite": ~is_finite.flatten(1).all(1),
        "out_of_bounds": out,
        "over_budget": over,
        "beyond_eps": ~over & (moved > budget.eps + find_tolerance(bounds)),
        "unchanged": (moves.linf == 0) & (budget.eps > 0),
    }
    columns = {name: mask.tolist() for name, mask in found.items()}
    flags = [{name for name, mask in columns.items() if mask[i]} for i in range(len(x))]
    if (out | over).any():
        fixed = geometry.project(x_adv, x, Budget(budget.norm, ratio * budget.eps), bounds)
        x_adv = torch.where(geometry.align(out | over, x), fixed, x_adv)
        moves = geometry.measure_moves(x_adv, x)
    return Checked(x_adv, moves, flags, moved, outside)
