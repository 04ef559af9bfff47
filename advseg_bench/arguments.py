"""Parse user arguments: tasks, bounds, budgets, images and labels; an invalid one raises a one-line error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from advseg_bench.errors import DataError, SpecError, expected, one_line, unknown
from advseg_bench.types import Bounds, Budget, Norm, Task, TaskKind

WRONG_SHAPE = "Channels are axis 1: x[:, None] adds the channel axis, x[None] the batch axis."
WRONG_VALUES = "Threshold or renumber them, or pass the value of ignored pixels as `ignore`, such as 255."


def make_task(where: str, task: Task | TaskKind, classes: int | Sequence[str] | None, called: str = "classes") -> Task:
    """Return a task; classes without names get numbered names.

    Args:
        where: Prefix of every message.
        task: A `Task`, or a task type.
        classes: The number of classes, or their names; optional for a binary task.
        called: The caller's name for `classes`.

    Returns:
        The task.

    Raises:
        SpecError: The task type is unknown, or the number of classes does not fit it.
    """
    if isinstance(task, Task):
        if classes is not None and task.classes != tuple(f"{name}" for name in _name(classes)):
            raise SpecError(expected(where, "no `classes` together with a complete Task", classes, "Remove one."))
        return task
    if task not in get_args(TaskKind):
        raise SpecError(unknown(where, "task", str(task), get_args(TaskKind)))
    if isinstance(classes, str) or not isinstance(classes, (int, Sequence, NoneType)):
        raise SpecError(expected(where, f"a number or a list of names as `{called}`", classes))
    if classes is None and task == "binary":
        classes = 1
    wanted = {"binary": "1", "multilabel": "1 or more", "multiclass": "2 or more (the background is one)"}[task]
    names = _name(classes) if classes is not None else ()
    if len(names) < (2 if task == "multiclass" else 1) or (task == "binary" and len(names) > 1):
        first = ", background first" if task == "multiclass" else ""
        remedy = f"Write `{called}=3`, or a list of names{first}." if classes is None else ""
        raise SpecError(expected(where, f"{wanted} as `{called}` of a {task} task", classes, remedy))
    if len(set(names)) < len(names):
        raise SpecError(expected(where, f"distinct names as `{called}`", classes))
    return Task(task, names)


def _name(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes."""
    return tuple(f"class{k}" for k in range(classes)) if isinstance(classes, int) else tuple(classes)


def make_bounds(where: str, bounds: Bounds | Sequence[float]) -> Bounds:
    """Return bounds.

    Raises:
        SpecError: They are not a smaller and a larger number.
    """
    if isinstance(bounds, Bounds):
        return bounds
    numbers = [one for one in bounds if isinstance(one, Real)] if isinstance(bounds, Sequence) else []
    if len(numbers) != 2 or len(bounds) != 2 or not numbers[0] < numbers[1]:
        raise SpecError(expected(where, "a smaller and a larger number as `bounds`", bounds))
    return Bounds(float(numbers[0]), float(numbers[1]))


def make_budget(where: str, norm: Norm, eps: object, bounds: Bounds) -> Budget:
    """Return a budget.

    Raises:
        SpecError: The norm is unknown, or the radius is not valid for images inside the bounds.
    """
    if norm not in get_args(Norm):
        raise SpecError(unknown(where, "norm", str(norm), get_args(Norm)))
    if isinstance(eps, Tensor) and eps.numel() == 1:
        eps = eps.item()
    if isinstance(eps, bool) or not isinstance(eps, Real) or not 0 <= float(eps) < math.inf:
        raise SpecError(expected(where, "a finite number of at least 0 as `eps`, such as 4/255", eps))
    radius, width = float(eps), bounds.upper - bounds.lower
    if norm == "linf" and radius >= width:
        what = f"an L_inf `eps` below {width:g}, in units of the image"
        raise SpecError(expected(where, what, eps, "For 4 of 255 grey levels write 4/255."))
    return Budget(norm, radius)


def read_images(where: str, x: Any) -> Tensor:
    """Return images as a detached float32 tensor.

    Raises:
        DataError: They are not floating point, not finite, or not of shape (N, C, *S).
    """
    images = read_tensor(where, x)
    if not images.is_floating_point():
        remedy = "Scale grey levels to the bounds, such as `x / 255`."
        raise DataError(expected(where, "floating-point images", str(images.dtype), remedy))
    if images.dim() not in (4, 5) or images.numel() == 0:
        remedy = "Add the channel axis with x[:, None], or the batch axis with x[None]."
        raise DataError(expected(where, "2-D or 3-D images of shape (N, C, *S)", tuple(images.shape), remedy))
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise DataError(f"{where}[{int((~finite).nonzero()[0])}]: expected finite intensities, got NaN or infinity.")
    return images.detach().to(torch.float32)


def read_tensor(where: str, values: Any) -> Tensor:
    """Return numbers as a plain tensor.

    Raises:
        DataError: The values are not numbers.
    """
    try:
        if isinstance(values, (list, tuple)) and values and isinstance(values[0], Tensor):
            values = torch.stack(list(values))
        if not isinstance(values, Tensor):
            array = np.asarray(values)
            array = np.asarray(array, array.dtype.newbyteorder("="), order="C")
            values = torch.from_numpy(array if array.flags.writeable else array.copy())
        if values.layout != torch.strided:
            values = values.to_dense()
    except Exception as error:  # conversion runs code of the array's class
        remedy = f"Give a tensor or an array of numbers. ({one_line(error)})"
        raise DataError(expected(where, "numbers", type(values).__name__, remedy)) from None
    plain: Tensor = values.as_subclass(Tensor)
    return plain


def read_labels(
    where: str,
    labels: Tensor,
    space: Sequence[int],
    task: Task,
    ignore: int | None = None,
    *,
    remedies: tuple[str, str] = (WRONG_SHAPE, WRONG_VALUES),
) -> tuple[Tensor, Tensor]:
    """Return the labels of one image in the form of `Batch`, without the batch axis, and its valid pixels.

    Args:
        where: Prefix of every message.
        labels: Any dtype; 0 and 1, shape (K, *S), or for a multiclass task 0 to K - 1, shape (1, *S).
        space: Size of the image, *S.
        task: What the labels mean.
        ignore: Value of ignored pixels, in any channel.
        remedies: Remedies for a wrong shape and for wrong values.

    Returns:
        Labels, bool (K, *S), or int64 (*S) for a multiclass task; and valid pixels, bool (*S).

    Raises:
        DataError: The shape or a value is invalid.
    """
    shape = (1 if task.kind == "multiclass" else len(task.classes), *space)
    if tuple(labels.shape) != shape:
        raise DataError(expected(where, f"a {task.kind} label of shape {shape}", tuple(labels.shape), remedies[0]))
    void = torch.zeros_like(labels, dtype=torch.bool) if ignore is None else labels == ignore
    allowed = range(len(task.classes) if task.kind == "multiclass" else 2)
    known = void.clone()
    for value in allowed:
        known |= labels == value
    if not bool(known.all()):
        found = sorted(set(labels[~known].flatten()[:1000].tolist()))
        shown = ", ".join(f"{float(value):g}" for value in found[:3]) + (", ..." if len(found) > 3 else "")
        what = " and ".join(map(str, allowed)) if len(allowed) == 2 else f"0 to {len(allowed) - 1}"
        raise DataError(f"{where}: expected labels {what}, got {shown}. {remedies[1]}")
    labels = torch.where(void, torch.zeros_like(labels), labels)
    y = labels[0].to(torch.int64) if task.kind == "multiclass" else labels.to(torch.bool)
    return y, ~void.any(0)
