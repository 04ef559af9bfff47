"""From the intensities of a file to those of an image: windows, declared bounds and normalisation.

Every file is measured once, when the data set is loaded (`values.measure`). `choose_intensities` then gives each
channel of each image a `Window`, and the data set its bounds, its attack space and the statistics that a run records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.dataset import PREPROCESSED, STORED, Split
from advseg_bench.data.header import Array, Header
from advseg_bench.data.values import PERCENTILE, Values, pool_statistics
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FileData, Scale
from advseg_bench.types import Bounds

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """How the values of one channel become those of an image: clipped to an interval, shifted and divided.

    Attributes:
        lower: Smallest value that is kept, in the units of the file.
        upper: Largest value that is kept.
        shift: Value that becomes 0.
        unit: Difference that becomes 1.
    """

    lower: float
    upper: float
    shift: float
    unit: float

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest value of the image."""
        return (self.lower - self.shift) / self.unit, (self.upper - self.shift) / self.unit

    def apply(self, values: Array) -> Floats:
        """Convert values of the file."""
        converted: Floats = np.clip((values.astype(np.float64) - self.shift) / self.unit, *self.ends)
        return converted


def check_window(scale: Scale, where: str) -> None:
    """Refuse an intensity window that is empty or reversed."""
    if not isinstance(scale, str) and not scale[0] < scale[1]:
        remedy = "Correct `scale`."
        raise DataError(expected(where, "scale = [lower, upper] with lower < upper", list(scale), remedy))


def check_values(path: Path, header: Header, values: Sequence[Values], spec: FileData) -> None:
    """Refuse values that do not fit `scale`; an image of one value fits all.

    Args:
        path: Image file, for messages.
        header: Its header.
        values: Those of its channels.
        spec: How intensities are scaled.

    Raises:
        DataError: If a value is negative where a scale needs a maximum, or the file has no integer type for "dtype".
    """
    if spec.normalisation != "none" or spec.bounds is not None or not isinstance(spec.scale, str):
        return
    remedy = "Set an intensity window, scale = [lower, upper]."
    low = min(each.low for each in values)
    if low < 0:
        raise DataError(expected(path, f"values >= 0 for scale = {spec.scale!r}", low, remedy))
    if spec.scale == "dtype" and header.largest is None:
        raise DataError(expected(path, "unscaled integer pixels for scale = 'dtype'", "other pixels", remedy))


def check_inside(
    paths: Sequence[Path], values: Sequence[Sequence[Values]], headers: Sequence[Header], spec: FileData
) -> None:
    """Refuse volumes whose values all lie outside of the declared window, and data sets of such images.

    A single 2-D image may lie outside, as a slice of air does.

    Args:
        paths: Image files, for messages.
        values: Those of the channels of each.
        headers: Their headers.
        spec: `scale` and `bounds` are used.

    Raises:
        DataError: If no value of a volume, or of all images, is inside.
    """
    window = spec.bounds if spec.bounds is not None else spec.scale
    if isinstance(window, str):
        return
    lower, upper = window
    ranges = [(min(v.low for v in each), max(v.high for v in each)) for each in values]
    outside = [high <= lower or low >= upper for low, high in ranges]
    for path, header, (low, high), out in zip(paths, headers, ranges, outside, strict=True):
        if out and low < high and ((header.slices or 1) > 1 or all(outside)):
            key = "scale" if spec.bounds is None else "bounds"
            wanted, remedy = f"values inside {key} = [{lower:g}, {upper:g}]", f"Correct `{key}`."
            raise DataError(expected(path, wanted, f"{low:g} to {high:g}", remedy))


def choose_window(values: Values, header: Header, spec: FileData, statistics: tuple[float, float]) -> Window:
    """Choose how one channel of an image is converted.

    Args:
        values: Of the channel.
        header: Of its file.
        spec: How intensities are scaled.
        statistics: Mean and standard deviation for `normalisation`.

    Returns:
        The window; an image of one value has a window of positive width too.
    """
    if spec.normalisation != "none":
        mean, std = statistics
        return Window(*(spec.bounds or (values.low, values.high)), mean, std or 1.0)
    if spec.bounds is not None:
        return Window(*spec.bounds, 0.0, 1.0)
    if not isinstance(spec.scale, str):
        lower, upper = spec.scale
        return Window(lower, upper, lower, upper - lower)
    high = values.percentile if spec.scale == "percentile" and values.percentile > 0 else values.high
    if spec.scale == "dtype":
        high = float(header.largest or 1)
    return Window(0.0, high or 1.0, 0.0, high or 1.0)


@dataclass(frozen=True, slots=True)
class Intensities:
    """How the intensities of all images of a data set are converted.

    Attributes:
        windows: For each image file, one window for each channel, or one for all.
        bounds: Smallest and largest intensity that an image may have.
        record: What a run records, as JSON values.
    """

    windows: tuple[tuple[Window, ...], ...]
    bounds: Bounds
    record: Mapping[str, Any]


def choose_intensities(
    names: Sequence[str],
    values: Sequence[tuple[Values, ...]],
    headers: Sequence[Header],
    splits: Sequence[Split],
    spec: FileData,
) -> Intensities:
    """Choose how the intensities of all images are converted.

    Args:
        names: Of the images or volumes.
        values: Those of the channels of each.
        headers: Of their files.
        splits: The split of each.
        spec: How intensities are scaled.

    Returns:
        Windows, bounds and what is recorded.
    """
    channels = max(len(each) for each in values)
    training = [each for each, split in zip(values, splits, strict=True) if split == "train"]
    train = [pool_statistics([each[min(n, len(each) - 1)] for each in training]) for n in range(channels)]
    windows = tuple(
        tuple(
            choose_window(one, header, spec, train[n] if spec.normalisation == "train" else (one.mean, one.std))
            for n, one in enumerate(each)
        )
        for each, header in zip(values, headers, strict=True)
    )
    ends = [window.ends for each in windows for window in each]
    # float32, since images are; a bound between two float32 numbers would exclude its own image
    lower, upper = (float(np.float32(end)) for end in (min(e[0] for e in ends), max(e[1] for e in ends)))
    record: dict[str, Any] = {
        "bounds": [lower, upper],
        "attack_space": PREPROCESSED if spec.bounds is None or spec.normalisation != "none" else STORED,
        "scaling": describe_scaling(spec),
    }
    if spec.normalisation == "train":
        record["statistics"] = {"mean": [mean for mean, _ in train], "std": [std for _, std in train]}
    if spec.normalisation == "image":
        record["statistics"] = {
            name: {"mean": [one.mean for one in each], "std": [one.std for one in each]}
            for name, each, split in zip(names, values, splits, strict=True)
            if split == "test"
        }
    return Intensities(windows, Bounds(lower, upper), record)


def describe_scaling(spec: FileData) -> str:
    """Describe in words what an image value means."""
    clipped = f"clipped to [{spec.bounds[0]:g}, {spec.bounds[1]:g}]" if spec.bounds is not None else ""
    if spec.normalisation != "none":
        over = "the training split" if spec.normalisation == "train" else "each image"
        return f"{clipped + ', then ' if clipped else ''}z-scores by mean and standard deviation of {over}"
    if clipped:
        return f"in the units of the files, {clipped}"
    if not isinstance(spec.scale, str):
        return f"scaled from [{spec.scale[0]:g}, {spec.scale[1]:g}] to [0, 1]"
    top = {"max": "its maximum", "percentile": f"its {PERCENTILE}th percentile", "dtype": "the maximum of its type"}
    return f"each image divided by {top[spec.scale]}, to [0, 1]"


def describe_blank(blank: Sequence[bool]) -> str:
    """Describe how many images show one value only; "" if none does."""
    count = sum(blank)
    if not count:
        return ""
    verb = "image has" if count == 1 else "images have"
    return f"{count} {verb} one value everywhere, such as black slices, and count like the others."
