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
    """Projected gradient ascent: steps of fixed size, each followed by a projection onto budget and bounds.

    x_{t+1} = P(x_t + step_size * eps * d(m_t)), where d is the direction of steepest ascent in the norm of the budget
    (the sign for L_inf, g / ||g||_2 for L2), m_t = g_t without momentum and m_t = decay * m_{t-1} + g_t / ||g_t||_1
    with it, and g_t is the gradient of the sum of one loss value per image. P clips first the perturbation to the
    budget and then the image to the bounds. Where a gradient is NaN, an L_inf attack does not change the value, since
    the sign of NaN is 0 in torch; an L2 attack sets the image to NaN.

    Attributes:
        loss: The loss to increase: a name or a function, see `advseg_bench.losses`.
        steps: Number of forward passes, at least 1; equals the number of gradient steps unless `keep` is "best".
        step_size: Step size as a fraction of eps; None means 1 / number of gradient steps.
        random_start: Start at a uniform sample from the ball, clipped to the bounds, instead of the clean image.
        decay: Weight of the accumulated gradient; None means no momentum and no normalisation.
        momentum_norm: Normalisation of a gradient before it is accumulated: its "l1" or "l2" norm per image, the "mean"
            of its absolute values (same directions as "l1"), or "none". "sign" accumulates signs instead.
        label: Labels of the loss: the "true" labels or the "empty" mask.
        targeted: Decrease the loss instead.
        keep: "last" returns the last iterate. "best" returns the iterate of each image with the largest loss, the first
            one in a tie; the last forward pass then evaluates the last iterate, so there are `steps` - 1 gradient
            steps.

    Cost:
        `steps` forwards, `moves` backwards.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.ProjectedAscent(loss="dice", steps=5, keep="best")(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
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
        """Resolve the name of the loss and validate the settings."""
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
            raise SettingError(f"steps: expected at least 2 for keep 'best', got {self.steps}. Use keep 'last'.")

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images.

        Args:
            model: Images (N, C, *S) -> logits (N, K, *S).
            batch: Images and labels.
            budget: Norm and radius.
            generators: One random generator per image.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.

        Cost:
            `steps` forwards, `moves` backwards.
        """
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
        """The traits in the catalogue for these settings; without a cost for a subclass that overrides `perturb`."""
        traits = ascent_traits({"steps": self.steps, "keep": self.keep, "random_start": self.random_start})
        return traits if type(self).perturb is ProjectedAscent.perturb else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or BaseAttack.why_not(self, batch, budget)

    @property
    def moves(self) -> int:
        """The number of gradient steps."""
        return self.steps - (self.keep == "best")

    @property
    def remembers(self) -> bool:
        """Whether a direction depends on earlier gradients."""
        return self.decay is not None

    def start(self, batch: Batch, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the first iterate, (N, C, *S)."""
        if not self.random_start:
            return batch.x
        offset = budget.eps * random_in_ball(batch.x, budget.norm, generators)
        return _confine(batch.x + offset, batch, budget)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the objective to increase, (N,)."""
        return evaluate_objective(self.loss, logits, batch, label=self.label, targeted=self.targeted)

    def accumulate(self, memory: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the accumulated gradient, from the previous one (None at the first step) and the new gradient."""
        if self.decay is None:
            return gradient
        if self.momentum_norm in ("sign", "l2"):
            gradient = steepest(gradient, "linf" if self.momentum_norm == "sign" else "l2")
        elif self.momentum_norm != "none":
            sizes = gradient.abs().flatten(1)
            size = sizes.sum(1) if self.momentum_norm == "l1" else sizes.mean(1)
            # A gradient that is zero everywhere adds zero, not NaN.
            gradient = gradient / align(torch.where(size > 0, size, 1), gradient)
        return gradient if memory is None else self.decay * memory + gradient

    def move(self, x_adv: Tensor, memory: Tensor, batch: Batch, budget: Budget) -> Tensor:
        """Return the next iterate, projected."""
        return _confine(self.stride(x_adv, memory, budget), batch, budget)

    def stride(self, x_adv: Tensor, memory: Tensor, budget: Budget) -> Tensor:
        """Return the next iterate before the projection."""
        size = budget.eps * (1 / self.moves if self.step_size is None else self.step_size)
        return x_adv + size * steepest(memory, budget.norm)


@dataclass(frozen=True, slots=True, kw_only=True)
class BIM(ProjectedAscent):
    """BIM, the basic iterative method (I-FGSM): steps of eps / steps from the clean image.

    Settings are those of `ProjectedAscent`.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Kurakin et al., ICLR 2017 workshop, arXiv:1607.02533, section 2.2; differs in the default step size, which is
        1/255 in the paper, so that every value can reach the border of the budget.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.BIM(loss="bce", steps=5)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PGD(ProjectedAscent):
    """PGD, projected gradient descent: steps of eps / 4 from a random point of the ball.

    Settings are those of `ProjectedAscent`.

    Attributes:
        step_size: Step size as a fraction of eps.
        random_start: Start at a uniform sample from the ball, clipped to the bounds.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Madry et al., ICLR 2018, arXiv:1706.06083, section 2.1; one restart, returns the last iterate.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.PGD(loss="dice", steps=20)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    step_size: float | None = 0.25
    random_start: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MIFGSM(ProjectedAscent):
    """MI-FGSM, the momentum iterative method: gradients with L1 norm 1 are accumulated with decay 1.

    Settings are those of `ProjectedAscent`.

    Attributes:
        decay: Weight of the accumulated gradient.

    Cost:
        `steps` forwards, `steps` backwards.

    Source:
        Dong et al., CVPR 2018, arXiv:1710.06081, Algorithm 1; differs in the clip to the bounds.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.MIFGSM(loss="margin", steps=5)(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    decay: float | None = 1.0


def _better(best: tuple[Tensor, Tensor] | None, x_adv: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the better of the best image so far and the new one, with its loss, for each image."""
    if best is None:
        return x_adv, value
    larger = (value > best[1]) | best[1].isnan()
    return torch.where(align(larger, x_adv), x_adv, best[0]), torch.where(larger, value, best[1])


def _confine(x_adv: Tensor, batch: Batch, budget: Budget) -> Tensor:
    """Clip the perturbation to the budget, then the image to the bounds.

    For L_inf this clips the perturbation, as the toolkits do; `geometry.project` clips the image to x +- eps. The two
    differ by rounding, and rounding of an iterate can flip signs of the next gradient.
    """
    if budget.norm == "l2":
        return project(x_adv, batch.x, budget, batch.bounds)
    delta = (x_adv - batch.x).clamp(-budget.eps, budget.eps)
    return (batch.x + delta).clamp(batch.bounds.lower, batch.bounds.upper)
