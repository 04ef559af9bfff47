"""From logits to counts, image by image and class by class. Scores are made from counts, in `scores`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from advseg_bench.batches import Batch
from advseg_bench.instruments.profiling import timed
from advseg_bench.losses import one_hot
from advseg_bench.types import Task


@dataclass(frozen=True, slots=True)
class Counts:
    """Pixel counts of a batch, int64, valid pixels only.

    Attributes:
        tp: (N, K) pixels of the class predicted as it.
        fp: (N, K) pixels of other classes predicted as it.
        fn: (N, K) pixels of the class predicted otherwise.
        valid: (N,) valid pixels.
        wrong: (N,) pixels where at least one channel differs from the ground truth.
        flipped: (N,) pixels where at least one channel differs from the clean prediction.
    """

    tp: Tensor
    fp: Tensor
    fn: Tensor
    valid: Tensor
    wrong: Tensor
    flipped: Tensor


@timed("metrics")
def predict(logits: Tensor, task: Task) -> Tensor:
    """Decide: logit > 0 (probability above 0.5) for each channel, or the first class of the largest logit.

    Args:
        logits: (N, K, *S).
        task: What the channels mean.

    Returns:
        Labels of the form of `Batch.y`.
    """
    if task.kind != "multiclass":
        return logits > 0
    return logits.max(1).indices  # as `argmax`, whose kernel on a CPU is slow over an inner axis


class Target:
    """What predictions on a batch are counted against: its ground truth and the clean prediction, made ready once.

    Args:
        clean: The prediction on the clean images, of the form of `batch.y`.
        batch: Ground truth and valid pixels.
    """

    @timed("metrics")
    def __init__(self, clean: Tensor, batch: Batch) -> None:
        self.task, self.valid = batch.task, batch.valid.unsqueeze(1)
        self.truth, self.clean = self._mask(batch.y), self._mask(clean)
        self.of_class, self.valid_pixels = _total(self.truth, 2), batch.valid.flatten(1).sum(1)

    @timed("metrics")
    def count(self, prediction: Tensor) -> Counts:
        """Count the agreement of a prediction, of the form of `batch.y`, with both. Cost: no forward."""
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
        """Labels -> bool (N, K, *S), valid pixels only."""
        return one_hot(labels, self.task, torch.empty(0, dtype=torch.bool, device=labels.device)) & self.valid


def count(prediction: Tensor, clean: Tensor, batch: Batch) -> Counts:
    """Count one prediction against a `Target` that nothing else is counted against."""
    return Target(clean, batch).count(prediction)


def _total(mask: Tensor, axes: int) -> Tensor:
    """How many are true, int64, over all axes but the first ones; bytes are summed twice as fast as bool."""
    return mask.flatten(axes).view(torch.int8).sum(axes, dtype=torch.int32).long()


def _differing(one: Tensor, other: Tensor) -> Tensor:
    """Pixels of which any channel differs, channel by channel: a reduction over them is slow."""
    return _total(reduce(torch.logical_or, (one ^ other).unbind(1)), 1)


def mean_dice(counts: Counts, task: Task) -> Tensor:
    """Return each image's Dice, the mean over the classes that its ground truth shows.

    The quick score by which a checkpoint is chosen; tables are made by `scores`, with a choice of conventions.

    Args:
        counts: From `count`.
        task: Its first class is left out if it is multiclass.

    Returns:
        float64 (N,); NaN for an image without any class.
    """
    first = 1 if task.kind == "multiclass" else 0
    tp, fp, fn = (n[:, first:].double() for n in (counts.tp, counts.fp, counts.fn))
    dice = 2 * tp / (2 * tp + fp + fn)
    return torch.where(tp + fn > 0, dice, torch.nan).nanmean(1)
