"""The reference FGSM, and the shared computation behind every attack that needs one gradient at the clean image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeGuard, get_args

import torch
from torch import Tensor

from advseg_bench.attacks.base import BaseAttack, without_cost
from advseg_bench.attacks.objective import Label, check_choices, evaluate_objective, find_loss, why_loss_unfit
from advseg_bench.batches import Batch
from advseg_bench.geometry import steepest
from advseg_bench.instruments.profiling import span
from advseg_bench.losses import Loss
from advseg_bench.protocols import Attack, Model
from advseg_bench.registry import catalogue
from advseg_bench.types import Budget, Traits


class OneGradientAttack(BaseAttack):
    """Base of attacks whose every budget follows from one gradient at the clean image.

    The harness uses the two parts to share one clean forward among all losses and one backward among all budgets;
    the result is bit-identical to calling the attack. A subclass that defines `perturb` itself is not shared.
    """

    __slots__ = ()

    @abstractmethod
    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return what is to be increased, (N,), from the logits of the clean images."""

    @abstractmethod
    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return adversarial images from the gradient of the summed objective by `batch.x`."""

    def gradient_key(self) -> Hashable:
        """Return what attacks of the same gradient have in common; by default each attack has its own."""
        return id(self)

    def perturb(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`. Cost: 1 forward, 1 backward."""
        _, (gradient,) = input_gradients(model, batch.x, [lambda logits: self.objective(logits, batch)])
        return self.step(batch, gradient, budget, generators)


def is_shared(attack: Attack) -> TypeGuard[OneGradientAttack]:
    """Return whether an attack is nothing but its objective and its step."""
    if not isinstance(attack, OneGradientAttack):
        return False
    kind = type(attack)
    return kind.perturb is OneGradientAttack.perturb and kind.__call__ is BaseAttack.__call__


def input_gradients(
    model: Model, x: Tensor, objectives: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Differentiate several objectives of the same logits by the images.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S); not changed, and no gradient is left on it or on the model.
        objectives: Logits -> (N,), one value per image.

    Returns:
        Detached logits, and one gradient like `x` per objective. An objective that does not depend on the image has
        gradient zero.

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
    """Take one step of full size along the sign of the loss gradient: x' = clip(x + eps * sign(dL/dx)).

    Conventions: sign(0) = 0, so a value without gradient does not move; the step is clipped to the bounds and
    nothing else; the loss is a sum of one value per image, so images do not influence each other. For an L2
    budget the step is eps * g / ||g||_2 per image.

    Attributes:
        loss: What to increase: a name, or a function, see `advseg_bench.losses`.
        label: What the loss compares with: "true" labels; the model's own "predicted" labels; or the "empty" mask.
        targeted: Decrease the loss instead, so that the prediction moves towards the label.

    Cost:
        1 forward, 1 backward.

    Source:
        Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4; differs from it in the clip.
    """

    loss: Loss | str
    label: Label = "true"
    targeted: bool = False

    def __post_init__(self) -> None:
        """Find a loss by its name, and refuse a setting that does not exist."""
        object.__setattr__(self, "loss", find_loss(self.loss))
        check_choices("fgsm", [("label", self.label, get_args(Label))])

    @property
    def traits(self) -> Traits:
        """Those of the catalogue; without a cost for a subclass that is more than its objective and its step."""
        traits = catalogue.ATTACKS["fgsm"].traits
        return traits if is_shared(self) else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why it cannot be given a batch and a budget, or None."""
        return why_loss_unfit(self.loss, batch) or OneGradientAttack.why_not(self, batch, budget)

    def gradient_key(self) -> Hashable:
        """Return what the gradient depends on, the very loss among it."""
        if type(self).objective is not FGSM.objective:
            return OneGradientAttack.gradient_key(self)  # of another objective no more is known
        return id(self.loss), self.label, self.targeted

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,), negated if targeted."""
        return evaluate_objective(self.loss, logits, batch, label=self.label, targeted=self.targeted)

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return clip(x + eps * direction); shape and dtype of `batch.x`."""
        return (batch.x + budget.eps * steepest(gradient, budget.norm)).clamp(batch.bounds.lower, batch.bounds.upper)
