"""What all losses share: their type, labels as channels, probabilities, and the mean over valid pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advseg_bench.types import Task

Loss = Callable[[Tensor, Tensor, Tensor, Task], Tensor]
"""Logits (N, K, *S), labels (see `Batch.y`), valid bool (N, *S), task -> float (N,)."""

SMOOTH = 1e-5  # MONAI's default for the numerator and the denominator of Dice


def one_hot(y: Tensor, task: Task, like: Tensor) -> Tensor:
    """Return labels as channels of zeros and ones.

    Args:
        y: Labels as in `Batch.y`; in a multiclass task values outside the classes give an empty pixel.
        task: What the labels mean.
        like: A tensor of the wanted dtype.

    Returns:
        (N, K, *S).
    """
    if task.kind != "multiclass":
        return y.to(like.dtype)
    classes = torch.arange(len(task.classes), device=y.device).view(1, -1, *[1] * (y.dim() - 1))
    return (y.unsqueeze(1) == classes).to(like.dtype)


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Return softmax over the classes of a multiclass task, the sigmoid of each channel otherwise."""
    return logits.softmax(1) if task.kind == "multiclass" else logits.sigmoid()


def valid_mean(value: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of each image; 0 where there is none."""
    kept = torch.where(valid, value, 0).flatten(1).sum(1)
    return kept / valid.flatten(1).sum(1).clamp(min=1)
