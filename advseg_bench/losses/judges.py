"""Objectives that judge iterates: the mean cross-entropy of any task, and the hard Dice score that reports use."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.losses.base import one_hot
from advseg_bench.losses.pixel import bce, ce
from advseg_bench.types import Task


def entropy(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the mean cross-entropy: `ce` for a multiclass task, else `bce`.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0; 0 without a valid pixel.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.entropy(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.6931])
    """
    return (ce if task.kind == "multiclass" else bce)(logits, y, valid, task)


def hard_dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - Dice of the prediction, averaged over the classes that are present: the score of reports.

    The background of a multiclass task has no part in it. An image without any of the classes has the fraction of
    valid pixels in which a class is found. It has no gradient.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.hard_dice(torch.full((1, 1, 4, 4), -1.0), batch.y, batch.valid, batch.task)
        tensor([1.])
    """
    seen = valid.unsqueeze(1)
    multiclass = task.kind == "multiclass"
    found = one_hot(logits.max(1).indices, task, logits) if multiclass else (logits > 0).to(logits.dtype)
    found, truth = (found * seen).flatten(2), (one_hot(y, task, logits) * seen).flatten(2)
    if multiclass:
        found, truth = found[:, 1:], truth[:, 1:]
    size = truth.sum(2)
    present = size > 0
    overlap = 2 * (found * truth).sum(2) / (found.sum(2) + size).clamp(min=1)
    score = torch.where(present, overlap, 0).sum(1) / present.sum(1).clamp(min=1)
    share = found.amax(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    return torch.where(present.any(1), 1 - score, share)
