"""From logits to counts, image by image and class by class. Scores are made from counts, in `scores`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from advseg_bench.losses import one_hot
from advseg_bench.profiling import timed
from advseg_bench.types import Batch, Task


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
    Returns: Labels of the form of `Batch.y`.
    """
    if task.kind != "multiclass":
        return logits > 0
    return logits.max(1).indices  # the same as `argmax`, which on a CPU takes up to 16 times as long


@timed("metrics")
def count(prediction: Tensor, clean: Tensor, batch: Batch) -> Counts:
    """Count agreement with the ground truth and with the clean prediction.

    Args:
        prediction: Labels of the form of `batch.y`, from `predict`.
        clean: The prediction on the clean images, same form.
        batch: Ground truth and valid pixels.
    Returns: `Counts`. No forward pass.
    """
    like = torch.empty(0, dtype=torch.bool, device=prediction.device)
    valid = batch.valid.unsqueeze(1)
    p, t, c = (one_hot(labels, batch.task, like) & valid for labels in (prediction, batch.y, clean))

    def total(mask: Tensor) -> Tensor:
        return mask.flatten(2).sum(2)

    def differing(one: Tensor, other: Tensor) -> Tensor:
        # the channels one by one: a reduction over them takes ten times as long
        return reduce(torch.logical_or, (one ^ other).unbind(1)).flatten(1).sum(1)

    tp = total(p & t)
    return Counts(
        tp=tp,
        fp=total(p) - tp,
        fn=total(t) - tp,
        valid=batch.valid.flatten(1).sum(1),
        wrong=differing(p, t),
        flipped=differing(p, c),
    )


def mean_dice(counts: Counts, task: Task) -> Tensor:
    """Return each image's Dice, the mean over the classes that its ground truth shows.

    The quick score by which a checkpoint is chosen; tables are made by `scores`, with a choice of conventions.

    Args:
        counts: From `count`.
        task: Its first class is left out if it is multiclass.
    Returns: float64 (N,); NaN for an image without any class.
    """
    first = 1 if task.kind == "multiclass" else 0
    tp, fp, fn = (n[:, first:].double() for n in (counts.tp, counts.fp, counts.fn))
    dice = 2 * tp / (2 * tp + fp + fn)
    return torch.where(tp + fn > 0, dice, torch.nan).nanmean(1)
