"""Keys that all data sets share: size, task, channels; and the random split of a user's subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from advseg_bench.suite.specs.base import Spec, check_known
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
ScanName = Annotated[str, Field(pattern=r"^case\d+_day\d+$")]
Fit = Literal["pad", "stretch"]
Scale = Literal["max", "percentile", "dtype"] | tuple[float, float]


class ImageData(Spec):
    """Keys that every data set accepts.

    Attributes:
        task: Task type, "binary", "multilabel" or "multiclass".
        size: Edge length in pixels; images are made square and resized by area averaging. For volumes, three edges
            (depth, rows, columns) make each volume one 3-D image.
        channels: 1, or 3 for three equal copies of a grey image.
        fit: How an image becomes square: "pad" it around its centre, or "stretch" its shorter edge.
    """

    flat: ClassVar[bool] = True
    """Whether the data set has 2-D images only."""

    task: TaskKind = "multilabel"
    size: Size = 64
    channels: Literal[1, 3] = 1
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

    @model_serializer(mode="wrap")
    def _leave_out_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit `fit` if it is the default, so that ids and fingerprints do not depend on it then."""
        values: dict[str, Any] = handler(self)
        if values.get("fit") == type(self).model_fields["fit"].default:
            del values["fit"]
        return values

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

    path: Path
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
