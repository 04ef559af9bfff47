"""Validate images and masks given as arrays, and convert them to the form of the losses."""

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
"""Tolerance at the bounds as a share of the intensity range, since attacks compute in float32."""

_SHOWN = 5


def read_task(task: Task | TaskKind, outputs: int) -> Task:
    """Return the task; a task type gets numbered classes, one for each channel of the model.

    Args:
        task: The task or its type.
        outputs: Number of logit channels of the model.

    Raises:
        SpecError: The task type is unknown.
        IncompatibleError: The number of channels does not match the task.
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
    """Return the two bounds.

    Raises:
        SpecError: They are not two finite numbers in increasing order.
    """
    try:
        array = np.asarray(() if clip_values is None else clip_values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != (2,) or not -np.inf < array[0] < array[1] < np.inf:
        raise SpecError(expected("clip_values", "two numbers, the smaller first", clip_values, "Try (0.0, 1.0)."))
    return float(array[0]), float(array[1])


def read_shape(input_shape: Any) -> tuple[int, ...]:
    """Return the shape of one image.

    Raises:
        SpecError: It is not a channel axis followed by one or more spatial axes.
    """
    shape = tuple(input_shape) if isinstance(input_shape, Sequence) else ()
    if len(shape) < 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise SpecError(expected("input_shape", "the shape (C, *S) of one image", input_shape, "Try (1, 64, 64)."))
    return shape


def read_images(x: Any, shape: Sequence[int], bounds: tuple[float, float], device: torch.device) -> Tensor:
    """Return images as a float32 tensor; a tensor with a graph keeps it.

    Args:
        x: Array or tensor (N, C, *S).
        shape: (C, *S) of one image.
        bounds: Smallest and largest intensity.
        device: Device of the model.

    Raises:
        IncompatibleError: The shape is wrong.
        DataError: Values are not finite, or outside the bounds.
    """
    images = as_tensor("x", x).to(device=device, dtype=torch.float32)
    if tuple(images.shape[1:]) != tuple(shape):
        what = f"images of shape (N, {', '.join(map(str, shape))}), channels first"
        raise IncompatibleError(expected("x", what, tuple(images.shape), "Check `input_shape`."))
    if images.numel():
        low, high = float(images.detach().amin()), float(images.detach().amax())
        slack = ROUNDING * (bounds[1] - bounds[0])
        if not (bounds[0] - slack <= low and high <= bounds[1] + slack):
            raise DataError(
                f"x: expected images inside clip_values ({bounds[0]:g}, {bounds[1]:g}), got values from {low:g} to "
                f"{high:g}. Give images before normalisation, which belongs in the model or in `preprocessing`; or give"
                " other `clip_values`."
            )
    return images


def read_labels(y: Any, task: Task, images: Tensor, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Return labels and valid pixels in the form of `Batch`.

    Args:
        y: Binary and multilabel: zeros and ones of any type, (N, K, *S), or (N, *S) if there is one channel.
            Multiclass: class numbers of any type, (N, *S).
        task: The task.
        images: The images of the labels, (N, C, *S).
        ignore: Value that marks pixels without ground truth, in any channel; None if there is none.

    Returns:
        Labels, and valid pixels, bool (N, *S).

    Raises:
        DataError: The shape or the values of the labels are wrong.
        SpecError: `ignore` is not a number.
    """
    if ignore is not None and not isinstance(ignore, Real):
        raise SpecError(expected("ignore", "a number such as 255", ignore))
    labels = as_tensor("y", y).to(images.device)
    n, k, space = len(images), len(task.classes), tuple(images.shape[2:])
    wanted = (n, *space) if task.kind == "multiclass" else (n, k, *space)
    if k == 1 and tuple(labels.shape) == (n, *space):
        labels = labels.unsqueeze(1)
    if tuple(labels.shape) != wanted:
        raise DataError(expected("y", _describe(task, wanted), tuple(labels.shape), _remedy(task, labels, wanted)))
    void = labels == ignore if ignore is not None else torch.zeros_like(labels, dtype=torch.bool)
    top = k - 1 if task.kind == "multiclass" else 1
    right = void | (
        (labels >= 0) & (labels <= top) & (labels == labels.round() if labels.is_floating_point() else True)
    )
    if not bool(right.all()):
        raise DataError(_describe_values(labels[~right], task, ignore))
    labels = torch.where(void, torch.zeros_like(labels), labels)
    if task.kind == "multiclass":
        return labels.long(), ~void
    return labels.bool(), ~void.any(1)


def as_tensor(name: str, values: Any) -> Tensor:
    """Return an array as a tensor, with shared memory where possible.

    Raises:
        DataError: The values are not real numbers.
    """
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        what = type(values).__name__ if array.dtype == object else str(array.dtype)
        raise DataError(expected(name, "an array of real numbers", what))
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    array = np.asarray(array, array.dtype.newbyteorder("="))
    shared = array.flags.writeable and all(step >= 0 and step % array.itemsize == 0 for step in array.strides)
    return torch.from_numpy(array if shared else array.copy())


def check_logits(logits: Any, task: Task, images: Tensor) -> Tensor:
    """Return the output of a model if it has the shape of logits.

    Raises:
        IncompatibleError: It is not a tensor, or has another shape.
    """
    wanted = (len(images), len(task.classes), *images.shape[2:])
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        remedy = "Return one tensor with a logit for each class and pixel of the image."
        raise IncompatibleError(expected("model", f"logits of shape {wanted}", found, remedy))
    assert isinstance(logits, Tensor)
    return logits


def _describe(task: Task, shape: tuple[int, ...]) -> str:
    what = "class numbers" if task.kind == "multiclass" else f"a mask for each class ({', '.join(task.classes)})"
    return f"{what}, shape {shape}"


def _remedy(task: Task, labels: Tensor, wanted: tuple[int, ...]) -> str:
    if task.kind == "multiclass" and labels.dim() == len(wanted) + 1:
        return "Use y.argmax(axis=1) on masks with one channel per class."
    if task.kind == "multilabel" and labels.dim() == len(wanted) - 1:
        return "Use one mask per class; class numbers are for multiclass tasks."
    return "Use labels of the size of the images."


def _describe_values(wrong: Tensor, task: Task, ignore: int | None) -> str:
    """Return the error message for invalid values of labels, with the likely remedy."""
    values = torch.unique(wrong).tolist()
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN]) + (", ..." if len(values) > _SHOWN else "")
    last = len(task.classes) - 1
    what = f"class numbers from 0 to {last}" if task.kind == "multiclass" else "masks of zeros and ones"
    also = f" (and {ignore}, which is ignored)" if ignore is not None else ""
    if values == [255] and ignore is None:
        remedy = "If 255 marks pixels without ground truth, give ignore=255."
        if task.kind != "multiclass":
            remedy = f"If 255 is the class, give y > 0. {remedy}"
    elif not all(float(value).is_integer() for value in values):
        remedy = "Without `y` ART uses the prediction: give y=estimator.predict_masks(x)."
    elif task.kind == "multiclass":
        remedy = f"The model has {last + 1} classes."
    else:
        remedy = "Split labels with several values into one mask for each class."
    return f"y: expected {what}{also}, got {shown}. {remedy}"
