"""Stores the images of the cases that a report shows in the run directory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from advseg_bench.instruments.profiling import timed
from advseg_bench.results.panels import describe_panel, name_panel, write_panel
from advseg_bench.results.parts import claimed_digest
from advseg_bench.results.run import Run
from advseg_bench.results.selection import Extreme, find_extremes
from advseg_bench.running.executors.base import Executor, keep_busy
from advseg_bench.running.outcomes import Death, WorkerDied
from advseg_bench.running.recording import check_weights
from advseg_bench.running.work import MakePanels, PanelSpec
from advseg_bench.suite.cells import Cell

Wanted = dict[Extreme, PanelSpec]
"""Cases whose files are to be created, and their content."""


@timed("pictures of cases")
def draw_panels(
    out: Path,
    cells: Iterable[Cell],
    images: Mapping[str, int],
    executor: Executor,
    show: Callable[[str, int, int], None],
    lose: Callable[[str, str, Death], None],
) -> None:
    """Store the images of each model's best and worst case, the worst at several budgets; remove outdated files.

    Args:
        out: The run directory, with its rows.
        cells: Cells of the run.
        images: Test image -> position in the data set.
        executor: An executor with no job in progress.
        show: Called with the name of a model, the number of panels done, and the number of panels to create.
        lose: Called with the model, the cell and the death, if a panel's worker died twice; the others are made.

    Raises:
        RecordError: If the weights of a model differ from those of the run's rows.
    """
    run, of_id = Run(out), {cell.id: cell for cell in cells}
    missing = _find_missing(out / "panels", find_extremes(run), of_id, images, run.info.get("run", ""))
    done, total = 0, sum(map(len, missing.values()))
    jobs = deque(MakePanels(model, tuple(wanted.values())) for model, wanted in missing.items())
    for job, outcome in keep_busy(executor, lambda held: jobs.popleft() if jobs else None):
        if isinstance(outcome.error, WorkerDied):
            alone = [MakePanels(job.model, (panel,)) for panel in job.panels]
            if job.again:
                lose(job.model, job.panels[0].cells[0].id, outcome.error.death)
            jobs.extend(replace(each, again=len(alone) == 1) for each in alone if not job.again)
            continue
        panels = outcome.result()
        check_weights(out, job.model, panels.weights)
        cases = {panel: case for case, panel in missing[job.model].items()}
        for panel, data in zip(job.panels, panels.files, strict=True):
            write_panel(out / "panels", cases[panel], data)
        done += len(panels.files)
        show(job.model, done, total)


def sort_out_panels(run: Run) -> int:
    """Remove panels of a run that belong to no case of its report, and return the number of those that it lacks."""
    assert run.path is not None, "a run in memory has no panels"
    cells = {cell.id: cell for cell in run.about.cells}
    places = {image: i for i, image in enumerate(run.info["images"])}
    missing = _find_missing(run.path / "panels", find_extremes(run), cells, places, run.info.get("run", ""))
    return sum(map(len, missing.values()))


def _find_missing(
    folder: Path, cases: Iterable[Extreme], cells: Mapping[str, Cell], images: Mapping[str, int], run: str
) -> dict[str, Wanted]:
    """Find the missing panels of each model; remove files that belong to no case.

    File names contain a hash of the content, so that a panel of other rows is never reused.
    """
    there = {_name_without_digest(path): path for path in sorted(folder.glob("*.npz"))}
    missing: dict[str, Wanted] = {}
    for case in cases:
        if there.pop(name_panel(case), None) is None:
            steps = tuple(cells[step.cell] for step in case.sweep)
            spec = PanelSpec(images[case.image], steps, describe_panel(case, run))
            missing.setdefault(case.model, {})[case] = spec
    for path in there.values():
        path.unlink()
    return missing


def _name_without_digest(path: Path) -> str:
    """Return the name of a panel as `name_panel` gives it."""
    claimed = claimed_digest(path)
    return path.stem.removesuffix(f"-{claimed}") if claimed else path.stem
