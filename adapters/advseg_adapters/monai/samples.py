"""What a dictionary transform reads: tasks and budgets from arguments, images and labels from samples; all checked."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import cast

import torch
from monai.utils.type_conversion import convert_to_tensor
from torch import Tensor

from advseg_bench.errors import DataError, SpecError, expected, unknown
from advseg_bench.registry.catalogue import ALL_KINDS
from advseg_bench.types import Bounds, Budget, Norm, Task, TaskKind

MASK = Task("binary", ("valid",))
"""What a mask of valid pixels is read as."""


def make_task(where: str, kind: TaskKind, num_classes: int | None) -> Task:
    """Return a task whose classes have numbers for names.

    Raises: SpecError: if there is no such kind, or the number does not fit it.
    """
    if kind not in ALL_KINDS:
        raise SpecError(unknown(where, "task", kind, ALL_KINDS))
    if num_classes is None and kind == "binary":
        num_classes = 1
    wanted = {"binary": "1", "multilabel": "1 or more", "multiclass": "2 or more (the background is one)"}[kind]
    least = 2 if kind == "multiclass" else 1
    if num_classes is None or num_classes < least or (kind == "binary" and num_classes > 1):
        raise SpecError(expected(where, f"{wanted} as `num_classes` of a {kind} task", num_classes))
    return Task(kind, tuple(f"class{k}" for k in range(num_classes)))


def make_bounds(where: str, bounds: Sequence[float]) -> Bounds:
    """Return bounds. Raises: SpecError: if they are not a smaller and a larger number."""
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise SpecError(expected(where, "a smaller and a larger number as `bounds`", bounds))
    return Bounds(*bounds)


def make_budget(where: str, norm: Norm, eps: float, bounds: Bounds) -> Budget:
    """Return a budget. Raises: SpecError: if it makes no sense for images inside the bounds."""
    if norm not in ("linf", "l2"):
        raise SpecError(unknown(where, "norm", norm, ("linf", "l2")))
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not (math.isfinite(eps) and eps >= 0):
        raise SpecError(expected(where, "a finite number of at least 0 as `eps`", eps))
    width = bounds.upper - bounds.lower
    if norm == "linf" and eps >= width:
        what = f"an L_inf `eps` below {width:g}, in units of the image"
        raise SpecError(expected(where, what, eps, "For 4 of 255 grey levels write 4/255."))
    return Budget(norm, float(eps))


def find(where: str, sample: Mapping[Hashable, object], key: Hashable, name: str) -> Tensor:
    """Return what a sample holds under a key, as a plain tensor. Raises: DataError: if it holds nothing there."""
    if key not in sample:
        raise DataError(expected(where, f"a sample with {key!r}", [*sample], f"Set `{name}`."))
    return cast(Tensor, convert_to_tensor(sample[key], track_meta=False))


def check_image(where: str, image: Tensor, bounds: Bounds) -> None:
    """Refuse an image that no budget in units of the image could speak of.

    Raises: DataError: if it is not float32 (C, *S) inside the bounds.
    """
    if image.dtype != torch.float32:
        remedy = "Scale it to the bounds (ScaleIntensityRanged) and cast it (EnsureTyped) before."
        raise DataError(expected(where, "a float32 image", str(image.dtype), remedy))
    if image.dim() < 2 or image.numel() == 0:
        raise DataError(expected(where, "an image of shape (C, *S)", tuple(image.shape), "Use EnsureChannelFirstd."))
    low, high = float(image.min()), float(image.max())
    if not (bounds.lower <= low and high <= bounds.upper):  # NaN is neither
        remedy = "Scale it before, as with ScaleIntensityRanged(clip=True), or give other `bounds`."
        what = f"intensities from {bounds.lower:g} to {bounds.upper:g}"
        raise DataError(f"{where}: expected {what}, got {low:g} to {high:g}. {remedy}")


def read_labels(
    where: str, labels: Tensor, space: Sequence[int], task: Task, ignore: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the labels of one image in the form of `Batch`, without its first axis, and its valid pixels.

    Args:
        where: Put before every message.
        labels: Any type; 0 and 1, shape (K, *S), or for a multiclass task 0 to K - 1, shape (1, *S).
        space: Edges of the image.
        task: What the labels mean.
        ignore: Value of pixels that do not count, in any channel.
    Returns: bool (K, *S), or int64 (*S) for a multiclass task; and bool (*S).
    Raises: DataError: if shape or values are others.
    """
    shape = (1 if task.kind == "multiclass" else len(task.classes), *space)
    if tuple(labels.shape) != shape:
        remedy = "Use EnsureChannelFirstd, or AsDiscreted where there is a channel a class, or none."
        raise DataError(expected(where, f"a {task.kind} label of shape {shape}", tuple(labels.shape), remedy))
    void = torch.zeros_like(labels, dtype=torch.bool) if ignore is None else labels == ignore
    allowed = range(len(task.classes) if task.kind == "multiclass" else 2)
    known = void.clone()
    for value in allowed:
        known |= labels == value
    if not bool(known.all()):
        found = sorted(set(labels[~known].flatten()[:1000].tolist()))
        shown = ", ".join(f"{float(value):g}" for value in found[:3]) + (", ..." if len(found) > 3 else "")
        what = " and ".join(map(str, allowed)) if len(allowed) == 2 else f"0 to {len(allowed) - 1}"
        remedy = "Map its values (MapLabelValued, AsDiscreted), or name one that marks pixels of no class as `ignore`."
        raise DataError(f"{where}: expected labels {what}, got {shown}. {remedy}")
    labels = torch.where(void, torch.zeros_like(labels), labels)
    y = labels[0].to(torch.int64) if task.kind == "multiclass" else labels.to(torch.bool)
    return y, ~void.any(0)
