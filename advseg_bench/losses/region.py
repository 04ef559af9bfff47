"""Region losses, which measure overlap: Dice, Jaccard, Tversky, Lovasz, and sums of Dice and a pixel loss."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.losses.base import SMOOTH, one_hot, probabilities
from advseg_bench.losses.pixel import bce, ce, sigmoid_focal
from advseg_bench.types import Task

FALSE_POSITIVE, FALSE_NEGATIVE = 0.3, 0.7  # Tversky's weights, MONAI's alpha and beta; 0.5 and 0.5 would be Dice
FOCUS = 0.75  # exponent of the focal Tversky loss: 1 / gamma with gamma = 4/3 as in its paper


def dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Dice, averaged over the channels, background included.

    Dice = (2 sum p y + s) / (sum p + sum y + s) with s = 1e-5 and sums over valid pixels; equals MONAI's `DiceLoss` for
    each image. For an empty mask the gradient nearly vanishes (norm 1e-8 or less).

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Source:
        Milletari et al., 3DV 2016, arXiv:1606.04797; differs in the denominator, which is not squared.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.dice(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.3333])
    """
    p, t, _ = _regions(logits, y, valid, task)
    overlap = (p * t).sum(2)
    return 1 - ((2 * overlap + SMOOTH) / (p.sum(2) + t.sum(2) + SMOOTH)).mean(1)


def jaccard(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Jaccard index, averaged over the channels.

    Jaccard = (2 sum p y + s) / (2 (sum p + sum y - sum p y) + s) with s = 1e-5; equals MONAI's `DiceLoss(jaccard=True)`
    for each image. For an empty mask the gradient nearly vanishes.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Source:
        Rahman and Wang, ISVC 2016, doi:10.1007/978-3-319-50835-1_22; differs in the smoothing.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.jaccard(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.5000])
    """
    p, t, _ = _regions(logits, y, valid, task)
    overlap = (p * t).sum(2)
    union = p.sum(2) + t.sum(2) - overlap
    return 1 - ((2 * overlap + SMOOTH) / (2 * union + SMOOTH)).mean(1)


def tversky(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - Tversky index, averaged over the channels.

    Index = (TP + s) / (TP + 0.3 FP + 0.7 FN + s) with s = 1e-5 and TP, FP, FN summed from probabilities; equals MONAI's
    `TverskyLoss(alpha=0.3, beta=0.7)`. (MONAI's default weights, 0.5 and 0.5, give Dice.) For an empty mask the
    gradient nearly vanishes.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Source:
        Salehi et al., MLMI 2017, arXiv:1706.05721; differs in the smoothing.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.tversky(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.4118])
    """
    return (1 - _tversky_index(logits, y, valid, task)).mean(1)


def focal_tversky(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return (1 - Tversky index)^(3/4), averaged over the channels; the index is that of `tversky`.

    The exponent is 1 / gamma with gamma = 4/3 in the convention of the paper: a larger gamma gives channels that are
    nearly correct a steeper loss. (Code that calls the exponent gamma uses 0.75.)

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Source:
        Abraham and Khan, ISBI 2019, arXiv:1810.07842; differs in the mean over channels, which is a sum in the paper.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.focal_tversky(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.5140])
    """
    miss = 1 - _tversky_index(logits, y, valid, task)
    missed = miss > 0  # the power has no derivative at 0
    return torch.where(missed, torch.where(missed, miss, 1) ** FOCUS, 0).mean(1)


def generalized_dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - generalised Dice, where each channel has the weight 1 / (sum y)^2.

    Dice = (2 sum_c w_c sum p y + s) / (sum_c w_c (sum p + sum y) + s) with s = 1e-5; equals MONAI's
    `GeneralizedDiceLoss` for each image. As in MONAI, a channel with an empty mask gets the largest weight of the other
    channels. So an image whose masks are all empty has value 0 and no gradient. The weights of masks of 10,000 or more
    pixels are so small that s moves value and gradient towards 0.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), between 0 and 1.

    Source:
        Sudre et al., DLMIA 2017, arXiv:1707.03237; differs in the smoothing.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.generalized_dice(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.3333])
    """
    p, t, _ = _regions(logits, y, valid, task)
    volume = t.sum(2)
    weight = torch.where(volume == 0, 0, volume.clamp(min=1) ** -2)
    weight = torch.where(volume == 0, weight.amax(1, keepdim=True), weight)
    overlap = (weight * (p * t).sum(2)).sum(1)
    total = (weight * (p.sum(2) + volume)).sum(1)
    return 1 - (2 * overlap + SMOOTH) / (total + SMOOTH)


def lovasz(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the Lovasz extension of the Jaccard loss over valid pixels, averaged over channels.

    The Lovasz hinge with errors 1 - (2y - 1) u for binary and multilabel tasks. The Lovasz softmax with errors |y - p|
    for multiclass tasks, averaged over the classes that are present. For an empty mask the hinge equals the largest
    error, so only one pixel has a gradient.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0; 0 without a valid pixel.

    Source:
        Berman et al., CVPR 2018, arXiv:1705.08790, alg. 1.

    Cost:
        Sorts the pixels of each channel.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.lovasz(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([1.])
    """
    t = one_hot(y, task, logits)
    seen = valid.unsqueeze(1).expand_as(t)
    label = t.bool() & seen
    if task.kind != "multiclass":
        return _extend_jaccard(1 - logits * (2 * t - 1), label, seen).mean(1)
    p = probabilities(logits, task)
    present = label.flatten(2).any(2)
    value = _extend_jaccard(torch.where(label, 1 - p, p), label, seen)
    return (value * present).sum(1) / present.sum(1).clamp(min=1)


def dice_focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the sum of Dice loss and focal loss, with equal weights.

    Equals MONAI's `DiceFocalLoss` for each image. As in MONAI, a multiclass task uses softmax for Dice, and a sigmoid
    for each channel for the focal loss.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.dice_focal(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([0.5066])
    """
    return dice(logits, y, valid, task) + sigmoid_focal(logits, y, valid, task)


def dice_ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the sum of Dice loss and cross-entropy, with equal weights.

    The cross-entropy is `ce` for multiclass tasks and `bce` otherwise. Equals MONAI's `DiceCELoss` for each image,
    except for multilabel tasks, where MONAI uses the softmax cross-entropy.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any task.

    Returns:
        One value per image, (N,), at least 0.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(1, 1, 4, 4), torch.ones(1, 4, 4), task="binary")
        >>> ab.losses.dice_ce(torch.zeros(1, 1, 4, 4), batch.y, batch.valid, batch.task)
        tensor([1.0265])
    """
    entropy = ce if task.kind == "multiclass" else bce
    return dice(logits, y, valid, task) + entropy(logits, y, valid, task)


def _regions(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Return probabilities and labels, zero where not valid, and the valid mask; pixels on the last axis."""
    weight = valid.unsqueeze(1).to(logits.dtype)
    p = (probabilities(logits, task) * weight).flatten(2)
    t = (one_hot(y, task, logits) * weight).flatten(2)
    return p, t, weight.flatten(2)


def _tversky_index(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return the Tversky index of each channel, (N, K)."""
    p, t, ones = _regions(logits, y, valid, task)
    hit = (p * t).sum(2)
    wrong = FALSE_POSITIVE * (p * (ones - t)).sum(2) + FALSE_NEGATIVE * ((ones - p) * t).sum(2)
    return (hit + SMOOTH) / (hit + wrong + SMOOTH)


def _extend_jaccard(errors: Tensor, label: Tensor, seen: Tensor) -> Tensor:
    """Return the Lovasz extension of each channel's Jaccard loss at given errors, (N, K); negative errors count as 0.

    The weight of the k-th largest error is the increase of the Jaccard loss if its pixel is wrong in addition to those
    before it: 1 / U where the label is 1, I / (U (U - 1)) where it is 0. Here I and U are intersection and union of the
    mask and that prediction. (Berman et al. subtract consecutive Jaccard losses, which loses digits by cancellation.)
    """
    errors = errors.masked_fill(~seen, 0).flatten(2)  # later errors in the order also count as 0
    ranked, order = errors.sort(stable=True, dim=2, descending=True)
    hit = label.flatten(2).gather(2, order)
    size = hit.sum(2, keepdim=True)
    intersection = size - hit.cumsum(2)
    union = size + (~hit).cumsum(2)
    of_miss = torch.where(union > 1, intersection.to(errors) / (union * (union - 1)).clamp(min=1), 1)
    weight = torch.where(hit, 1 / union.clamp(min=1).to(errors), of_miss)
    return (ranked.relu() * weight).sum(2)
