"""Images in memory: what a data loader, a data set of torch or MONAI, or a list of batches yields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advseg_bench.arguments import make_bounds, make_task, read_tensor
from advseg_bench.batches import Batch
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.errors import DataError, SpecError, UserError, expected
from advseg_bench.types import Bounds, Task, TaskKind

NOTE = "Each image counts as a subject of its own, because no subjects were given."
IN_MEMORY = "in-memory"
"""What tables call a data set that was in memory."""


def read_images(
    data: Iterable[Any],
    *,
    task: Task | TaskKind | None = None,
    classes: int | Sequence[str] | None = None,
    ignore: int | None = None,
    bounds: Bounds | Sequence[float] | None = None,
    keys: Sequence[str] = ("image", "label"),
    subject_key: str | None = None,
) -> Batch:
    """Read everything that a loader, a data set or an iterable yields into one batch on the CPU.

    Args:
        data: A data loader, whose items are batches; a data set of torch or MONAI, whose items are single images; or
            any iterable of batches. An item is an `ab.Batch`, a tuple (images, labels), or a dictionary.
        task: As for `Batch.of`; left out where items are `ab.Batch`.
        classes: As for `Batch.of`.
        ignore: As for `Batch.of`.
        bounds: As for `Batch.of`; from 0 to 1 by default.
        keys: Of images and labels in dictionaries.
        subject_key: Of the person that each image shows; by default each image shows its own.

    Raises:
        DataError: One line about items, images or labels that do not fit.
        SpecError: One line about items, images or labels that do not fit.
    """
    if isinstance(data, Batch):
        data = [data]
    if len(keys) != 2:
        raise SpecError(expected("evaluate", "two `keys`, of images and of labels", keys))
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, (Iterable, torch.utils.data.Dataset)):
        what = "a data loader, a data set of torch or MONAI, or a list of ab.Batch"
        raise DataError(expected("evaluate", what, type(data).__name__))
    found: list[Batch] = []
    for index, (item, single) in enumerate(_items(data)):
        if isinstance(item, Batch):
            told = {"task": task, "classes": classes, "ignore": ignore, "bounds": bounds, "subject_key": subject_key}
            if given := next((name for name, value in told.items() if value is not None), None):
                raise SpecError(expected("evaluate", f"no `{given}` beside ab.Batch items", told[given], "Remove it."))
            found.append(item)
            continue
        if task is None:
            remedy = 'Say what the labels mean, such as task="multilabel".'
            raise SpecError(expected("evaluate", "a `task`, since the data are no ab.Batch", None, remedy))
        known: Task | TaskKind = task if classes is None else make_task("evaluate", task, classes)
        try:
            x, y, subjects = _take_apart(item, keys, subject_key, single)
            start = sum(len(batch.x) for batch in found)
            found.append(
                Batch.of(
                    x,
                    y,
                    task=found[0].task if found else known,
                    ignore=ignore,
                    bounds=make_bounds("evaluate", (0.0, 1.0) if bounds is None else bounds),
                    images=[f"image{start + i}" for i in range(len(x))],
                    subjects=subjects,
                )
            )
        except UserError as error:
            raise type(error)(f"evaluate: item {index}: {error}") from None
    if not found:
        raise DataError(expected("evaluate", "data with at least one image", "none"))
    return _join(found)


def _items(data: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Items of the data, and whether each is a single image rather than a batch."""
    single = isinstance(data, torch.utils.data.Dataset)
    if isinstance(data, torch.utils.data.Dataset) and isinstance(data, Sized):
        yield from ((data[i], True) for i in range(len(data)))  # it may have no end for an iterator to stop at
        return
    yield from ((item, single) for item in data)


def _take_apart(
    item: Any, keys: Sequence[str], subject_key: str | None, single: bool
) -> tuple[Tensor, Tensor, list[str] | None]:
    """Images, labels and subjects of one item, as a batch."""
    subjects: Any = None
    if isinstance(item, Mapping):
        wanted = [*keys, *([subject_key] if subject_key else [])]
        missing = [key for key in wanted if key not in item]
        if missing:
            remedy = "Name them with `keys` and `subject_key`."
            raise DataError(expected("keys", f"the keys {', '.join(map(repr, wanted))}", sorted(item), remedy))
        x, y = item[keys[0]], item[keys[1]]
        subjects = item[subject_key] if subject_key else None
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        x, y = item[0], item[1]
        if subject_key is not None:
            raise SpecError(expected("subject_key", "a dictionary where there is a `subject_key`", type(item).__name__))
    else:
        what = "items that are an ab.Batch, a tuple (images, labels) or a dictionary"
        raise DataError(expected("data", what, type(item).__name__))
    x, y = read_tensor("x", x), read_tensor("y", y)
    if single:
        x, y, subjects = x[None], y[None], None if subjects is None else [subjects]
    if isinstance(subjects, Tensor):
        subjects = subjects.tolist()
    return x, y, None if subjects is None else [str(subject) for subject in subjects]


def _join(batches: Sequence[Batch]) -> Batch:
    """One batch of several of the same form."""
    first = batches[0]
    for other in batches[1:]:
        same = (other.task, other.bounds, other.x.shape[1:]) == (first.task, first.bounds, first.x.shape[1:])
        if not same:
            remedy = "Resize or pad them, and give one task and one pair of bounds."
            wanted, got = (
                f"{b.task.kind} images {tuple(b.x.shape[1:])} in [{b.bounds.lower:g}, {b.bounds.upper:g}]"
                for b in (first, other)
            )
            raise DataError(expected("evaluate", f"{wanted} throughout", got, remedy))
    joined = Batch(
        x=torch.cat([batch.x.cpu() for batch in batches]),
        y=torch.cat([batch.y.cpu() for batch in batches]),
        valid=torch.cat([batch.valid.cpu() for batch in batches]),
        task=first.task,
        bounds=first.bounds,
        images=tuple(name for batch in batches for name in batch.images),
        subjects=tuple(name for batch in batches for name in batch.subjects),
        blocks=tuple(name for batch in batches for name in batch.blocks),
        spacing=tuple(edges for batch in batches for edges in batch.spacing),
    )
    if len(set(joined.images)) < len(joined.images):
        twice = next(name for name in joined.images if joined.images.count(name) > 1)
        raise DataError(expected("evaluate", "a name of its own for each image", twice, "Rename the images."))
    return joined


def make_dataset(images: Batch) -> Dataset:
    """Return a batch as a data set, all of it for test."""
    x, y, valid = images.x.numpy(), images.y.numpy(), images.valid.numpy()
    digest = hashlib.sha256()
    for part in (x, y, valid):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(repr((images.task, images.bounds, images.images, images.subjects)).encode())
    parts = zip(images.images, images.subjects, images.blocks, images.spacing, strict=True)
    return Dataset(
        name=IN_MEMORY,
        task=images.task,
        cases=[Case(image, subject, block, spacing, "test") for image, subject, block, spacing in parts],
        read=lambda i: Sample(x[i], y[i], valid[i]),
        fingerprint=digest.hexdigest(),
        note=NOTE if images.subjects == images.images else "",
        bounds=images.bounds,
    )
