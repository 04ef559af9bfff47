"""Decisions of a segmenter: a pixel of a multiclass task, or a sigmoid channel of a pixel, a two-class softmax.

A tensor of decisions has shape (N, D, *S): D = 1 for a multiclass task, else D = K.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advseg_bench.losses.base import valid_mean
from advseg_bench.types import Task


def channel_labels(y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the label of each decision: int64 (N, 1, *S), or bool (N, K, *S); class 0 at invalid multiclass pixels."""
    return torch.where(valid, y, 0).unsqueeze(1) if task.kind == "multiclass" else y.bool()


def signed(logits: Tensor, y: Tensor) -> Tensor:
    """Return the signed logits (2y - 1) u of sigmoid channels."""
    return torch.where(y.bool(), logits, -logits)


def label_log_p(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the log probability of each decision's label, (N, D, *S); finite for finite logits."""
    if task.kind == "multiclass":
        return logits.log_softmax(1).gather(1, channel_labels(y, valid, task))
    return F.logsigmoid(signed(logits, y))


def is_correct(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return whether the prediction equals the label, bool (N, D, *S); ties as in `metrics.predict`."""
    predicted = logits.max(1, keepdim=True).indices if task.kind == "multiclass" else logits > 0
    return predicted == channel_labels(y, valid, task)


def decision_mean(value: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the decisions of valid pixels, (N,)."""
    return valid_mean(value.mean(1), valid)
