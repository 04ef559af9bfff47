"""Noise baselines: perturbations of full size that follow no gradient. An attack must beat them to mean anything."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack
from advseg_bench.attacks.gradient import FGSM, OneGradientAttack
from advseg_bench.attacks.objective import evaluate_objective, find_loss, why_loss_unfit
from advseg_bench.batches import Batch
from advseg_bench.geometry import project, random_sign, random_uniform, shuffle_pixels, steepest
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.registry import catalogue
from advseg_bench.types import Budget, Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSign(BaseAttack):
    """Move each value by +eps or -eps, by coin toss: the baseline of equal L_inf norm for signed steps.

    For an L2 budget the pattern is scaled to length eps. Cost: no forward, no backward.
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["random_sign"].traits

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return images at the full budget, clipped to the bounds; shape and dtype of `batch.x`."""
        pattern = random_sign(batch.x, generators)
        size = budget.eps if budget.norm == "linf" else budget.eps / pattern[0].numel() ** 0.5
        return project(batch.x + size * pattern, batch.x, budget, batch.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformNoise(BaseAttack):
    """Move each value by a number drawn uniformly from [-eps, eps): mean size eps / 2.

    For an L2 budget the noise is scaled to length eps. Cost: no forward, no backward.
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["uniform_noise"].traits

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return noisy images, clipped to the bounds; shape and dtype of `batch.x`."""
        noise = random_uniform(batch.x, generators)
        if budget.norm == "l2":
            noise = steepest(noise, "l2")
        return project(batch.x + budget.eps * noise, batch.x, budget, batch.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledSign(OneGradientAttack):
    """Take FGSM's step with its pixels in random order: as many values go up, down and nowhere, at the wrong places.

    What an attack does beyond this baseline comes from where it moves the image, not from how its signs are
    distributed. All channels of a pixel stay together.

    Attributes:
        loss: Whose gradient is shuffled: a name, or a function, see `advseg_bench.losses`.

    Cost:
        1 forward, 1 backward, which FGSM with the same loss shares.
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["shuffled_sign"].traits

    loss: Loss | str

    def __post_init__(self) -> None:
        """Find a loss by its name."""
        object.__setattr__(self, "loss", find_loss(self.loss))

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why it cannot be given a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or OneGradientAttack.why_not(self, batch, budget)

    def gradient_key(self) -> Hashable:
        """Return FGSM's key: the gradient is the same, unless a subclass has an objective of its own."""
        if type(self).objective is not ShuffledSign.objective:
            return OneGradientAttack.gradient_key(self)
        return FGSM(loss=self.loss).gradient_key()

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,)."""
        return evaluate_objective(self.loss, logits, batch)

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return clip(x + eps * shuffled direction); shape and dtype of `batch.x`."""
        pattern = shuffle_pixels(steepest(gradient, budget.norm), generators)
        return (batch.x + budget.eps * pattern).clamp(batch.bounds.lower, batch.bounds.upper)
