"""The data set `phantom`: a procedural abdominal MRI phantom with large bowel, small bowel and stomach.

Subjects, days and slices are organised as in a radiotherapy data set, so that statistics by subject can be tried on
data whose generation is known completely. The images are synthetic: they support no claim about patients.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from advseg_bench.cache import cache_dir, cache_root, content_hash, sweep, write_bytes
from advseg_bench.cache.digests import seal, unseal
from advseg_bench.cache.lease import LEASE, hold
from advseg_bench.cache.notices import report
from advseg_bench.data.dataset import Case, Dataset, Sample, Split
from advseg_bench.data.phantom.body import ABDOMEN_MM
from advseg_bench.data.phantom.bowel import ORGANS
from advseg_bench.data.phantom.scanner import View, prepare_scan, render_slice
from advseg_bench.data.prepare import fingerprint, prepare, task_for
from advseg_bench.suite.specs import PhantomData
from advseg_bench.suite.specs.data import divide_subjects

GENERATOR_VERSION = "phantom-1"
"""Part of every fingerprint and of every cached file's name: change it when any rendered pixel changes."""

FIELD_MM = 400.0
"""Edge length of the field of view; a pixel is `FIELD_MM / size` wide."""

LOWEST_MM, HIGHEST_MM = -0.25 * ABDOMEN_MM, 1.2 * ABDOMEN_MM
"""Range of heights that a scan covers, from the pelvis to the heart; about a third of it contains no organ."""

BINARY_CLASS = "gi_tract"
"""The class of a binary task: the union of the three organs."""

NOTE = "Procedural phantom; no patient data."


class Stack(NamedTuple):
    """The slices of one scan, from inferior to superior.

    Attributes:
        images: uint16 (slices, H, W), arbitrary units.
        labels: uint8 (slices, H, W); 0, or 1 + index into `ORGANS`.
    """

    images: NDArray[np.uint16]
    labels: NDArray[np.uint8]


def load(spec: PhantomData) -> Dataset:
    """List the phantom's cases; scans are rendered when they are first read, and stored in the cache.

    Subjects are named case01, case02 ..., a scan is case01_day0, a slice case01_day0_slice_0001, counted from inferior
    to superior. The patient's right is on the left of the image, anterior is up. An image is divided by its maximum.
    Splits are by subject.

    Args:
        spec: Size of the population, its seed, and how images and labels are prepared. Multilabel: the three organs
            (which exclude each other in the phantom); multiclass: the same after the background; binary: their union.

    Returns:
        The data set.

    Cost:
        None at load; on first reading, one call of `render_slice` for each slice of the scan.

    Raises:
        RecordError: When a case is read, if the cache cannot be written.
    """
    splits = split_subjects(spec.subjects, spec.seed)
    spacing = tuple(FIELD_MM / edge for edge in spec.edges)
    keys = [
        (subject, day, number)
        for subject in range(1, spec.subjects + 1)
        for day in range(spec.days)
        for number in range(spec.slices)
    ]
    cases = []
    for subject, day, number in keys:
        name = f"case{subject:02d}"
        block = f"{name}_day{day}"
        cases.append(Case(f"{block}_slice_{number + 1:04d}", name, block, spacing, splits[subject - 1]))
    stack = lru_cache(maxsize=64)(lambda subject, day: _fetch_stack(spec, subject, day))

    def read(index: int) -> Sample:
        subject, day, number = keys[index]
        slices = stack(subject, day)
        return _prepare_slice(slices.images[number], slices.labels[number], spec)

    return Dataset(
        name="phantom",
        task=task_for(spec.task, (BINARY_CLASS,) if spec.task == "binary" else ORGANS),
        cases=cases,
        read=read,
        fingerprint=fingerprint(spec, GENERATOR_VERSION),
        note=NOTE,
    )


def split_subjects(count: int, seed: int) -> tuple[Split, ...]:
    """Assign a sixth of the subjects to validation, a quarter to test (at least one each), the rest to training.

    Args:
        count: Number of subjects, at least 3.
        seed: Seed of the population, which also determines the assignment.

    Returns:
        One split per subject.
    """
    train, validation, test = divide_subjects(count)
    deck: list[Split] = ["validation"] * validation
    deck += ["test"] * test
    deck += ["train"] * train
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,))).permutation(count)
    return tuple(deck[place] for place in order)


def slice_heights(count: int) -> NDArray[np.float64]:
    """Return the heights (mm) of the centres of `count` evenly spaced slices of a scan."""
    return LOWEST_MM + (HIGHEST_MM - LOWEST_MM) * (np.arange(count) + 0.5) / count


def render_stack(seed: int, subject: int, day: int, *, heights: NDArray[np.float64], view: View) -> Stack:
    """Render slices of one scan.

    Args:
        seed: Seed of the population.
        subject: Number of the subject, from 1.
        day: Number of the scan, from 0.
        heights: Centres of the slices, mm, shape (slices,).
        view: Pixel grid of a slice.

    Returns:
        The slices, in the order of `heights`.

    Cost:
        One call of `render_slice` for each slice.
    """
    scan = prepare_scan(seed, subject, day)
    slices = [render_slice(scan, float(z), view) for z in heights]
    organ = np.arange(1, len(ORGANS) + 1, dtype=np.uint8)[:, None, None]
    labels = [np.asarray((masks * organ).sum(axis=0), np.uint8) for _, masks in slices]
    return Stack(np.stack([image for image, _ in slices]), np.stack(labels))


def _prepare_slice(image: NDArray[np.uint16], labels: NDArray[np.uint8], spec: PhantomData) -> Sample:
    """Scale a slice by its maximum and convert its labels for the task."""
    grey = image / np.float32(max(int(image.max()), 1))
    if spec.task == "binary":
        return prepare(grey, labels[None] > 0, None, spec)
    return prepare(grey, labels == np.arange(1, len(ORGANS) + 1, dtype=np.uint8)[:, None, None], None, spec)


def _fetch_stack(spec: PhantomData, subject: int, day: int) -> Stack:
    """Return a scan from the cache, or render and cache it."""
    key = content_hash([GENERATOR_VERSION, spec.seed, subject, day, spec.slices, spec.size])
    path = cache_root() / "phantom" / f"{key}.npz"
    stack = _read_stack(path)
    if stack is None:
        cache_dir("phantom")  # before anything is rendered
        rows, columns = spec.edges
        view = View(rows, columns, FIELD_MM / columns)
        stack = render_stack(spec.seed, subject, day, heights=slice_heights(spec.slices), view=view)
        _write_stack(path, stack)
    return stack


def _write_stack(path: Path, stack: Stack) -> None:
    """Write an npz followed by its SHA-256, which readers of npz files ignore."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=stack.images, labels=stack.labels)
    with hold(path.parent / LEASE, what="writing a scan"):
        sweep(path.parent)
        write_bytes(path, seal(buffer.getvalue()))


def _read_stack(path: Path) -> Stack | None:
    """Read a cached scan; None if it is missing or damaged, which is reported."""
    try:
        sealed = path.read_bytes()
    except OSError:
        return None
    packed = unseal(sealed)
    if packed is None:
        report(f"data phantom: {path}: does not match its digest. It is rendered again.")
        return None
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        return Stack(arrays["images"], arrays["labels"])
