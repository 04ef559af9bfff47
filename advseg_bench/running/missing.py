"""Finds the missing rows of a run, as units of work."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from advseg_bench.running.work import Unit
from advseg_bench.suite.cells import Cell


def find_missing(
    cells: Iterable[Cell], images: Mapping[str, int], have: Collection[tuple[str, str]], shard: int
) -> dict[str, list[Unit]]:
    """Find the missing rows, grouped into units of images that lack the same cells.

    Args:
        cells: Cells of the run; skipped ones have no rows.
        images: Test image -> position in the data set, in the order in which images are attacked.
        have: Set of (cell, image) of the existing rows.
        shard: Largest number of images per unit.

    Returns:
        Model -> its units, in the order of the cells. A model without missing rows is omitted.
    """
    wanted: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.skip is None:
            wanted.setdefault(cell.model, []).append(cell)
    units = {model: list(_split(model, of_model, images, have, shard)) for model, of_model in wanted.items()}
    return {model: found for model, found in units.items() if found}


def _split(
    model: str, cells: Sequence[Cell], images: Mapping[str, int], have: Collection[tuple[str, str]], shard: int
) -> Iterator[Unit]:
    """The units of one model."""
    groups: dict[tuple[Cell, ...], list[int]] = {}
    for image, position in images.items():
        lacking = tuple(cell for cell in cells if (cell.id, image) not in have)
        if lacking:
            groups.setdefault(lacking, []).append(position)
    for lacking, positions in groups.items():
        for start in range(0, len(positions), shard):
            yield Unit(model, tuple(positions[start : start + shard]), lacking, _find_needed(cells, lacking))


def _find_needed(cells: Sequence[Cell], lacking: Sequence[Cell]) -> tuple[Cell, ...]:
    """The cells of a battery that have rows, if others of it lack them: their results decide what the others do."""
    if all(cell.member is None for cell in lacking):
        return ()
    return tuple(cell for cell in cells if cell.member is not None and cell not in lacking)
