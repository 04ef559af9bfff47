"""The data set `mni152`: axial slices of the MNI152 average head with grey matter, white matter and CSF.

It needs no download, so that every suite can be tried immediately. It is one head, the mean of 152 people: slices
represent positions in that head, not people. Neighbouring slices are similar, so the head is split in groups of twelve
slices, and two slices on each side of a held-out group are not used.
"""

from __future__ import annotations

import hashlib
import io
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.dataset import Case, Dataset, Sample, Split
from advseg_bench.data.prepare import fingerprint, pad_to_square, prepare, scaled_spacing, task_for
from advseg_bench.suite.specs import Mni152Data
from advseg_bench.types import Task

CLASSES = ("grey_matter", "white_matter", "csf")
"""Names of labels 1, 2 and 3 of the shipped file; "csf" is the rest of the brain mask."""

BLOCK = 12
"""Number of slices in a group; the thirteenth group has eleven."""

TEST_BLOCKS = (3, 7, 11)
VALIDATION_BLOCKS = (5,)

GUARD = 2
"""Number of unused slices between a held-out group and the training slices."""

NOTE = (
    "Slices of one average head of 152 people: with one subject, the variation of results between people cannot be "
    "estimated."
)


def load(spec: Mni152Data) -> Dataset:
    """Read the shipped slices: 91 for training, 12 for validation, 36 for test.

    An image is named after its slice; slices are 1 mm apart: "mni152/z000" lies at z = -72 mm and "mni152/z154" at
    +82 mm. Anterior is up, the patient's right is on the left. The surroundings, including padding, are background.

    Args:
        spec: Task, size and channels. Multilabel: grey matter, white matter, CSF (which exclude each other
            at 2 mm; a resized pixel that is half of each has both labels); multiclass: the same after the
            background; binary: grey matter.

    Returns:
        The data set; the subject of every case is "mni152", and `Case.block` is its group of slices, such as "block03".
    """
    packed = (resources.files("advseg_bench.data") / "mni152.npz").read_bytes()
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        t1, labels, spacing_mm = arrays["t1"], arrays["labels"], arrays["spacing_mm"]
    used = split_slices(len(t1))
    spacing = scaled_spacing(t1.shape, (float(spacing_mm[0]), float(spacing_mm[1])), spec)
    cases = [Case(f"mni152/z{z:03d}", "mni152", f"block{z // BLOCK:02d}", spacing, split) for z, split in used.items()]
    slices = list(used)
    return Dataset(
        name="mni152",
        task=_task(spec),
        cases=cases,
        read=lambda index: _read(t1[slices[index]], labels[slices[index]], spec),
        fingerprint=fingerprint(spec, hashlib.sha256(packed).hexdigest()),
        note=NOTE,
    )


def split_slices(count: int) -> dict[int, Split]:
    """Assign each slice to a split.

    Args:
        count: Number of slices, from inferior to superior.

    Returns:
        Slice -> split, in order; slices of the guard bands are missing.
    """
    held_out: dict[int, Split] = dict.fromkeys(VALIDATION_BLOCKS, "validation")
    held_out |= dict.fromkeys(TEST_BLOCKS, "test")
    used: dict[int, Split] = {}
    for z in range(count):
        near = {(z + step) // BLOCK for step in range(-GUARD, GUARD + 1)}
        if z // BLOCK in held_out:
            used[z] = held_out[z // BLOCK]
        elif not near & held_out.keys():
            used[z] = "train"
    return used


def _task(spec: Mni152Data) -> Task:
    """Name the channels; a binary task has the first class only."""
    return task_for(spec.task, CLASSES[:1] if spec.task == "binary" else CLASSES)


def _read(t1: NDArray[np.uint8], labels: NDArray[np.uint8], spec: Mni152Data) -> Sample:
    """Prepare one slice; the surroundings of the head are background, so padding is valid."""
    count = 1 if spec.task == "binary" else len(CLASSES)
    planes = labels == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
    if spec.fit == "pad":
        return prepare(pad_to_square(t1 / np.float32(255)), pad_to_square(planes), None, spec)
    return prepare(t1 / np.float32(255), planes, None, spec)
