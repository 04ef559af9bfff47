"""Attack and training losses: (logits, y, valid, task) -> one value per image.

An image's value never depends on its neighbours, so neither does its gradient; summing the values and calling
backward once gives every image its own gradient. Larger is worse for the model. Pixels that are not valid add
nothing to a value and get a gradient of exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from advseg_bench.errors import IncompatibleError
from advseg_bench.types import Task

Loss = Callable[[Tensor, Tensor, Tensor, Task], Tensor]
"""Logits (N, K, *S), labels (see `Batch.y`), valid bool (N, *S), task -> float (N,)."""

SMOOTH = 1e-5  # MONAI's default for the numerator and the denominator of Dice


def one_hot(y: Tensor, task: Task, like: Tensor) -> Tensor:
    """Return labels as channels of zeros and ones.

    Args:
        y: Labels as in `Batch.y`; in a multiclass task values outside the classes give an empty pixel.
        task: What the labels mean.
        like: A tensor of the wanted dtype.
    Returns: (N, K, *S).
    """
    if task.kind != "multiclass":
        return y.to(like.dtype)
    classes = torch.arange(len(task.classes), device=y.device).view(1, -1, *[1] * (y.dim() - 1))
    return (y.unsqueeze(1) == classes).to(like.dtype)


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Return softmax over the classes of a multiclass task, the sigmoid of each channel otherwise."""
    return logits.softmax(1) if task.kind == "multiclass" else logits.sigmoid()


def bce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the binary cross-entropy of every channel over valid pixels and channels.

    Args:
        logits: (N, K, *S).
        y: bool (N, K, *S).
        valid: bool (N, *S).
        task: Binary or multilabel.
    Returns: (N,), at least 0; 0 for an image without a valid pixel.
    """
    value = F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype), reduction="none")
    return _valid_mean(value.mean(1), valid)


def ce(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the softmax cross-entropy over valid pixels.

    Args:
        logits: (N, K, *S).
        y: int64 (N, *S).
        valid: bool (N, *S).
        task: Multiclass.
    Returns: (N,), at least 0; 0 for an image without a valid pixel.
    """
    return _valid_mean(F.cross_entropy(logits, torch.where(valid, y, 0), reduction="none"), valid)


def dice(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return 1 - soft Dice, averaged over the channels (background included, as in the study).

    Dice = (2 sum p y + s) / (sum p + sum y + s) with s = 1e-5, sums over valid pixels: MONAI's `DiceLoss`, image
    by image. On an empty mask its gradient nearly vanishes (norm 1e-8 and less).

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any.
    Returns: (N,), between 0 and 1.
    Source: Milletari et al., 3DV 2016, arXiv:1606.04797; differs in the denominator, which is not squared.
    """
    weight = valid.unsqueeze(1).to(logits.dtype)
    p = (probabilities(logits, task) * weight).flatten(2)
    t = (one_hot(y, task, logits) * weight).flatten(2)
    overlap = (p * t).sum(2)
    return 1 - ((2 * overlap + SMOOTH) / (p.sum(2) + t.sum(2) + SMOOTH)).mean(1)


def focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Average the focal loss with gamma = 2 over valid pixels and channels; no class weights.

    Sigmoid form for binary and multilabel; softmax form for multiclass, where the K - 1 channels that are not the
    label add zero to the mean, as in MONAI's `FocalLoss(use_softmax=True)`.

    Args:
        logits: (N, K, *S).
        y: Labels as in `Batch.y`.
        valid: bool (N, *S).
        task: Any.
    Returns: (N,), at least 0.
    Source: Lin et al., ICCV 2017, arXiv:1708.02002, eq. 4.
    """
    if task.kind != "multiclass":
        return _sigmoid_focal(logits, y, valid, task)
    log_p = logits.log_softmax(1)
    value = -one_hot(y, task, logits) * (1 - log_p.exp()) ** 2 * log_p
    return _valid_mean(value.mean(1), valid)


def dice_focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """Return Dice loss + focal loss: MONAI's `DiceFocalLoss`, the study's training loss, image by image.

    For multiclass, as there, the Dice is of the softmax and the focal loss is the sigmoid one of each channel.
    Arguments as `focal`; the two parts weigh the same.
    Returns: (N,), at least 0.
    """
    return dice(logits, y, valid, task) + _sigmoid_focal(logits, y, valid, task)


def _sigmoid_focal(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
    """The focal loss of each channel as a decision of its own."""
    t = one_hot(y, task, logits)
    entropy = F.binary_cross_entropy_with_logits(logits, t, reduction="none")
    miss = torch.where(t > 0, -logits, logits).sigmoid()
    return _valid_mean((miss**2 * entropy).mean(1), valid)


def _valid_mean(value: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of each image; 0 where there is none."""
    kept = torch.where(valid, value, 0).flatten(1).sum(1)
    return kept / valid.flatten(1).sum(1).clamp(min=1)


def probe(loss: Loss, task: Task, name: str) -> None:
    """Check that a loss grows when the model gets worse, keeps images apart, and ignores pixels that are not valid.

    On random logits it compares the sign of d loss / d logits with the direction away from the label, asks for some
    gradient on logits of either label, and compares each image alone with the batch.

    Raises: IncompatibleError: with the fault: swapped arguments, batch pooling, a wrong shape, void pixels that count.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(task.classes), 8, 8)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    if task.kind == "multiclass":
        y = torch.randint(0, shape[1], (3, 8, 8), generator=generator)
    else:
        y = torch.rand(shape, generator=generator) < 0.5
    valid = torch.rand((3, 8, 8), generator=generator) < 0.8
    value = loss(logits, y, valid, task)
    if value.shape != (3,):
        raise IncompatibleError(
            f"loss {name}: expected one value per image, shape (3,), got {tuple(value.shape)}. "
            "Average over all axes but the first."
        )
    alone = torch.cat([loss(logits[i : i + 1], y[i : i + 1], valid[i : i + 1], task) for i in range(3)])
    if not torch.allclose(alone, value, rtol=1e-9, atol=1e-12):
        raise IncompatibleError(
            f"loss {name}: an image's value changes with its neighbours in the batch. Reduce each image by itself."
        )
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    _check_gradient(gradient, one_hot(y, task, logits), valid.unsqueeze(1).expand(shape), name)


def _check_gradient(gradient: Tensor, y: Tensor, valid: Tensor, name: str) -> None:
    """Refuse a gradient that is there where it must not be, missing where it must be, or of the wrong sign."""
    if (gradient[~valid] != 0).any():
        raise IncompatibleError(f"loss {name}: pixels that are not valid have a gradient. Multiply them by zero.")
    moved = (gradient != 0) & valid
    agreement = (gradient.sign() == 1 - 2 * y)[moved].double().mean() if moved.any() else torch.tensor(0.0)
    if agreement < 0.9:
        raise IncompatibleError(
            f"loss {name}: its gradient agrees with the direction away from the label on {agreement:.0%} of the "
            "logits, expected at least 90%. Are prediction and target swapped?"
        )
    for label in (0, 1):
        share = moved[valid & (y == label)].double().mean()
        if share < 0.1:
            raise IncompatibleError(
                f"loss {name}: logits whose label is {label} have no gradient ({share:.0%} of them do, expected at "
                "least 10%). Are prediction and target swapped?"
            )
