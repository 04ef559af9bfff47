"""Runs a suite: finds missing rows, has workers compute them, and records them. Only workers import torch."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

from advseg_bench.results import records
from advseg_bench.results.compaction import compact
from advseg_bench.results.descriptions import identify_run
from advseg_bench.results.machines import note_rest
from advseg_bench.results.remote import attach
from advseg_bench.results.rules import KEYS
from advseg_bench.results.run import Run
from advseg_bench.results.verify import set_aside
from advseg_bench.running import parts
from advseg_bench.running.calibration import calibrate
from advseg_bench.running.executors.base import Executor, call, keep_busy
from advseg_bench.running.executors.choose import open_chosen
from advseg_bench.running.executors.options import LocalOptions, Options, find_needs
from advseg_bench.running.executors.serving import end_in_script_import
from advseg_bench.running.foreign import find_code
from advseg_bench.running.outcomes import Death, WorkerDied
from advseg_bench.running.panels import draw_panels
from advseg_bench.running.recording import Event, Recorder, entry_of, read_deaths
from advseg_bench.running.recovery import Recovery
from advseg_bench.running.schedule import Schedule, put_longest_first
from advseg_bench.running.starting import Start
from advseg_bench.running.work import (
    Check,
    Context,
    Describe,
    Description,
    Failure,
    Note,
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
    isolate: bool | None = None,
    retry_failed: bool = False,
    executor: Options | None = None,
) -> Run:
    """Run a suite: train its models, attack them, and record one row per cell and image. An earlier run is resumed.

    Args:
        suite: The suite.
        out: The run directory, or a URL on object storage, such as "s3://bucket/run"; created if it does not exist.
        workers: Number of processes. Only a suite that names objects of the caller's script (`__main__:object`)
            requires that several workers can import this script (`if __name__ == "__main__":`).
        device: Device of models and images, such as "cpu" or "cuda".
        shard: Images per job of a worker; results do not depend on it.
        part: (i, n) to compute only the i-th of n parts, each into a run directory of its own, of which
            `advseg_bench.merge` makes one run. By default everything.
        progress: Called with an `Event` at each step of progress.
        isolate: Whether one worker is a process of its own. An attack that crashes or exceeds `compute.max_seconds`
            then costs its cell alone; in the calling process it ends it, and no time limit holds. By default it is
            one if the suite names code of plug-ins or modules, and a new process can import all of it.
        retry_failed: Whether to try again what ended its worker in an earlier run of this directory.
        executor: Where jobs run, such as `RayOptions(address)` of `advseg_bench.running.executors.options`; by default
            in `workers` processes on this machine.

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
    out = attach(out)
    cells = plan(suite)
    start = Start(Context(suite, device))
    code = find_code(suite)
    announce = _Announce(progress, {cell.id: cell.label for cell in cells})
    alone = code.importable and bool(code.modules) if isolate is None else isolate
    options = executor or LocalOptions(workers, alone, code.in_script)
    needs = find_needs(suite.compute, device)
    with (
        records.own(out),
        open_chosen(options, start, announce, needs=needs, first=Describe()) as pool,
    ):
        progress(Event("load", "", 0, 1))
        here = call(pool, Describe())
        call(pool, Check())
        info = _describe(suite, cells, here) | parts.describe_part(suite, cells, here, part)
        records.describe(out, info)
        parts.check_recorded(out, info)
        remembered = [] if retry_failed else read_deaths(out)
        lines, inspection = set_aside(out)
        for line in lines:
            progress(Event("note", line, 0, 1))
        have = set(records.collect_rows(inspection.parts, KEYS).iter_rows())
        units = put_longest_first(parts.find_missing_in(info, cells, here.images, have, shard), suite, cells, here)
        if any(units.values()):
            note_rest(out, here.environment, here.binding)
        elif have:
            progress(Event("complete", "", len(have), len(have)))
        total = sum(unit.rows for found in units.values() for unit in found)
        names = [model.name for model in suite.models]
        run_id = records.read_description(out).get("run", "")
        recorder = Recorder(out, total, progress, names, here.binding["code"], run_id)
        announce.show = recorder.show_running
        recovery = Recovery({model.name for model in suite.models if model.random})
        try:
            wanted = _add_undescribed(units, out, parts.select_cells(info, cells))
            _compute(wanted, pool, recorder, recovery, remembered)
        finally:
            recorder.write_failures()
        compact(out, recorder.run)
        show = partial(_show_panels, progress)
        draw_panels(out, cells, here.images, pool, show, recorder.record_lost_panel)
        if part is not None:
            calibrate(out, suite, cells, here, pool)
        elif not have:
            _remember_timings(suite, cells, here, recorder, recovery)
    return Run(out)


def _show_panels(progress: Callable[[Event], None], model: str, done: int, total: int) -> None:
    progress(Event("panels", model, done, total))


class _Announce:
    """Passes the messages of workers on as events.

    Args:
        progress: Called with an event.
        labels: Id -> label of each cell.
    """

    def __init__(self, progress: Callable[[Event], None], labels: Mapping[str, str]) -> None:
        self.show: Callable[[str, str], None] = lambda model, what: None
        self._progress, self._labels = progress, labels

    def __call__(self, message: Training | Running | Note) -> None:
        """Pass a message on."""
        if isinstance(message, Training):
            self._progress(Event("train", message.model, message.done, message.total))
            return
        if isinstance(message, Note):
            self._progress(Event("note", message.text, 0, 1))
            return
        first, n = self._labels.get(message.cells[0], message.model), len(message.cells)
        self.show(message.model, first if n == 1 else f"{message.model} ({n} cells together)")


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


def _compute(
    units: dict[str, list[Unit]],
    executor: Executor,
    recorder: Recorder,
    recovery: Recovery,
    remembered: Sequence[Failure],
) -> None:
    """Train every model with missing rows, and run its units as soon as it is ready.

    Args:
        units: Model -> its units.
        executor: An executor with no job in progress.
        recorder: Records what comes back.
        recovery: Decides what is run again when workers die.
        remembered: Failures of an earlier run that are not tried again.
    """
    tried = _leave_out(remembered, units, recorder)
    schedule = Schedule(tried)
    for model in {failure.model for failure in remembered if failure.cell is None} & schedule.models:
        recorder.record_lost(model, schedule.failed(model))
    known = 0
    for job, outcome in keep_busy(executor, schedule.next):
        death = outcome.error.death if isinstance(outcome.error, WorkerDied) else None
        match job:
            case RunUnit(unit) if death is None:
                recorder.record_unit(unit, outcome)
                schedule.add(recovery.after_end(unit))
            case RunUnit(unit):
                _bury(unit, cast("Death", death), schedule, recorder, recovery)
            case Train(model) if death is not None and recovery.try_training_again(model):
                schedule.train_again(model)
            case Train(model):
                if recorder.record_model(model, outcome):
                    schedule.ready(model)
                else:
                    recorder.record_lost(model, schedule.failed(model))
        recorder.leave_out(recovery.lost_rows - known)
        known = recovery.lost_rows


def _add_undescribed(units: dict[str, list[Unit]], out: Path, cells: Sequence[Cell]) -> dict[str, list[Unit]]:
    """Add the models that have rows but no entry, which was damaged; they are loaded again to describe them."""
    models = dict.fromkeys(cell.model for cell in cells if cell.skip is None)
    return units | {name: [] for name in models if name not in units and not entry_of(out, name).exists()}


def _bury(unit: Unit, death: Death, schedule: Schedule, recorder: Recorder, recovery: Recovery) -> None:
    """Deal with the death of the worker that ran a unit."""
    verdict = recovery.after_death(unit, death)
    schedule.add(verdict.units)
    if verdict.model or verdict.lost:
        schedule.change(unit.model, recovery.reduce)
    recorder.record_deaths(unit.model, [None] if verdict.model else verdict.lost, death)


def _leave_out(
    remembered: Sequence[Failure], units: Mapping[str, list[Unit]], recorder: Recorder
) -> dict[str, list[Unit]]:
    """Return the units without what ended its worker in an earlier run; models that lose all of them are left out."""
    kept = dict(units)
    for failure in remembered:
        before = kept.get(failure.model, [])
        after = [left for unit in before if (left := _without(unit, failure.cell)) is not None]
        if rows := sum(unit.rows for unit in before) - sum(unit.rows for unit in after):
            recorder.recall(failure)
            recorder.leave_out(rows)
            kept[failure.model] = after
    return {model: found for model, found in kept.items() if found or not units[model]}


def _without(unit: Unit, cell: str | None) -> Unit | None:
    """A unit without a cell; None if nothing is left, or if `cell` is None, which stands for all cells."""
    return None if cell is None else unit.only([each for each in unit.all_cells if each.id != cell])


def _remember_timings(
    suite: Suite, cells: Sequence[Cell], here: Description, recorder: Recorder, recovery: Recovery
) -> None:
    """Store the run time of each model that was run from the start, for `plan`."""
    for model in suite.models:
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if model.name not in recorder.attack_seconds or cost is None or recovery.has_deaths(model.name):
            continue
        passes = len(here.images) * (cost.shared_forwards + 2 * cost.shared_backwards)
        seconds = recorder.attack_seconds[model.name] / passes
        remember(suite, model, Timing(recorder.train_seconds[model.name], seconds, here.data["splits"]["train"]))
