"""Losses of MONAI, segmentation-models-pytorch and others as losses of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from advseg_bench.errors import IncompatibleError, SpecError, expected, unknown
from advseg_bench.losses.base import Loss, one_hot
from advseg_bench.types import Task

Target = Literal["onehot", "labels"]

SURE = 30.0  # a logit whose sigmoid is right to 1e-13


def per_image(criterion: Callable[[Tensor, Tensor], Tensor], target: Target = "onehot") -> Loss:
    """Turn a loss of logits and target into one of this package: one value per image, void pixels without gradient.

    The criterion is given one image at a time, so that it cannot pool a batch; of what it returns the mean is taken.

    A pixel that is not valid is given to it as one that is predicted right and for sure: as none of the classes, in a
    multiclass task as the first. That moves no gradient to it and changes nothing in overlaps of the other classes. A
    mean over pixels counts it as solved, so it is smaller by the share of valid pixels; in an overlap of the first of
    several classes it counts as a hit.

    Args:
        criterion: Called with logits (1, K, *S) and a target; returns one value, or several, larger is worse. It has to
            apply sigmoid or softmax by itself.
        target: "onehot" for zeros and ones (1, K, *S) of the dtype of the logits; "labels" for int64 (1, *S), in
            multiclass tasks only.

    Returns:
        The loss, to be named in a suite as `package.module:object`.

    Raises:
        SpecError: If `target` is neither.
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
            raise IncompatibleError(expected("per_image", what, target, "Its classes are decided one by one."))
        return torch.stack([criterion(shown[i : i + 1], labels[i : i + 1]).mean() for i in range(len(logits))])

    return loss
