"""Jobs and data exchanged between the main process of a run and its workers. Picklable; does not import torch.

A job describes a task, and `worker.Worker.do` carries it out. Workers only return results; the main process alone
writes to the run directory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from advseg_bench.errors import expected
from advseg_bench.suite.cells import Cell, find_source

if TYPE_CHECKING:
    from advseg_bench.suite.suite import Suite

R_co = TypeVar("R_co", covariant=True)

CHECKED_ON = 2
"""Number of test images on which a prepared model must agree with the model."""

Row = dict[str, Any]
"""A row of `records.ROW_SCHEMA`."""


@dataclass(frozen=True, slots=True)
class Training:
    """A worker's message about the progress of a training.

    Attributes:
        model: Name of the model.
        done: Epochs done.
        total: Number of epochs.
    """

    model: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Running:
    """A worker's message before each attack, or group of attacks that run together: what runs from now on.

    Attributes:
        model: Name of the attacked model.
        cells: Ids of the cells.
        images: Names of the images.
        seconds: Longest time from this message to the next one, or to the end of the job; no limit if None.
    """

    model: str
    cells: tuple[str, ...]
    images: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A worker's message for the user, such as a damaged file of the cache that is made again; one line.

    It changes nothing about what runs: a limit of `Running` goes on.
    """

    text: str


Emit = Callable[[Training | Running | Note], None]
"""Sends a message to the owner of the run while a job is in progress."""


@dataclass(frozen=True, slots=True)
class Context:
    """Settings that all jobs of a run share.

    Attributes:
        suite: The suite.
        device: Device of models and images.
    """

    suite: Suite
    device: str


@dataclass(frozen=True, slots=True)
class Unit:
    """Some images, with the cells of one model that they all lack.

    Attributes:
        model: Name of the model.
        indices: Positions of the images in the data set.
        cells: Cells to run on each of these images.
        again: Cells that have rows already and are run once more, since the results of others depend on theirs.
    """

    model: str
    indices: tuple[int, ...]
    cells: tuple[Cell, ...]
    again: tuple[Cell, ...] = ()

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """The cells to run, those of which only the others' results are wanted included."""
        return self.cells + self.again

    @property
    def rows(self) -> int:
        """Number of rows of the unit if nothing fails."""
        return len(self.indices) * len(self.cells)

    def only(self, kept: Collection[Cell]) -> Unit | None:
        """Return the unit with some of its cells; None if there is nothing left to do.

        Args:
            kept: The cells that stay.
        """
        cells, again = (tuple(cell for cell in part if cell in kept) for part in (self.cells, self.again))
        if not cells and (self.cells or not again):
            return None
        return replace(self, cells=cells, again=again)


def list_sources(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Return the names of the models that the adversarial images of cells are made for, where not the attacked one."""
    found = ((cell.model, find_source(cell.arm)) for cell in cells if cell.skip is None)
    return tuple(dict.fromkeys(source for model, source in found if source not in (None, model)))


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """A panel of the report: one image, attacked by several cells.

    Attributes:
        index: Position of the image in the data set.
        cells: Cells of one arm, such as the radii of a sweep.
        meta: Description stored with the images, as JSON.
    """

    index: int
    cells: tuple[Cell, ...]
    meta: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A training, a cell or a panel that raised an exception, or whose worker died.

    Attributes:
        model: Name of the model.
        stage: "train", "attack" or "panels".
        cell: Id of the cell, or None if the whole model failed.
        message: The error in one line.
        death: Cause of the death of the worker, such as "SIGSEGV"; "" for an exception.
    """

    model: str
    stage: str
    cell: str | None
    message: str
    death: str = ""

    def as_record(self) -> dict[str, str | None]:
        """Return the failure as `failures.json` stores it; without "death" for an exception."""
        record = asdict(self)
        return record if self.death else {name: value for name, value in record.items() if name != "death"}


@dataclass(frozen=True, slots=True)
class Description:
    """Description of the data set and the machine.

    Attributes:
        data: Name, task, fingerprint and sizes of the data set.
        binding: Versions and settings that must be equal to resume a run.
        environment: Versions and hardware.
        images: Test image -> position in the data set, in the order of the split.
    """

    data: dict[str, Any]
    binding: dict[str, Any]
    environment: dict[str, Any]
    images: dict[str, int]

    def contradict(self, other: Description) -> str:
        """Return the first place where results of another machine would differ: "name: expected X, got Y", or ""."""
        for what, mine, theirs in (("data", self.data, other.data), ("", self.binding, other.binding)):
            for name in sorted({*mine, *theirs}):
                if mine.get(name) != theirs.get(name):
                    return expected(f"{what} {name}".strip(), repr(mine.get(name)), theirs.get(name))
        return ""


@dataclass(frozen=True, slots=True)
class UnitResult:
    """Result of a unit: rows, failures, run time in seconds, and the code of the user's objects as it was imported."""

    rows: list[Row]
    failures: list[Failure]
    seconds: float
    code: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Panels:
    """Panels of one model as NumPy files in the requested order, and the digest of its weights."""

    files: list[bytes]
    weights: str


class Job(Generic[R_co]):
    """A task for a worker that returns `R_co`. Subclasses are frozen and picklable."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Describe(Job[Description]):
    """Load the data set; describe it and the worker's machine."""


@dataclass(frozen=True, slots=True)
class PackData(Job[bytes | None]):
    """Return the loaded data set for other workers on the same machine, as `sharing.pack` does."""


@dataclass(frozen=True, slots=True)
class TakeData(Job[None]):
    """Use a data set that another worker on this machine has packed."""

    packed: bytes


@dataclass(frozen=True, slots=True)
class Check(Job[None]):
    """Check models, attacks and losses of the suite before computing."""


@dataclass(frozen=True, slots=True)
class Train(Job[dict[str, Any]]):
    """Load or train a model. Result: its entry in the record, with "weights_sha256"."""

    model: str


@dataclass(frozen=True, slots=True)
class RunUnit(Job[UnitResult]):
    """Attack and score the images of a unit."""

    unit: Unit

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.unit.model


@dataclass(frozen=True, slots=True)
class MakePanels(Job[Panels]):
    """Attack some images again, and return the images; `again` if a worker has died in this job."""

    model: str
    panels: tuple[PanelSpec, ...]
    again: bool = False
