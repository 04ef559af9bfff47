"""Losses that are means over pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advseg_bench.losses.base import one_hot, valid_mean
from advseg_bench.types import Task


def bce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the binary cross-entropy of every channel over valid pixels and channels.

    Args:
        logits: (N, K, *S).
        y: bool (N, K, *S).
        valid: bool (N, *S).
        task: Binary or multilabel.

    Returns:
        (N,), at least 0; 0 for an image without a valid pixel.
    """
    value = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
    return valid_mean(value.mean(1), valid)


def ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the softmax cross-entropy over valid pixels.

    Args:
        logits: (N, K, *S).
        y: int64 (N, *S).
        valid: bool (N, *S).
        task: Multiclass.

    Returns:
        (N,), at least 0; 0 for an image without a valid pixel.
    """
    return valid_mean(F.cross_entropy(logits, torch.where(valid, y, 0), reduction="none"), valid)


def focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the focal loss with gamma = 2 over valid pixels and channels; no class weights.

    Sigmoid form for binary and multilabel; softmax form for multiclass, where the K - 1 channels that are not the
    label add zero to the mean, as in MONAI's `FocalLoss(use_softmax=True)`.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any.

    Returns:
        (N,), at least 0.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002, eq. 4.
    """
    if task.kind != "multiclass":
        return sigmoid_focal(logits, y, valid, task)
    log_p = logits.log_softmax(1)
    value = -one_hot(y, task, logits) * (1 - log_p.exp()) ** 2 * log_p
    return valid_mean(value.mean(1), valid)


def sigmoid_focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """The focal loss of each channel as a decision of its own; `y` may hold any real value, as in MONAI."""
    t = one_hot(y, task, logits)
    entropy = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    miss = (logits * (1 - 2 * t)).sigmoid()
    return valid_mean((miss**2 * entropy).mean(1), valid)


def margin(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average by how far each decision is from being right, in logits, over valid pixels.

    A channel of a binary or multilabel task adds -u where its label is 1 and u where it is 0; a pixel of a multiclass
    task adds max_{j != y} u_j - u_y. So the loss is to cross-entropy what a line is to softplus: its gradient neither
    fades where the model is sure nor where it is wrong.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any; multiclass with at least two classes.

    Returns:
        (N,), of any sign and without bounds; 0 for an image without a valid pixel.

    Source:
        the loss f of Carlini and Wagner, S&P 2017, arXiv:1608.04644, sec. V, for each pixel; differs in having no
        floor, and in the mean over pixels.
    """
    if task.kind != "multiclass":
        return valid_mean((logits * (1 - 2 * y.to(logits.dtype))).mean(1), valid)
    label = torch.where(valid, y, 0).unsqueeze(1)
    best_other = logits.scatter(1, label, -math.inf).amax(1)
    return valid_mean(best_other - logits.gather(1, label).squeeze(1), valid)
