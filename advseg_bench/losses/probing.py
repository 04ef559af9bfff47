"""The check that what is to be used as a loss is one."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError
from advseg_bench.losses.base import Loss, one_hot
from advseg_bench.types import Task


def probe(loss: Loss, task: Task, name: str) -> None:
    """Check that a loss grows when the model gets worse, keeps images apart, and ignores pixels that are not valid.

    On random logits it compares d loss / d logits with the direction away from the label, decision by decision (a
    channel of a sigmoid, a pixel of a softmax), asks for some gradient on logits of either label, and compares each
    image alone with the batch.

    Raises:
        IncompatibleError: With the fault: swapped arguments, batch pooling, a wrong shape, NaN, void pixels that count.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(task.classes), 8, 8)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    if task.kind == "multiclass":
        y = torch.randint(0, shape[1], (3, 8, 8), generator=generator)
    else:
        y = torch.rand(shape, generator=generator) < 0.5
    valid = torch.rand((3, 8, 8), generator=generator) < 0.8
    value = loss(logits, y, valid, task)
    if value.shape != (3,):
        raise IncompatibleError(
            f"loss {name}: expected one value per image, shape (3,), got {tuple(value.shape)}. "
            "Average over all axes but the first."
        )
    if not value.isfinite().all():
        raise IncompatibleError(
            f"loss {name}: expected finite values on random logits, got {[round(v, 4) for v in value.tolist()]}. "
            "Does it want probabilities, where it is given logits?"
        )
    alone = torch.cat([loss(logits[i : i + 1], y[i : i + 1], valid[i : i + 1], task) for i in range(3)])
    if not torch.allclose(alone, value, rtol=1e-9, atol=1e-12):
        raise IncompatibleError(
            f"loss {name}: an image's value changes with its neighbours in the batch. Reduce each image by itself."
        )
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    away = gradient * (1 - 2 * one_hot(y, task, logits))
    # The classes of a multiclass pixel compete in one decision: the label's logit against all others together.
    decisions = away.sum(1, keepdim=True) if task.kind == "multiclass" else away
    _check_gradient(gradient, decisions, valid.unsqueeze(1), name)
    _check_coverage(gradient != 0, one_hot(y, task, logits), valid.unsqueeze(1), name)


def _check_gradient(gradient: Tensor, decisions: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a gradient that is there where it must not be, or that leads decisions towards the label."""
    if (gradient[~valid.expand_as(gradient)] != 0).any():
        raise IncompatibleError(f"loss {name}: pixels that are not valid have a gradient. Multiply them by zero.")
    moved = (decisions != 0) & valid
    agreement = (decisions > 0)[moved].double().mean() if moved.any() else torch.tensor(0.0)
    if agreement < 0.9:
        raise IncompatibleError(
            f"loss {name}: its gradient agrees with the direction away from the label on {agreement:.0%} of the "
            "decisions, expected at least 90%. Are prediction and target swapped?"
        )


def _check_coverage(moved: Tensor, y: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a gradient that is missing where it must be."""
    for label in (0, 1):
        of_label = valid & (y == label)
        share = (moved & of_label).any(1)[of_label.any(1)].double().mean()
        if share < 0.1:
            raise IncompatibleError(
                f"loss {name}: logits whose label is {label} have no gradient (at {share:.0%} of the pixels with such "
                "logits one does, expected at least 10%). Are prediction and target swapped?"
            )
