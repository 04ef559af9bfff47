"""A few rows that every part of a run computes, so that machines whose bits differ can be compared.

They are the clean prediction and FGSM on the first compute batch of each model that the part holds or whose weights are
given, and are stored in `calibration.json`, apart from the rows of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from advseg_bench.errors import RecordError, UserError
from advseg_bench.results.descriptions import read_calibration, write_sealed
from advseg_bench.running.executors.base import Executor, call
from advseg_bench.running.outcomes import JobError
from advseg_bench.running.work import Description, RunUnit, Train, Unit
from advseg_bench.suite.cells import CLEAN, Arm, Cell, make_cell, model_identity
from advseg_bench.suite.specs import ModelSpec
from advseg_bench.suite.suite import Suite


def calibrate(out: Path, suite: Suite, cells: Sequence[Cell], here: Description, executor: Executor) -> None:
    """Compute and store the calibration rows of a part that are not there yet; a model that fails has none.

    Args:
        out: The run directory of the part, with its description.
        suite: The suite.
        cells: Its cells.
        here: The description of the data set.
        executor: An executor with no job in progress.

    Cost:
        For each model 2 forwards and 1 backward for each image of a compute batch, and 1 forward for each result.
    """
    known: dict[str, dict[str, Any]] = {}
    with suppress(RecordError):
        known = read_calibration(out)
    indices = tuple(here.images.values())[: suite.compute.batch]
    held = {path.stem for path in (out / "models").glob("*.json")}
    for model in suite.models:
        if model.name in known or not (model.name in held or model.weights):
            continue
        with suppress(UserError, JobError):
            weights = call(executor, Train(model.name))["weights_sha256"]
            result = call(executor, RunUnit(Unit(model.name, indices, _list_cells(suite, model, cells))))
            known[model.name] = {"weights_sha256": weights, "rows": result.rows}
    write_sealed(out / "calibration.json", known)


def _list_cells(suite: Suite, model: ModelSpec, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """The clean cell and FGSM of the loss "dice" at the smallest L_inf radius of the suite, if it has one."""
    identity = model_identity(suite, model)
    found = [make_cell(identity, model.name, CLEAN, 0.0, 0, None)]
    radii = [cell.eps for cell in cells if cell.arm != CLEAN and cell.arm.norm == "linf"]
    if radii:
        found.append(make_cell(identity, model.name, Arm("fgsm", "dice", "{}", "linf"), min(radii), 0, None))
    return tuple(found)
