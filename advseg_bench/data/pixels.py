"""Pixel values of a user's files: intensities are scaled to [0, 1], mask values become classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.formats import Header, read_slices
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FolderData, Scale

PERCENTILE = 99.5
"""The percentile that scale = "percentile" divides by."""

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue for models with one channel (ITU-R BT.601)."""

Array = NDArray[np.generic]
Floats = NDArray[np.float64]


def check_window(scale: Scale, where: str) -> None:
    """Refuse an intensity window that is empty or reversed."""
    if not isinstance(scale, str) and not scale[0] < scale[1]:
        remedy = "Correct `scale`."
        raise DataError(expected(where, "scale = [lower, upper] with lower < upper", list(scale), remedy))


def find_window(path: Path, header: Header, scale: Scale, slices: Iterable[Array]) -> tuple[float, float]:
    """Find the intensities of an image that become 0 and 1.

    Args:
        path: Image file, for messages.
        header: Its header.
        scale: How the two are chosen, see `FolderData`.
        slices: All values of the image; "percentile" keeps them in memory as float32, the others one slice at a time.

    Returns:
        Lower and upper end, with lower < upper.

    Raises:
        DataError: If a value is not finite, if all values are equal, or if they do not fit `scale`.
    """
    low, high, kept = math.inf, -math.inf, []
    for values in slices:
        if not np.isfinite(values).all():
            found = float(values[~np.isfinite(values)][0])
            raise DataError(expected(path, "finite values", found, "Replace such values in the file."))
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        if scale == "percentile":
            kept.append(values.astype(np.float32).reshape(-1))
    if low == high:
        remedy = "Remove the image, or replace the file."
        raise DataError(expected(path, "at least two different values", f"the value {low:g} everywhere", remedy))
    if not isinstance(scale, str):
        lower, upper = scale
        if high <= lower or low >= upper:
            wanted, remedy = f"values inside scale = [{lower:g}, {upper:g}]", "Correct the window."
            raise DataError(expected(path, wanted, f"{low:g} to {high:g}", remedy))
        return lower, upper
    remedy = "Set an intensity window, scale = [lower, upper]."
    if low < 0:
        raise DataError(expected(path, f"values >= 0 for scale = {scale!r}", low, remedy))
    if scale == "percentile":
        high = float(np.percentile(np.concatenate(kept), PERCENTILE))
        if high == 0:
            raise DataError(expected(path, f"a {PERCENTILE}th percentile above 0", high, 'Set scale = "max".'))
    if scale != "dtype":
        return 0.0, high
    if header.largest is None:
        raise DataError(expected(path, "unscaled integer pixels for scale = 'dtype'", "other pixels", remedy))
    return 0.0, float(header.largest)


def check_labels(path: Path, header: Header, spec: FolderData) -> None:
    """Read a whole mask file and check that each value has a meaning.

    Args:
        path: Mask file.
        header: Its header.
        spec: `task`, `classes`, `soft` and `ignore` are used.

    Raises:
        DataError: If a value has no meaning; the message lists up to five.
    """
    seen: set[float] = set()
    for pixels in read_slices(path, labels=True):
        seen |= set(np.unique(pixels).tolist()) - {spec.ignore}
        allowed, wrong = _without_meaning(seen, header, spec)
        if wrong:
            values = [int(v) if float(v).is_integer() else v for v in sorted(wrong)[:5]]
            remedy = "Convert the mask, or set `ignore` or `soft`."
            raise DataError(expected(path, allowed, [*values, "..."] if len(wrong) > 5 else values, remedy))


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
