"""Soft Dice of the classes that an image contains."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.losses.base import one_hot, probabilities
from advseg_bench.types import Task


def present_dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Dice, averaged over the foreground classes that the image contains.

    Dice of a class = 2 sum p y / (sum p + sum y) over valid pixels, without a smoothing term. The foreground is every
    channel of a binary or multilabel task, and every class but the first of a multiclass task. An absent class has no
    term, so that it does not dilute the others. An image without any foreground has the soft false positives instead:
    sum p / number of valid pixels, averaged over the foreground, so that its gradient is not zero (extension).

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1; 0 without a valid pixel.

    Source:
        Milletari et al., 3DV 2016, arXiv:1606.04797; differs in the denominator, which is not squared, and in the
        choice of classes.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.zeros(1, 2, 4, 4)
        >>> y[0, 0] = 1  # the second class is absent
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), y, task="multilabel")
        >>> ab.losses.present_dice(torch.zeros(1, 2, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.3333])
    """
    weight = valid.unsqueeze(1).to(logits.dtype)
    background = 1 if task.kind == "multiclass" else 0
    p = (probabilities(logits, task) * weight)[:, background:].flatten(2)
    t = (one_hot(y, task, logits) * weight)[:, background:].flatten(2)
    size = t.sum(2)
    present = size > 0
    total = torch.where(present, p.sum(2) + size, 1)
    missed = torch.where(present, 1 - 2 * (p * t).sum(2) / total, 0).sum(1) / present.sum(1).clamp(min=1)
    spurious = p.sum(2).mean(1) / weight.flatten(1).sum(1).clamp(min=1)
    return torch.where(present.any(1), missed, spurious)
