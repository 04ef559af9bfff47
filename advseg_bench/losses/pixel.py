"""Pixel losses: means over valid pixels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advseg_bench.losses.base import one_hot, valid_mean
from advseg_bench.types import Task


def bce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the binary cross-entropy, averaged over valid pixels and channels.

    Args:
        logits: (N, K, *S).
        y: bool (N, K, *S).
        valid: bool (N, *S).
        task: A binary or multilabel task.

    Returns:
        One value per image, (N,), at least 0; 0 without a valid pixel.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.bce(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.6931])
    """
    value = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
    return valid_mean(value.mean(1), valid)


def ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the softmax cross-entropy, averaged over valid pixels.

    Args:
        logits: (N, K, *S).
        y: int64 (N, *S).
        valid: bool (N, *S).
        task: A multiclass task.

    Returns:
        One value per image, (N,), at least 0; 0 without a valid pixel.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="multiclass", classes=2)
        >>> ab.losses.ce(torch.zeros(1, 2, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.6931])
    """
    return valid_mean(F.cross_entropy(logits, torch.where(valid, y, 0), reduction="none"), valid)


def focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the focal loss with gamma = 2 and no class weights, averaged over valid pixels and channels.

    The sigmoid form for binary and multilabel tasks. The softmax form for multiclass tasks, where the K - 1 channels
    other than the label add zero to the mean, as in MONAI's `FocalLoss(use_softmax=True)`.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0; 0 without a valid pixel.

    Source:
        Lin et al., ICCV 2017, arXiv:1708.02002, eq. 4.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.focal(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.1733])
    """
    if task.kind != "multiclass":
        return sigmoid_focal(logits, y, valid, task)
    log_p = logits.log_softmax(1)
    value = -one_hot(y, task, logits) * (1 - log_p.exp()) ** 2 * log_p
    return valid_mean(value.mean(1), valid)


def sigmoid_focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the focal loss with a sigmoid for each channel; `y` may hold any real value, as in MONAI."""
    t = one_hot(y, task, logits)
    entropy = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    miss = (logits * (1 - 2 * t)).sigmoid()
    return valid_mean((miss**2 * entropy).mean(1), valid)


def margin(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the logit margin by which each decision is wrong, averaged over valid pixels and channels.

    A channel of a binary or multilabel task adds -u where its label is 1 and u where it is 0. A pixel of a multiclass
    task adds max_{j != y} u_j - u_y. Cross-entropy is a softplus of this margin. The gradient of the margin does not
    vanish, whether the model is confident or wrong.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task; multiclass with at least two classes.

    Returns:
        One value per image, (N,), of any sign, unbounded; 0 without a valid pixel.

    Source:
        Carlini and Wagner, S&P 2017, arXiv:1608.04644, sec. V, the loss f for each pixel; differs in having no lower
        limit, and in the mean over pixels.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.margin(torch.ones(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([-1.])
    """
    if task.kind != "multiclass":
        return valid_mean((logits * (1 - 2 * y.to(logits.dtype))).mean(1), valid)
    label = torch.where(valid, y, 0).unsqueeze(1)
    best_other = logits.scatter(1, label, -math.inf).amax(1)
    return valid_mean(best_other - logits.gather(1, label).squeeze(1), valid)
