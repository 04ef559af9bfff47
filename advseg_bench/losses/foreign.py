"""Adapter for third-party losses, such as those of MONAI and segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError, SpecError, expected, unknown
from advseg_bench.losses.base import Loss, one_hot
from advseg_bench.types import Task

Target = Literal["onehot", "labels"]

SURE = 30.0  # a logit whose sigmoid is 1 up to 1e-13


def per_image(criterion: Callable[[Tensor, Tensor], Tensor], target: Target = "onehot") -> Loss:
    """Wrap a third-party criterion as a loss of this package: one value per image, no gradient at invalid pixels.

    The criterion is called for one image at a time, so that it cannot pool over the batch; if it returns several
    values, their mean is used.

    The criterion sees an invalid pixel as a correct prediction with high confidence: as none of the classes, or as the
    first class in a multiclass task. So the pixel has no gradient and does not change the overlap of other classes. A
    mean over pixels counts it as correct, so the value is smaller by the fraction of valid pixels. In the overlap of
    the first class of a multiclass task it counts as a true positive.

    Args:
        criterion: Called with logits (1, K, *S) and a target; returns one or several values, larger is worse. It must
            apply sigmoid or softmax itself.
        target: "onehot" for zeros and ones (1, K, *S) with the dtype of the logits; "labels" for int64 (1, *S), in
            multiclass tasks only.

    Returns:
        The loss. Assigned to a name in a module, a suite refers to it as `package.module:object`.

    Raises:
        SpecError: `target` is unknown.

    Cost:
        One call of the criterion per image.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> loss = ab.losses.per_image(torch.nn.BCEWithLogitsLoss())
        >>> y, valid = torch.ones(2, 1, 4, 4, dtype=torch.bool), torch.ones(2, 4, 4, dtype=torch.bool)
        >>> loss(torch.zeros(2, 1, 4, 4), y, valid, ab.Task("binary", ("liver",)))
        tensor([0.6931, 0.6931])
    """
    if target not in get_args(Target):
        raise SpecError(unknown("per_image", "target", target, get_args(Target)))

    def loss(logits: Tensor, y: Tensor, valid: Tensor, task: Task) -> Tensor:
        """Return one value per image, (N,)."""
        seen = valid if task.kind == "multiclass" else valid.unsqueeze(1)
        labels = torch.where(seen, y, torch.zeros_like(y))
        channels = one_hot(labels, task, logits)
        shown = torch.where(valid.unsqueeze(1), logits, SURE * (2 * channels - 1))
        if target == "onehot":
            labels = channels
        elif task.kind != "multiclass":
            what = f'target="onehot" for a {task.kind} task'
            raise IncompatibleError(expected("per_image", what, target, "Its channels are independent decisions."))
        return torch.stack([criterion(shown[i : i + 1], labels[i : i + 1]).mean() for i in range(len(logits))])

    return loss
