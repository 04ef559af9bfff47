"""The reference FGSM, and the shared computation behind every attack that needs one gradient at the clean image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError
from advseg_bench.geometry import blend_share, steepest
from advseg_bench.instruments.profiling import span
from advseg_bench.losses import Loss
from advseg_bench.metrics import predict
from advseg_bench.types import Attack, Batch, Bounds, Budget, Model


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
    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return adversarial images from the gradient of the summed objective by `batch.x`."""

    def gradient_key(self) -> Hashable:
        """Return what attacks of the same gradient have in common; by default each attack has its own."""
        return id(self)

    def __call__(self, model: Model, batch: Batch, *, budget: Budget, generators: Sequence[torch.Generator]) -> Tensor:
        """Return adversarial images; shape and dtype of `batch.x`."""
        _, (gradient,) = input_gradients(model, batch.x, [lambda logits: self.objective(logits, batch)])
        return self.step(batch, gradient, budget, generators)


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
        with span("attack: forwards"):
            logits = model(leaf)
        values = [objective(logits).sum() for objective in objectives]
    gradients = []
    for i, value in enumerate(values):
        with span("attack: backwards"):
            (gradient,) = torch.autograd.grad(value, leaf, retain_graph=i + 1 < len(values), materialize_grads=True)
        gradients.append(gradient)
    return logits.detach(), gradients


Label = Literal["true", "predicted", "empty"]
Order = Literal["defined", "released"]
Form = Literal["additive", "blend", "blend_released"]
Channels = Literal["independent", "tied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FGSM(OneGradientAttack):
    """Take one step of full size along the sign of the loss gradient: x' = clip(x + eps * sign(dL/dx)).

    Conventions: sign(0) = 0, so a value without gradient does not move; the step is clipped to the bounds and
    nothing else; the loss is a sum of one value per image, so images do not influence each other. For an L2
    budget the step is eps * g / ||g||_2 per image.

    `order` and `form` reproduce what the released code of arXiv 2401.11224 computes, where it differs from its text.

    Attributes:
        loss: What to increase, see `advseg_bench.losses`.
        label: What the loss compares with: "true" labels; the model's own "predicted" labels (no label leaking,
            arXiv 1611.01236); or the "empty" mask (background in a multiclass task).
        targeted: Decrease the loss instead, so that the prediction moves towards the label.
        order: "defined" calls the loss with (logits, labels); "released" with the two swapped, as the study's code
            does: its BCE is then linear in the logits, -mask / N each. Not for multiclass tasks.
        form: "additive"; "blend" is x' = clip((1 - e) * x + e * sign), with e chosen image by image so that the
            largest change equals that of the additive step; "blend_released" is the same with e = eps, the study's
            code: its largest change is up to 2 eps. Blends are for L_inf budgets and images between 0 and 1.
        channels: "independent", or "tied": one perturbation for all channels, the steepest for images whose
            channels are copies of one grey image.

    Cost: 1 forward, 1 backward.
    Source: Goodfellow et al., ICLR 2015, arXiv:1412.6572, section 4; differs from it in the clip.
    """

    loss: Loss
    label: Label = "true"
    targeted: bool = False
    order: Order = "defined"
    form: Form = "additive"
    channels: Channels = "independent"

    def __post_init__(self) -> None:
        """Refuse a setting that does not exist."""
        for name, known in (("label", Label), ("order", Order), ("form", Form), ("channels", Channels)):
            if (value := getattr(self, name)) not in get_args(known):
                listed = ", ".join(repr(each) for each in get_args(known))
                raise ValueError(f"fgsm: expected {name} to be one of {listed}, got {value!r}.")

    @property
    def overshoot(self) -> float:
        """How many times eps the form may move an image."""
        return 2.0 if self.form == "blend_released" else 1.0

    def gradient_key(self) -> Hashable:
        """Return what the gradient depends on, the very loss among it; form and channels only shape the step."""
        if type(self).objective is not FGSM.objective:
            return OneGradientAttack.gradient_key(self)  # of another objective no more is known
        return id(self.loss), self.label, self.targeted, self.order

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,), negated if targeted."""
        y = batch.y
        if self.label == "predicted":
            y = predict(logits.detach(), batch.task)
        elif self.label == "empty":
            y = torch.zeros_like(batch.y)
        if self.order == "released":
            if batch.task.kind == "multiclass":
                raise IncompatibleError(
                    "fgsm: expected a binary or multilabel task for order 'released', got multiclass. "
                    "Only masks of the logits' shape can be swapped with them; use order 'defined'."
                )
            value = self.loss(y.to(logits.dtype), logits, batch.valid, batch.task)
        else:
            value = self.loss(logits, y, batch.valid, batch.task)
        return -value if self.targeted else value

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return the step of the chosen form, clipped; shape and dtype of `batch.x`."""
        if self.channels == "tied":
            gradient = gradient.sum(1, keepdim=True).expand_as(gradient)
        direction = steepest(gradient, budget.norm)
        additive = (batch.x + budget.eps * direction).clamp(batch.bounds.lower, batch.bounds.upper)
        if self.form == "additive":
            return additive
        if budget.norm != "linf" or batch.bounds != Bounds():
            raise IncompatibleError(
                f"fgsm: expected an L_inf budget and images between 0 and 1 for form {self.form!r}, got {budget.norm} "
                f"and [{batch.bounds.lower:g}, {batch.bounds.upper:g}]. Use form 'additive'."
            )
        if self.form == "blend_released":
            return ((1 - budget.eps) * batch.x + budget.eps * direction).clamp(0, 1)
        share = blend_share(batch.x, direction, additive)
        return ((1 - share) * batch.x.double() + share * direction).clamp(0, 1).to(batch.x.dtype)
