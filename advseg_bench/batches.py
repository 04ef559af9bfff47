"""Batches: how to make one, parts of them, and what is wrong with one that a user made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from advseg_bench.arguments import WRONG_SHAPE, make_bounds, make_task, read_images, read_labels, read_tensor
from advseg_bench.errors import DataError, SpecError, expected
from advseg_bench.types import Bounds, Task, TaskKind


@dataclass(frozen=True, slots=True, eq=False)
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

    Example:
        >>> batch = Batch.of(torch.rand(2, 1, 8, 8), torch.zeros(2, 8, 8), task="binary")
        >>> batch.y.dtype, tuple(batch.y.shape), batch.images
        (torch.bool, (2, 1, 8, 8), ('image0', 'image1'))
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

    @classmethod
    def of(
        cls,
        x: Any,
        y: Any,
        *,
        task: Task | TaskKind,
        classes: int | Sequence[str] | None = None,
        valid: Any = None,
        ignore: int | None = None,
        bounds: Bounds | Sequence[float] = (0.0, 1.0),
        images: Sequence[str] | None = None,
        subjects: Sequence[str] | None = None,
        blocks: Sequence[str] | None = None,
        spacing: Sequence[Sequence[float]] | None = None,
    ) -> Batch:
        """Make a batch of images and labels, and fill what can be filled.

        Args:
            x: Images (N, C, *S) of floating point numbers inside `bounds`, a tensor or an array; 2-D or 3-D.
            y: Labels of any type. For a binary task 0 and 1, (N, *S) or (N, 1, *S); for a multilabel one 0 and 1,
                (N, K, *S); for a multiclass one 0 to K - 1, (N, *S) or (N, 1, *S).
            task: "binary", "multilabel", "multiclass", or a whole `Task`.
            classes: How many classes, or their names; for a multiclass task it must be said, with the background first.
            valid: (N, *S), false where a pixel counts in no loss and in no score; everything counts by default.
            ignore: Label value of further pixels that do not count, such as 255.
            bounds: Smallest and largest intensity of an image.
            images: N names; by default image0, image1, ...
            subjects: N names of the persons shown; by default each image shows its own.
            blocks: N names of the runs of neighbouring images; by default the subjects.
            spacing: Edge lengths of a pixel in mm, for each image; unknown by default.
        Raises:
            SpecError: a task or bounds that do not exist.
            DataError: one line about shapes, types or values of images and labels.
        """
        images_of = read_images("x", x)
        labels = read_tensor("y", y).to(images_of.device)
        n, _, *space = images_of.shape
        kind = task.kind if isinstance(task, Task) else task
        if kind != "multilabel" and labels.dim() == images_of.dim() - 1:
            labels = labels.unsqueeze(1)
        if classes is None and kind == "multilabel" and not isinstance(task, Task) and labels.dim() > 1:
            classes = labels.shape[1]
        known = make_task("task", task, classes)
        wanted = (n, len(known.classes) if kind == "multilabel" else 1, *space)
        if tuple(labels.shape) != wanted:
            found = f"x {tuple(images_of.shape)} and y {tuple(read_tensor('y', y).shape)}"
            raise DataError(f"batch: expected {kind} labels {wanted} for images (N, C, *S), got {found}. {WRONG_SHAPE}")
        if ignore is not None and not isinstance(ignore, int):
            raise SpecError(expected("ignore", "one label value, such as 255", ignore))
        read = [read_labels(f"y[{i}]", label, space, known, ignore) for i, label in enumerate(labels)]
        counts = torch.stack([part for _, part in read])
        if valid is not None:
            given = read_tensor("valid", valid).to(images_of.device)
            given = given.squeeze(1) if given.dim() == images_of.dim() and given.shape[1] == 1 else given
            if given.shape != counts.shape:
                raise DataError(expected("valid", f"one value a pixel, {tuple(counts.shape)}", tuple(given.shape)))
            counts &= given.to(torch.bool)
        names = tuple(images) if images is not None else tuple(f"image{i}" for i in range(n))
        people = tuple(subjects) if subjects is not None else names
        unknown_spacing = ((math.nan,) * len(space),) * n
        batch = cls(
            x=images_of,
            y=torch.stack([label for label, _ in read]),
            valid=counts,
            task=known,
            bounds=make_bounds("bounds", bounds),
            images=names,
            subjects=people,
            blocks=tuple(blocks) if blocks is not None else people,
            spacing=_read_spacing(spacing, len(space)) if spacing is not None else unknown_spacing,
        )
        for name in ("images", "subjects", "blocks", "spacing"):
            if len(getattr(batch, name)) != n:
                raise DataError(expected(name, f"one for each of {n} images", len(getattr(batch, name))))
        if len(set(names)) < n:
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(expected("images", "a name of its own for each image", twice))
        check_batch(batch, "batch")
        return batch


def _read_spacing(spacing: Sequence[Sequence[float]], axes: int) -> tuple[tuple[float, ...], ...]:
    """Edge lengths of each image's pixels."""
    told = tuple(tuple(edges) if isinstance(edges, Sequence) else (edges,) for edges in spacing)
    if any(len(edges) != axes for edges in told):
        raise DataError(expected("spacing", f"{axes} edge lengths for each image", spacing))
    return told


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

    Raises:
        DataError: Shape or dtype of a part, labels that are no class, intensities outside the bounds.
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
        what = f"expected intensities from {batch.bounds.lower:g} to {batch.bounds.upper:g}"
        remedy = "Clip roundings, put the normalisation into the model, or give the images' own bounds."
        raise DataError(f"{where}: x: {what}, got {low:.8g} to {high:.8g}. {remedy}")


def _form(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
