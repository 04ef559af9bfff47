"""SegPGD and CosPGD by the functions of the package `cospgd`, for cross-validation.

The package has no attack classes: it weighs the loss of each pixel, samples the start and takes a step. The loop around
these functions is the one that its documentation shows. For binary and multilabel tasks each channel is a picture of
two classes, with a logit of 0 for the background.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cospgd import functions
from torch import Tensor

from advseg_adapters.foreign import isolated_randomness
from advseg_bench.attacks.base import BaseAttack
from advseg_bench.batches import Batch
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.types import Budget, Traits

__all__ = ["CosPGD", "SegPGD"]


@dataclass(frozen=True, kw_only=True)
class _Weighted(BaseAttack):
    """The loop: weighted cross-entropy, its gradient, a step.

    Attributes:
        loss: Unused, since the attack defines its loss.
        steps: Number of gradient steps.
        step_size: Step size as a fraction of eps.
        random_start: Start at a random image of the ball instead of the clean one.
    """

    loss: Loss | None = None
    steps: int = 10
    step_size: float = 0.25
    random_start: bool = True

    @property
    def traits(self) -> Traits:
        """Two spatial axes; one pass in each direction per step."""
        return Traits(dims=(2,), random=self.random_start, forwards=self.steps, backwards=self.steps)

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images (N, C, H, W)."""
        linf = budget.norm == "linf"
        eps, size = torch.tensor(budget.eps), torch.tensor(self.step_size * budget.eps)
        clip = {"clamp_min": batch.bounds.lower, "clamp_max": batch.bounds.upper}
        step = functions.step_inf if linf else functions.step_l2
        x_adv = batch.x
        if self.random_start:
            start = functions.init_linf if linf else functions.init_l2
            parts = []
            for x, generator in zip(torch.split(batch.x, 1), generators, strict=True):
                with isolated_randomness(generator):
                    parts.append(start(x, budget.eps if linf else eps, **clip))
            x_adv = torch.cat(parts)
        for t in range(self.steps):
            leaf = x_adv.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(self._measure(model(leaf), batch, t), leaf)
            x_adv = step(x_adv, eps, gradient, batch.x, size, False, **clip)
        return x_adv.detach()

    def _measure(self, logits: Tensor, batch: Batch, t: int) -> Tensor:
        """Return the weighted loss of all images, a scalar."""
        valid = batch.valid
        if batch.task.kind == "multiclass":
            labels = torch.where(valid, batch.y, 0)
        else:
            labels = batch.y.long().flatten(0, 1)
            valid = valid.unsqueeze(1).expand(batch.y.shape).flatten(0, 1)
            logits = torch.stack([torch.zeros_like(logits), logits], 2).flatten(0, 1)
        loss = torch.where(valid, F.cross_entropy(logits, labels, reduction="none"), 0)
        return self.weigh(logits, labels, loss, t)

    @abstractmethod
    def weigh(self, logits: Tensor, labels: Tensor, loss: Tensor, t: int) -> Tensor:
        """Return the sum of the weighted losses of the pixels at step t, counted from 0."""


@dataclass(frozen=True, kw_only=True)
class SegPGD(_Weighted):
    """SegPGD of the package `cospgd`, whose steps are counted from 0.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Gu et al., ECCV 2022, arXiv:2207.12391, in the package of Agnihotri et al., arXiv:2302.02213.
    """

    def weigh(self, logits: Tensor, labels: Tensor, loss: Tensor, t: int) -> Tensor:
        """Return the sum of the weighted losses at step t."""
        found: Tensor = functions.segpgd_scale(logits, labels, loss, t, self.steps)
        return found


@dataclass(frozen=True, kw_only=True)
class CosPGD(_Weighted):
    """CosPGD of the package `cospgd`, with the softmax of the logits.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Agnihotri et al., ICML 2024, arXiv:2302.02213.
    """

    def weigh(self, logits: Tensor, labels: Tensor, loss: Tensor, t: int) -> Tensor:
        """Return the sum of the weighted losses, the same at every step."""
        found: Tensor = functions.cospgd_scale(logits, labels, loss, num_classes=logits.shape[1])
        return found.sum()
