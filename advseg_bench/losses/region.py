"""Losses that measure how two regions overlap: Dice, Jaccard, Tversky, Lovasz, and Dice beside a mean over pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from advseg_bench.losses.base import SMOOTH, one_hot, probabilities
from advseg_bench.losses.pixel import bce, ce, sigmoid_focal
from advseg_bench.types import Task

FALSE_POSITIVE, FALSE_NEGATIVE = 0.3, 0.7  # Tversky's weights, MONAI's alpha and beta; 0.5 and 0.5 would be Dice
FOCUS = 0.75  # the exponent of the focal Tversky loss: 1 / gamma with the gamma = 4/3 of its paper


def dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Dice, averaged over the channels (background included, as in the study).

    Dice = (2 sum p y + s) / (sum p + sum y + s) with s = 1e-5, sums over valid pixels: MONAI's `DiceLoss`, image
    by image. On an empty mask its gradient nearly vanishes (norm 1e-8 and less).

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any.

    Returns:
        (N,), between 0 and 1.

    Source:
        Milletari et al., 3DV 2016, arXiv:1606.04797; differs in the denominator, which is not squared.
    """
    p, t, _ = _regions(logits, y, valid, task)
    overlap = (p * t).sum(2)
    return 1 - ((2 * overlap + SMOOTH) / (p.sum(2) + t.sum(2) + SMOOTH)).mean(1)


def jaccard(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Jaccard index, averaged over the channels: MONAI's `DiceLoss(jaccard=True)`, image by image.

    Jaccard = (2 sum p y + s) / (2 (sum p + sum y - sum p y) + s) with s = 1e-5. Arguments as `dice`; so is its
    gradient on an empty mask.

    Returns:
        (N,), between 0 and 1.

    Source:
        Rahman and Wang, ISVC 2016, doi:10.1007/978-3-319-50835-1_22; differs in the smoothing.
    """
    p, t, _ = _regions(logits, y, valid, task)
    overlap = (p * t).sum(2)
    union = p.sum(2) + t.sum(2) - overlap
    return 1 - ((2 * overlap + SMOOTH) / (2 * union + SMOOTH)).mean(1)


def tversky(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - Tversky index, averaged over the channels: MONAI's `TverskyLoss(alpha=0.3, beta=0.7)`.

    Index = (TP + s) / (TP + 0.3 FP + 0.7 FN + s) with s = 1e-5 and TP, FP, FN summed from probabilities. (MONAI's
    default, 0.5 and 0.5, is Dice.) Arguments as `dice`; so is its gradient on an empty mask.

    Returns:
        (N,), between 0 and 1.

    Source:
        Salehi et al., MLMI 2017, arXiv:1706.05721; differs in the smoothing.
    """
    return (1 - _tversky_index(logits, y, valid, task)).mean(1)


def focal_tversky(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average (1 - Tversky index)^(3/4) over the channels; index and arguments as `tversky`.

    The exponent is 1 / gamma with gamma = 4/3 in the convention of the paper, where a larger gamma steepens the loss of
    channels that are nearly right. (Code that calls the exponent itself gamma has 0.75.)

    Returns:
        (N,), between 0 and 1.

    Source:
        Abraham and Khan, ISBI 2019, arXiv:1810.07842; differs in the mean over channels, there a sum.
    """
    miss = 1 - _tversky_index(logits, y, valid, task)
    missed = miss > 0  # the power has no gradient at 0, where nothing can be gained
    return torch.where(missed, torch.where(missed, miss, 1) ** FOCUS, 0).mean(1)


def generalized_dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - Dice with each channel weighed by 1 / (sum y)^2: MONAI's `GeneralizedDiceLoss`, image by image.

    Dice = (2 sum_c w_c sum p y + s) / (sum_c w_c (sum p + sum y) + s) with s = 1e-5. As in MONAI, a channel whose mask
    is empty gets the largest weight of the others. So an image whose masks are all empty has value 0 and no gradient,
    and masks of 10,000 pixels and more have weights so small that s pulls value and gradient to 0.

    Arguments as `dice`.

    Returns:
        (N,), between 0 and 1.

    Source:
        Sudre et al., DLMIA 2017, arXiv:1707.03237; differs in the smoothing.
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

    The hinge form, of errors 1 - (2y - 1) u, for binary and multilabel; the softmax form, of errors |y - p|, for
    multiclass, averaged over the classes that are present. On an empty mask the hinge form is the largest error, so one
    pixel has all of the gradient.

    Arguments as `dice`.

    Returns:
        (N,), at least 0; 0 for an image without a valid pixel.

    Source:
        Berman et al., CVPR 2018, arXiv:1705.08790, alg. 1.
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
    """Return Dice loss + focal loss: MONAI's `DiceFocalLoss`, the study's training loss, image by image.

    For multiclass, as there, the Dice is of the softmax and the focal loss is the sigmoid one of each channel.
    Arguments as `dice`; the two parts weigh the same.

    Returns:
        (N,), at least 0.
    """
    return dice(logits, y, valid, task) + sigmoid_focal(logits, y, valid, task)


def dice_ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return Dice loss + cross-entropy, softmax for multiclass and binary otherwise: MONAI's `DiceCELoss`.

    It differs for several channels of a sigmoid, beside whose Dice MONAI puts a cross-entropy of the softmax.
    Arguments as `dice`; the two parts weigh the same.

    Returns:
        (N,), at least 0.
    """
    entropy = ce if task.kind == "multiclass" else bce
    return dice(logits, y, valid, task) + entropy(logits, y, valid, task)


def _regions(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities and labels, zero where not valid, and ones where valid; pixels in one axis, the last."""
    weight = valid.unsqueeze(1).to(logits.dtype)
    p = (probabilities(logits, task) * weight).flatten(2)
    t = (one_hot(y, task, logits) * weight).flatten(2)
    return p, t, weight.flatten(2)


def _tversky_index(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """The Tversky index of each channel, (N, K)."""
    p, t, ones = _regions(logits, y, valid, task)
    hit = (p * t).sum(2)
    wrong = FALSE_POSITIVE * (p * (ones - t)).sum(2) + FALSE_NEGATIVE * ((ones - p) * t).sum(2)
    return (hit + SMOOTH) / (hit + wrong + SMOOTH)


def _extend_jaccard(errors: Tensor, label: Tensor, seen: Tensor) -> Tensor:
    """The Lovasz extension of each channel's Jaccard loss at errors per pixel, (N, K); negative errors count as 0.

    The k-th largest error weighs by what its pixel, once wrong, adds to the Jaccard loss of those before it: 1 / U
    where the label is 1, I / (U (U - 1)) where it is 0, with I and U the intersection and the union of the mask and
    what is then predicted. (Berman et al. subtract neighbouring Jaccard losses, which cancels digits.)
    """
    errors = errors.masked_fill(~seen, 0).flatten(2)  # what comes after them in the order counts as 0 itself
    ranked, order = errors.sort(stable=True, dim=2, descending=True)
    hit = label.flatten(2).gather(2, order)
    size = hit.sum(2, keepdim=True)
    intersection = size - hit.cumsum(2)
    union = size + (~hit).cumsum(2)
    of_miss = torch.where(union > 1, intersection.to(errors) / (union * (union - 1)).clamp(min=1), 1)
    weight = torch.where(hit, 1 / union.clamp(min=1).to(errors), of_miss)
    return (ranked.relu() * weight).sum(2)
