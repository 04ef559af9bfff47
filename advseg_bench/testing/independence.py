"""The rules about what the result of an image may depend on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from advseg_bench.batches import Batch, select_images
from advseg_bench.testing.case import Case, show
from advseg_bench.testing.rules import usual_budgets
from advseg_bench.testing.scenes import Scene, dim, make_batch, make_coupled, make_linear, relabel_void
from advseg_bench.testing.violations import ContractViolation, NotApplicable
from advseg_bench.types import Budget

SAME = 1e-6
"""Tolerance for rounding, in input units."""
DIFFERENT_PIXELS = 1e-3
"""Fraction of pixels that may differ by more, since another order of summation can flip the sign of a gradient."""

ALIKE = 0.2
"""Largest difference between the perturbations of equal pixels in images of another range, as a share of their size."""


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


def check_dim(case: Case) -> None:
    """Dim images are attacked as far as others: eps and bounds do not depend on the range of an image."""
    if case.traits.minimal_norm:
        raise NotApplicable("it declares `minimal_norm=True`")
    for scene, budget in usual_budgets(case):
        whole = make_batch(scene, case.device)
        model, changes = make_linear(whole), []
        batches = dim(whole, ends=False), dim(whole, ends=True)
        for batch in batches:
            change = case.run(model, batch, budget, scene).double() - batch.x.double()
            changes.append(change.movedim(1, -1)[batch.valid])
        without, with_ends = changes
        apart, size = float((without - with_ends).abs().mean()), float(with_ends.abs().mean())
        cause = _why_dim(batches[0], without, with_ends)
        searches = not case.traits.gradient and not case.traits.control  # may take another way by chance
        if apart > ALIKE * size and (cause or not searches):
            raise ContractViolation(
                f"expected the same changes whether or not an image reaches its bounds at invalid pixels, got changes "
                f"that differ by {apart / max(size, 1e-12):.0%} on average [{scene}, values from "
                f"{float(batches[0].x.amin()):.3g} to {float(batches[0].x.amax()):.3g}, {show(budget)}]. "
                f"{cause or 'Read the range from `batch.bounds`, not from the image.'}"
            )


def _why_dim(batch: Batch, without: Tensor, with_ends: Tensor) -> str:
    """Return the cause of a dependence on the range of the images, or "" if the changes do not show it."""
    shown = with_ends.abs() > SAME
    scales = (without / with_ends)[shown]
    if scales.numel() and float((scales - scales.median()).abs().quantile(0.9)) < 0.05 * float(scales.median().abs()):
        return f"Changes are {float(scales.median()):.3g} times as large: eps is in the units of the images as it is."
    per_image = batch.x.double().movedim(1, -1).flatten(1)
    low, high = per_image.amin(1), per_image.amax(1)
    owner = torch.arange(len(batch.x), device=batch.x.device).view(-1, *[1] * (batch.valid.dim() - 1))
    owner = owner.expand_as(batch.valid)[batch.valid]
    moved = batch.x.double().movedim(1, -1)[batch.valid] + without
    ends = low[owner][:, None] - SAME, high[owner][:, None] + SAME
    if bool(((moved >= ends[0]) & (moved <= ends[1])).all()):
        return "Images do not leave their own range: clip to `batch.bounds`, not to the range of the image."
    return ""


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
