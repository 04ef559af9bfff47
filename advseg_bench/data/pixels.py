"""Pixel values of the data set `folder`: colour becomes grey where it must, mask values become classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.formats import read_slices
from advseg_bench.data.header import Array, Header, Layout
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FolderData

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue for models with one channel (ITU-R BT.601)."""

HALF = 128
"""Value from which a pixel of a lossy mask belongs to the class."""

Floats = NDArray[np.float64]


def read_mask_slices(path: Path, header: Header, spec: FolderData, layout: Layout, first: int = 0) -> Iterator[Array]:
    """Read a mask; one that was compressed with losses is thresholded at half, unless it is soft.

    Args:
        path: Mask file.
        header: Its header.
        spec: `task`, `classes`, `soft` and `ignore` are used.
        layout: How the axes of a NIfTI file are read.
        first: Slice to begin with.

    Yields:
        Slices (H, W), each value as stored.

    Raises:
        DataError: If values of a lossy mask cannot be recovered.
    """
    for pixels in read_slices(path, first=first, labels=True, known=_known_values(spec), layout=layout):
        yield _threshold(path, pixels, spec) if header.lossy and not spec.soft else pixels


@dataclass(frozen=True, slots=True)
class Shown:
    """What a mask file shows.

    Attributes:
        largest: Its largest value that is not ignored.
        top: The value that means the class for certain: of a soft mask its largest possible value, otherwise 1.
        ignored: Whether it has ignored pixels.
    """

    largest: float
    top: float
    ignored: bool


def check_labels(path: Path, header: Header, spec: FolderData, layout: Layout) -> Shown:
    """Read a whole mask file and check that each value has a meaning.

    Args:
        path: Mask file.
        header: Its header.
        spec: `task`, `classes`, `soft` and `ignore` are used.
        layout: How the axes of a NIfTI file are read.

    Returns:
        What the mask shows.

    Raises:
        DataError: If a value has no meaning; the message lists up to five.
    """
    seen: set[float] = set()
    ignored = False
    for pixels in read_mask_slices(path, header, spec, layout):
        found = set(np.unique(pixels).tolist())
        ignored |= spec.ignore in found
        seen |= found - {spec.ignore}
        allowed, wrong = _without_meaning(seen, header, spec)
        if wrong:
            values = [int(v) if float(v).is_integer() else v for v in sorted(wrong)[:5]]
            remedy = "Convert the mask, or set `ignore` or `soft`."
            raise DataError(expected(path, allowed, [*values, "..."] if len(wrong) > 5 else values, remedy))
    return Shown(max(seen, default=0), float(header.largest or 1) if spec.soft else 1, ignored)


def check_foreground(folder: Path, masks: Sequence[Shown], spec: FolderData) -> str:
    """Refuse masks that show no class because of `soft` or `ignore`.

    Args:
        folder: The folder of the masks.
        masks: What each of its masks shows.
        spec: `soft` and `ignore` are used.

    Returns:
        A sentence for the note of the data set if all masks are empty for another reason, else "".

    Raises:
        DataError: If no value reaches half of the largest, or all pixels above 0 are ignored.
    """
    if any(mask.largest >= 0.5 * mask.top for mask in masks):
        return ""
    if faint := [mask for mask in masks if mask.largest > 0]:
        top, found = max(mask.top for mask in faint), max(mask.largest for mask in faint)
        remedy = "Remove `soft` if the masks are of 0 and 1, or multiply their values."
        what = f"soft masks with values from {top / 2:g}, a probability of 0.5, to {top:g}"
        raise DataError(f"{folder}: expected {what}, got none above {found:g}. {remedy}")
    if any(mask.ignored for mask in masks):
        remedy = "Remove `ignore` if this value means the class."
        raise DataError(
            f"{folder}: expected a mask that shows a class, got only 0 and {spec.ignore}, which is ignored. {remedy}"
        )
    return f"No mask in {folder.name} shows a class."


def to_channels(pixels: Array, channels: int) -> Floats:
    """Return pixels as floats; colour (3, H, W) becomes grey (H, W) if the model has one channel."""
    values = pixels.astype(np.float64)
    return np.tensordot(LUMA, values, axes=1) if values.ndim == 3 and channels == 1 else values


def to_planes(masks: list[Array], tops: tuple[float, ...], spec: FolderData) -> tuple[Array, NDArray[np.bool_]]:
    """Turn mask values into class planes and valid pixels for `prepare`.

    Args:
        masks: One array (*S), or one for each class if the task is multilabel.
        tops: For soft masks, the value of probability 1 in each.
        spec: `task`, `classes`, `soft` and `ignore` are used.

    Returns:
        One plane for each class without the background, (K, *S), bool or fractions in [0, 1] where they are valid; and
        the valid pixels, bool (*S): those that no mask ignores.
    """
    stack = np.stack(masks)
    space = (1,) * (stack.ndim - 1)
    ignored = np.zeros(stack.shape, bool) if spec.ignore is None else stack == spec.ignore
    valid: NDArray[np.bool_] = np.logical_not(ignored.any(axis=0))
    if spec.task == "multiclass":
        return stack == np.arange(1, len(spec.classes)).reshape(-1, *space), valid
    if spec.soft:
        return stack / np.array(tops).reshape(-1, *space), valid
    return stack != 0, valid


def _known_values(spec: FolderData) -> frozenset[int] | None:
    """Return the mask values with a meaning, by which a palette is read; None if all have one."""
    if spec.soft:
        return None
    values = range(len(spec.classes)) if spec.task == "multiclass" else (0, 1, 255)
    return frozenset(values) | (frozenset() if spec.ignore is None else {spec.ignore})


def _threshold(path: Path, pixels: Array, spec: FolderData) -> Array:
    """Restore 0 and 255 from a mask whose compression changed its values."""
    values = pixels.astype(np.int64)
    top = int(values.max())
    remedy = "Save the mask as PNG."
    if spec.task == "multiclass" or spec.ignore is not None:
        what = "a mask without loss, since class numbers and ignored pixels do not survive compression"
        raise DataError(expected(path, what, "a lossy format", remedy))
    if 0 < top < HALF:
        raise DataError(expected(path, "0 and about 255 in a mask of a lossy format", f"a maximum of {top}", remedy))
    return np.where(values >= HALF, 255, 0).astype(np.uint8)


def _without_meaning(seen: set[float], header: Header, spec: FolderData) -> tuple[str, set[float]]:
    """Describe the allowed mask values, and return those that are not allowed."""
    if spec.soft:
        top = header.largest or 1
        return f"probabilities from 0 to {top}", {v for v in seen if not 0 <= v <= top}
    if spec.task == "multiclass":
        return f"mask values 0 to {len(spec.classes) - 1}", seen - set(range(len(spec.classes)))
    if seen <= {0, 1} or seen <= {0, 255}:
        return "", set()
    return "mask values 0 and 1, or 0 and 255", seen - {0, 1, 255} or seen
