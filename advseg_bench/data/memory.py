"""Images in memory, from a data loader, a data set of torch or MONAI, or a list of batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advseg_bench.arguments import make_bounds, make_task, read_tensor
from advseg_bench.batches import Batch
from advseg_bench.data.dataset import Case, Dataset, Sample
from advseg_bench.errors import DataError, SpecError, UserError, expected, one_line
from advseg_bench.types import Bounds, Task, TaskKind

NOTE = "Each image counts as a separate subject, because no subjects were given."
IN_MEMORY = "in-memory"
"""The name of such a data set in tables."""


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
    """Read all images of a loader, a data set or an iterable into one batch on the CPU.

    Args:
        data: A data loader, whose items are batches; a data set of torch or MONAI, whose items are single images; or
            any iterable of batches. An item is an `ab.Batch`, a tuple (images, labels), or a dictionary.
        task: As for `Batch.of`; must be left out if items are `ab.Batch`.
        classes: As for `Batch.of`.
        ignore: As for `Batch.of`.
        bounds: As for `Batch.of`; from 0 to 1 by default.
        keys: Keys of images and labels, for items that are dictionaries.
        subject_key: Key of the subject that each image shows; by default each image is a separate subject.

    Returns:
        All images, in order.

    Raises:
        DataError: If there are no images, or an item, an image or a label has the wrong form.
        SpecError: If an argument is missing, has a wrong value, or does not fit the items.
    """
    if isinstance(data, Batch):
        data = [data]
    if len(keys) != 2:
        remedy = 'Give both, such as keys=("image", "label").'
        raise SpecError(expected("evaluate", "two `keys`, of images and of labels", keys, remedy))
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, (Iterable, torch.utils.data.Dataset)):
        what = "a data loader, a data set of torch or MONAI, or a list of ab.Batch"
        raise DataError(expected("evaluate", what, type(data).__name__, "Pass the images with their labels."))
    found: list[Batch] = []
    for index, (item, single) in enumerate(_items(data)):
        if isinstance(item, Batch):
            given = {"task": task, "classes": classes, "ignore": ignore, "bounds": bounds, "subject_key": subject_key}
            if extra := next((name for name, value in given.items() if value is not None), None):
                raise SpecError(expected("evaluate", f"no `{extra}` beside ab.Batch items", given[extra], "Remove it."))
            found.append(item)
            continue
        if task is None:
            remedy = 'Give the task type, such as task="multilabel".'
            raise SpecError(expected("evaluate", "a `task`, since the items are not ab.Batch", None, remedy))
        known: Task | TaskKind = task if classes is None else make_task("evaluate", task, classes)
        try:
            x, y, subjects = _take_apart(item, keys, subject_key, single)
            if isinstance(data, (list, tuple)) and x.dim() in (2, 3):
                remedy = "A list holds batches. For single images pass a data set, such as monai.data.Dataset(items)."
                raise DataError(expected("x", "a batch of images (N, C, *S)", tuple(x.shape), remedy))
            start = sum(len(batch.x) for batch in found)
            found.append(
                Batch.of(
                    x,
                    y,
                    task=found[0].task if found else known,
                    ignore=ignore,
                    bounds=make_bounds("evaluate", (0.0, 1.0) if bounds is None else bounds),
                    images=[f"image{start + i}" for i in range(x.shape[0] if x.dim() else 0)],
                    subjects=subjects,
                )
            )
        except UserError as error:
            raise type(error)(f"evaluate: item {index}: {error}") from None
    if not found:
        raise DataError(expected("evaluate", "data with at least one image", "none", "Check the data loader."))
    return _join(found)


def _items(data: Iterable[Any]) -> Iterator[tuple[Any, bool]]:
    """Items of the data, and whether each is a single image rather than a batch."""
    single = isinstance(data, torch.utils.data.Dataset)
    if isinstance(data, torch.utils.data.Dataset) and isinstance(data, Sized):
        yield from ((_fetch(i, data.__getitem__, i), True) for i in range(len(data)))  # iterating may never stop
        return
    items = _fetch(0, iter, data)
    end = object()
    for index in count():
        if (item := _fetch(index, next, items, end)) is end:
            return
        yield item, single


def _fetch(index: int, get: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's data set or data loader.

    Raises:
        DataError: It fails.
    """
    try:
        return get(*arguments)
    except UserError:
        raise
    except Exception as error:
        cause = one_line(error)
        remedy = "Correct the data set or the data loader"
        if "negative" in cause and "stride" in cause:
            remedy = "Copy flipped arrays, with `array.copy()`, before they become tensors"
        raise DataError(f"evaluate: item {index}: expected an item of `data`, got {cause}. {remedy}.") from error


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
            raise DataError(
                expected("keys", f"the keys {', '.join(map(repr, wanted))}", sorted(map(str, item)), remedy)
            )
        x, y = item[keys[0]], item[keys[1]]
        subjects = item[subject_key] if subject_key else None
    elif isinstance(item, (tuple, list)) and len(item) >= 2:
        x, y = item[0], item[1]
        if subject_key is not None:
            raise SpecError(expected("subject_key", "items that are dictionaries", type(item).__name__, "Remove it."))
    else:
        what = "items that are an ab.Batch, a tuple (images, labels) or a dictionary"
        raise DataError(expected("data", what, type(item).__name__, "Change what the data set returns."))
    x, y = read_tensor("x", x), read_tensor("y", y)
    if single:
        x, y, subjects = x[None], y[None], None if subjects is None else [subjects]
    if isinstance(subjects, Tensor):
        subjects = subjects.tolist()
    return x, y, None if subjects is None else [str(subject) for subject in subjects]


def _join(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches of one task, one range of intensities and one image size."""
    first = batches[0]
    for other in batches[1:]:
        same = (other.task, other.bounds, other.x.shape[1:]) == (first.task, first.bounds, first.x.shape[1:])
        if not same:
            remedy = "Resize or pad the images, and use one task and one pair of bounds."
            wanted, got = (
                f"{b.task.kind} images {tuple(b.x.shape[1:])} in [{b.bounds.lower:g}, {b.bounds.upper:g}]"
                for b in (first, other)
            )
            raise DataError(expected("evaluate", f"only {wanted}", got, remedy))
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
        raise DataError(expected("evaluate", "a unique name for each image", f"{twice} twice", "Rename the images."))
    return joined


def make_dataset(images: Batch) -> Dataset:
    """Return a batch as a data set; all of its images belong to the test split."""
    x, y, valid = images.x.detach().numpy(), images.y.numpy(), images.valid.numpy()
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
        by_image=images.subjects == images.images,
        bounds=images.bounds,
    )
