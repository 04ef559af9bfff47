"""Shared by all losses: their type, one-hot labels, probabilities, and the mean over valid pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advseg_bench.types import Task

Loss = Callable[[Tensor, Tensor, Tensor, Task], Tensor]
"""The type of a loss: logits (N, K, *S), labels as in `Batch.y`, valid bool (N, *S), task -> float (N,)."""

SMOOTH = 1e-5
"""Smoothing term s of the overlap losses, in numerator and denominator; the default of MONAI."""


def one_hot(y: Tensor, task: Task, like: Tensor) -> Tensor:
    """Convert labels to channels of zeros and ones.

    Args:
        y: Labels as in `Batch.y`; in a multiclass task a value that is not a class gives zeros in all channels.
        task: What the labels mean.
        like: A tensor with the dtype of the result.

    Returns:
        Labels, (N, K, *S).

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> task = ab.Task("multiclass", ("background", "liver", "tumour"))
        >>> ab.losses.one_hot(torch.tensor([[0, 2]]), task, torch.empty(0))
        tensor([[[1., 0.],
                 [0., 0.],
                 [0., 1.]]])
    """
    if task.kind != "multiclass":
        return y.to(like.dtype)
    classes = torch.arange(len(task.classes), device=y.device).view(1, -1, *[1] * (y.dim() - 1))
    return (y.unsqueeze(1) == classes).to(like.dtype)


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Convert logits to probabilities: softmax over classes for a multiclass task, else a sigmoid for each channel.

    Args:
        logits: (N, K, *S).
        task: What the channels mean.

    Returns:
        Probabilities, (N, K, *S).

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> ab.losses.probabilities(torch.zeros(1, 2, 1), ab.Task("multilabel", ("liver", "tumour"))).flatten()
        tensor([0.5000, 0.5000])
    """
    return logits.softmax(1) if task.kind == "multiclass" else logits.sigmoid()


def valid_mean(value: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the valid pixels of each image; 0 without a valid pixel."""
    kept = torch.where(valid, value, 0).flatten(1).sum(1)
    return kept / valid.flatten(1).sum(1).clamp(min=1)
