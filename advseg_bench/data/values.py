"""The values of an image file, measured in one pass when its data set is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from advseg_bench.data.header import Array
from advseg_bench.errors import DataError, expected
from advseg_bench.suite.specs import FileData

PERCENTILE = 99.5
"""The percentile that scale = "percentile" divides by."""


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


def is_blank(values: Sequence[Values], z: int | None) -> bool:
    """Whether all values of each channel are equal: in slice `z` of an image, or for None in all of it."""
    return all(each.low == each.high if z is None else each.blank[z] for each in values)


def pool_statistics(values: Sequence[Values]) -> tuple[float, float]:
    """Return mean and standard deviation of the values of several images together."""
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
