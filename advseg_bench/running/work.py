"""The nouns that travel between the process that owns a run and its workers. Torch-free and picklable."""

from __future__ import annotations

from dataclasses import dataclass

from advseg_bench.suite.cells import Cell


@dataclass(frozen=True, slots=True)
class Context:
    """What every job of a run needs: the suite as JSON text, and the device."""

    suite: str
    device: str


@dataclass(frozen=True, slots=True)
class Unit:
    """What a worker does at a time: some images of one model, with all the cells that they still miss.

    Attributes:
        model: The model's name.
        indices: Positions in the test split.
        cells: To be run on each of these images.
    """

    model: str
    indices: tuple[int, ...]
    cells: tuple[Cell, ...]


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
