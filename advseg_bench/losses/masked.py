"""Masked losses: only decisions that are still correct contribute. They are meant for attacks without a target."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.losses.base import one_hot
from advseg_bench.losses.decisions import channel_labels, decision_mean, is_correct, label_log_p, signed
from advseg_bench.types import Task

TINY = 1e-12  # smallest norm of a vector of logits


def masked_ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the cross-entropy of the decisions that are correct, averaged over all valid decisions.

    L = mean of 1[prediction = y] (-log p_y). The mask has no gradient. So no budget is spent on what is wrong already.
    For binary and multilabel tasks (extension) each sigmoid channel is a two-class softmax: p_y is its sigmoid or one
    minus it, the prediction is 1 where the logit is above 0, and the mean is over pixels and channels.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0; 0 if nothing is correct. It falls where a decision becomes wrong, so it
        is no measure of progress.

    Source:
        Croce et al., ECCV 2024, arXiv:2306.12941, the masked cross-entropy of SEA.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.masked_ce(torch.full((1, 1, 4, 4), 1.0), batch.y, batch.valid, batch.task)
        tensor([0.3133])
        >>> ab.losses.masked_ce(torch.full((1, 1, 4, 4), -1.0), batch.y, batch.valid, batch.task)
        tensor([0.])
    """
    return decision_mean(masked_entropy(logits, y, valid, task), valid)


def balanced_ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the masked cross-entropy with equal weight for each class of the image, however small.

    L = 1/K sum over classes c of 1/N_c sum over valid pixels of class c of 1[prediction = y] (-log p_y), where N_c is
    the number of valid pixels of class c in this image; a class without pixels adds nothing. Mask and weights have no
    gradient. For binary and multilabel tasks (extension) both values of a channel are classes: the loss is that of a
    two-class softmax for each channel, averaged over channels.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0.

    Source:
        Croce et al., ECCV 2024, arXiv:2306.12941, the balanced masked cross-entropy of SEA; differs in counting the
        pixels of the attacked image (extension), where SEA counts a training set, as `class_balanced_ce` does.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.zeros(1, 4, 4)
        >>> y[0, 0, 0] = 1  # one pixel of 16, with half of the weight
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), y, task="binary")
        >>> ab.losses.balanced_ce(torch.where(batch.y, 1.0, -9.0), batch.y, batch.valid, batch.task)
        tensor([0.1567])
    """
    seen = valid.unsqueeze(1)
    labels = one_hot(y, task, logits) * seen
    if task.kind == "multiclass":
        sizes = labels.flatten(2).sum(2).view(*labels.shape[:2], *[1] * (labels.dim() - 2))
        weight = (labels / sizes.clamp(min=1)).sum(1, keepdim=True) / labels.shape[1]
    else:
        axes = tuple(range(2, labels.dim()))
        ones = labels.sum(axes, keepdim=True)
        zeros = seen.to(logits.dtype).sum(axes, keepdim=True) - ones
        weight = torch.where(y.bool(), 1 / ones.clamp(min=1), 1 / zeros.clamp(min=1)) / (2 * labels.shape[1])
    value = weight * masked_entropy(logits, y, valid, task)
    return torch.where(seen, value, 0).flatten(1).sum(1)


def masked_spherical(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return minus the cosine between logits and label at the pixels that are correct, averaged over valid pixels.

    L = mean of -1[prediction = y] u_y / |u|_2, with the norm over the classes of a pixel; the mask has no gradient. It
    does not depend on the scale of the logits. With two classes the cosine of (u, 0) is constant, so its gradient is
    zero; a sigmoid channel, or a pixel of two classes, uses z / sqrt(z^2 + 1) instead (extension), where z is the
    logit (2y - 1) u or u_y - u_other: the cosine of (z, 1).

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), from -1 to 1; 0 if nothing is correct.

    Source:
        The masked spherical loss in the first version of arXiv:2306.12941.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.zeros(1, 4, 4, dtype=torch.int64)
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), y, task="multiclass", classes=3)
        >>> logits = torch.tensor([4.0, 3.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
        >>> ab.losses.masked_spherical(logits, batch.y, batch.valid, batch.task)
        tensor([-0.8000])
    """
    if task.kind == "multiclass" and logits.shape[1] > 2:
        size = torch.linalg.vector_norm(logits, dim=1, keepdim=True).clamp(min=TINY)
        cosine = logits.gather(1, channel_labels(y, valid, task)) / size
    else:
        z = two_class_logit(logits, y, valid, task)
        cosine = z / torch.hypot(z, torch.ones_like(z))
    return decision_mean(torch.where(is_correct(logits, y, valid, task), -cosine, 0), valid)


def masked_entropy(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the cross-entropy of each decision that is correct and 0 for the others, (N, D, *S)."""
    entropy = -label_log_p(logits, y, valid, task)
    return torch.where(is_correct(logits, y, valid, task), entropy, 0)


def two_class_logit(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the logit of the label against the other value, (N, D, *S), of sigmoid channels or of two classes."""
    if task.kind != "multiclass":
        return signed(logits, y)
    label = channel_labels(y, valid, task)
    return logits.gather(1, label) - logits.gather(1, 1 - label)
