"""The reference FGSM, and the shared computation of all attacks that need one gradient at the clean image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeGuard, get_args

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, without_cost
from advseg_bench.attacks.objective import (
    Label,
    check_choices,
    evaluate_objective,
    find_loss,
    refuse_target,
    why_loss_unfit,
)
from advseg_bench.batches import Batch
from advseg_bench.geometry import steepest
from advseg_bench.instruments.profiling import span
from advseg_bench.losses import Loss
from advseg_bench.protocols import Attack, Model
from advseg_bench.registry import catalogue
from advseg_bench.types import Budget, Traits


class OneGradientAttack(BaseAttack):
    """Base class of attacks that need one gradient at the clean image, whatever the budget.

    A subclass implements `objective` and `step`. The harness then shares one clean forward pass among all losses and
    one backward pass among all budgets; results are bit-identical to separate calls. A subclass that overrides
    `perturb` is not shared.

    Cost:
        1 forward, 1 backward.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> class Faint(ab.attacks.OneGradientAttack):
        ...     def objective(self, logits, batch):
        ...         return ab.losses.bce(logits, batch.y, batch.valid, batch.task)
        ...     def step(self, batch, gradient, budget, generators=()):
        ...         return (batch.x + 0.5 * budget.eps * gradient.sign()).clamp(0, 1)
        >>> x = torch.full((1, 1, 4, 4), 0.75)
        >>> Faint()(lambda x: 4 * x - 2, ab.Batch.of(x, x > 0.5, task="binary"), eps=0.25).unique()
        tensor([0.6250])
    """

    __slots__ = ()

    @abstractmethod
    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the objective to increase.

        Args:
            logits: Logits of the clean images, (N, K, *S).
            batch: Images and labels.

        Returns:
            One value per image, (N,).
        """

    @abstractmethod
    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Compute adversarial images from the gradient.

        Args:
            batch: Images and labels.
            gradient: Gradient of the summed objective with respect to `batch.x`, (N, C, *S).
            budget: Norm and radius.
            generators: One random generator per image.

        Returns:
            Images (N, C, *S) with the dtype of `batch.x`.
        """

    def gradient_key(self) -> Hashable:
        """Return a key that is equal for attacks with the same gradient; by default unique for each attack."""
        return id(self)

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
            1 forward, 1 backward.
        """
        _, (gradient,) = input_gradients(model, batch.x, [lambda logits: self.objective(logits, batch)])
        return self.step(batch, gradient, budget, generators)


def is_shared(attack: Attack) -> TypeGuard[OneGradientAttack]:
    """Return whether an attack consists only of its objective and its step."""
    if not isinstance(attack, OneGradientAttack):
        return False
    kind = type(attack)
    return kind.perturb is OneGradientAttack.perturb and kind.__call__ is BaseAttack.__call__


def input_gradients(
    model: Model, x: Tensor, objectives: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Differentiate several objectives of the same logits with respect to the images.

    Args:
        model: Images (N, C, *S) -> logits (N, K, *S).
        x: Images (N, C, *S); not modified. No gradient is accumulated in `x` or the model.
        objectives: Functions of the logits with one value per image, (N,).

    Returns:
        Detached logits, and one gradient like `x` per objective; zero if the objective does not depend on `x`.

    Cost:
        1 forward, len(objectives) backwards.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        with span("attack: forwards"):
            logits = model(leaf)
        values = [objective(logits).sum() for objective in objectives]
    gradients = []
    for i, value in enumerate(values):
        with span("attack: backwards"):
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=i + 1 < len(values), materialize_grads=True)
        gradients.append(gradient)
    return logits.detach(), gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class FGSM(OneGradientAttack):
    """FGSM, the fast gradient sign method: one step x' = clip(x + eps * sign(dL/dx)).

    Conventions: sign(0) = 0, so values with zero gradient do not change. The result is clipped to the bounds only. The
    loss is a sum of one value per image, so images are independent. For an L2 budget the step is eps * g / ||g||_2 for
    each image.

    Attributes:
        loss: The loss to increase: a name or a function, see `advseg_bench.losses`.
        label: Labels of the loss: the "true" labels, the labels "predicted" by the model, or the "empty" mask.
        targeted: Decrease the loss instead, so that the prediction moves towards the label.

    Cost:
        1 forward, 1 backward.

    Source:
        Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4; differs in the clip to the bounds.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.FGSM(loss="bce")(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    loss: Loss | str
    label: Label = "true"
    targeted: bool = False

    def __post_init__(self) -> None:
        """Resolve the name of the loss and validate the settings."""
        object.__setattr__(self, "loss", find_loss(self.loss))
        check_choices("fgsm", [("label", self.label, get_args(Label))])
        refuse_target(self.targeted, self.loss)

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue; without a cost for a subclass with more than an objective and a step."""
        traits = catalogue.ATTACKS["fgsm"].traits
        return traits if is_shared(self) else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or OneGradientAttack.why_not(self, batch, budget)

    def gradient_key(self) -> Hashable:
        """Return what the gradient depends on, including the identity of the loss."""
        if type(self).objective is not FGSM.objective:
            return OneGradientAttack.gradient_key(self)  # the gradient of another objective is unknown
        return id(self.loss), self.label, self.targeted

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,), negated if targeted."""
        return evaluate_objective(self.loss, logits, batch, label=self.label, targeted=self.targeted)

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return clip(x + eps * direction), (N, C, *S)."""
        return (batch.x + budget.eps * steepest(gradient, budget.norm)).clamp(batch.bounds.lower, batch.bounds.upper)
