"""The command `launch`: the parts of a suite as processes of one machine, or as a script for Slurm."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from advseg_bench.cli.common import DataPath, Profile, SuiteName, Verbose, console, print_line, split_names
from advseg_bench.cli.merge import print_merged
from advseg_bench.cli.parts import default_folder

STEP = re.compile(r" [0-9]+/[0-9]+$")
"""The end of a line that is a step of progress, and not printed where there is no terminal."""


def launch_command(
    suite: SuiteName,
    profile: Profile = None,
    data: DataPath = None,
    gpus: Annotated[str | None, typer.Option(help="Numbers of GPUs, such as 0,1,2,3: one process for each.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Number of processes, or of tasks of a Slurm array.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder of the merged run; by default runs/SUITE.")] = None,
    device: Annotated[str, typer.Option(help="Device of processes without --gpus.")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes of each process.")] = 1,
    show: Annotated[
        Literal["sbatch"] | None, typer.Option("--print", help="Print a script for Slurm instead of running.")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.02, max=10_000, help="Time limit of each task in the script.")] = 5,
    partition: Annotated[str, typer.Option(help="Partition in the script.")] = "",
    verbose: Verbose = False,
) -> None:
    """Run a suite with one process per GPU, or with several processes, and merge their parts."""
    from advseg_bench.errors import SpecError
    from advseg_bench.suite.suite import Suite

    loaded = Suite.load(suite, profile=profile, data=data)
    folder = out or default_folder(loaded)
    device = "cuda" if gpus is not None else device
    options = ["--workers", str(workers)]
    options += ["--device", device] if device != "cpu" else []
    for name, value in (("--profile", profile), ("--data", data)):
        options += [name, str(value)] if value is not None else []
    if (gpus is None) == (processes is None):
        raise SpecError("launch: expected one of --gpus and --processes, got " + ("both." if gpus else "none."))
    if show:
        from advseg_bench.cli.sbatch import make_script

        if processes is None:
            raise SpecError("--print sbatch: expected --processes N, got --gpus. Slurm chooses the GPUs of each task.")
        cpus = loaded.compute.threads * workers
        script = make_script(
            suite, options, processes, folder, hours=hours, partition=partition, device=device, cpus=cpus
        )
        typer.echo(script, nl=False)
        return
    _launch(suite, options, gpus, processes, folder)
    from advseg_bench.running.merge import merge
    from advseg_bench.running.parts import name_part

    n = processes or len(split_names(gpus or ""))
    made = [_folder_of(folder) / name_part((i, n)) for i in range(1, n + 1)]
    print_merged(merge(made, folder, device=device), verbose)


def _folder_of(out: Path) -> Path:
    """The folder of the parts of a merged run."""
    return out.with_name(f"{out.name}-parts")


def _launch(suite: str, options: list[str], gpus: str | None, processes: int | None, out: Path) -> None:
    """Run the parts."""
    from advseg_bench.results.remote import hold_place
    from advseg_bench.running.launching import Child, check_gpus, check_out, describe_part_command, launch
    from advseg_bench.running.parts import name_part

    names = split_names(gpus or "")
    if gpus is not None:
        check_gpus(names)
    n = processes or len(names)
    check_out(out, n)
    children = []
    for i in range(1, n + 1):
        command = describe_part_command(suite, options, i, n, _folder_of(out) / name_part((i, n)))
        name = f"GPU {names[i - 1]}" if names else f"process {i}"
        children.append(Child(i - 1, name, command, {"CUDA_VISIBLE_DEVICES": names[i - 1]} if names else {}))
    titles = [f"{child.name}, part {child.place + 1} of {n}" for child in children]
    with hold_place(_folder_of(out), "launch"), _show_lines(titles) as show:
        launch(children, show)


@contextmanager
def _show_lines(names: list[str]) -> Iterator[Callable[[int, str], None]]:
    """Show the last line of each process on a terminal; elsewhere print all lines but steps of progress."""
    if not console.is_terminal:
        yield lambda place, line: None if STEP.search(line) else print_line(f"{names[place]}: {line}")
        return
    from rich.live import Live
    from rich.text import Text

    last = ["starting"] * len(names)

    def draw() -> Text:
        rows = (f"{name}: {line}" for name, line in zip(names, last, strict=True))
        return Text("\n".join(rows), no_wrap=True, overflow="ellipsis")

    with Live(draw(), console=console, transient=True) as live:

        def show(place: int, line: str) -> None:
            last[place] = line
            live.update(draw())

        yield show
