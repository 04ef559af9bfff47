"""Makes one run of the parts that `advseg_bench.run(part=...)` computed, with the pictures of its report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from advseg_bench.errors import UserError, expected
from advseg_bench.results import records
from advseg_bench.results.merging import merge_files
from advseg_bench.results.remote import attach, fetch
from advseg_bench.results.run import Run
from advseg_bench.running.benchmark import Event, describe_command
from advseg_bench.running.executors.base import call, open_executor
from advseg_bench.running.outcomes import JobError
from advseg_bench.running.panels import draw_panels, sort_out_panels
from advseg_bench.running.starting import Start
from advseg_bench.running.work import Context, Describe
from advseg_bench.suite.cells import plan
from advseg_bench.suite.suite import Suite

__all__ = ["merge"]


def merge(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    partial: bool = False,
    allow_mixed: bool = False,
    panels: bool = True,
    device: str = "cpu",
    progress: Callable[[Event], None] = lambda event: None,
) -> Run:
    """Make one run of parts: the rows, models, failures and report that one machine would have given.

    It may be repeated, also with parts that arrive later. The parts stay as they are.

    Args:
        folders: Run directories of parts, in any order, or their URLs.
        out: The run directory to write, or its URL; created if it does not exist.
        partial: Merge although parts or rows are missing; `run` with this `out` computes them.
        allow_mixed: Merge parts of machines with other libraries, processors or devices. How much their results differ
            is then in `run.json` under "calibration", and in the report.
        panels: Whether to make the pictures of the report that no part has: those of models that were divided. This
            needs the data and the weights on this machine.
        device: Device for these pictures.
        progress: Called with an `Event` for each picture.

    Returns:
        The merged run.

    Raises:
        UserError: In one line, if the parts are of different suites, data sets, weights, versions or divisions, if
            rows are missing, or if two parts hold different values of one row; nothing is changed then.

    Cost:
        No forward or backward pass, except for pictures: those of the attacks on one image of a model.

    Example:
        >>> import tempfile
        >>> import advseg_bench as ab
        >>> data = {"name": "phantom", "size": 16, "subjects": 3, "slices": 1}
        >>> net = {"name": "net", "architecture": "monai.UNet", "settings": {"channels": [4, 4], "strides": [2]}}
        >>> attack = {"name": "fgsm", "losses": ["dice"], "eps": ["4/255"]}
        >>> training = {"epochs": 1, "floor": 0}
        >>> suite = ab.Suite(name="tiny", data=data, models=[net], training=training, attacks=[attack])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = [ab.run(suite, f"{folder}/part-{i}", part=(i, 2)).path for i in (1, 2)]
        ...     run = ab.merge(parts, folder + "/all")
        ...     run.rows.height, run.missing
        (2, 0)
    """
    out = attach(out)
    command = describe_command(sys.argv)
    merge_files([fetch(each) for each in folders], out, partial=partial, mixed=allow_mixed, command=command)
    with records.own(out, "merge"):
        run = Run(out)
        if sort_out_panels(run) and panels:
            _draw(run, out, device, progress)
    return Run(out)


def _draw(run: Run, out: Path, device: str, progress: Callable[[Event], None]) -> None:
    """Make pictures on this machine, if it gives the bits of the run; otherwise the report has none of them."""
    suite = Suite.model_validate(run.info["suite"])
    with open_executor(1, Start(Context(suite, device)), lambda *message: None) as executor:
        try:
            here = call(executor, Describe())
            for what, old, new in (
                ("data", run.info["data"], here.data),
                ("environment", run.info["binding"], here.binding),
            ):
                if old != new:
                    raise UserError(expected(out, f"the {what} of the run to make pictures", "another one", ""))
            show = partial(_show, progress)
            draw_panels(out, plan(suite), here.images, executor, show, lambda *lost: None)
        except (UserError, JobError):
            left = sort_out_panels(run)
            progress(Event("panels", "", 0, left))


def _show(progress: Callable[[Event], None], model: str, done: int, total: int) -> None:
    progress(Event("panels", model, done, total))
