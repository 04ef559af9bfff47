"""What the data sets of every format share: size, task, channels, and the splits of a user's subjects."""

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
"""Edge lengths: the least of a slice, the least depth of a volume, the most of all."""


def _check_size(value: object) -> object:
    """Refuse what is neither an edge nor three, in one line for both."""
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
    """What every data set can be asked for.

    Attributes:
        task: How the labels are put to the model.
        size: Edge length in pixels; images are made square and resized by area. Where the data are volumes, three
            edges (depth, rows, columns) make each volume one 3-D image.
        channels: 1, or 3 equal copies of the grey image.
        fit: How an image becomes square: "pad" around its centre, or "stretch" its shorter edge.
    """

    flat: ClassVar[bool] = True
    """Whether there are 2-D images only."""

    task: TaskKind = "multilabel"
    size: Size = 64
    channels: Literal[1, 3] = 1
    fit: Fit = "pad"

    @property
    def edges(self) -> tuple[int, ...]:
        """Edge lengths of an image, in the order of its space axes: two of a slice, three of a volume."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @field_validator("size")
    @classmethod
    def _check_axes(cls, size: Size) -> Size:
        if cls.flat and not isinstance(size, int):
            raise ValueError(f"expected one edge, for this data set has 2-D images, got {list(size)}")
        return size

    @model_serializer(mode="wrap")
    def _leave_out_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `fit` out where it is the default, so that it does not enter ids and fingerprints there."""
        told: dict[str, Any] = handler(self)
        if told.get("fit") == type(self).model_fields["fit"].default:
            del told["fit"]
        return told

    @field_validator("name", check_fields=False)
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_known("data set", name)


class SplitData(ImageData):
    """Files of a user, whose subjects are sent to the splits by chance.

    Attributes:
        path: The folder; relative to the working directory.
        validation: Share of the subjects that choose the checkpoint.
        test: Share of the subjects that are attacked. 1 takes all, which is possible where every model has `weights`,
            and is the default there if no other key of the split is given.
        seed: Which subjects go where.
    """

    path: Path
    validation: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
