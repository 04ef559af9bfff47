"""Runs a suite: finds missing rows, has workers compute them, and records them. Only workers import torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advseg_bench.results import records
from advseg_bench.results.descriptions import identify_run
from advseg_bench.results.machines import note_rest
from advseg_bench.results.run import Run
from advseg_bench.running import parts
from advseg_bench.running.calibration import calibrate
from advseg_bench.running.executors.base import Executor, call, keep_busy, open_executor
from advseg_bench.running.executors.processes import end_in_script_import
from advseg_bench.running.panels import draw_panels
from advseg_bench.running.recording import Event, Recorder
from advseg_bench.running.schedule import Schedule
from advseg_bench.running.starting import Start
from advseg_bench.running.work import (
    Check,
    Context,
    Describe,
    Description,
    Emit,
    Running,
    RunUnit,
    Train,
    Training,
    Unit,
)
from advseg_bench.suite.cells import Cell, plan
from advseg_bench.suite.cost import estimate
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
    part: tuple[int, int] | None = None,
    progress: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Run a suite: train its models, attack them, and record one row per cell and image. An earlier run is resumed.

    Args:
        suite: The suite.
        out: The run directory; created if it does not exist.
        workers: Number of processes. 1 computes in the calling process; more require that the caller's script can be
            imported (`if __name__ == "__main__":`).
        device: Device of models and images, such as "cpu" or "cuda".
        shard: Images per job of a worker; results do not depend on it.
        part: (i, n) to compute only the i-th of n parts, each into a run directory of its own, of which
            `advseg_bench.merge` makes one run. By default everything.
        progress: Called with an `Event` at each step of progress.

    Returns:
        The finished run. Failures of models and cells are in its `failures`.

    Raises:
        UserError: If the suite has an error that is found before computing, or the run cannot continue; finished
            rows are kept.

    Cost:
        The training of each model that is not cached, and the forwards and backwards that `advseg-bench plan` shows.

    Example:
        >>> import tempfile
        >>> import advseg_bench as ab
        >>> data = {"name": "phantom", "size": 16, "subjects": 3, "slices": 1}
        >>> net = {"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
        >>> attack = {"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}
        >>> training = {"epochs": 1, "floor": 0}
        >>> suite = ab.Suite(name="tiny", data=data, models=[net], training=training, attacks=[attack])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = ab.run(suite, folder + "/run")
        ...     run.rows.height, run.failures
        (2, [])
    """
    end_in_script_import()
    out = Path(out)
    cells = plan(suite)
    start = Start(Context(suite, device))
    with records.own(out), open_executor(workers, start, _report(progress)) as executor:
        progress(Event("load", "", 0, 1))
        here = call(executor, Describe())
        code = here.binding["code"]
        call(executor, Check())
        info = _describe(suite, cells, here) | parts.describe_part(suite, cells, here, part)
        records.describe(out, info)
        parts.check_recorded(out, info)
        have = set(records.read_rows(out, ["cell", "image"], {cell.id for cell in cells}).iter_rows())
        units = parts.find_missing_in(info, cells, here.images, have, shard)
        if have and not any(units.values()):
            progress(Event("complete", "", len(have), len(have)))
        if any(units.values()):
            note_rest(out, here.environment, here.binding)
        recorder = Recorder(
            out, sum(unit.rows for found in units.values() for unit in found), progress, code, info["run"]
        )
        try:
            _compute(units, executor, recorder)
        finally:
            recorder.write_failures([model.name for model in suite.models])
        draw_panels(out, cells, here.images, executor, lambda *done: progress(Event("panels", *done)))
        if part is not None:
            calibrate(out, suite, cells, here, executor)
        elif not have:
            _remember_timings(suite, cells, here, recorder)
    return Run(out)


def _report(progress: Callable[[Event], None]) -> Emit:
    def emit(message: Training | Running) -> None:
        if isinstance(message, Training):
            progress(Event("train", message.model, message.done, message.total))

    return emit


def describe_command(argv: Sequence[str]) -> str:
    """Return a command line that can be typed: `python -m PACKAGE` for a package's `__main__.py`."""
    path = Path(argv[0])
    start = ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]
    return shlex.join([*start, *argv[1:]])


def _describe(suite: Suite, cells: Sequence[Cell], here: Description) -> dict[str, Any]:
    """The content of `run.json`."""
    bound = {"suite": suite.as_json(), "data": here.data, "binding": here.binding}
    return {
        "schema": records.RUN_SCHEMA,
        "run": identify_run(bound),
        **bound,
        "environment": here.environment,
        "command": describe_command(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": list(here.images),
        "cells": [cell.as_record() for cell in cells],
    }


def _compute(units: dict[str, list[Unit]], executor: Executor, recorder: Recorder) -> None:
    """Train every model with missing rows, and run its units as soon as it is ready."""
    schedule = Schedule(units)
    for job, outcome in keep_busy(executor, schedule.next):
        match job:
            case RunUnit(unit):
                recorder.record_unit(unit, outcome)
            case Train(model):
                if recorder.record_model(model, outcome):
                    schedule.ready(model)
                else:
                    recorder.record_lost(model, schedule.failed(model))


def _remember_timings(suite: Suite, cells: Sequence[Cell], here: Description, recorder: Recorder) -> None:
    """Store the run time of each model that was run from the start, for `plan`."""
    for model in suite.models:
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if model.name not in recorder.attack_seconds or cost is None:
            continue
        passes = len(here.images) * (cost.shared_forwards + 2 * cost.shared_backwards)
        seconds = recorder.attack_seconds[model.name] / passes
        remember(suite, model, Timing(recorder.train_seconds[model.name], seconds, here.data["splits"]["train"]))
