"""Noise baselines: perturbations of full size without gradient information, which every attack should outperform."""

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
    """Noise baseline: add +eps or -eps to each value at random, the L_inf size of a signed step.

    For an L2 budget the pattern is scaled to L2 norm eps.

    Attributes:
        traits: What the attack supports and costs.

    Cost:
        No forward, no backward.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.RandomSign()(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["random_sign"].traits

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return noisy images, (N, C, *S), at the full budget and clipped to the bounds."""
        pattern = random_sign(batch.x, generators)
        size = budget.eps if budget.norm == "linf" else budget.eps / pattern[0].numel() ** 0.5
        return project(batch.x + size * pattern, batch.x, budget, batch.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformNoise(BaseAttack):
    """Noise baseline: add a uniform sample from [-eps, eps) to each value.

    For an L2 budget the noise is scaled to L2 norm eps.

    Attributes:
        traits: What the attack supports and costs.

    Cost:
        No forward, no backward.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.UniformNoise()(model, batch, eps=0.125)
        >>> bool(ab.geometry.distance(x_adv, x, "linf") <= 0.125)
        True
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["uniform_noise"].traits

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return noisy images, (N, C, *S), clipped to the bounds."""
        noise = random_uniform(batch.x, generators)
        if budget.norm == "l2":
            noise = steepest(noise, "l2")
        return project(batch.x + budget.eps * noise, batch.x, budget, batch.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledSign(OneGradientAttack):
    """Noise baseline: the FGSM step with its pixels in random order.

    The distribution of the step's values is that of FGSM, but their positions are random. So an attack that is stronger
    than this baseline gains from the positions of its changes. All channels of a pixel stay together.

    Attributes:
        loss: The loss of the FGSM step: a name or a function, see `advseg_bench.losses`.
        traits: What the attack supports and costs.

    Cost:
        1 forward, 1 backward, shared with FGSM of the same loss.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.ShuffledSign(loss="bce")(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    traits: ClassVar[Traits] = catalogue.ATTACKS["shuffled_sign"].traits

    loss: Loss | str

    def __post_init__(self) -> None:
        """Resolve the name of the loss."""
        object.__setattr__(self, "loss", find_loss(self.loss))

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or OneGradientAttack.why_not(self, batch, budget)

    def gradient_key(self) -> Hashable:
        """Return the key of FGSM, which has the same gradient, unless a subclass overrides `objective`."""
        if type(self).objective is not ShuffledSign.objective:
            return OneGradientAttack.gradient_key(self)
        return FGSM(loss=self.loss).gradient_key()

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,)."""
        return evaluate_objective(self.loss, logits, batch)

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return clip(x + eps * shuffled direction), (N, C, *S)."""
        pattern = shuffle_pixels(steepest(gradient, budget.norm), generators)
        return (batch.x + budget.eps * pattern).clamp(batch.bounds.lower, batch.bounds.upper)
