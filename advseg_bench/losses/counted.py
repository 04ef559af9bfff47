"""Masked cross-entropy with class weights that are counted on the training split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError, SettingError, expected
from advseg_bench.losses.base import Loss
from advseg_bench.losses.decisions import channel_labels, decision_mean
from advseg_bench.losses.masked import masked_entropy
from advseg_bench.types import Task

NAME = "loss class_balanced_ce"


def count_classes(y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Count the valid pixels of each class. Counts of several batches add up to those of a split.

    Args:
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        int64 (K,) for a multiclass task. For binary and multilabel tasks int64 (K, 2): the pixels with label 0 and
        with label 1 of each channel.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [0, 0]]]), task="binary")
        >>> ab.losses.count_classes(batch.y, batch.valid, batch.task)
        tensor([[3, 1]])
    """
    if task.kind == "multiclass":
        return torch.stack([((y == c) & valid).sum() for c in range(len(task.classes))])
    ones = (y.bool() & valid.unsqueeze(1)).transpose(0, 1).flatten(1).sum(1)
    return torch.stack([valid.sum() - ones, ones], 1)


@dataclass(frozen=True, slots=True)
class ClassBalancedCE:
    """The masked cross-entropy, each pixel weighted by 1 / (pixels of its class in the training split).

    L = mean of w_y 1[prediction = y] (-log p_y) over valid decisions, with w_c = (N_1 + ... + N_K) / (K N_c), and 0 for
    a class without pixels; mask and weights have no gradient. For binary and multilabel tasks (extension) each channel
    is a two-class softmax with the counts of its own two values. Without counts a call raises an error; `balanced_ce`
    needs none, since it counts each image.

    Attributes:
        weights: Weight of each class, K numbers; of each value of each channel, K pairs; None before `counted`.

    Source:
        Croce et al., ECCV 2024, arXiv:2306.12941, the balanced masked cross-entropy of SEA; differs by a factor.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> train = ab.Batch.of(torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 1], [0, 0]]]), task="binary")
        >>> counts = ab.losses.count_classes(train.y, train.valid, train.task)
        >>> loss = ab.losses.class_balanced_ce.counted(counts)
        >>> [[round(w, 3) for w in pair] for pair in loss.weights]
        [[0.667, 2.0]]
        >>> loss(torch.where(train.y, 9.0, -1.0), train.y, train.valid, train.task)
        tensor([0.1567])
    """

    weights: tuple[Any, ...] | None = None

    def counted(self, counts: Tensor) -> Loss:
        """Return the loss with the weights of a training split.

        Args:
            counts: Pixels of each class, (K,), or of each value of each channel, (K, 2); see `count_classes`.

        Returns:
            The loss; it pickles, and two losses with equal weights are equal.

        Raises:
            SettingError: The shape is another one, or a count is negative, or all counts of a task or channel are 0.
        """
        n = counts.detach().to("cpu", torch.float64)
        two = n.dim() == 2 and n.shape[1] == 2
        if not (n.dim() == 1 or two) or n.numel() == 0:
            raise SettingError(expected(NAME, "counts of shape (K,) or (K, 2)", tuple(n.shape), _REMEDY))
        total = n.sum(-1, keepdim=True)
        if not (n.isfinite().all() and (n >= 0).all() and (total > 0).all()):
            raise SettingError(expected(NAME, "pixel counts of at least 0, and not only 0", counts.tolist(), _REMEDY))
        weights = torch.where(n > 0, total / (n.shape[-1] * n.clamp(min=1)), 0).tolist()
        return ClassBalancedCE(tuple(map(tuple, weights)) if two else tuple(weights))

    def __call__(self, logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
        """Return one value per image, (N,).

        Args:
            logits: (N, K, *S).
            y: Labels as in `Batch.y`.
            valid: bool (N, *S).
            task: The task that was counted.

        Returns:
            Values of at least 0.

        Raises:
            IncompatibleError: There are no counts, or they are those of another task.
        """
        if self.weights is None:
            raise IncompatibleError(expected(NAME, "pixel counts of the training split", None, _REMEDY))
        weight = logits.new_tensor(self.weights)
        wanted = (logits.shape[1],) if task.kind == "multiclass" else (logits.shape[1], 2)
        if weight.shape != wanted:
            what = f"counts of shape {tuple(wanted)} for a {task.kind} task"
            raise IncompatibleError(expected(NAME, what, tuple(weight.shape), _REMEDY))
        label = channel_labels(y, valid, task)
        if task.kind == "multiclass":
            of_label = weight[label]
        else:
            zero, one = weight.view(-1, 2, *[1] * (logits.dim() - 2)).unbind(1)
            of_label = torch.where(label, one, zero)
        return decision_mean(of_label * masked_entropy(logits, y, valid, task), valid)


_REMEDY = (
    "Count its labels: class_balanced_ce.counted(count_classes(y, valid, task)). Or use balanced_ce, "
    "which counts each image."
)

class_balanced_ce = ClassBalancedCE()
"""The masked cross-entropy with the class weights of the training split; `counted` gives it its counts."""


def with_any_counts(loss: Loss, task: Task) -> Loss:
    """Return a loss that can be called: one without counts gets the same count for every class."""
    if not isinstance(loss, ClassBalancedCE) or loss.weights is not None:
        return loss
    k = len(task.classes)
    return loss.counted(torch.ones(k if task.kind == "multiclass" else (k, 2)))
