"""What is known of a file before its pixels are read, and how the axes of a volume become those of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
Affine = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layout:
    """The directions and the order in which the axes of a NIfTI volume are read.

    Attributes:
        orientation: Directions of the axes x, y, z, such as "RAS"; None for those of the file.
        axes: The axes that become slices (depth), rows and columns, such as "xyz".
    """

    orientation: str | None = None
    axes: str = "zxy"

    @property
    def order(self) -> tuple[int, ...]:
        """Indices of the axes that become slices, rows and columns."""
        return tuple("xyz".index(axis) for axis in self.axes)


AS_STORED = Layout()
"""The default: slices along the last axis of the file, whose first two axes are rows and columns."""


@dataclass(frozen=True, slots=True)
class Header:
    """The properties of a file that are known before its pixels are read.

    Attributes:
        shape: Rows and columns.
        slices: Images in the file; None for a format that holds one.
        largest: Largest value of its integer type, or None if pixels are not unscaled integers.
        spacing: Edge lengths of a pixel (rows, columns) in mm; NaN where the file has none.
        axes: Orientation of a NIfTI volume as it is read, such as "RAS"; "" for other formats.
        channels: Channels of a picture, pages of a TIFF, or volumes along the fourth axis of a NIfTI file.
        gap: Distance between neighbouring slices in mm; NaN where the file has none.
        affines: The maps from voxels (slice, row, column) to mm that a NIfTI file declares, the preferred one first,
            each (4, 4); none for other formats.
        lossy: Whether the compression changes pixel values.
        turned: Whether the file asks viewers to rotate or flip the pixels, which are read as stored.
    """

    shape: tuple[int, int]
    slices: int | None
    largest: int | None
    spacing: tuple[float, float]
    axes: str
    channels: int = 1
    gap: float = math.nan
    affines: tuple[Affine, ...] = field(default=(), compare=False)
    lossy: bool = False
    turned: bool = False

    @property
    def edges(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        return (self.slices or 1, *self.shape)

    @property
    def size(self) -> str:
        """Rows, columns and slices for a message."""
        return " x ".join(str(n) for n in (*self.shape, *([self.slices] if self.slices else [])))
