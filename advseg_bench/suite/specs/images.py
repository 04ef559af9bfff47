"""Keys that all data sets share: size, task, channels; and the random split of a user's subjects."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from advseg_bench.suite.specs.base import Spec, check_known
from advseg_bench.suite.specs.limits import LONGEST_NAME, MOST_NUMBERS, Place, Seed
from advseg_bench.types import TaskKind

SMALLEST, SHALLOWEST, LARGEST = 16, 2, 1024
"""Bounds of edge lengths: minimum of a slice, minimum depth of a volume, maximum of all, in pixels."""


def _check_size(value: object) -> object:
    """Reject anything but one edge or three, with one message for both."""
    several = isinstance(value, (list, tuple))
    edges: Any = value if several else [value]
    least = [SHALLOWEST, SMALLEST, SMALLEST] if several else [SMALLEST]
    if len(edges) != len(least) or not all(
        type(edge) is int and low <= edge <= LARGEST for edge, low in zip(edges, least, strict=True)
    ):
        raise ValueError(
            f"expected an edge of {SMALLEST} to {LARGEST} pixels, or for volumes three such as [32, 64, 64] (depth of "
            f"{SHALLOWEST} or more, rows, columns), got {value!r}"
        )
    return value


Edge = Annotated[int, Field(ge=SMALLEST, le=LARGEST)]
Depth = Annotated[int, Field(ge=SHALLOWEST, le=LARGEST)]
Size = Annotated[Edge | tuple[Depth, Edge, Edge], BeforeValidator(_check_size)]
Millimetres = Annotated[float, Field(gt=0)]
ScanName = Annotated[str, Field(pattern=r"^case\d+_day\d+$", max_length=LONGEST_NAME)]
Fit = Literal["pad", "stretch"]
Scale = Literal["max", "percentile", "dtype"] | tuple[float, float]
Normalisation = Literal["none", "image", "train"]
Interval = tuple[float, float]


def _check_orientation(value: str | None) -> str | None:
    """Reject anything but one direction for each of the three axes."""
    if value is not None and (len(value) != 3 or sorted(_DIRECTIONS.get(code, 9) for code in value) != [0, 1, 2]):
        raise ValueError('expected three directions such as "RAS" or "LPS", one of each of R/L, A/P and S/I')
    return value


def _check_axes_order(value: str) -> str:
    """Reject anything but an order of three axes."""
    if sorted(value) != ["x", "y", "z"]:
        raise ValueError('expected an order of the axes x, y and z, such as "xyz"')
    return value


_DIRECTIONS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
Orientation = Annotated[str | None, AfterValidator(_check_orientation)]
AxisOrder = Annotated[str, AfterValidator(_check_axes_order)]


OPTIONAL = ("fit", "bounds", "normalisation", "orientation", "axes", "channel_names")
"""Keys that a dump omits where they have their default."""


class ImageData(Spec):
    """Keys that every data set accepts.

    Attributes:
        task: Task type, "binary", "multilabel" or "multiclass".
        size: Edge length in pixels; images are made square and resized by area averaging. For volumes, three edges
            (depth, rows, columns) make each volume one 3-D image.
        channels: Number of channels. A data set with one channel is copied to all of them; shipped and phantom data
            have 1 or 3.
        fit: How an image becomes square: "pad" it around its centre, or "stretch" its shorter edge.
    """

    flat: ClassVar[bool] = True
    """Whether the data set has 2-D images only."""

    any_channels: ClassVar[bool] = False
    """Whether the data set may have other numbers of channels than 1 and 3."""

    task: TaskKind = "multilabel"
    size: Size = 64
    channels: int = Field(default=1, ge=1, le=64)
    fit: Fit = "pad"

    @property
    def edges(self) -> tuple[int, ...]:
        """Edge lengths of an image in the order of its spatial axes: two for a slice, three for a volume."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @field_validator("size")
    @classmethod
    def _check_axes(cls, size: Size) -> Size:
        if cls.flat and not isinstance(size, int):
            raise ValueError(f"expected one edge, since this data set has 2-D images, got {list(size)}")
        return size

    @field_validator("channels")
    @classmethod
    def _check_channels(cls, channels: int) -> int:
        if not cls.any_channels and channels not in (1, 3):
            raise ValueError(f"expected 1 or 3 for this data set, got {channels}")
        return channels

    @model_validator(mode="after")
    def _check_volume(self) -> ImageData:
        """Check that one image fits in memory."""
        if (numbers := math.prod(self.edges) * self.channels) > MOST_NUMBERS:
            raise ValueError(
                f"size: expected at most {MOST_NUMBERS:,} values in an image, got {numbers:,}. Lower size or channels"
            )
        return self

    @property
    def declared_bounds(self) -> Interval | None:
        """Range of the intensities of an image; None if only the data have it."""
        return (0.0, 1.0)

    @model_serializer(mode="wrap")
    def _leave_out_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit keys of `OPTIONAL` that have their default, so that ids and fingerprints do not depend on them then."""
        values: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            key: value
            for key, value in values.items()
            if key not in OPTIONAL or getattr(self, key) != fields[key].default
        }

    @field_validator("name", check_fields=False)
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_known("data set", name)


class SplitData(ImageData):
    """Files of a user, whose subjects are split at random.

    Attributes:
        path: Folder of the data, relative to the working directory.
        validation: Share of the subjects used for validation, which selects the checkpoint.
        test: Share of the subjects used for test, which are attacked. 1 is for suites whose models all have `weights`,
            and is the default there if no other key of the split is given.
        seed: Random seed of the split.
    """

    path: Place
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, le=1)
    seed: Seed = 0


class FileData(SplitData):
    """Files of a user with intensities of any range, which a suite declares.

    Attributes:
        scale: "max" divides an image (for NIfTI, each channel of a volume) by its maximum, "percentile" by its 99.5th
            percentile, "dtype" by the largest value of its data type; a pair (lower, upper) is an intensity window. All
            are clipped to [0, 1].
        bounds: Lowest and highest intensity in the units of the files, such as [-160, 240] HU; images are clipped to
            them. Without `normalisation` images keep these units, in which eps is given, and `scale` does not apply.
        normalisation: Whether each channel is made to have mean 0 and standard deviation 1 before the attack: "image"
            by the statistics of the image (for volumes, the volume), "train" by those of the training split, or
            "none". Otherwise than for "none", eps is in standard deviations.
        orientation: Directions that the axes x, y, z of a NIfTI volume are turned to, such as "RAS"; by default those
            of the file.
        axes: Axes of a NIfTI volume that become depth, rows and columns, such as "xyz"; slices are cut along the
            first.
    """

    flat: ClassVar[bool] = False
    any_channels: ClassVar[bool] = True

    scale: Scale = "max"
    bounds: Interval | None = None
    normalisation: Normalisation = "none"
    orientation: Orientation = None
    axes: AxisOrder = "zxy"

    @property
    def declared_bounds(self) -> Interval | None:
        """Range of the intensities of an image; None if only the data have it."""
        return None if self.normalisation != "none" else self.bounds or (0.0, 1.0)

    @model_validator(mode="after")
    def _intensities_fit(self) -> FileData:
        """Check that the keys about intensities and axes agree with each other."""
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds: expected [lower, upper] with lower < upper, got {list(self.bounds)}")
        other = "bounds" if self.bounds is not None else "normalisation" if self.normalisation != "none" else ""
        if other and self.scale != type(self).model_fields["scale"].default:
            raise ValueError(f"scale: expected no scale beside `{other}`, got {self.scale!r}. Remove one of them")
        if self.flat and (self.orientation, self.axes) != (None, "zxy"):
            raise ValueError("orientation, axes: expected none, since this data set has 2-D images. Remove them")
        return self
