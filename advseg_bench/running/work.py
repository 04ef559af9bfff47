"""What travels between the process that owns a run and its workers: nouns and jobs. Torch-free and picklable.

A job says what is wanted; `worker.Worker.do` is what does it. Workers compute and return; only the process that owns
the run directory writes in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from advseg_bench.suite.cells import Cell

if TYPE_CHECKING:
    from advseg_bench.suite.suite import Suite

R_co = TypeVar("R_co", covariant=True)

CHECKED_ON = 2
"""Test images on which a prepared model has to agree with the model."""

Emit = Callable[[str, int, int], None]
"""(model, epochs done, epochs in all): progress of a training."""

Row = dict[str, Any]
"""A row of `records.ROW_SCHEMA`."""


@dataclass(frozen=True, slots=True)
class Context:
    """What all jobs of a run share.

    Attributes:
        suite: What is run.
        device: Where models and images are put.
    """

    suite: Suite
    device: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Some images of one model, with all the cells that they still lack.

    Attributes:
        model: The model's name.
        indices: Positions in the data set.
        cells: To be run on each of these images.
    """

    model: str
    indices: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def rows(self) -> int:
        """How many rows it makes if nothing fails."""
        return len(self.indices) * len(self.cells)


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """The images behind some rows of one image.

    Attributes:
        index: Position in the data set.
        cells: Of one attack with one loss and settings, such as the budgets of a sweep.
        meta: Kept with the images: what they show, as JSON.
    """

    index: int
    cells: tuple[Cell, ...]
    meta: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that raised: not a number, not a skip.

    Attributes:
        model: The model's name.
        stage: "train" or "attack".
        cell: The cell's id, or None if the whole model is concerned.
        message: One line.
    """

    model: str
    stage: str
    cell: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Description:
    """The data set and the machine.

    Attributes:
        data: Name, task, fingerprint and sizes of the data set, for the record.
        binding: What must be equal for rows to be comparable.
        environment: Versions and hardware, for the record.
        images: Test image -> position in the data set, in the order of the split.
    """

    data: dict[str, Any]
    binding: dict[str, Any]
    environment: dict[str, Any]
    images: dict[str, int]


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a unit gave: rows, what failed, and the seconds it took."""

    rows: list[Row]
    failures: list[Failure]
    seconds: float


@dataclass(frozen=True, slots=True)
class Panels:
    """Panels of one model as files of NumPy, in the order they were asked for, and the digest of its weights."""

    files: list[bytes]
    weights: str


class Job(Generic[R_co]):
    """Something that a worker can be asked to do; `R_co` is what it returns. Subclasses are frozen and picklable."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Describe(Job[Description]):
    """Load the data set; describe it and the worker's machine."""


@dataclass(frozen=True, slots=True)
class Check(Job[None]):
    """Find the user's mistakes before anything is computed."""


@dataclass(frozen=True, slots=True)
class Train(Job[dict[str, Any]]):
    """Get a model ready, training it if need be. Result: its entry in the record, with "weights_sha256"."""

    model: str


@dataclass(frozen=True, slots=True)
class RunUnit(Job[UnitResult]):
    """Attack and score the images of a unit."""

    unit: Unit

    @property
    def model(self) -> str:
        """The model that it needs."""
        return self.unit.model


@dataclass(frozen=True, slots=True)
class MakePanels(Job[Panels]):
    """Attack some images again, and keep the images."""

    model: str
    panels: tuple[PanelSpec, ...]
