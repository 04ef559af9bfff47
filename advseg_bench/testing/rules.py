"""The rules about results and side effects of an attack; each is a function of a case that raises on a violation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from advseg_bench.batches import copy_batch
from advseg_bench.checks.results import inspect
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.instruments.process_state import watched
from advseg_bench.testing.case import Case, check_form, show
from advseg_bench.testing.process import isolated
from advseg_bench.testing.scenes import UNIT, Scene, make_batch, make_coupled, make_linear
from advseg_bench.testing.violations import ContractViolation
from advseg_bench.types import Bounds, Budget, Norm

USUAL_EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.5}
OTHER_BOUNDS = (Bounds(-1.0, 1.0), Bounds(0.25, 3.0))

_SPACES = {1: ((23,),), 2: ((11, 8), (9, 9), (7, 5)), 3: ((5, 4, 3),)}


def check_runs(case: Case) -> None:
    """It supports every task type, norm, number of axes and size that it declares, and a single image."""
    tried = list(_grid(case))
    failed: dict[int, str] = {}
    for i, (scene, budget) in enumerate(tried):
        batch = make_batch(scene, case.device)
        try:
            with isolated():
                case.call(make_linear(batch), copy_batch(batch), budget, scene)
        except ContractViolation as violation:
            failed[i] = str(violation)
    if not failed:
        return
    for what, which, remedy in _traits(case, [scene for scene, _ in tried], [budget.norm for _, budget in tried]):
        if which == failed.keys():
            raise ContractViolation(f"{next(iter(failed.values()))}. This happens with {what} and only there. {remedy}")
    where = "everywhere" if len(failed) == len(tried) else f"in {len(failed)} of {len(tried)} tests"
    raise ContractViolation(f"{next(iter(failed.values()))}. This happens {where}.")


def check_output(case: Case) -> None:
    """It returns finite images with the shape, dtype and device of `batch.x`, detached from the graph."""
    for scene, budget in [*_grid(case), *_hard(case)]:
        batch = make_batch(scene, case.device)
        with isolated():
            result = case.call(make_linear(batch), copy_batch(batch), budget, scene)
        x_adv = check_form(result, batch, scene)
        if x_adv.requires_grad:
            raise ContractViolation(
                f"expected detached images, got a tensor that requires grad [{scene}]. Return `x_adv.detach()`."
            )
        finite = x_adv.isfinite().flatten(1).all(1)
        if not finite.all():
            image = int((~finite).nonzero()[0])
            reason = "has no valid pixel, so its gradient is zero" if scene.hard and image == 0 else "is not degenerate"
            raise ContractViolation(
                f"expected finite images, got NaN or infinity in image {image}, which {reason} [{scene}, "
                f"{show(budget)}]. Divide by a norm or a count only where it is not zero."
            )


def check_batch(case: Case) -> None:
    """It does not change the images, labels and valid pixels of the batch."""
    for scene, budget in usual_budgets(case):
        batch = make_batch(scene, case.device)
        lent = copy_batch(batch)
        with isolated():
            case.call(make_linear(batch), lent, budget, scene)
        for name in ("x", "y", "valid"):
            if not torch.equal(getattr(lent, name), getattr(batch, name)):
                raise ContractViolation(
                    f"expected batch.{name} unchanged, got other values after the call [{scene}]. "
                    f"Work on a copy: `batch.{name}.clone()`; functions ending in _ and `out=` write in place."
                )
        if lent.x.requires_grad or lent.x.grad is not None:
            raise ContractViolation(
                f"expected batch.x without a gradient, got requires_grad or a gradient [{scene}]. "
                "Differentiate a copy: `batch.x.clone().requires_grad_()`."
            )


_MODEL_REMEDIES = {
    "value": "Do not change the mode of the model (in training mode batch norms update) or its weights.",
    "training": "Do not change the mode; calling `model.train()` afterwards unfreezes layers that were in eval mode.",
    "requires_grad": "Restore the flags in a `finally`, or differentiate only with respect to the image.",
    "gradient": "Use `torch.autograd.grad(loss, x)`, not `loss.backward()` or `model.zero_grad()`.",
    "hooks": "Remove hooks in a `finally`: `handle.remove()`.",
}


def check_model(case: Case) -> None:
    """It does not change values, modes, requires_grad flags, gradients or hooks of the model."""
    for scene, budget in usual_budgets(case):
        batch = make_batch(scene, case.device)
        for mode in ("in eval mode", "in training mode with its batch norm and dropout in eval mode"):
            model = make_coupled(batch)
            if mode != "in eval mode":
                _train_but_frozen(model)
            guard = ModelGuard(model)
            with isolated():
                case.call(model, copy_batch(batch), budget, scene)
            changes = guard.find_changes()
            if changes:
                remedy = _MODEL_REMEDIES[changes[0].split()[0]]
                raise ContractViolation(
                    f"expected an unchanged model, {mode}; changed: {_summarise(changes)} [{scene}]. {remedy}"
                )


def check_globals(case: Case) -> None:
    """It does not change global random generators, modes of torch, or other state of the process."""
    for scene, budget in usual_budgets(case):
        batch = make_batch(scene, case.device)
        model = make_linear(batch)
        with torch.enable_grad(), watched() as changes:
            case.call(model, copy_batch(batch), budget, scene)
        changed = [*changes.random, *changes.names]
        if changed:
            remedy = "Sample from `generators[i]` for image i, and seed nothing."
            if not changes.random:
                remedy = "Use a context manager, which restores it."
            raise ContractViolation(f"expected {changed[0]} unchanged, got another state [{scene}]. {remedy}")


def check_bounds(case: Case) -> None:
    """Its images are exactly inside the bounds of the batch, for any bounds."""
    for bounds in (UNIT, *OTHER_BOUNDS):
        for norm in case.traits.norms:
            for kind in case.kinds:
                scene = replace(usual_scene(case), kind=kind, bounds=bounds)
                batch = make_batch(scene, case.device)
                size = batch.x[0].numel() ** 0.5 if norm == "l2" else 1.0
                budget = Budget(norm, 0.3 * (bounds.upper - bounds.lower) * size)
                x_adv = case.run(make_linear(batch), batch, budget, scene)
                low, high = float(x_adv.amin()), float(x_adv.amax())
                if low < bounds.lower or high > bounds.upper:
                    raise ContractViolation(
                        f"expected intensities in [{bounds.lower:g}, {bounds.upper:g}], got {low:.4g} to {high:.4g} "
                        f"[{scene}, {show(budget)}]. "
                        "Clip last: `x_adv.clamp(batch.bounds.lower, batch.bounds.upper)`."
                    )


def check_budget(case: Case) -> None:
    """No image moves further than eps, for every norm it declares; rounding up to 1e-6 is allowed."""
    radii: dict[Norm, tuple[float, ...]] = {"linf": (1e-4, 1 / 255, 0.1), "l2": (1e-3, 0.1, 1.0)}
    kept: list[str] = []
    for bounds in (UNIT, OTHER_BOUNDS[0]):
        for norm in case.traits.norms:
            for eps in reversed(radii[norm]):
                for kind in case.kinds:
                    scene = replace(usual_scene(case), kind=kind, bounds=bounds)
                    batch = make_batch(scene, case.device)
                    x_adv = case.run(make_linear(batch), batch, Budget(norm, eps), scene)
                    checked = inspect(x_adv, batch, Budget(norm, eps), case.traits)
                    moved = float(checked.moved.max())
                    if any("over_budget" in flags for flags in checked.flags):
                        raise ContractViolation(
                            f"expected no image to move further than {norm} eps {eps:.4g}, got {moved:.4g}, "
                            f"{moved / eps:.3g} times as far [{scene}]. "
                            f"{_why_too_far(moved, Budget(norm, eps), bounds, kept, batch.x[0].numel())}"
                        )
                kept.append(f"{norm} {bounds} {eps}")


def _why_too_far(moved: float, budget: Budget, bounds: Bounds, kept: list[str], values: int) -> str:
    """Return the most likely cause of a violated budget, from its size and the budgets that were respected before."""
    norm, times, size = budget.norm, moved / budget.eps, bounds.upper - bounds.lower
    if bounds != UNIT and abs(times - size) < 0.01:
        return "Is eps multiplied by the range of the bounds? It is in the units of the images."
    if bounds != UNIT:
        return "It respects the budget for bounds [0, 1]. Clamp to batch.bounds, not to [0, 1]."
    if any(entry.startswith(norm) for entry in kept):
        return (
            "It respects a larger eps. Is the step too large for a small eps, or are the images rounded (float16, "
            "integer grey levels)?"
        )
    if norm == "l2" and 0.5 * values**0.5 < times < 1.01 * values**0.5:
        return "Is it the step of an L_inf budget? Use `geometry.steepest(gradient, budget.norm)`."
    if norm == "linf" and moved > 0.8:
        return "Is eps interpreted as grey levels out of 255? It is in the units of the images."
    return "Project last: `geometry.project(x_adv, batch.x, budget, batch.bounds)`."


def check_zero_eps(case: Case) -> None:
    """With a budget of zero it returns the clean images, bit for bit."""
    for scene, budget in usual_budgets(case):
        batch = make_batch(scene, case.device)
        x_adv = case.run(make_linear(batch), batch, replace(budget, eps=0.0), scene)
        if not torch.equal(x_adv, batch.x):
            moved = float((x_adv.double() - batch.x.double()).abs().max())
            raise ContractViolation(
                f"expected the clean images for eps 0, got changes of up to {moved:.3g} [{scene}, "
                f"{budget.norm}]. Scale all steps and random starts by eps; do not convert the images back and forth."
            )


def usual_scene(case: Case) -> Scene:
    """Return the scene of rules that need only one."""
    return Scene(kind=case.kinds[0], space=_SPACES[_dims(case)[0]][0])


def _dims(case: Case) -> list[int]:
    """Return the numbers of spatial axes to test, two first."""
    return sorted((d for d in case.traits.dims if d in _SPACES), key=lambda d: (d != 2, d))


def _grid(case: Case) -> Iterator[tuple[Scene, Budget]]:
    """Yield a scene and a budget for everything that is declared."""
    for kind in case.kinds:
        for norm in case.traits.norms:
            budget = Budget(norm, USUAL_EPS[norm])
            for dims in _dims(case):
                for space in _SPACES[dims]:
                    yield Scene(kind=kind, space=space), budget
            yield replace(usual_scene(case), kind=kind, n=1), budget


def _hard(case: Case) -> Iterator[tuple[Scene, Budget]]:
    """Yield scenes with degenerate images."""
    for kind in case.kinds:
        for norm in case.traits.norms:
            yield replace(usual_scene(case), kind=kind, n=4, hard=True), Budget(norm, USUAL_EPS[norm])


def usual_budgets(case: Case) -> Iterator[tuple[Scene, Budget]]:
    """Yield the usual scene for every task type and norm."""
    for kind in case.kinds:
        for norm in case.traits.norms:
            yield replace(usual_scene(case), kind=kind), Budget(norm, USUAL_EPS[norm])


def _traits(case: Case, tried: list[Scene], norms: list[Norm]) -> Iterator[tuple[str, set[int], str]]:
    """Yield possible causes of an exception: a description, the indices of the scenes it applies to, and a remedy."""
    traits = case.traits
    for kind in case.kinds if len(case.kinds) > 1 else ():
        others = tuple(k for k in case.kinds if k != kind)
        which = {i for i, scene in enumerate(tried) if scene.kind == kind}
        yield f"{kind} tasks", which, "Or declare " + f"`Traits(kinds={others!r})`."
    for norm in traits.norms if len(traits.norms) > 1 else ():
        which = {i for i, other in enumerate(norms) if other == norm}
        yield f"{norm} budgets", which, f"Or declare `Traits(norms={tuple(n for n in traits.norms if n != norm)!r})`."
    for dims in traits.dims if len(traits.dims) > 1 else ():
        rest = tuple(d for d in traits.dims if d != dims)
        which = {i for i, scene in enumerate(tried) if len(scene.space) == dims}
        remedy = f"Support any number of spatial axes, or declare `Traits(dims={rest!r})`."
        yield f"images with {dims} spatial axes", which, remedy
    which = {i for i, scene in enumerate(tried) if scene.n == 1}
    yield "one image", which, "Keep the batch axis: `squeeze()` drops it."
    which = {i for i, scene in enumerate(tried) if len(set(scene.space)) > 1}
    yield "images that are not square", which, "Read the size of each axis separately."


def _summarise(changes: list[str]) -> str:
    """Return the first change of each type, and the number of further ones."""
    sorts: dict[str, list[str]] = {}
    for change in changes:
        sorts.setdefault(change.split()[0], []).append(change)
    return ", ".join(found[0] + (f" (and {len(found) - 1} more)" if found[1:] else "") for found in sorts.values())


def _train_but_frozen(model: nn.Module) -> None:
    """Set training mode, with batch normalisation and dropout in eval mode, as in fine-tuning."""
    model.train()
    for module in model.modules():
        if not list(module.children()) and type(module).__name__.startswith(("BatchNorm", "Dropout")):
            module.eval()
