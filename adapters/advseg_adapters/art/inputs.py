"""What an ART user may hand over: images and masks as arrays, checked and turned into what the losses take."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advseg_bench.errors import DataError, IncompatibleError, SpecError, expected
from advseg_bench.types import Task, TaskKind

ROUNDING = 1e-5
"""By what share of their range images may lie outside the bounds: attacks add and subtract in float32."""

_SHOWN = 5


def read_task(task: Task | TaskKind, outputs: int) -> Task:
    """Return the task; one given by its kind gets numbered classes, one for each channel of the model.

    Raises:
        SpecError: Unknown kind.
        IncompatibleError: The model has another number of channels than the task classes.
    """
    if isinstance(task, Task):
        if outputs != len(task.classes):
            what = f"{len(task.classes)} logit channels ({', '.join(task.classes)})"
            raise IncompatibleError(expected("model", what, outputs, "Build it for the classes of the task."))
        return task
    if task not in ("binary", "multilabel", "multiclass"):
        raise SpecError(expected("task", "'binary', 'multilabel', 'multiclass' or a Task", task))
    if task == "binary" and outputs != 1:
        remedy = "Use 'multilabel' for overlapping classes, 'multiclass' for exclusive ones."
        raise IncompatibleError(expected("model", "one logit channel for a binary task", outputs, remedy))
    if task == "multiclass" and outputs < 2:
        remedy = "Use 'binary' for one channel."
        raise IncompatibleError(expected("model", "two or more logit channels for exclusive classes", outputs, remedy))
    return Task(task, tuple(f"class {i}" for i in range(outputs)))


def read_bounds(clip_values: Any) -> tuple[float, float]:
    """Return the two bounds. Raises: SpecError: anything but two finite numbers in order."""
    try:
        array = np.asarray(() if clip_values is None else clip_values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (2,) or not -np.inf < array[0] < array[1] < np.inf:
        raise SpecError(expected("clip_values", "two numbers, the smaller first", clip_values, "Such as (0.0, 1.0)."))
    return float(array[0]), float(array[1])


def read_shape(input_shape: Any) -> tuple[int, ...]:
    """Return the shape of one image. Raises: SpecError: anything but a channel axis and one space axis or more."""
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if len(shape) < 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise SpecError(expected("input_shape", "the shape (C, *S) of one image", input_shape, "Such as (1, 64, 64)."))
    return shape


def read_images(x: Any, shape: Sequence[int], bounds: tuple[float, float], device: torch.device) -> Tensor:
    """Return images as a float32 tensor; a tensor with a graph keeps it.

    Args:
        x: Array or tensor (N, C, *S).
        shape: (C, *S) of one image.
        bounds: Smallest and largest intensity.
        device: Where the model is.

    Raises:
        IncompatibleError: Another shape.
        DataError: Not finite, or outside the bounds.
    """
    images = as_tensor("x", x).to(device=device, dtype=torch.float32)
    if tuple(images.shape[1:]) != tuple(shape):
        what = f"images of shape (N, {', '.join(map(str, shape))}), channels first"
        raise IncompatibleError(expected("x", what, tuple(images.shape), "Or give another `input_shape`."))
    if images.numel():
        low, high = float(images.detach().amin()), float(images.detach().amax())
        slack = ROUNDING * (bounds[1] - bounds[0])
        if not (bounds[0] - slack <= low and high <= bounds[1] + slack):
            raise DataError(
                f"x: expected images inside clip_values ({bounds[0]:g}, {bounds[1]:g}), got values from {low:g} to "
                f"{high:g}. Give images as they are before normalisation, which belongs into the model or into "
                "`preprocessing`; or give other `clip_values`."
            )
    return images


def read_labels(y: Any, task: Task, images: Tensor, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Return labels and valid pixels as `Batch` has them.

    Args:
        y: Binary and multilabel: zeros and ones of any type, (N, K, *S), or (N, *S) if there is one channel.
            Multiclass: class numbers of any type, (N, *S).
        task: What the labels mean.
        images: The images they belong to.
        ignore: A value that marks pixels which do not count, in any channel; None if there is none.

    Returns:
        Labels, and valid bool (N, *S).

    Raises:
        DataError: another shape or other values.
        SpecError: `ignore` is no number.
    """
    if ignore is not None and not isinstance(ignore, Real):
        raise SpecError(expected("ignore", "a number such as 255", ignore))
    labels = as_tensor("y", y).to(images.device)
    n, k, space = len(images), len(task.classes), tuple(images.shape[2:])
    wanted = (n, *space) if task.kind == "multiclass" else (n, k, *space)
    if k == 1 and tuple(labels.shape) == (n, *space):
        labels = labels.unsqueeze(1)
    if tuple(labels.shape) != wanted:
        raise DataError(expected("y", _describe(task, wanted), tuple(labels.shape), _mend_shape(task, labels, wanted)))
    void = labels == ignore if ignore is not None else torch.zeros_like(labels, dtype=torch.bool)
    top = k - 1 if task.kind == "multiclass" else 1
    right = void | (
        (labels >= 0) & (labels <= top) & (labels == labels.round() if labels.is_floating_point() else True)
    )
    if not bool(right.all()):
        raise DataError(_word_values(labels[~right], task, ignore))
    labels = torch.where(void, torch.zeros_like(labels), labels)
    if task.kind == "multiclass":
        return labels.long(), ~void
    return labels.bool(), ~void.any(1)


def as_tensor(name: str, values: Any) -> Tensor:
    """Return a tensor of an array, sharing its memory where torch can. Raises: DataError: no numbers."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        what = type(values).__name__ if array.dtype == object else str(array.dtype)
        raise DataError(expected(name, "an array of real numbers", what))
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_logits(logits: Any, task: Task, images: Tensor) -> Tensor:
    """Return what a model made of images if it has the shape of logits. Raises: IncompatibleError."""
    wanted = (len(images), len(task.classes), *images.shape[2:])
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        remedy = "The model must return one tensor: a logit for each class and pixel of the image."
        raise IncompatibleError(expected("model", f"logits of shape {wanted}", found, remedy))
    assert isinstance(logits, Tensor)
    return logits


def _describe(task: Task, shape: tuple[int, ...]) -> str:
    what = "class numbers" if task.kind == "multiclass" else f"a mask for each class ({', '.join(task.classes)})"
    return f"{what}, shape {shape}"


def _mend_shape(task: Task, labels: Tensor, wanted: tuple[int, ...]) -> str:
    if task.kind == "multiclass" and labels.dim() == len(wanted) + 1:
        return "Use y.argmax(axis=1) on masks of one channel a class."
    if task.kind == "multilabel" and labels.dim() == len(wanted) - 1:
        return "Class numbers are for a multiclass task; here each class has a mask of its own."
    return "Labels must have the size of the images."


def _word_values(wrong: Tensor, task: Task, ignore: int | None) -> str:
    """Word what is wrong with the values of labels, and guess why."""
    values = torch.unique(wrong).tolist()
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
    last = len(task.classes) - 1
    what = f"class numbers from 0 to {last}" if task.kind == "multiclass" else "masks of zeros and ones"
    also = f" (and {ignore}, which is ignored)" if ignore is not None else ""
    if values == [255] and ignore is None:
        remedy = "If 255 marks pixels that do not count, give ignore=255."
        if task.kind != "multiclass":
            remedy = f"If 255 is the class, give y > 0. {remedy}"
    elif not all(float(value).is_integer() for value in values):
        remedy = "Without `y` ART puts the prediction there: give y=estimator.predict_masks(x)."
    elif task.kind == "multiclass":
        remedy = f"The model has {last + 1} classes."
    else:
        remedy = "Split labels with several values into one mask for each class."
    return f"y: expected {what}{also}, got {shown}. {remedy}"
