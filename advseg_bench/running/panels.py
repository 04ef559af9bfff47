"""Stores the images of the cases that a report shows in the run directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from advseg_bench.cache import content_hash, write_bytes
from advseg_bench.instruments.profiling import timed
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Extreme, find_extremes
from advseg_bench.running.executors.base import Executor, keep_busy
from advseg_bench.running.recording import check_weights
from advseg_bench.running.work import MakePanels, PanelSpec
from advseg_bench.suite.cells import Cell

Wanted = dict[Path, PanelSpec]
"""Files to create, and their content."""


@timed("pictures of cases")
def draw_panels(
    out: Path,
    cells: Iterable[Cell],
    images: Mapping[str, int],
    executor: Executor,
    show: Callable[[str, int, int], None],
) -> None:
    """Store the images of each model's best and worst case, the worst at several budgets; remove outdated files.

    Args:
        out: The run directory, with its rows.
        cells: Cells of the run.
        images: Test image -> position in the data set.
        executor: An executor with no job in progress.
        show: Called with the name of a model, the number of panels done, and the number of panels to create.

    Raises:
        RecordError: If the weights of a model differ from those of the run's rows.
    """
    missing = _find_missing(out / "panels", find_extremes(Run(out)), {cell.id: cell for cell in cells}, images)
    done, total = 0, sum(map(len, missing.values()))
    jobs = (MakePanels(model, tuple(wanted.values())) for model, wanted in missing.items())
    for job, outcome in keep_busy(executor, lambda held: next(jobs, None)):
        panels = outcome.result()
        check_weights(out, job.model, panels.weights)
        for path, data in zip(missing[job.model], panels.files, strict=True):
            write_bytes(path, data)
        done += len(panels.files)
        show(job.model, done, total)


def sort_out_panels(run: Run) -> int:
    """Remove panels of a run that belong to no case of its report, and return the number of those that it lacks."""
    assert run.path is not None, "a run in memory has no panels"
    cells = {cell.id: cell for cell in run.about.cells}
    places = {image: i for i, image in enumerate(run.info["images"])}
    return sum(map(len, _find_missing(run.path / "panels", find_extremes(run), cells, places).values()))


def _find_missing(
    folder: Path, cases: Iterable[Extreme], cells: Mapping[str, Cell], images: Mapping[str, int]
) -> dict[str, Wanted]:
    """Find the missing panels of each model; remove files that belong to no case.

    File names contain a hash of the content, so that a panel of other rows is never reused.
    """
    stale, missing = {*folder.glob("*.npz")}, dict[str, Wanted]()
    for case in cases:
        record = case.as_record()
        path = folder / f"{case.model}-{case.kind}-{content_hash(record)}.npz"
        if path in stale:
            stale.remove(path)
        else:
            steps = tuple(cells[step.cell] for step in case.sweep)
            missing.setdefault(case.model, {})[path] = PanelSpec(images[case.image], steps, json.dumps(record))
    for path in stale:
        path.unlink()
    return missing
