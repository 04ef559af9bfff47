"""The one form every data set takes: a list of cases and a function that reads one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from advseg_bench.batches import Batch
from advseg_bench.instruments.profiling import timed
from advseg_bench.types import Bounds, Task

KEPT_BYTES = 2**30
UNIT = Bounds(0.0, 1.0)
PREPROCESSED, STORED = "preprocessed tensor", "stored image"
"""The attack space: what an attack changes, scaled intensities or those of the files."""

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Case:
    """One image of a data set: its name, subject and scan, and the split it belongs to."""

    image: str
    """Name, unique in the data set."""

    subject: str
    """The patient that the image shows."""

    block: str
    """The scan or volume that the image is part of."""

    spacing: tuple[float, ...]
    """Edge lengths of a pixel in mm, one for each space axis; NaN where unknown."""

    split: Split
    """Training, validation or test."""


class Sample(NamedTuple):
    """One image in memory.

    Attributes:
        image: float32 (C, *S) within the bounds of its data set; S is (H, W), or (D, H, W) for a volume.
        label: bool (K, *S) for binary and multilabel, int64 (*S) for multiclass.
        valid: bool (*S).
    """

    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray


class Dataset:
    """Cases with a reader; images are read when they are used, and a cache of 1 GiB keeps the recent ones.

    Args:
        name: Shown in tables.
        task: What the labels mean.
        cases: Every image of the data set, in a fixed order.
        read: Index into `cases` -> `Sample`.
        fingerprint: Changes whenever any image, label, split or preparation changes.
        note: What a reader of the report must know about the data, or "".
        bounds: Smallest and largest intensity of an image.
        channels: Names of the channels of an image; empty if unknown.
        record: How intensities and axes of the files became those of the images, as JSON values.
        title: What the data are called where `name` is that of a format: by their own description, or their folder.
        by_image: Whether no subjects were given, so that each image counts by itself.
    """

    def __init__(
        self,
        *,
        name: str,
        task: Task,
        cases: Sequence[Case],
        read: Callable[[int], Sample],
        fingerprint: str,
        note: str = "",
        bounds: Bounds = UNIT,
        channels: Sequence[str] = (),
        record: Mapping[str, Any] | None = None,
        title: str = "",
        by_image: bool = False,
    ) -> None:
        self.name = name
        self.task = task
        self.cases = tuple(cases)
        self.fingerprint = fingerprint
        self.note = note
        self.bounds = bounds
        self.channels = tuple(channels)
        self.title, self.by_image = title, by_image
        self.record = {"bounds": [bounds.lower, bounds.upper], "attack_space": PREPROCESSED} | dict(record or {})
        kept = KEPT_BYTES // max(1, sum(array.nbytes for array in read(0)))
        self.read = lru_cache(maxsize=kept)(read)

    def split(self, name: Split) -> tuple[int, ...]:
        """Return the indices of the cases of one split, in order.

        Args:
            name: "train", "validation" or "test".

        Returns:
            Indices into `cases`, ascending.
        """
        return tuple(i for i, case in enumerate(self.cases) if case.split == name)

    def describe(self) -> dict[str, Any]:
        """Return the description of the data set that a run stores, as JSON values."""
        return {
            "name": self.name,
            "note": self.note,
            "fingerprint": self.fingerprint,
            "kind": self.task.kind,
            "classes": list(self.task.classes),
            "splits": {name: len(self.split(name)) for name in get_args(Split)},
            "subjects": {"test": len({self.cases[i].subject for i in self.split("test")})},
            "channels": list(self.channels),
            **({"title": self.title} if self.title else {}),
            **({"by_image": True} if self.by_image else {}),
            **self.record,
        }

    @timed("data")
    def batch(self, indices: Sequence[int]) -> Batch:
        """Read some cases, all of one size, into a `Batch` on the CPU.

        Args:
            indices: Indices into `cases`.

        Returns:
            Images float32 (N, C, *S), with labels, valid pixels and names.

        Raises:
            DataError: If a file is damaged.
        """
        samples = [self.read(i) for i in indices]
        cases = [self.cases[i] for i in indices]
        return Batch(
            x=torch.from_numpy(np.stack([s.image for s in samples])),
            y=torch.from_numpy(np.stack([s.label for s in samples])),
            valid=torch.from_numpy(np.stack([s.valid for s in samples])),
            task=self.task,
            bounds=self.bounds,
            images=tuple(c.image for c in cases),
            subjects=tuple(c.subject for c in cases),
            blocks=tuple(c.block for c in cases),
            spacing=tuple(c.spacing for c in cases),
        )
