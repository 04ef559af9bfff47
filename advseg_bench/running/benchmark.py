"""Runs a suite: decides what is missing, has it computed, writes it down. Torch stays in the workers."""

from __future__ import annotations

import json
import shlex
import sys
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from advseg_bench.cache import content_hash, write_bytes, write_json
from advseg_bench.errors import RecordError, UserError, WorkerError
from advseg_bench.instruments.profiling import WAITING, span, timed
from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Extreme, find_extremes
from advseg_bench.running.executors import Executor, JobError, collect, open_executor
from advseg_bench.running.work import Context, Failure, Unit
from advseg_bench.suite.cells import Cell, estimate, plan
from advseg_bench.suite.suite import Suite
from advseg_bench.suite.timing import Timing, remember


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show: a model's training, or the run's attacks, has come so far.

    Attributes:
        stage: "load", "train", "ready" (a model), "attack" or "panels".
        what: A model's name, or "".
        done: Epochs, or rows.
        total: Of so many.
    """

    stage: str
    what: str
    done: int
    total: int


@dataclass(slots=True)
class _Run:
    """A run in progress."""

    suite: Suite
    out: Path
    context: Context
    executor: Executor
    show: Callable[[Event], None]
    shard: int
    rows_done: int = 0
    rows_total: int = 0
    resumed: bool = False
    failures: list[dict[str, Any]] = field(default_factory=list)
    train_seconds: dict[str, float] = field(default_factory=dict)
    attack_seconds: dict[str, float] = field(default_factory=dict)


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
    Returns: The finished run. Cells that failed are in its `failures`.
    Raises: UserError: if the suite has a mistake that shows before anything is computed, or the run cannot go on;
        what was finished before is kept.
    """
    out = Path(out)
    cells = plan(suite)
    with records.own(out):
        context = Context(json.dumps(suite.as_json()), device)
        with open_executor(workers, suite.compute.threads, lambda *event: progress(Event("train", *event))) as executor:
            progress(Event("load", "", 0, 1))
            here = collect(executor.submit("describe", context))
            collect(executor.submit("check", context))
            _describe(out, suite, cells, here)
            state = _Run(suite, out, context, executor, progress, shard)
            try:
                _compute(state, cells, here["images"])
            finally:
                order = [model.name for model in suite.models]
                with suppress(RecordError):  # on a full disk the first error is the one to tell
                    write_json(out / "failures.json", sorted(state.failures, key=lambda f: order.index(f["model"])))
            _draw_panels(state, cells)
            _remember_timings(state, cells, here)
    return Run(out)


def _describe(out: Path, suite: Suite, cells: Sequence[Cell], here: dict[str, Any]) -> None:
    """Write `run.json`, or check that it describes this very run."""
    info = {
        "schema": records.RUN_SCHEMA,
        "suite": suite.as_json(),
        "data": here["data"],
        "binding": here["binding"],
        "environment": here["environment"],
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": here["images"],
        "cells": [cell.as_record() for cell in cells],
    }
    records.describe(out, info)


def _compute(state: _Run, cells: Sequence[Cell], images: Sequence[str]) -> None:
    """Train every model that still has something to do, and run its missing units as soon as it is there.

    A worker keeps one model in memory, and goes on with it while it can: no job waits for a worker, so that the worker
    that has become free is the one to take the next.
    """
    units = {name: deque(missing) for name, missing in _missing(state, cells, images).items()}
    unbegun = deque(units)
    ready: dict[str, deque[Unit]] = {}
    waiting: dict[Future[Any], tuple[str, Unit | None]] = {}

    def choose(held: str) -> tuple[str, Unit | None] | None:
        """The next job: for the model that a worker has, one that nobody has begun, or the one with most left."""
        if not ready.get(held):
            if unbegun:
                return unbegun.popleft(), None
            held = max(ready, key=lambda name: len(ready[name]), default="")
        return (held, ready[held].popleft()) if ready.get(held) else None

    def hand_out(held: str) -> None:
        """Start jobs for all workers that are free."""
        while len(waiting) < state.executor.capacity and (job := choose(held)):
            name, unit = job
            work = ("train", state.context, name) if unit is None else ("attack", state.context, unit)
            waiting[state.executor.submit(*work)] = job

    hand_out("")
    while waiting:
        with span(WAITING):
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in done:
            name, unit = waiting.pop(future)
            if unit is not None:
                _record_rows(state, unit, future)
            elif _record_model(state, name, future):
                ready[name] = units[name]
            hand_out(name)


def _missing(state: _Run, cells: Sequence[Cell], images: Sequence[str]) -> dict[str, list[Unit]]:
    """For each model the units that have no rows yet: images that miss the same cells, a shard at a time."""
    have = set(records.read_rows(state.out, ["cell", "image"], {cell.id for cell in cells}).iter_rows())
    state.resumed = bool(have)
    units: dict[str, list[Unit]] = {}
    for model in state.suite.models:
        wanted = [cell for cell in cells if cell.model == model.name and cell.skip is None]
        groups: dict[tuple[Cell, ...], list[int]] = {}
        for index, image in enumerate(images):
            lacking = tuple(cell for cell in wanted if (cell.id, image) not in have)
            if lacking:
                groups.setdefault(lacking, []).append(index)
        for lacking, indices in groups.items():
            state.rows_total += len(lacking) * len(indices)
            for start in range(0, len(indices), state.shard):
                part = tuple(indices[start : start + state.shard])
                units.setdefault(model.name, []).append(Unit(model.name, part, lacking))
    return units


def _record_model(state: _Run, name: str, future: Future[Any]) -> bool:
    """Write a model's entry; returns False if the model failed, which is recorded."""
    try:
        info = collect(future)
    except Exception as error:
        _record_failure(state, Failure(name, "train", None, _one_line(error)), error)
        return False
    path = state.out / "models" / f"{name}.json"
    if path.exists():
        _check_weights(path, info["weights_sha256"])
    else:
        write_json(path, info)
    state.train_seconds[name] = info["train_seconds"] or 0.0
    state.show(Event("ready", name, 1, 1))
    return True


def _check_weights(path: Path, digest: str) -> None:
    """Refuse a model that is not the one which the run's rows were made with."""
    if records.read_model(path)["weights_sha256"] != digest:
        raise RecordError(
            f"{path}: the run's rows were made with other weights of model {path.stem}. "
            "Restore the weights file or the cached model, or start again in a new --out."
        )


def _record_rows(state: _Run, unit: Unit, future: Future[Any]) -> None:
    """Write a unit's rows and what failed in it."""
    state.rows_done += len(unit.cells) * len(unit.indices)
    try:
        rows, failures, seconds = collect(future)
    except Exception as error:
        _record_failure(state, Failure(unit.model, "attack", None, _one_line(error)), error)
        return
    if rows:
        records.write_part(state.out, rows)
    for failure in failures:
        _record_failure(state, failure)
    state.attack_seconds[unit.model] = state.attack_seconds.get(unit.model, 0.0) + seconds
    state.show(Event("attack", unit.model, state.rows_done, state.rows_total))


def _record_failure(state: _Run, failure: Failure, error: Exception | None = None) -> None:
    """Note a failure; a model or an attack at fault costs the others nothing, a full disk or dead worker ends all."""
    if isinstance(error, (RecordError, WorkerError)):
        raise error
    if asdict(failure) not in state.failures:
        state.failures.append(asdict(failure))


def _one_line(error: Exception) -> str:
    """An error's message; the type's name too if it is not one of ours."""
    return str(error) if isinstance(error, (UserError, JobError)) else f"{type(error).__name__}: {error}"


def _remember_timings(state: _Run, cells: Sequence[Cell], here: dict[str, Any]) -> None:
    """Keep what each model that was run from the start has cost, for `plan`."""
    images, train_images = len(here["images"]), here["data"]["splits"]["train"]
    for model in state.suite.models:
        seconds = state.attack_seconds.get(model.name)
        cost = estimate(tuple(cell for cell in cells if cell.model == model.name))
        if seconds is None or cost is None or state.resumed:
            continue
        passes = images * (cost.shared_forwards + 2 * cost.shared_backwards)
        remember(state.suite, model, Timing(state.train_seconds[model.name], seconds / passes, train_images))


@timed("pictures of cases")
def _draw_panels(state: _Run, cells: Sequence[Cell]) -> None:
    """Keep the images of each model's best and worst case, the worst at several budgets, for the report."""
    by_id = {cell.id: cell for cell in cells}
    folder = state.out / "panels"
    wanted = {folder / _panel_name(case): case for case in find_extremes(Run(state.out))}
    for stale in {*folder.glob("*.npz")} - {*wanted}:
        stale.unlink()
    groups: dict[str, list[tuple[Path, tuple[Any, ...]]]] = {}
    for path, case in wanted.items():
        if not path.exists():
            sweep = tuple(by_id[step.cell] for step in case.sweep)
            groups.setdefault(case.model, []).append((path, (sweep, case.image, json.dumps(case.as_record()))))
    models, done, total = list(groups), 0, sum(map(len, groups.values()))
    for start in range(0, len(models), state.executor.capacity):
        running: deque[tuple[str, Future[Any]]] = deque()
        for model in models[start : start + state.executor.capacity]:
            cases = tuple(case for _, case in groups[model])
            running.append((model, state.executor.submit("show", state.context, model, cases)))
        while running:
            model, shown = running.popleft()
            files, digest = collect(shown)
            _check_weights(state.out / "models" / f"{model}.json", digest)
            for (path, _), data in zip(groups[model], files, strict=True):
                write_bytes(path, data)
            done += len(files)
            state.show(Event("panels", model, done, total))


def _panel_name(case: Extreme) -> str:
    """The name covers the content, so that a panel of other rows is never taken for this one."""
    return f"{case.model}-{case.kind}-{content_hash(case.as_record())}.npz"
