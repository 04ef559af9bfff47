"""Runs a suite: finds what is missing, has it computed, and writes it down. Torch stays in the workers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.running.executors import Executor, call, keep_busy, open_executor
from advseg_bench.running.missing import find_missing
from advseg_bench.running.panels import draw_panels
from advseg_bench.running.recording import Event, Recorder
from advseg_bench.running.schedule import Schedule
from advseg_bench.running.starting import Start
from advseg_bench.running.work import Check, Context, Describe, Description, RunUnit, Train, Unit
from advseg_bench.suite.cells import Cell, estimate, plan
from advseg_bench.suite.suite import Suite
from advseg_bench.suite.timing import Timing, remember

__all__ = ["Event", "run"]


def run(
    suite: Suite,
    out: str | Path,
    *,
    workers: int = 1,
    device: str = "cpu",
    shard: int = 8,
    progress: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Run a suite, or what an earlier run in `out` left undone.

    Args:
        suite: What to run.
        out: The run directory; made if need be.
        workers: Processes; 1 works in this one, which keeps the memory it frees from then on (`allocator`). More need
            the caller's script to be importable (`if __name__ == "__main__":`).
        device: Where models and images are put, such as "cuda".
        shard: Images a unit of work; results do not depend on it.
        progress: Told what has been done.

    Returns:
        The finished run. Cells that failed are in its `failures`.

    Raises:
        UserError: If the suite has a mistake that shows before anything is computed, or the run cannot go on; what
            was finished before is kept.
    """
    out = Path(out)
    cells = plan(suite)
    start = Start(Context(suite, device))
    with records.own(out), open_executor(workers, start, _tell_training(progress)) as executor:
        progress(Event("load", "", 0, 1))
        here = call(executor, Describe())
        call(executor, Check())
        records.describe(out, _describe(suite, cells, here))
        have = set(records.read_rows(out, ["cell", "image"], {cell.id for cell in cells}).iter_rows())
        units = find_missing(cells, here.images, have, shard)
        recorder = Recorder(out, sum(unit.rows for found in units.values() for unit in found), progress)
        try:
            _compute(units, executor, recorder)
        finally:
            recorder.write_failures([model.name for model in suite.models])
        draw_panels(out, cells, here.images, executor, lambda *done: progress(Event("panels", *done)))
        if not have:
            _remember_timings(suite, cells, here, recorder)
    return Run(out)


def _tell_training(progress: Callable[[Event], None]) -> Callable[[str, int, int], None]:
    return lambda model, done, total: progress(Event("train", model, done, total))


def _describe(suite: Suite, cells: Sequence[Cell], here: Description) -> dict[str, Any]:
    """The content of `run.json`."""
    return {
        "schema": records.RUN_SCHEMA,
        "suite": suite.as_json(),
        "data": here.data,
        "binding": here.binding,
        "environment": here.environment,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": list(here.images),
        "cells": [cell.as_record() for cell in cells],
    }


def _compute(units: dict[str, list[Unit]], executor: Executor, recorder: Recorder) -> None:
    """Train every model that still has something to do, and run its units as soon as it is there."""
    schedule = Schedule(units)
    for job, outcome in keep_busy(executor, schedule.next):
        match job:
            case RunUnit(unit):
                recorder.record_unit(unit, outcome)
            case Train(model):
                trained = recorder.record_model(model, outcome)
                (schedule.ready if trained else schedule.failed)(model)


def _remember_timings(suite: Suite, cells: Sequence[Cell], here: Description, recorder: Recorder) -> None:
    """Keep what each model has cost that was run from the start, for `plan`."""
    for model in suite.models:
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if model.name not in recorder.attack_seconds or cost is None:
            continue
        passes = len(here.images) * (cost.shared_forwards + 2 * cost.shared_backwards)
        seconds = recorder.attack_seconds[model.name] / passes
        remember(suite, model, Timing(recorder.train_seconds[model.name], seconds, here.data["splits"]["train"]))
