"""Check that a function is a valid attack loss."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError
from advseg_bench.losses.base import Loss, one_hot, probabilities
from advseg_bench.losses.counted import with_any_counts
from advseg_bench.types import Task


def probe(loss: Loss, task: Task, name: str) -> None:
    """Check that a loss increases as the model gets worse, treats images independently and ignores invalid pixels.

    On random logits it compares the gradient d loss / d logits with the direction away from the label for each decision
    (a sigmoid channel, or a softmax pixel), requires some gradient at logits of either label, and compares the value of
    each image alone with its value in the batch. About half of the decisions are correct, since a masked loss has no
    gradient at others. A loss that needs class counts gets equal ones.

    Args:
        loss: The function to check: (logits, y, valid, task) -> one value per image.
        task: The task it is to be used for.
        name: Name of the loss in messages.

    Raises:
        IncompatibleError: The arguments are swapped, images are pooled, the shape is wrong, a value is not finite, or
            invalid pixels contribute.

    Cost:
        4 evaluations and 1 gradient of the loss on 8 x 8 pixels; no model is used.

    Example:
        >>> import advseg_bench as ab
        >>> def negative(logits, y, valid, task):
        ...     return -ab.losses.bce(logits, y, valid, task)
        >>> ab.losses.probe(negative, ab.Task("binary", ("liver",)), "negative")
        Traceback (most recent call last):
        ...
        advseg_bench.errors.IncompatibleError: loss negative: expected a gradient away from the label at 90% or more ...
    """
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(task.classes), 8, 8)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    if task.kind == "multiclass":
        y = _correct_half(logits.detach(), torch.randint(0, shape[1], (3, 8, 8), generator=generator))
    else:
        y = torch.rand(shape, generator=generator) < 0.5
    valid = torch.rand((3, 8, 8), generator=generator) < 0.8
    loss = with_any_counts(loss, task)
    value = loss(logits, y, valid, task)
    if value.shape != (3,):
        raise IncompatibleError(
            f"loss {name}: expected one value per image, shape (3,), got {tuple(value.shape)}. "
            "Average over all axes but the first."
        )
    if not value.isfinite().all():
        raise IncompatibleError(
            f"loss {name}: expected finite values on random logits, got {[round(v, 4) for v in value.tolist()]}. "
            "Does it expect probabilities? It gets logits."
        )
    alone = torch.cat([loss(logits[i : i + 1], y[i : i + 1], valid[i : i + 1], task) for i in range(3)])
    if not torch.allclose(alone, value, rtol=1e-9, atol=1e-12):
        raise IncompatibleError(
            f"loss {name}: expected values independent of the other images of the batch, got {value.tolist()} in a "
            f"batch and {alone.tolist()} alone. Reduce each image separately."
        )
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    # The gradient of cross-entropy points away from the label. A multiclass pixel is one decision.
    away = gradient * (probabilities(logits.detach(), task) - one_hot(y, task, logits))
    decisions = away.sum(1, keepdim=True) if task.kind == "multiclass" else away
    _check_gradient(gradient, decisions, valid.unsqueeze(1), name)
    _check_coverage(gradient != 0, one_hot(y, task, logits), valid.unsqueeze(1), name)


def _correct_half(logits: Tensor, y: Tensor) -> Tensor:
    """Return labels that are the prediction in every other column; with many classes, random ones rarely are."""
    even = torch.arange(y.shape[-1]) % 2 == 0
    return torch.where(even, logits.argmax(1), y)


def _check_gradient(gradient: Tensor, decisions: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a gradient at invalid pixels, or one that moves decisions towards the label."""
    if (gradient[~valid.expand_as(gradient)] != 0).any():
        count = int((gradient[~valid.expand_as(gradient)] != 0).sum())
        raise IncompatibleError(
            f"loss {name}: expected no gradient at invalid pixels, got one at {count} logits. Multiply by `valid`."
        )
    moved = (decisions != 0) & valid
    agreement = (decisions > 0)[moved].double().mean() if moved.any() else torch.tensor(0.0)
    if agreement < 0.9:
        raise IncompatibleError(
            f"loss {name}: expected a gradient away from the label at 90% or more of the decisions, got "
            f"{agreement:.0%}. Are prediction and target swapped?"
        )


def _check_coverage(moved: Tensor, y: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a gradient that vanishes at most pixels of one label."""
    for label in (0, 1):
        of_label = valid & (y == label)
        share = (moved & of_label).any(1)[of_label.any(1)].double().mean()
        if share < 0.1:
            raise IncompatibleError(
                f"loss {name}: expected a gradient at 10% or more of the pixels with label {label}, got {share:.0%}. "
                "Are prediction and target swapped?"
            )
