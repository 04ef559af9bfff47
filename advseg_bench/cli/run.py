"""The commands `run`, `report` and `claims`, and their output at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advseg_bench.cli.common import (
    DataPath,
    Formats,
    Profile,
    SuiteName,
    Verbose,
    Workers,
    console,
    default_workers,
    print_line,
    print_problem,
)
from advseg_bench.cli.data import print_phantom
from advseg_bench.cli.executors import (
    Account,
    Address,
    ExecutorName,
    Gpus,
    Hours,
    Jobs,
    Partition,
    choose_executor,
    choose_slurm,
    refuse_slurm_options,
)
from advseg_bench.cli.parts import PartOption, choose_part, default_folder, print_part

if TYPE_CHECKING:
    from advseg_bench.report import Summary
    from advseg_bench.results.run import Run
    from advseg_bench.running.executors.slurm import SlurmOptions
    from advseg_bench.suite.suite import Suite

MOST_FAILURES = 10
"""Most failures that are printed; the report lists all."""


def run_command(
    suite: SuiteName,
    profile: Profile = None,
    data: DataPath = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder or URL, resumed if it exists; default: runs/SUITE.")
    ] = None,
    workers: Workers = None,
    device: Annotated[
        str | None, typer.Option(help="Device for training and attacks, such as cpu or cuda; by default cpu.")
    ] = None,
    shard: Annotated[int, typer.Option(min=1, help="Images per job of a worker; results do not depend on it.")] = 8,
    executor: ExecutorName = "processes",
    address: Address = "",
    jobs: Jobs = None,
    partition: Partition = None,
    gpus: Gpus = None,
    hours: Hours = None,
    account: Account = None,
    part: PartOption = None,
    verbose: Verbose = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what ended its worker process in an earlier run.")
    ] = False,
    profile_time: Annotated[
        bool, typer.Option("--profile-time", help="Run time by component, printed at the end.")
    ] = False,
) -> None:
    """Train the suite's models, attack them, score the results and write the report."""
    from advseg_bench.suite.suite import Suite

    loaded = Suite.load(suite, profile=profile, data=data)
    number, folder = choose_part(part, out, out or default_folder(loaded))
    options = choose_executor(executor, address, workers)
    print_phantom(loaded.data)
    from advseg_bench.cli.progress import show_progress
    from advseg_bench.instruments.profiling import measure_times
    from advseg_bench.report import summarise, write_report

    asked: dict[str, Any] = {"jobs": jobs, "partition": partition, "gpus": gpus, "hours": hours, "account": account}
    if executor == "slurm":
        begin = _on_slurm(loaded, folder, choose_slurm(loaded, workers, **asked), device, shard)
    else:
        refuse_slurm_options(executor, asked)
        from advseg_bench.running.benchmark import run

        begin = partial(
            run,
            loaded,
            folder,
            workers=workers or default_workers(loaded),
            device=device or "cpu",
            shard=shard,
            part=number,
            isolate=True,
            retry_failed=retry_failed,
            executor=options,
        )
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        if profile_time:
            spent = stack.enter_context(measure_times())
        with show_progress(console) as progress:
            finished = begin(progress=progress)
        summary = summarise(finished) if number is None else None
        paths = write_report(summary, console=console if verbose else None) if summary else []
    if profile_time:
        _print_profile(spent)
    if summary:
        print_end(summary, paths, verbose)
    else:
        print_part(finished)
    end_run(finished, loaded)


def _on_slurm(suite: Suite, folder: Path, options: SlurmOptions, device: str | None, shard: int) -> Callable[..., Run]:
    """A function that runs a suite as Slurm jobs."""
    from advseg_bench.results.remote import refuse_url
    from advseg_bench.running.executors.slurm import run_on_slurm

    refuse_url(folder, "--out with --executor slurm")
    return partial(run_on_slurm, suite, folder, options, device=device, shard=shard)


def end_run(finished: Run, suite: Suite) -> None:
    """Print what was left out and what failed; a failure exits with code 1."""
    _print_left_out(finished)
    if finished.failures:
        _print_failures(finished, suite)
        raise typer.Exit(1)


def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, or URL of a run.")],
    out: Annotated[Path | None, typer.Option(help="Output folder; by default RUN/report.")] = None,
    formats: Formats = None,
    verbose: Verbose = False,
) -> None:
    """Write the report of a run: Markdown, CSV, figures and a self-contained HTML page."""
    from advseg_bench.report import summarise, write_report
    from advseg_bench.results.run import Run

    opened = Run(run, strict=False)
    summary = summarise(opened)
    paths = write_report(summary, out, formats=formats or (), console=console if verbose else None)
    print_end(summary, paths, verbose)
    if print_damaged(opened):
        raise typer.Exit(1)


def print_damaged(run: Run) -> bool:
    """Print the files of a run that are damaged and left out, one line each; return whether there are any."""
    from advseg_bench.results.remote import find_mirror
    from advseg_bench.results.verify import list_damaged

    damaged = list_damaged(run)
    mirror = find_mirror(run.path) if run.path else None
    for each in damaged:
        print_problem(f"left out: {mirror.show(each) if mirror else each}")
    return bool(damaged)


def claims_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, one per data set.")],
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("runs/claims"),
    formats: Formats = None,
) -> None:
    """Test the claims of arXiv 2401.11224 on one or more runs; write Markdown, tables, figures and an HTML page."""
    from advseg_bench.report import write_claims
    from advseg_bench.results.remote import show_place
    from advseg_bench.results.run import Run

    for path in write_claims([Run(run) for run in runs], out, formats=formats or ()):
        if path.suffix in (".html", ".md"):
            print_line(show_place(path))


def print_end(summary: Summary, paths: Sequence[Path], verbose: bool) -> None:
    """Print the summary, or with `verbose` only the paths of the pages."""
    from advseg_bench.report import print_summary

    if not verbose:
        print_summary(summary, paths, console)
        return
    from advseg_bench.results.remote import show_place

    for page in (path for path in paths if path.suffix == ".html"):
        print_line(f"\n{page.stem.capitalize()}: {show_place(page)}")


def _print_left_out(finished: Run) -> None:
    """Print which tensors of files of weights were left out, unless they only helped training; one line per model."""
    from advseg_bench.models.checkpoints.fitting import is_training_only

    for name, known in finished.models.items():
        names = [tensor for tensor in known.get("weights", {}).get("left_out", ()) if not is_training_only(tensor)]
        if names:
            what = f"{len(names)} tensor{'s' if len(names) > 1 else ''} of {known['source']}"
            print_line(f"model {name}: left out {what} (first {names[0]!r})")


def _print_failures(finished: Run, suite: Suite) -> None:
    """Print the failures, one line each, up to `MOST_FAILURES`."""
    from advseg_bench.suite.cells import plan

    labels = {cell.id: cell.label for cell in plan(suite)}
    lines = []
    for failure in finished.failures[:MOST_FAILURES]:
        what = labels.get(failure["cell"], f"all of {failure['model']}")
        lines.append(f"failed: {what}: {failure['message']}")
    if len(finished.failures) > MOST_FAILURES:
        lines.append(f"and {len(finished.failures) - MOST_FAILURES} more")
    for line in lines:
        print_problem(line)


def _print_profile(spent: dict[str, float]) -> None:
    """Print the run time by component, summed over this process and its workers."""
    from rich.table import Column, Table

    from advseg_bench.instruments.profiling import IMPORTS, MODEL, WAITING, list_shares

    rows, around = list_shares(spent)
    columns = ("component", Column("s", justify="right"), Column("share", justify="right"))
    table = Table(*columns, box=None, pad_edge=False)
    for name, seconds, share in rows:
        table.add_row(name if name in MODEL else f"* {name}", f"{seconds:.2f}", f"{share:.1%}")
    console.print(table)
    console.print(
        f"Overhead around the model (*): {around:.1%} of {sum(row[1] for row in rows):.1f} s over all processes. "
        f"Not included: {spent.get(IMPORTS, 0.0):.1f} s of imports, {spent.get(WAITING, 0.0):.1f} s waiting."
    )
