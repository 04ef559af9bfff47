"""What the cells of a suite cost in model passes. Does not import torch."""

from __future__ import annotations

import json
from dataclasses import dataclass

from advseg_bench.registry import catalogue
from advseg_bench.suite.cells import CLEAN, Cell


@dataclass(frozen=True, slots=True)
class Cost:
    """Model passes per test image: `shared` as the harness runs them, `separate` if each cell ran alone."""

    shared_forwards: int
    shared_backwards: int
    separate_forwards: int
    separate_backwards: int


def estimate(cells: tuple[Cell, ...]) -> Cost | None:
    """Count the model passes per test image of all cells that are not skipped.

    Returns:
        The passes, or None if the cost of a plug-in is unknown.
    """
    cost = [0, 0, 0, 0]
    gradients = set()
    stochastic = {cell.model for cell in cells if cell.arm == CLEAN and cell.draw}
    for cell in cells:
        if cell.skip:
            continue
        if cell.arm == CLEAN:
            cost[0] += 1
            cost[2] += 1
            continue
        entry = catalogue.ATTACKS.get(cell.arm.attack)
        if entry is None:
            return None
        traits = entry.traits_of(cell.arm.options)
        forwards, backwards = int(traits.forwards or 0), int(traits.backwards or 0)
        key = (_gradient_of(cell) if entry.shared else cell.id, cell.draw if cell.model in stochastic else 0)
        cost[0] += 1 if entry.shared else forwards + 1
        cost[1] += backwards if not entry.shared or key not in gradients else 0
        cost[2] += forwards + 1
        cost[3] += backwards
        gradients.add(key)
    return Cost(*cost)


def _gradient_of(cell: Cell) -> str:
    """A key that is equal for cells of one-gradient attacks that use the same gradient."""
    steps = catalogue.ATTACKS[cell.arm.attack].step_settings
    settings = {name: value for name, value in cell.arm.options.items() if name not in steps}
    return json.dumps([cell.model, cell.arm.loss, settings], sort_keys=True)
