"""Controls: perturbations of full size that know nothing of the model. An attack must beat them to mean anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench.geometry import project, random_sign, random_uniform, steepest
from advseg_bench.types import Batch, Budget, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomSign:
    """Move each value by +eps or -eps, by coin toss: the control of equal L_inf norm for signed steps.

    For an L2 budget the pattern is scaled to length eps. Cost: no forward, no backward.
    """

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return images at the full budget, clipped to the bounds; shape and dtype of `batch.x`."""
        pattern = random_sign(batch.x, generators)
        size = budget.eps if budget.norm == "linf" else budget.eps / pattern[0].numel() ** 0.5
        return project(batch.x + size * pattern, batch.x, budget, batch.bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformNoise:
    """Move each value by a number drawn uniformly from [-eps, eps): mean size eps / 2.

    For an L2 budget the noise is scaled to length eps. Cost: no forward, no backward.
    """

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return noisy images, clipped to the bounds; shape and dtype of `batch.x`."""
        noise = random_uniform(batch.x, generators)
        if budget.norm == "l2":
            noise = steepest(noise, "l2")
        return project(batch.x + budget.eps * noise, batch.x, budget, batch.bounds)
