"""FGSM as in the released code of arXiv 2401.11224, where it differs from the text of the paper."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from advseg_bench.attacks.base import without_cost
from advseg_bench.attacks.gradient import FGSM, is_shared
from advseg_bench.attacks.objective import check_choices, find_labels, find_loss, name_loss
from advseg_bench.batches import Batch
from advseg_bench.errors import IncompatibleError
from advseg_bench.geometry import blend_share, steepest
from advseg_bench.registry import catalogue
from advseg_bench.registry.fitting import Images
from advseg_bench.types import Bounds, Budget, Traits

Order = Literal["defined", "released"]
Form = Literal["additive", "blend", "blend_released"]
Channels = Literal["independent", "tied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedFGSM(FGSM):
    """FGSM with the argument order, step form and tied channels of the released code of arXiv 2401.11224.

    In a suite this is `fgsm` with one of these settings. With the default settings it is bit-identical to FGSM, whose
    other settings it shares.

    Attributes:
        order: "defined" calls the loss with (logits, labels). "released" swaps the two arguments, as the released code
            does; its BCE is then linear in the logits, with gradient -mask / N. Not for multiclass tasks.
        form: "additive" is the step of FGSM. "blend" is x' = clip((1 - e) * x + e * sign) with e chosen for each image
            so that its largest change equals that of the additive step. "blend_released" has e = eps, as in the
            released code; its largest change is up to 2 eps. Blends need an L_inf budget and images between 0 and 1.
        channels: "independent", or "tied": one perturbation for all channels, the steepest one for images whose
            channels are copies of one grey-scale image.

    Cost:
        1 forward, 1 backward.

    Source:
        Wang et al., arXiv:2401.11224, released code.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> model = ab.testing.LinearSegmenter(torch.tensor([4.0]), -2.0)
        >>> x = torch.linspace(0, 1, 16).view(1, 1, 4, 4)
        >>> batch = ab.Batch.of(x, x > 0.5, task="binary")
        >>> x_adv = ab.attacks.ReleasedFGSM(loss="bce", form="blend")(model, batch, eps=0.125)
        >>> ab.geometry.distance(x_adv, x, "linf")
        tensor([0.1250], dtype=torch.float64)
    """

    order: Order = "defined"
    form: Form = "additive"
    channels: Channels = "independent"

    def __post_init__(self) -> None:
        """Resolve the name of the loss and validate the settings."""
        FGSM.__post_init__(self)
        known = (("order", self.order, Order), ("form", self.form, Form), ("channels", self.channels, Channels))
        check_choices("fgsm", [(name, value, get_args(choices)) for name, value, choices in known])

    @property
    def traits(self) -> Traits:
        """The traits in the catalogue, with the maximum budget ratio of the form."""
        traits = catalogue.ATTACKS["fgsm"].traits_of({"form": self.form})
        return traits if is_shared(self) else without_cost(traits)

    def why_not(self, batch: Batch, budget: Budget) -> str | None:
        """Return the reason why the attack does not support a batch and a budget, or None."""
        settings = {"order": self.order, "form": self.form, "channels": self.channels}
        images = Images(batch.task.kind, batch.x.dim() - 2, batch.x.shape[1])
        rule = catalogue.ATTACKS["fgsm"].why_not
        assert rule is not None
        return rule(settings, name_loss(find_loss(self.loss)), budget.norm, images) or FGSM.why_not(self, batch, budget)

    def gradient_key(self) -> Hashable:
        """Return what the gradient depends on; `form` and `channels` affect only the step."""
        if type(self).objective is not ReleasedFGSM.objective:
            return FGSM.gradient_key(self)
        key = FGSM(loss=self.loss, label=self.label, targeted=self.targeted).gradient_key()
        return key if self.order == "defined" else (key, self.order)

    def objective(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the loss per image (N,), negated if targeted."""
        if self.order == "defined":
            return FGSM.objective(self, logits, batch)
        if batch.task.kind == "multiclass":
            raise IncompatibleError(
                "fgsm: expected a binary or multilabel task for order 'released', got multiclass. "
                "Only masks with the shape of the logits can be swapped with them. Use order 'defined'."
            )
        y = find_labels(logits, batch, self.label)
        value = find_loss(self.loss)(y.to(logits.dtype), logits, batch.valid, batch.task)
        return -value if self.targeted else value

    def step(
        self, batch: Batch, gradient: Tensor, budget: Budget, generators: Sequence[torch.Generator] = ()
    ) -> Tensor:
        """Return the images after a step of the chosen form, clipped, (N, C, *S)."""
        if self.channels == "tied":
            gradient = gradient.sum(1, keepdim=True).expand_as(gradient)
        additive = FGSM.step(self, batch, gradient, budget, generators)
        if self.form == "additive":
            return additive
        if budget.norm != "linf" or batch.bounds != Bounds():
            raise IncompatibleError(
                f"fgsm: expected an L_inf budget and images between 0 and 1 for form {self.form!r}, got {budget.norm} "
                f"and [{batch.bounds.lower:g}, {batch.bounds.upper:g}]. Use form 'additive'."
            )
        direction = steepest(gradient, budget.norm)
        if self.form == "blend_released":
            return ((1 - budget.eps) * batch.x + budget.eps * direction).clamp(0, 1)
        share = blend_share(batch.x, direction, additive)
        return ((1 - share) * batch.x.double() + share * direction).clamp(0, 1).to(batch.x.dtype)
