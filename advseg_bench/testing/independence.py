"""The rules about what the result of an image may depend on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from advseg_bench.batches import select_images
from advseg_bench.testing.case import Case, show
from advseg_bench.testing.rules import usual_budgets
from advseg_bench.testing.scenes import Scene, make_batch, make_coupled, make_linear, relabel_void
from advseg_bench.testing.violations import ContractViolation
from advseg_bench.types import Budget

SAME = 1e-6
"""Tolerance for rounding, in input units."""
DIFFERENT_PIXELS = 1e-3
"""Fraction of pixels that may differ by more, since another order of summation can flip the sign of a gradient."""


def check_repeatable(case: Case) -> None:
    """Equal generators give equal bits, independent of earlier calls and of the global generators."""
    differs = False
    for scene, budget in usual_budgets(case):
        scene = replace(scene, void=0.4)  # a random start remains visible where there is no gradient
        batch, other = make_batch(scene, case.device), make_batch(replace(scene, n=2), case.device)
        for model in (make_linear(batch), make_coupled(batch)):
            first = case.run(model, batch, budget, scene)
            case.run(model, other, budget, scene, seed=5)
            for elsewhere, after in (
                (0, "in a second call"),
                (1, "with other seeds of the global generators of torch, NumPy and Python"),
            ):
                if not torch.equal(case.run(model, batch, budget, scene, elsewhere=elsewhere), first):
                    raise ContractViolation(
                        f"expected equal results from equal generators, got others {after} [{scene}, {show(budget)}]. "
                        "Sample only from `generators[i]`, and keep no state between calls."
                    )
            differs |= not torch.equal(case.run(model, batch, budget, scene, seed=1), first)
    if case.traits.random is True and not differs:
        raise ContractViolation(
            "expected other results from other generators, as it declares random=True, got the same in every test. "
            "Pass `generator=generators[i]` to every sampling function, or declare `Traits(random=False)`."
        )
    if case.traits.random is False and differs:
        raise ContractViolation(
            "expected the same results from other generators, as it declares random=False, got others. "
            "Declare `Traits(random=True)`."
        )


def check_neighbours(case: Case) -> None:
    """An image's result is the same alone, in another batch and in another order.

    Equal up to rounding at every pixel on a linear segmenter, and at all but 1e-3 of the pixels on a small network.
    """
    for scene, budget in usual_budgets(case):
        batch = make_batch(replace(scene, n=4), case.device)
        models: tuple[tuple[nn.Module, float, str], ...] = (
            (make_linear(batch), 0.0, "on a linear segmenter"),
            (make_coupled(batch), DIFFERENT_PIXELS, "on a small network"),
        )
        for model, allowed, where in models:
            whole = case.run(model, batch, budget, scene)
            for rows in ((2,), (0,), (3, 1, 0, 2), (1, 2)):
                part = case.run(model, select_images(batch, rows), budget, scene)
                for result, row in zip(part, rows, strict=True):
                    share = _pixels_apart(result, whole[row])
                    if share > allowed:
                        setting = "alone" if len(rows) == 1 else f"in a batch of the images {list(rows)}"
                        raise ContractViolation(
                            f"expected image {row} to have one result, got another {setting} than among 4 at "
                            f"{share:.1%} of its pixels {where} [{scene.kind}, {show(budget)}]. Sum one loss value per "
                            "image (no mean over the batch, no pooled Dice), and use image, label and generator i "
                            "together."
                        )


def check_void(case: Case) -> None:
    """Invalid pixels have no influence: neither their labels nor the logits there."""
    for scene, budget in usual_budgets(case):
        batch = make_batch(replace(scene, void=0.4), case.device)
        model = make_linear(batch)
        plain = case.run(model, batch, budget, scene)
        _agree(case.run(model, relabel_void(batch), budget, scene), plain, scene, budget, "other labels there")
        empty = replace(batch, valid=torch.zeros_like(batch.valid))
        opposite = make_linear(batch)
        opposite.weight.neg_()
        result = case.run(model, empty, budget, scene)
        _agree(case.run(opposite, empty, budget, scene), result, scene, budget, "another model, with no valid pixel")
        traits = case.traits
        drawn = traits.random or not torch.equal(case.run(model, batch, budget, scene, seed=1), plain)
        moved = float(((result - batch.x).abs().amax(1) > SAME).double().mean())
        if traits.gradient and not drawn and moved > 0:
            raise ContractViolation(
                f"expected unchanged images without a valid pixel, since they have no gradient, got {moved:.0%} of "
                f"the pixels changed [{scene}, {show(budget)}]. "
                "The sign of 0 is 0: use `torch.sign`, not a comparison."
            )


def _pixels_apart(one: Tensor, other: Tensor) -> float:
    """Return the fraction of pixels of an image (C, *S) at which two results differ by more than rounding."""
    return float(((one.double() - other.double()).abs().amax(0) > SAME).double().mean())


def _agree(one: Tensor, other: Tensor, scene: Scene, budget: Budget, what: str) -> None:
    """Check that two results are equal up to rounding."""
    shares = [_pixels_apart(a, b) for a, b in zip(one, other, strict=True)]
    if max(shares) > 0:
        raise ContractViolation(
            f"expected invalid pixels to have no influence, got other results at {max(shares):.0%} of an "
            f"image's pixels with {what} [{scene}, {show(budget)}]. Pass `batch.valid` to the loss, "
            "and multiply by it before summing."
        )
