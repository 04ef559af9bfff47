"""Logits -> pixel counts for each image and class. `results.scores` computes scores from counts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from advseg_bench.batches import Batch
from advseg_bench.instruments.profiling import timed
from advseg_bench.losses import one_hot
from advseg_bench.types import Task

__all__ = ["Counts", "Target", "count", "mean_dice", "predict"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixel counts of a batch, int64, valid pixels only.

    Attributes:
        tp: True positives of each class, (N, K).
        fp: False positives of each class, (N, K).
        fn: False negatives of each class, (N, K).
        valid: Valid pixels, (N,).
        wrong: Pixels where at least one channel differs from the ground truth, (N,).
        flipped: Pixels where at least one channel differs from the clean prediction, (N,).

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.tensor([[[0, 1], [1, 1]]])
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), y, task="binary")
        >>> counts = ab.metrics.count(batch.y, batch.y, batch)
        >>> counts.tp, counts.wrong
        (tensor([[3]]), tensor([0]))
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    valid: Tensor
    wrong: Tensor
    flipped: Tensor


@timed("metrics")
def predict(logits: Tensor, task: Task) -> Tensor:
    """Return the prediction: logit > 0 (probability above 0.5) for each channel, or argmax for a multiclass task.

    Args:
        logits: (N, K, *S).
        task: What the channels mean.

    Returns:
        Labels as in `Batch.y`: bool (N, K, *S), or int64 (N, *S) for a multiclass task; ties go to the first class.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> logits = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
        >>> ab.metrics.predict(logits, ab.Task("multilabel", ("liver", "tumour"))).flatten()
        tensor([ True, False])
    """
    if task.kind != "multiclass":
        return logits > 0
    return logits.max(1).indices  # equals `argmax`, which is slow on a CPU over an inner axis


class Target:
    """The reference for counting predictions on a batch: its ground truth and the clean prediction, prepared once.

    Args:
        clean: The prediction on the clean images, shaped like `batch.y`.
        batch: Ground truth and valid pixels.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.tensor([[[0, 1], [1, 1]]])
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), y, task="binary")
        >>> target = ab.metrics.Target(batch.y, batch)
        >>> target.count(~batch.y).flipped
        tensor([4])
    """

    @timed("metrics")
    def __init__(self, clean: Tensor, batch: Batch) -> None:
        self.task, self.valid = batch.task, batch.valid.unsqueeze(1)
        self.truth, self.clean = self._mask(batch.y), self._mask(clean)
        self.of_class, self.valid_pixels = _total(self.truth, 2), batch.valid.flatten(1).sum(1)

    @timed("metrics")
    def count(self, prediction: Tensor) -> Counts:
        """Count the pixels of a prediction against ground truth and clean prediction.

        Args:
            prediction: Labels shaped like `batch.y`.

        Returns:
            Counts for each image and class.
        """
        found = self._mask(prediction)
        tp = _total(found & self.truth, 2)
        return Counts(
            tp=tp,
            fp=_total(found, 2) - tp,
            fn=self.of_class - tp,
            valid=self.valid_pixels,
            wrong=_differing(found, self.truth),
            flipped=_differing(found, self.clean),
        )

    def _mask(self, labels: Tensor) -> Tensor:
        """Labels -> bool (N, K, *S), False where not valid."""
        return one_hot(labels, self.task, torch.empty(0, dtype=torch.bool, device=labels.device)) & self.valid


def count(prediction: Tensor, clean: Tensor, batch: Batch) -> Counts:
    """Count the pixels of one prediction; use `Target` to count several predictions on the same batch.

    Args:
        prediction: Labels shaped like `batch.y`.
        clean: The prediction on the clean images, shaped like `batch.y`.
        batch: Ground truth and valid pixels.

    Returns:
        Counts for each image and class.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.tensor([[[0, 1], [1, 1]]])
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), y, task="binary")
        >>> ab.metrics.count(torch.ones_like(batch.y), batch.y, batch).fp
        tensor([[1]])
    """
    return Target(clean, batch).count(prediction)


def _total(mask: Tensor, axes: int) -> Tensor:
    """Count True over all axes from `axes` on, int64; summing bytes is faster than summing bool."""
    return mask.flatten(axes).view(torch.int8).sum(axes, dtype=torch.int32).long()


def _differing(one: Tensor, other: Tensor) -> Tensor:
    """Count pixels where any channel differs; a loop over channels is faster than a reduction."""
    return _total(reduce(torch.logical_or, (one ^ other).unbind(1)), 1)


def mean_dice(counts: Counts, task: Task) -> Tensor:
    """Return the mean Dice score of each image over the classes present in its ground truth.

    Training selects checkpoints by this score. Reports use `results.scores`, which supports several conventions.

    Args:
        counts: From `count`.
        task: The task; the background of a multiclass task is excluded.

    Returns:
        Dice between 0 and 1, float64 (N,); NaN for an image without any class.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> y = torch.tensor([[[0, 1], [1, 1]]])
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), y, task="binary")
        >>> ab.metrics.mean_dice(ab.metrics.count(batch.y, batch.y, batch), batch.task)
        tensor([1.], dtype=torch.float64)
    """
    first = 1 if task.kind == "multiclass" else 0
    tp, fp, fn = (n[:, first:].double() for n in (counts.tp, counts.fp, counts.fn))
    dice = 2 * tp / (2 * tp + fp + fn)
    return torch.where(tp + fn > 0, dice, torch.nan).nanmean(1)
