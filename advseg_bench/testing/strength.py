"""The rules about the strength of an attack, where the optimum is known exactly, and about its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advseg_bench.batches import Batch, copy_batch
from advseg_bench.geometry import align, random_sign
from advseg_bench.instruments.counter import Counter
from advseg_bench.metrics import predict
from advseg_bench.testing.case import Case, make_generator, show
from advseg_bench.testing.process import isolated
from advseg_bench.testing.rules import usual_budgets
from advseg_bench.testing.scenes import Scene, make_batch, make_linear
from advseg_bench.testing.segmenters import LinearSegmenter
from advseg_bench.testing.violations import ContractViolation, NotApplicable
from advseg_bench.types import Budget, Norm

USUAL_SHARE: dict[Norm, float] = {"linf": 0.9, "l2": 0.35}
"""Required fraction of the exact optimum for an attack that does not declare a `share`.

Under L_inf one signed step of any loss of this package reaches the optimum. Under L2 the loss also determines how the
radius is distributed over pixels: dice reaches 0.85, and focal, which favours wrong pixels, reaches 0.41.
"""
NOISE_DRAWS = 16
"""Number of noise samples. A direction independent of the model beats all of them in one scene of 34, never in all."""
LADDER = (0.01, 0.03, 0.1, 0.2)
"""Radii of the rule `more_budget`: L_inf radii, or root mean squares for L2."""


def check_noise(case: Case) -> None:
    """It decreases margins more than 16 samples of random-sign noise of the same L2 norm."""
    if case.traits.control:
        raise NotApplicable("it declares `control=True`")
    for scene, budget in usual_budgets(case):
        stage = _set_up(case, scene)
        x_adv = case.run(stage.model, stage.batch, budget, scene)
        moved = (x_adv.double() - stage.batch.x.double()).flatten(1).norm(dim=1)
        if not moved.any():
            raise ContractViolation(
                f"expected changed images, got the clean images [{scene}, {show(budget)}]. Is the gradient "
                "zero, the loss constant, or the result returned before the step?"
            )
        fall = float(stage.fall(x_adv).sum())
        noise = max(abs(float(stage.fall(sample).sum())) for sample in _noise(stage.batch, moved))
        if fall <= noise:
            way = "It does not increase the loss."
            if fall < -noise:
                way = "It decreases the loss: is a sign wrong?"
            raise ContractViolation(
                f"expected margins to decrease by more than {noise:.3g}, as with noise of the same norm, got "
                f"{fall:.3g} [{scene}, {show(budget)}]. {way} A noise baseline declares `Traits(control=True)`."
            )


def check_optimum(case: Case) -> None:
    """It reaches its `share` of the exact optimum on a linear segmenter, in broken pixels or in lost margin."""
    traits = case.traits
    if traits.control or not traits.gradient or traits.minimal_norm:
        what = "control=True" if traits.control else "gradient=False" if not traits.gradient else "minimal_norm=True"
        raise NotApplicable(f"it declares `{what}`")
    for scene, usual in usual_budgets(case):
        wanted = USUAL_SHARE[usual.norm] if traits.share is None else traits.share
        for budget in (Budget(usual.norm, usual.eps / 6), usual):
            stage = _set_up(case, scene)
            x_adv = case.run(stage.model, stage.batch, budget, scene)
            reached = stage.share(x_adv, budget)
            if reached < wanted:
                raise ContractViolation(
                    f"expected at least {wanted:.0%} of the exact optimum, got {reached:.0%} [{scene}, "
                    f"{show(budget)}]. {_why_too_weak(stage, x_adv, budget)} An attack that is weaker by design "
                    f"declares `Traits(share={max(int(100 * reached) / 100, 0.01):g})`."
                )


def check_more_budget(case: Case) -> None:
    """A larger budget breaks no fewer pixels than a smaller one, or decreases margins at least as much."""
    if case.traits.control:
        raise NotApplicable("it declares `control=True`")
    for scene, usual in usual_budgets(case):
        stage = _set_up(case, scene)
        scale = 1.0 if usual.norm == "linf" else stage.batch.x[0].numel() ** 0.5 / 3
        broken, lost, before = -1.0, 0.0, 0.0
        for eps in (scale * step for step in LADDER):
            x_adv = case.run(stage.model, stage.batch, Budget(usual.norm, eps), scene)
            now_broken, now_lost = stage.broken(x_adv), float(stage.fall(x_adv).sum())
            if now_broken < broken and now_lost < 0.99 * lost:
                raise ContractViolation(
                    f"expected {usual.norm} eps {eps:.4g} to be no weaker than {before:.4g}, got {now_broken:.0%} of "
                    f"the pixels broken after {broken:.0%}, and {now_lost:.3g} of margin lost after {lost:.3g} "
                    f"[{scene}]. Scale the steps by eps; eps is always in the units of the images."
                )
            broken, lost, before = now_broken, now_lost, eps


def check_cost(case: Case) -> None:
    """Its forward and backward passes per image, counted at the model, are those that it declares."""
    traits = case.traits
    stated = (traits.forwards, traits.backwards)
    if traits.control:
        stated = (traits.forwards or 0.0, traits.backwards or 0.0)
    if stated == (None, None) and not traits.gradient:
        raise NotApplicable("it declares no cost")
    for scene, budget in usual_budgets(case):
        batch = make_batch(scene, case.device)
        model = make_linear(batch).eval()
        with isolated(), Counter(model).count(scene.n) as tally:
            case.call(model, copy_batch(batch), budget, scene)
        for what, wanted, count in zip(
            ("forwards", "backwards"), stated, (tally.all_forwards, tally.all_backwards), strict=True
        ):
            if wanted is not None and count != wanted * scene.n:
                who = "A noise baseline has cost 0 by default: correct" if traits.control else "Correct"
                raise ContractViolation(
                    f"expected {wanted:g} {what} per image, as declared, got {count / scene.n:g} [{scene}, "
                    f"{show(budget)}]. {who} `traits` or the attack."
                )
        if traits.gradient and not tally.all_backwards:
            raise ContractViolation(
                f"expected a backward pass through the model, got none [{scene}]. An attack that "
                "needs no gradient declares `Traits(gradient=False)`."
            )


@dataclass(frozen=True, slots=True)
class _Stage:
    """A batch with its linear segmenter and the goal of the attack.

    Attributes:
        model: The segmenter.
        batch: The batch that is attacked.
        aimed: The batch with the labels that the attack moves away from.
        slope: Gradient of the sum of margins that the attack should decrease.
        counts: Whether the labels of `aimed` define which pixels are broken.
    """

    model: LinearSegmenter
    batch: Batch
    aimed: Batch
    slope: Tensor
    counts: bool

    def fall(self, x_adv: Tensor) -> Tensor:
        """Return the decrease of the sum of margins of each image, (N,)."""
        return -(self.slope * (x_adv.double() - self.batch.x.double())).flatten(1).sum(1)

    def broken(self, x_adv: Tensor) -> float:
        """Return the fraction of wrong pixels."""
        return 1 - float(self.model.accuracy(x_adv, self.aimed).mean()) if self.counts else 0.0

    def share(self, x_adv: Tensor, budget: Budget) -> float:
        """Return the fraction of the exact optimum reached, in broken pixels or in lost margin, whichever is larger."""
        lost = float(self.fall(x_adv).sum() / self.model.largest_fall(self.batch, budget, self.slope).sum())
        clean = self.broken(self.batch.x)
        most = 1 - float(self.model.robust_accuracy(self.aimed, budget).mean()) - clean if self.counts else 0.0
        return max(lost, (self.broken(x_adv) - clean) / most) if most > 0 else lost


def _set_up(case: Case, scene: Scene) -> _Stage:
    """Derive the goal of an attack from its attributes `label` and `targeted`, if it has them."""
    batch = make_batch(scene, case.device)
    model = make_linear(batch)
    attack = case.attacks[scene.kind]
    label, targeted = getattr(attack, "label", "true"), bool(getattr(attack, "targeted", False))
    aimed = batch
    if label == "predicted":
        aimed = replace(batch, y=predict(model(batch.x), batch.task))
    elif label == "empty":
        aimed = replace(batch, y=torch.zeros_like(batch.y))
    if targeted and scene.kind == "multiclass":  # moving towards one class does not move away from one class
        return _Stage(model, batch, aimed, -model.slope(aimed), counts=False)
    if targeted:
        aimed = replace(aimed, y=~aimed.y)
    return _Stage(model, batch, aimed, model.slope(aimed), counts=True)


def _why_too_weak(stage: _Stage, x_adv: Tensor, budget: Budget) -> str:
    """Return the most likely cause of weakness, from the changes of the values."""
    moved = (x_adv.double() - stage.batch.x.double()).abs()
    used = float(moved.max() if budget.norm == "linf" else moved.flatten(1).norm(dim=1).max()) / budget.eps
    if used < 0.9:
        return f"It uses {used:.2g} of the budget. Is eps divided by something, or are the steps too short or too few?"
    falls = stage.fall(x_adv) / stage.model.largest_fall(stage.batch, budget, stage.slope)
    if float(falls.max()) > 0.4 and float(falls.min()) < 0.2:
        weak, strong = int(falls.argmin()), int(falls.argmax())
        return f"Image {weak} is hardly attacked, image {strong} is. Is there one loss value per image?"
    if stage.batch.task.kind != "multiclass":  # logit k depends only on channel k
        gain = -stage.slope * (x_adv.double() - stage.batch.x.double()) / stage.slope.abs().clamp(min=1e-12)
        means = {label: float(gain[stage.aimed.y == label].mean()) for label in (False, True)}
        least = min(means, key=lambda label: means[label])
        if means[least] < 0.3 * means[not least]:
            return f"Pixels with label {int(least)} hardly change. Are prediction and target of the loss swapped?"
    return (
        "Does every step follow the gradient of the loss at the current images, and do the steps add up to eps, or to "
        "2 eps from a random start?"
    )


def _noise(batch: Batch, length: Tensor) -> Iterator[Tensor]:
    """Yield random signs, scaled to a given L2 norm for each image and clipped to the bounds."""
    for draw in range(NOISE_DRAWS):
        pattern = random_sign(batch.x, [make_generator(image, 100 + draw) for image in batch.images])
        size = length / batch.x[0].numel() ** 0.5
        x = batch.x + pattern * align(size, batch.x).to(batch.x)
        yield x.clamp(batch.bounds.lower, batch.bounds.upper)
