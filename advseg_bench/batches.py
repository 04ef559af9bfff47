"""Batches: construction, selection and validation."""

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
    """Images with their labels and all metadata that attacks and metrics need.

    `Batch.of` makes one from images and labels.

    Attributes:
        x: Images, float32 (N, C, *S), inside `bounds`.
        y: Labels; bool (N, K, *S) for binary (K = 1) and multilabel, int64 (N, *S) for multiclass.
        valid: bool (N, *S); pixels that are False are excluded from losses and scores.
        task: What the labels mean.
        bounds: Valid intensity range of clean and adversarial images.
        images: N identifiers, unique in the data set.
        subjects: N identifiers of the patient (or phantom case) of each image: the unit of statistics.
        blocks: N identifiers of the scan (volume) of each image: images of one subject acquired together.
        spacing: N tuples with the pixel size in mm along each spatial axis; NaN if unknown.

    Example:
        >>> import torch
        >>> import advseg_bench as ab
        >>> batch = ab.Batch.of(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8), task="binary")
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
        """Make a batch from images and labels, with defaults for everything else.

        Args:
            x: Floating-point images (N, C, *S) inside `bounds`, a tensor or an array; 2-D or 3-D.
            y: Labels of any dtype. Binary: 0 and 1, (N, *S) or (N, 1, *S). Multilabel: 0 and 1, (N, K, *S).
                Multiclass: 0 to K - 1, (N, *S) or (N, 1, *S).
            task: "binary", "multilabel", "multiclass", or a `Task`.
            classes: The number of classes, or their names. Required for a multiclass task, background first.
            valid: (N, *S), False at pixels to exclude from losses and scores; by default all pixels are valid.
            ignore: Label value of further pixels to exclude, such as 255.
            bounds: Smallest and largest valid intensity.
            images: N unique names; by default image0, image1, ...
            subjects: N names of patients; by default every image is a subject.
            blocks: N names of scans; by default the subjects.
            spacing: Pixel size in mm along each spatial axis, for each image; unknown by default.

        Returns:
            The batch, on the device of `x`.

        Raises:
            SpecError: The task type, the classes, the bounds or `ignore` is invalid.
            DataError: A shape, dtype or value of images, labels or names is invalid.

        Example:
            >>> import torch
            >>> import advseg_bench as ab
            >>> y = torch.tensor([[[0, 1], [2, 255]]])
            >>> batch = ab.Batch.of(torch.zeros(1, 1, 2, 2), y, task="multiclass", classes=3, ignore=255)
            >>> int(batch.valid.sum())
            3
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
                raise DataError(expected("valid", f"one value per pixel, {tuple(counts.shape)}", tuple(given.shape)))
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
            raise DataError(expected("images", "a unique name for each image", twice))
        check_batch(batch, "batch")
        return batch


def _read_spacing(spacing: Sequence[Sequence[float]], axes: int) -> tuple[tuple[float, ...], ...]:
    """Return the pixel sizes of each image."""
    read = tuple(tuple(edges) if isinstance(edges, Sequence) else (edges,) for edges in spacing)
    if any(len(edges) != axes for edges in read):
        raise DataError(expected("spacing", f"{axes} edge lengths for each image", spacing))
    return read


def select_images(batch: Batch, indices: Sequence[int]) -> Batch:
    """Return some images of a batch in the given order, with their labels and metadata."""
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
    """Return a copy of a batch that shares no memory with it."""
    return replace(batch, x=batch.x.clone(), y=batch.y.clone(), valid=batch.valid.clone())


def move_batch(batch: Batch, device: str | torch.device) -> Batch:
    """Return the batch on a device."""
    return replace(batch, x=batch.x.to(device), y=batch.y.to(device), valid=batch.valid.to(device))


def check_batch(batch: Batch, where: str) -> None:
    """Check that images, labels and valid pixels have the form that `Batch` documents.

    Args:
        batch: Any batch.
        where: Prefix of every message.

    Raises:
        DataError: A shape or dtype is wrong, a label is not a class, or an intensity is outside the bounds.
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
        remedy = "Set `valid` to False at ignored labels, such as 255."
        raise DataError(expected(f"{where}: y", f"labels from 0 to {classes - 1}", found, remedy))
    low, high = float(batch.x.amin()), float(batch.x.amax())
    if not (batch.bounds.lower <= low and high <= batch.bounds.upper):
        what = f"expected intensities from {batch.bounds.lower:g} to {batch.bounds.upper:g}"
        remedy = "Clip rounding errors, move the normalisation into the model, or pass the bounds of the images."
        raise DataError(f"{where}: x: {what}, got {low:.8g} to {high:.8g}. {remedy}")


def _form(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
