"""Losses that weigh each decision by how confident it is, smoothly: no mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advseg_bench.losses.decisions import channel_labels, decision_mean, label_log_p, signed
from advseg_bench.losses.pixel import margin
from advseg_bench.types import Task


def js(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the Jensen-Shannon divergence between prediction and label, averaged over valid pixels.

    L = (KL(p, m) + KL(e_y, m)) / 2 with m = (p + e_y) / 2, which depends on p_y alone:
    log 2 + (p_y log p_y - (1 + p_y) log(1 + p_y)) / 2. Its gradient, 1/2 p_y log(p_y / (1 + p_y)) (e_y - p), vanishes
    for p_y near 0 and near 1. For binary and multilabel tasks (extension) each sigmoid channel is a two-class softmax,
    and the mean is over pixels and channels.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and log 2 = 0.6931.

    Source:
        Croce et al., ECCV 2024, arXiv:2306.12941.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.js(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.2158])
    """
    log_p = label_log_p(logits, y, valid, task)
    p = log_p.exp()
    return decision_mean(math.log(2) + (p * log_p - (1 + p) * p.log1p()) / 2, valid)


def cosine(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the cross-entropy weighted by the cosine between probabilities and label: CosPGD's loss with softmax.

    L = mean of w (-log p_y) with w = p_y / |p|_2; w has no gradient, as in the authors' code. For binary and multilabel
    tasks (extension) each sigmoid channel is the pair (s, 1 - s), and the mean is over pixels and channels.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0. Since w is held fixed, its gradient is not the derivative of the value.

    Source:
        Agnihotri et al., ICML 2024, arXiv:2302.02213, eq. 5 and 7.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.cosine(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.4901])
    """
    log_y = label_log_p(logits, y, valid, task)
    if task.kind == "multiclass":
        log_square = (2 * logits.detach().log_softmax(1)).logsumexp(1, keepdim=True)
    else:
        log_square = torch.logaddexp(2 * log_y, 2 * F.logsigmoid(-signed(logits, y))).detach()
    return decision_mean((log_y.detach() - log_square / 2).exp() * -log_y, valid)


def cosine_sigmoid(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the cross-entropy weighted by the cosine between sigmoids of the logits and the label.

    CosPGD's loss with its earlier normaliser: w = s_y / |s|_2, where s are the sigmoids of all K logits of a pixel; the
    cross-entropy is that of the softmax. It is the CosPGD baseline of arXiv 2306.12941, and weaker than `cosine`. It is
    defined for multiclass tasks only: a sigmoid channel has one logit, and `cosine` uses its sigmoid.

    Args:
        logits: (N, K, *S).
        y: int64 (N, *S).
        valid: bool (N, *S).
        task: A multiclass task.

    Returns:
        One value per image, (N,), at least 0. Since w is held fixed, its gradient is not the derivative of the value.

    Source:
        Agnihotri et al., arXiv:2302.02213, first version.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="multiclass", classes=2)
        >>> ab.losses.cosine_sigmoid(torch.zeros(1, 2, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.4901])
    """
    log_s = F.logsigmoid(logits.detach())
    log_weight = log_s.gather(1, channel_labels(y, valid, task)) - (2 * log_s).logsumexp(1, keepdim=True) / 2
    return decision_mean(log_weight.exp() * -label_log_p(logits, y, valid, task), valid)


def dlr(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the difference-of-logits ratio, averaged over valid pixels.

    L = mean of -(u_y - max_{j != y} u_j) / (u_(1) - u_(3)), where u_(1) and u_(3) are the largest and third largest
    logit of the pixel; a pixel where these are equal adds 0. It does not depend on the scale of the logits. The ratio
    needs three classes: with two classes, and for the sigmoid channels of binary and multilabel tasks (extension), it
    is the plain `margin`, which depends on the scale.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task; multiclass with at least two classes.

    Returns:
        One value per image, (N,), of any sign; 0 without a valid pixel.

    Source:
        Croce and Hein, ICML 2020, arXiv:2003.01690, sec. 4; the mean over pixels is that of a segmenter.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.zeros(1, 4, 4, dtype=torch.int64)
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), y, task="multiclass", classes=3)
        >>> logits = torch.tensor([4.0, 3.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> ab.losses.dlr(logits, batch.y, batch.valid, batch.task)
        tensor([-0.2500])
    """
    if task.kind != "multiclass" or logits.shape[1] < 3:
        return margin(logits, y, valid, task)
    label = channel_labels(y, valid, task)
    largest = logits.topk(3, dim=1).values
    first, third = largest[:, :1], largest[:, 2:]
    gap = logits.scatter(1, label, -math.inf).amax(1, keepdim=True) - logits.gather(1, label)
    apart = first > third
    return decision_mean(torch.where(apart, gap / torch.where(apart, first - third, 1), 0), valid)
