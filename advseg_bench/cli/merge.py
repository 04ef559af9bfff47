"""The command `merge`: one run of parts that were computed apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advseg_bench.cli.common import Verbose, console, print_line
from advseg_bench.cli.run import end_run, print_end

if TYPE_CHECKING:
    from advseg_bench.results.run import Run


def merge_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="FOLDER...", help="Run folders or URLs of all parts, in any order.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder to write; it may hold an earlier merge.")] = Path("runs/merged"),
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge although parts or rows are missing; `run --out` computes them.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Merge parts of machines that differ, and report by how much.")
    ] = False,
    panels: Annotated[bool, typer.Option(help="Make the pictures of the report that no part has.")] = True,
    device: Annotated[str, typer.Option(help="Device for these pictures, such as cpu or cuda.")] = "cpu",
    verbose: Verbose = False,
) -> None:
    """Make one run of parts that were computed with --part, and write its report."""
    from advseg_bench.running.merge import merge

    run = merge(folders or [], out, partial=partial, allow_mixed=allow_mixed, panels=panels, device=device)
    print_merged(run, verbose)


def print_merged(run: Run, verbose: bool) -> None:
    """Write the report of a merged run, and print what was merged and the summary."""
    from advseg_bench.report import summarise, write_report
    from advseg_bench.results.remote import show_place
    from advseg_bench.running.panels import sort_out_panels
    from advseg_bench.suite.suite import Suite

    machines = run.info["machines"]
    parts = sum(len(machine["parts"]) for machine in machines)
    types = "one type of machine" if len(machines) == 1 else f"{len(machines)} types of machine"
    missing = f"; {run.missing:,} of {run.planned:,} rows are missing" if run.missing else ""
    print_line(f"merged {parts} parts of {types}{missing}")
    assert run.path is not None
    if left := sort_out_panels(run):
        print_line(f"{left} pictures are missing; `advseg-bench run SUITE --out {show_place(run.path)}` makes them")
    summary = summarise(run)
    print_end(summary, write_report(summary, console=console if verbose else None), verbose)
    end_run(run, Suite.model_validate(run.info["suite"]))
