"""From the intensities of a file to those of an image: windows, declared bounds and normalisation.

Every file is measured once, when the data set is loaded (`measure`). `choose_intensities` then gives each channel of
each image a `Window`, and the data set its bounds, its attack space and the statistics that a run records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.dataset import PREPROCESSED, STORED, Split
from advseg_bench.data.header import Array, Header
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FileData, Scale
from advseg_bench.types import Bounds

PERCENTILE = 99.5
"""The percentile that scale = "percentile" divides by."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Values:
    """What is known about the values of one channel of an image.

    Attributes:
        low: Smallest value.
        high: Largest value.
        percentile: The 99.5th percentile; NaN if it is not needed.
        count: Number of values.
        mean: Mean, after clipping to declared bounds.
        squares: Sum of squared differences from the mean, after clipping.
        blank: For each slice, whether all of its values are equal.
    """

    low: float
    high: float
    percentile: float
    count: int
    mean: float
    squares: float
    blank: tuple[bool, ...]

    @property
    def std(self) -> float:
        """Standard deviation, after clipping."""
        return math.sqrt(self.squares / self.count)


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


@dataclass(slots=True)
class _Sums:
    """Values of one channel, collected slice by slice."""

    low: float = math.inf
    high: float = -math.inf
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)

    def add(self, values: Array, spec: FileData) -> None:
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.blank.append(low == high)
        if spec.scale == "percentile":
            self.kept.append(values.astype(np.float32).reshape(-1))
        if spec.normalisation != "none":
            clipped = values.astype(np.float64)
            if spec.bounds is not None:
                clipped = np.clip(clipped, *spec.bounds)
            mean = float(clipped.mean(dtype=np.float64))
            self.count, self.mean, self.squares = _merge(
                (self.count, self.mean, self.squares),
                (clipped.size, mean, float(((clipped - mean) ** 2).sum(dtype=np.float64))),
            )

    def finish(self) -> Values:
        percentile = float(np.percentile(np.concatenate(self.kept), PERCENTILE)) if self.kept else math.nan
        return Values(self.low, self.high, percentile, max(self.count, 1), self.mean, self.squares, tuple(self.blank))


def check_window(scale: Scale, where: str) -> None:
    """Refuse an intensity window that is empty or reversed."""
    if not isinstance(scale, str) and not scale[0] < scale[1]:
        remedy = "Correct `scale`."
        raise DataError(expected(where, "scale = [lower, upper] with lower < upper", list(scale), remedy))


def measure(path: Path, slices: Iterable[Array], spec: FileData, *, joint: bool = False) -> tuple[Values, ...]:
    """Read all values of an image.

    Args:
        path: Its file, for messages.
        slices: Its slices, (H, W) or (C, H, W); "percentile" keeps them in memory as float32, otherwise one at a time.
        spec: How intensities are scaled.
        joint: Whether all channels count as one.

    Returns:
        The values of each channel, or of all together.

    Raises:
        DataError: If a value is not finite.
    """
    sums: list[_Sums] = []
    for pixels in slices:
        if not np.isfinite(pixels).all():
            found = float(pixels[~np.isfinite(pixels)][0])
            raise DataError(expected(path, "finite values", found, "Replace such values in the file."))
        channels = [pixels] if joint or pixels.ndim == 2 else list(pixels)
        sums = sums or [_Sums() for _ in channels]
        for each, values in zip(sums, channels, strict=True):
            each.add(values, spec)
    return tuple(each.finish() for each in sums)


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
    train = [
        _statistics([each[min(channel, len(each) - 1)] for each, s in zip(values, splits, strict=True) if s == "train"])
        for channel in range(channels)
    ]
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


def _statistics(values: Sequence[Values]) -> tuple[float, float]:
    """Return mean and standard deviation of all values together."""
    total = (0, 0.0, 0.0)
    for each in values:
        total = _merge(total, (each.count, each.mean, each.squares))
    count, mean, squares = total
    return mean, math.sqrt(squares / max(count, 1))


def _merge(a: tuple[int, float, float], b: tuple[int, float, float]) -> tuple[int, float, float]:
    """Combine count, mean and sum of squared differences of two sets of values."""
    count = a[0] + b[0]
    step = b[1] - a[1]
    return count, a[1] + step * b[0] / count, a[2] + b[2] + step * step * a[0] * b[0] / count
