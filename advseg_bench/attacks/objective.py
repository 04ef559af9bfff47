"""The objective of an attack: a loss, by name or as a function, with labels and a direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal, cast

import torch
from torch import Tensor

from advseg_bench.batches import Batch
from advseg_bench.errors import PluginError, SettingError, expected, unknown
from advseg_bench.losses import ClassBalancedCE, Loss
from advseg_bench.metrics import predict
from advseg_bench.registry import catalogue
from advseg_bench.registry.fitting import why_loss_not
from advseg_bench.registry.plugins import load_object

Label = Literal["true", "predicted", "empty"]
"""The labels of a loss: the true labels, the model's prediction (which avoids label leaking, arXiv 1611.01236), or the
empty mask (background in a multiclass task)."""


def find_loss(loss: Loss | str) -> Loss:
    """Return a loss given its name, or the function itself.

    Raises:
        PluginError: The name is unknown, or the loss is not a function.
    """
    found = load_object("loss", loss) if isinstance(loss, str) else loss
    if not callable(found) or isinstance(found, type):
        what = "a loss by name, or a function (logits, y, valid, task) -> one value per image"
        raise PluginError(expected("loss", what, loss))
    return cast(Loss, found)


@dataclass(frozen=True, slots=True)
class Aim:
    """What an attack makes of logits: a loss with the labels and the direction of the attack.

    Attributes:
        loss: The loss.
        label: The labels.
        targeted: Whether the loss is to be decreased.
    """

    loss: Loss
    label: Label = "true"
    targeted: bool = False

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return one value per image, (N,), larger for a better attack."""
        return evaluate_objective(self.loss, logits, batch, label=self.label, targeted=self.targeted)


def settle_objective(loss: Loss | str | None, objective: Loss | str | None) -> Loss:
    """Return the fixed objective that judges the iterates of an attack.

    Args:
        loss: The loss that the attack follows.
        objective: The setting: a loss by name or as a function, a name of `catalogue.OBJECTIVES`, or None for the one
            that suits the loss: itself, or "entropy" if it changes with the steps or masks pixels.

    Raises:
        PluginError: The name is unknown, or the objective is not a function.
        SettingError: The objective changes with the steps.
    """
    followed = find_loss("" if loss is None else loss)
    if objective is None:
        entry = catalogue.LOSSES.get(name_loss(followed))
        objective = (entry.objective if entry else "entropy" if hasattr(followed, "at") else "") or followed
    if isinstance(objective, str) and objective in catalogue.OBJECTIVES:
        module, _, name = catalogue.OBJECTIVES[objective].partition(":")
        objective = cast(Loss, getattr(import_module(module), name))
    elif isinstance(objective, str) and objective not in catalogue.LOSSES and ":" not in objective:
        raise PluginError(unknown("", "objective", objective, [*catalogue.OBJECTIVES, *catalogue.LOSSES]))
    found = find_loss(objective)
    if hasattr(found, "at"):
        remedy = 'Use "entropy".'
        raise SettingError(expected("objective", "a loss that is the same at every step", name_loss(found), remedy))
    return found


def evaluate_objective(
    loss: Loss | str, logits: Tensor, batch: Batch, *, label: Label = "true", targeted: bool = False
) -> Tensor:
    """Return the objective of an attack, (N,): the loss of each image, negated if targeted."""
    value = find_loss(loss)(logits, find_labels(logits, batch, label), batch.valid, batch.task)
    return -value if targeted else value


def find_labels(logits: Tensor, batch: Batch, label: Label) -> Tensor:
    """Return the labels of the loss, shaped like `batch.y`."""
    if label == "predicted":
        return predict(logits.detach(), batch.task)
    return batch.y if label == "true" else torch.zeros_like(batch.y)


def refuse_target(targeted: bool, *losses: Loss | str | None) -> None:
    """Refuse a target together with a loss that masks pixels by whether they are correct.

    Raises:
        SettingError: A loss is one of them, and the attack is targeted.
    """
    for loss in losses if targeted else ():
        name = loss if isinstance(loss, str) else name_loss(loss) if loss is not None else ""
        if name in catalogue.LOSSES and catalogue.LOSSES[name].masked:
            remedy = f"{name} weighs pixels by whether they are correct, which suits attacks without a target."
            raise SettingError(expected("targeted", f"false with the loss {name}", True, remedy))


def why_loss_unfit(loss: Loss | str, batch: Batch) -> str | None:
    """Return the reason why a loss of this package does not support the task of a batch, or None."""
    name = loss if isinstance(loss, str) else name_loss(loss)
    entry = catalogue.LOSSES.get(name)
    if isinstance(loss, ClassBalancedCE) and loss.weights is None:
        remedy = f"Use balanced_ce, which counts each image, or {name}.counted(counts)"
        return expected(f"loss {name}", "pixel counts of a training split", None, remedy)
    return why_loss_not(name, entry.kinds, batch.task.kind) if entry else None


def name_loss(loss: Loss) -> str:
    """Return the name of a loss of this package, else `module:name` of the function, else the name of its class."""
    if isinstance(loss, ClassBalancedCE):
        return catalogue.COUNTED
    for name in catalogue.LOSSES:
        if loss is load_object("loss", name):
            return name
    function = getattr(loss, "__qualname__", "")
    return f"{loss.__module__}:{function}" if function else type(loss).__name__


def check_choices(attack: str, given: Iterable[tuple[str, object, tuple[str, ...]]]) -> None:
    """Check settings with a fixed set of values.

    Args:
        attack: Name of the attack in messages.
        given: Triples of name, value and known values.

    Raises:
        SettingError: A value is unknown.
    """
    for name, value, known in given:
        if value not in known:
            listed = ", ".join(repr(each) for each in known)
            raise SettingError(f"{attack}: expected {name} to be one of {listed}, got {value!r}.")
