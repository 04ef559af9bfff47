"""The reference FGSM, and the shared computation behind every attack that needs one gradient at the clean image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from advseg_bench.geometry import steepest
from advseg_bench.losses import Loss
from advseg_bench.metrics import predict
from advseg_bench.types import Attack, Batch, Budget, Model


class OneGradientAttack(ABC):
    """Base of attacks whose every budget follows from one gradient at the clean image.

    The harness uses the two parts to share one clean forward among all losses and one backward among all budgets;
    the result is bit-identical to calling the attack. A subclass that defines `__call__` itself is not shared.
    """

    __slots__ = ()

    @abstractmethod
    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return what is to be increased, (N,), from the logits of the clean images."""

    @abstractmethod
    def step(self, batch: Batch, gradient: Tensor, budget: Budget) -> Tensor:
        """Return adversarial images from the gradient of the summed objective by `batch.x`."""

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`. Draws no random numbers."""
        _, (gradient,) = input_gradients(model, batch.x, [lambda logits: self.objective(logits, batch)])
        return self.step(batch, gradient, budget)


def is_shared(attack: Attack) -> TypeGuard[OneGradientAttack]:
    """Return whether an attack is nothing but its objective and its step."""
    return isinstance(attack, OneGradientAttack) and type(attack).__call__ is OneGradientAttack.__call__


def input_gradients(
    model: Model, x: Tensor, objectives: Sequence[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """Differentiate several objectives of the same logits by the images.

    Args:
        model: Images -> logits.
        x: Images (N, C, *S); not changed, and no gradient is left on it or on the model.
        objectives: Logits -> (N,), one value per image.
    Returns: Detached logits, and one gradient like `x` per objective. An objective that does not depend on the
        image has gradient zero. Cost: 1 forward, len(objectives) backwards.
    """
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        values = [objective(logits).sum() for objective in objectives]
    gradients = []
    for i, value in enumerate(values):
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
        loss: What to increase, see `advseg_bench.losses`.
        label: What the loss compares with: "true" labels; the model's own "predicted" labels (no label leaking,
            arXiv 1611.01236); or the "empty" mask (background in a multiclass task).
        targeted: Decrease the loss instead, so that the prediction moves towards the label.

    Cost: 1 forward, 1 backward.
    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4; differs from it in the clip.
    """

    loss: Loss
    label: Literal["true", "predicted", "empty"] = "true"
    targeted: bool = False

    def __post_init__(self) -> None:
        """Refuse a label rule that does not exist."""
        if self.label not in ("true", "predicted", "empty"):
            raise ValueError(f"fgsm: expected label 'true', 'predicted' or 'empty', got {self.label!r}.")

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,), negated if targeted."""
        y = batch.y
        if self.label == "predicted":
            y = predict(logits.detach(), batch.task)
        elif self.label == "empty":
            y = torch.zeros_like(batch.y)
        value = self.loss(logits, y, batch.valid, batch.task)
        return -value if self.targeted else value

    def step(self, batch: Batch, gradient: Tensor, budget: Budget) -> Tensor:
        """Return clip(x + eps * direction); shape and dtype of `batch.x`."""
        moved = batch.x + budget.eps * steepest(gradient, budget.norm)
        return moved.clamp(batch.bounds.lower, batch.bounds.upper)
