"""Batches: parts of them, and what is wrong with one that a user made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advseg_bench.errors import DataError, expected
from advseg_bench.types import Bounds, Task


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their labels and everything an attack or a metric must know about them.

    Attributes:
        x: Images, float32, shape (N, C, *S), inside `bounds`.
        y: Labels; bool (N, K, *S) for binary (K = 1) and multilabel, int64 (N, *S) for multiclass.
        valid: bool (N, *S); a pixel that is False counts in no loss and in no score.
        task: What the labels mean.
        bounds: Intensities an adversarial image must stay inside.
        images: N identifiers, unique in the data set.
        subjects: N identifiers of the person (or phantom case) each image shows: the unit of statistics.
        blocks: N identifiers of the run of neighbouring images (day, scan, slab) each image belongs to.
        spacing: N tuples, the edge lengths of a pixel in mm, in the order of the space axes; NaN if unknown.
    """

    x: Tensor
    y: Tensor
    valid: Tensor
    task: Task
    bounds: Bounds
    images: tuple[str, ...]
    subjects: tuple[str, ...]
    blocks: tuple[str, ...]
    spacing: tuple[tuple[float, ...], ...]


def select_images(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return some images of a batch, in the given order, with all that belongs to them."""
    rows = torch.as_tensor(list(indices), device=batch.x.device)
    return replace(
        batch,
        x=batch.x[rows],
        y=batch.y[rows],
        valid=batch.valid[rows],
        images=tuple(batch.images[i] for i in indices),
        subjects=tuple(batch.subjects[i] for i in indices),
        blocks=tuple(batch.blocks[i] for i in indices),
        spacing=tuple(batch.spacing[i] for i in indices),
    )


def copy_batch(batch: Batch) -> Batch:
    """Return a batch that shares no memory with the other."""
    return replace(batch, x=batch.x.clone(), y=batch.y.clone(), valid=batch.valid.clone())


def move_batch(batch: Batch, device: str | torch.device) -> Batch:
    """Return the batch on a device."""
    return replace(batch, x=batch.x.to(device), y=batch.y.to(device), valid=batch.valid.to(device))


def check_batch(batch: Batch, where: str) -> None:
    """Check that images, labels and valid pixels are of the form that `Batch` documents.

    Args:
        batch: Made by a user.
        where: Put before every message.
    Raises: DataError: shape or dtype of a part, labels that are no class, intensities outside the bounds.
    """
    n, _, *space = batch.x.shape if batch.x.dim() > 2 else (0, 0)
    classes, kind = len(batch.task.classes), batch.task.kind
    wanted = (n, *space) if kind == "multiclass" else (n, classes, *space)
    dtype = torch.int64 if kind == "multiclass" else torch.bool
    if batch.x.dim() < 3 or batch.x.dtype != torch.float32 or not n:
        remedy = "Use `x.float()`."
        raise DataError(expected(f"{where}: x", "float32 images (N, C, *S)", _form(batch.x), remedy))
    if batch.y.dtype != dtype or tuple(batch.y.shape) != wanted:
        remedy = "Use class numbers." if kind == "multiclass" else "Use a mask per class, such as `y > 0`."
        raise DataError(expected(f"{where}: y", f"{dtype} {wanted} for a {kind} task", _form(batch.y), remedy))
    if batch.valid.dtype != torch.bool or tuple(batch.valid.shape) != (n, *space):
        raise DataError(expected(f"{where}: valid", f"torch.bool {(n, *space)}", _form(batch.valid)))
    if kind == "multiclass" and ((batch.y < 0) | (batch.y >= classes))[batch.valid].any():
        found = sorted(set(batch.y[batch.valid].tolist()) - set(range(classes)))[:5]
        remedy = "Put `valid` to False where a label is to be ignored, such as 255."
        raise DataError(expected(f"{where}: y", f"labels from 0 to {classes - 1}", found, remedy))
    low, high = float(batch.x.amin()), float(batch.x.amax())
    if not (batch.bounds.lower <= low and high <= batch.bounds.upper):
        what = f"intensities from {batch.bounds.lower:g} to {batch.bounds.upper:g}"
        remedy = "Put the normalisation into the model, or give the images' own bounds."
        raise DataError(expected(f"{where}: x", what, (round(low, 4), round(high, 4)), remedy))


def _form(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
