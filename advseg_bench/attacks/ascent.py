"""Projected gradient ascent: the one loop behind BIM, PGD and MI-FGSM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, without_cost
from advseg_bench.attacks.gradient import input_gradients
from advseg_bench.attacks.objective import evaluate_objective, find_loss, why_loss_unfit
from advseg_bench.batches import Batch
from advseg_bench.errors import SettingError
from advseg_bench.geometry import align, project, random_in_ball, steepest
from advseg_bench.losses import Loss
from advseg_bench.protocols import Model
from advseg_bench.registry.catalogue import ASCENT_STEPS, ascent_traits
from advseg_bench.types import Budget, Traits


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedAscent(BaseAttack):
    """Climb the loss in steps of fixed size, brought back into the budget and the bounds after each.

    x_{t+1} = P(x_t + step_size * eps * d(m_t)), where d is the direction of steepest ascent in the norm of the budget
    (the sign for L_inf, g / ||g||_2 for L2), m_t = g_t without momentum and m_t = decay * m_{t-1} + g_t / ||g_t||_1
    with it, and g_t is the gradient of the sum of one loss value per image. P clips the perturbation to the budget
    first and the image to the bounds second. A value whose gradient is NaN does not move under L_inf, since the sign of
    NaN is 0 in torch; under L2 the image becomes NaN.

    Attributes:
        loss: What to increase: a name, or a function, see `advseg_bench.losses`.
        steps: Number of forwards, at least 1; as many gradients and moves, but see `keep`.
        step_size: As a share of the radius; None stands for 1 / moves.
        random_start: Start at a point drawn uniformly from the ball, clipped to the bounds, instead of at the image.
        decay: Weight of the accumulated gradient; None is no momentum (and no normalisation).
        momentum_norm: What a gradient is divided by before it is accumulated: its L1 or L2 norm per image, the mean of
            its absolute values ("mean": as "l1", up to a constant that no direction depends on), or nothing ("none").
            "sign" accumulates signs instead.
        label: What the loss compares with: "true" labels or the "empty" mask.
        targeted: Decrease the loss instead.
        keep: "last": the last iterate is returned, whatever the loss was on the way. "best": each image's iterate of
            the largest loss, the first one among them. The last forward then looks at the last iterate instead of
            making another, so that the forwards are as many, and gradients and moves are `steps` - 1.
    """

    loss: Loss | str
    steps: int = ASCENT_STEPS
    step_size: float | None = None
    random_start: bool = False
    decay: float | None = None
    momentum_norm: Literal["l1", "l2", "mean", "sign", "none"] = "l1"
    label: Literal["true", "empty"] = "true"
    targeted: bool = False
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        """Find a loss by its name, and refuse settings without a meaning."""
        object.__setattr__(self, "loss", find_loss(self.loss))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SettingError(f"steps: expected a whole number of at least 1, got {self.steps!r}.")
        if self.step_size is not None and not self.step_size > 0:
            raise SettingError(f"step_size: expected a positive share of eps, such as 0.25, got {self.step_size!r}.")
        if self.label not in ("true", "empty"):
            raise SettingError(f"label: expected 'true' or 'empty', got {self.label!r}.")
        if self.momentum_norm not in (norms := ("l1", "l2", "mean", "sign", "none")):
            raise SettingError(f"momentum_norm: expected one of {', '.join(norms)}, got {self.momentum_norm!r}.")
        if self.keep not in ("last", "best"):
            raise SettingError(f"keep: expected 'last' or 'best', got {self.keep!r}.")
        if self.keep == "best" and self.steps < 2:
            raise SettingError(f"steps: expected at least 2 to keep the best of, got {self.steps}. Use keep 'last'.")

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`. Cost: `steps` forwards and `moves` backwards."""
        x_adv, memory, best = self.start(batch, budget, generators), None, None
        for _ in range(self.moves):
            logits, (gradient,) = input_gradients(model, x_adv, [lambda logits: self.objective(logits, batch)])
            if self.keep == "best":
                best = _better(best, x_adv, self.objective(logits, batch))
            memory = self.accumulate(memory, gradient)
            x_adv = self.move(x_adv, memory, batch, budget)
        if self.keep == "last":
            return x_adv
        with torch.no_grad():
            return _better(best, x_adv, self.objective(model(x_adv), batch))[0]

    @property
    def traits(self) -> Traits:
        """Those of the catalogue for these settings; without a cost for a subclass with a loop of its own."""
        traits = ascent_traits({"steps": self.steps, "keep": self.keep, "random_start": self.random_start})
        return traits if type(self).perturb is ProjectedAscent.perturb else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why it cannot be given a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    @property
    def moves(self) -> int:
        """How often an image is moved: once per gradient."""
        return self.steps - (self.keep == "best")

    @property
    def remembers(self) -> bool:
        """Whether a direction depends on more than the last gradient."""
        return self.decay is not None

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the first iterate."""
        if not self.random_start:
            return batch.x
        offset = budget.eps * random_in_ball(batch.x, budget.norm, generators)
        return _confine(batch.x + offset, batch, budget)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return what is to be increased, (N,)."""
        return evaluate_objective(self.loss, logits, batch, label=self.label, targeted=self.targeted)

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        """Return what the next direction is made of, from what the last one was made of (None at first)."""
        if self.decay is None:
            return gradient
        if self.momentum_norm in ("sign", "l2"):
            gradient = steepest(gradient, "linf" if self.momentum_norm == "sign" else "l2")
        elif self.momentum_norm != "none":
            sizes = gradient.abs().flatten(1)
            size = sizes.sum(1) if self.momentum_norm == "l1" else sizes.mean(1)
            # A gradient that is zero everywhere adds nothing, rather than NaN.
            gradient = gradient / align(torch.where(size > 0, size, 1), gradient)
        return gradient if memory is None else self.decay * memory + gradient

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return the next iterate."""
        return _confine(self.stride(x_adv, memory, budget), batch, budget)

    def stride(self, x_adv: Tensor, memory: Tensor, budget: Budget) -> Tensor:
        """Return the next iterate before it is brought back."""
        size = budget.eps * (1 / self.moves if self.step_size is None else self.step_size)
        return x_adv + size * steepest(memory, budget.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class BIM(ProjectedAscent):
    """The basic iterative method, or I-FGSM: steps of eps / steps from the image.

    Cost:
        `steps` forwards and backwards.

    Source:
        Kurakin et al., ICLR 2017 workshop, arXiv:1607.02533, section 2.2; differs from it in the default step,

    which there is 1/255 and here lets every value reach the border of the budget.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PGD(ProjectedAscent):
    """Projected gradient descent: steps of eps / 4 from a random point of the ball.

    Cost:
        `steps` forwards and backwards.

    Source:
        Madry et al., ICLR 2018, arXiv:1706.06083, section 2.1; one start, the last iterate.
    """

    step_size: float | None = 0.25
    random_start: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MIFGSM(ProjectedAscent):
    """The momentum iterative method: gradients of L1 norm 1 are accumulated with decay 1.

    Cost:
        `steps` forwards and backwards.

    Source:
        Dong et al., CVPR 2018, arXiv:1710.06081, Algorithm 1; differs from it in the clip to the bounds.
    """

    decay: float | None = 1.0


def _better(best: tuple[Tensor, Tensor] | None, x_adv: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image and its loss where the loss is larger than the best so far, and the best elsewhere."""
    if best is None:
        return x_adv, value
    larger = (value > best[1]) | best[1].isnan()
    return torch.where(align(larger, x_adv), x_adv, best[0]), torch.where(larger, value, best[1])


def _confine(x_adv: Tensor, batch: Batch, budget: Budget) -> Tensor:
    """Clip the perturbation to the budget, then the image to the bounds.

    For L_inf the perturbation is clipped as such, as the toolkits do, and not the image to x +- eps, as
    `geometry.project` does: the two differ by a rounding, and an iterate's rounding decides signs of the next gradient.
    """
    if budget.norm == "l2":
        return project(x_adv, batch.x, budget, batch.bounds)
    delta = (x_adv - batch.x).clamp(-budget.eps, budget.eps)
    return (batch.x + delta).clamp(batch.bounds.lower, batch.bounds.upper)
