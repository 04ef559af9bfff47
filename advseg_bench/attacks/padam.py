"""PAdam: Adam on the perturbation, projected."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advseg_bench.attacks.ascent import Climb, ProjectedAscent, better, confine, spare_clean
from advseg_bench.attacks.base import cost_if_same
from advseg_bench.attacks.stepping import Query
from advseg_bench.batches import Batch
from advseg_bench.registry.ascents import ascent_traits
from advseg_bench.types import Budget, Traits

FIRST, SECOND, FLOOR = 0.9, 0.999, 1e-8
"""Adam's decay rates of the two moments, and the term that keeps its quotient finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PAdam(ProjectedAscent):
    """PAdam: AMSGrad ascent on the perturbation with a fixed rate, each step followed by a projection.

    x_{t+1} = P(x_t + step_size * eps * m / (sqrt(v) + 1e-8)) with the moments m and v of the gradient, corrected for
    their start at 0, and v replaced by its largest value so far. Gradients are divided by their largest absolute value
    in the image first, so that the term 1e-8 means the same for a loss of any scale. The other settings are those of
    `ProjectedAscent`; `decay` has no meaning here.

    Attributes:
        steps: Number of forward passes.
        step_size: Rate as a fraction of eps.

    Cost:
        `steps` forwards, `steps` backwards; with `keep` "best" one backward less.

    Source:
        Halmosi et al., arXiv:2407.09150, whose rate is 2/255 at eps 8/255 and whose steps are 200; differs in the
        normalisation of the gradient. Reddi et al., ICLR 2018, arXiv:1904.09237 (AMSGrad).

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.PAdam(loss="dice", steps=20)(model, batch, eps=0.125)
        >>> bool(ab.geometry.distance(x_adv, x, "linf") > 0.124)
        True
    """

    steps: int = 40
    step_size: float | None = 0.25

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue for these settings; without a cost for a subclass with a loop of its own."""
        names = ("steps", "keep", "random_start", "restarts", "radius_schedule")
        traits = ascent_traits({name: getattr(self, name) for name in names})
        return cost_if_same(traits, self, PAdam, "perturb", "begin", "climb_ball")

    def climb_ball(self, x_adv: Tensor, batch: Batch, budget: Budget) -> Climb:
        """Climb in one ball, see `ProjectedAscent.climb_ball`."""
        best, judge = None, self.aim(self.kept_by) if self.keep == "best" else None
        mean = square = largest = torch.zeros_like(x_adv)
        for step in range(self.moves):
            answer = yield Query(x_adv, self.aim(self.loss, step), judge)
            if judge:
                best = better(best, x_adv, spare_clean(answer.value, x_adv, batch))
            gradient = _scale(answer.gradient)
            mean = FIRST * mean + (1 - FIRST) * gradient
            square = SECOND * square + (1 - SECOND) * gradient**2
            largest = torch.maximum(largest, square / (1 - SECOND ** (step + 1)))
            direction = mean / (1 - FIRST ** (step + 1)) / (largest.sqrt() + FLOOR)
            x_adv = confine(x_adv + budget.eps * self.share * direction, batch, budget)
        if judge:
            return better(best, x_adv, (yield Query(x_adv, judge=judge)).value)
        return x_adv, None


def _scale(gradient: Tensor) -> Tensor:
    """Divide the gradient of each image by its largest absolute value; zero stays zero."""
    largest = gradient.abs().amax(tuple(range(1, gradient.dim())), keepdim=True)
    return gradient / torch.where(largest > 0, largest, 1)
