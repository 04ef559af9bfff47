"""What an attack returned: measured in float64, named where it breaks a rule, and brought back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench import geometry
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError, SpecError, expected
from advseg_bench.geometry import Moves
from advseg_bench.protocols import Attack
from advseg_bench.types import Budget, Traits

BUDGET_TOLERANCE = 1e-6
"""Rounding in float32 moves a result past its budget by less than this; more is a violation."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What N adversarial images are, once they were looked at.

    Attributes:
        x_adv: The images, finite and brought back into bounds and budget where they were not.
        moves: How far `x_adv` is from the clean images.
        flags: For each image the names of what was wrong with the result, or is worth knowing: "non_finite",
            "out_of_bounds", "over_budget" (beyond what its traits allow), "beyond_eps" (beyond eps, as they allow),
            "unchanged" (equal to the clean image).
        moved: How far each returned image was from the clean one in the norm of the budget, float64 (N,).
        outside: How far each returned image lay outside the bounds, float64 (N,); negative inside.
    """

    x_adv: Tensor
    moves: Moves
    flags: list[set[str]]
    moved: Tensor
    outside: Tensor


def traits_of(attack: Attack) -> Traits:
    """Return what an attack says of itself, or the defaults if it says nothing.

    Raises:
        SpecError: If its `traits` is no `Traits`.
    """
    traits = getattr(attack, "traits", Traits())
    if not isinstance(traits, Traits):
        raise SpecError(expected(f"attack {name_of(attack)}", "`traits` to be a Traits", traits))
    return traits


def name_of(attack: Attack) -> str:
    """Return what messages call an attack: its own name, that of its function, or that of its class."""
    name = getattr(attack, "name", getattr(attack, "__name__", ""))
    return name if isinstance(name, str) and name else type(attack).__name__


def check_form(x_adv: object, batch: Batch, attack: str = "") -> Tensor:
    """Return a result, detached, if it is a tensor like the images.

    Args:
        x_adv: What an attack returned.
        batch: What it was given.
        attack: The attack's name for the message, or "".

    Raises:
        IncompatibleError: It is anything else.
    """
    x = batch.x
    if isinstance(x_adv, Tensor) and x_adv.shape == x.shape and x_adv.dtype == x.dtype:
        return x_adv.detach()
    found = f"{x_adv.dtype} {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
    where = f"attack {attack}" if attack else "attack"
    wanted = f"{x.dtype} {tuple(x.shape)}"
    raise IncompatibleError(f"{where}: expected {wanted}, got {found}. Return the adversarial images.")


def inspect(x_adv: Tensor, batch: Batch, budget: Budget, traits: Traits) -> Checked:
    """Measure adversarial images in float64, name what is wrong with each, and bring it back.

    Args:
        x_adv: A tensor like `batch.x`, see `check_form`.
        batch: The clean images and their bounds.
        budget: Norm and radius.
        traits: Of the attack: how many times the radius it may move an image.
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
    over = moved > ratio * budget.eps + BUDGET_TOLERANCE
    found = {
        "non_finite": ~is_finite.flatten(1).all(1),
        "out_of_bounds": out,
        "over_budget": over,
        "beyond_eps": ~over & (moved > budget.eps + BUDGET_TOLERANCE),
        "unchanged": (moves.linf == 0) & (budget.eps > 0),
    }
    columns = {name: mask.tolist() for name, mask in found.items()}
    flags = [{name for name, mask in columns.items() if mask[i]} for i in range(len(x))]
    if (out | over).any():
        fixed = geometry.project(x_adv, x, Budget(budget.norm, ratio * budget.eps), bounds)
        x_adv = torch.where(geometry.align(out | over, x), fixed, x_adv)
        moves = geometry.measure_moves(x_adv, x)
    return Checked(x_adv, moves, flags, moved, outside)
