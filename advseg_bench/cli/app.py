"""The command line: thin, and quick to start; pydantic, torch and polars are imported by what needs them."""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer
from rich.console import Console
from rich.table import Column, Table

from advseg_bench.errors import UserError
from advseg_bench.registry import catalogue

if TYPE_CHECKING:
    from advseg_bench.suite.cells import Cell
    from advseg_bench.suite.suite import Suite

app = typer.Typer(
    name="advseg-bench",
    help="Measure how robust medical segmentation models are to adversarial attacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 120  # a file or a pipe has no width of its own
STOPPED = "stopped. Run the same command again to go on from here."
UsageError = cast(type[Exception], typer.BadParameter.__base__)

SuiteName = Annotated[str, typer.Argument(metavar="SUITE", help="A shipped suite, or the path of a TOML file.")]
Profile = Annotated[str | None, typer.Option(help="One of the suite's profiles, such as cpu of wang2024.")]
DataPath = Annotated[Path | None, typer.Option("--data", help="Where the data set is, in place of the suite's path.")]
Formats = Annotated[
    list[str] | None, typer.Option("--format", help="Write figures in this too: png or pdf. May be given twice.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core, at most one per model.")]


def main() -> NoReturn:
    """Run the command line; whatever the user can mend is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except (UserError, UsageError) as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        _end(" ".join(message.split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        _end(STOPPED, 130)
    except (OSError, SystemExit) as error:
        cause = error.__context__ if isinstance(error, SystemExit) else error
        if not isinstance(cause, OSError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at exit
        if not isinstance(cause, BrokenPipeError):
            _end(f"{cause.filename or 'standard output'}: {cause.strerror}.", 2)
        code = 0  # nobody reads on, which is no mistake
    if code == 130:  # what newer versions of typer make of Ctrl-C
        _end(STOPPED, 130)
    sys.exit(code or 0)


def _end(message: str, code: int) -> NoReturn:
    """Say one line and leave."""
    print(f"advseg-bench: {message}", file=sys.stderr)
    sys.exit(code)


@app.command("run")
def run_command(
    suite: SuiteName,
    profile: Profile = None,
    data: DataPath = None,
    out: Annotated[Path | None, typer.Option(help="Run directory, resumed if there; by default runs/SUITE.")] = None,
    workers: Workers = None,
    device: Annotated[str, typer.Option(help='Where to train and attack, such as "cuda".')] = "cpu",
    shard: Annotated[int, typer.Option(min=1, help="Images a unit of work; results do not depend on it.")] = 8,
    profile_time: Annotated[bool, typer.Option("--profile-time", help="Print where the time went.")] = False,
) -> None:
    """Train the suite's models, attack them, score the results and write the report."""
    from advseg_bench.suite.suite import Suite

    loaded = Suite.load(suite, profile=profile, data=data)
    folder = out or Path("runs") / "-".join(filter(None, (loaded.name, loaded.profile)))
    from advseg_bench.cli.progress import show_progress
    from advseg_bench.instruments.profiling import measure_times
    from advseg_bench.report import write_report
    from advseg_bench.running.benchmark import run
    from advseg_bench.suite.cells import plan

    used = workers or default_workers(loaded)
    spent: dict[str, float] = {}
    with ExitStack() as stack:
        if profile_time:
            spent = stack.enter_context(measure_times())
        with show_progress(console) as progress:
            finished = run(loaded, folder, workers=used, device=device, shard=shard, progress=progress)
        paths = write_report(finished, console=console)
    if profile_time:
        _print_profile(spent)
    for page in (path for path in paths if path.suffix == ".html"):
        console.print(f"\n{page.stem.capitalize()}: {page}", soft_wrap=True, highlight=False)
    if finished.failures:
        labels = {cell.id: cell.label for cell in plan(loaded)}
        for failure in finished.failures:
            what = labels.get(failure["cell"], f"all of {failure['model']}")
            console.print(
                f"failed: {what}: {failure['message']}", style="red", soft_wrap=True, highlight=False, markup=False
            )
        raise typer.Exit(1)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    out: Annotated[Path | None, typer.Option(help="Where to write; by default RUN/report.")] = None,
    formats: Formats = None,
) -> None:
    """Make the report of a run again: terminal tables, Markdown, CSV, figures and a one-file HTML page."""
    from advseg_bench.report import write_report
    from advseg_bench.results.run import Run

    for path in write_report(Run(run), out, formats=formats or (), console=console):
        if path.suffix in (".html", ".md"):
            console.print(str(path), soft_wrap=True, highlight=False)


@app.command("claims")
def claims_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, one for each data set.")],
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("runs/claims"),
    formats: Formats = None,
) -> None:
    """Judge the claims of arXiv 2401.11224 on one or more runs: tables, figures, Markdown and a one-file HTML page."""
    from advseg_bench.report import write_claims
    from advseg_bench.results.run import Run

    for path in write_claims([Run(run) for run in runs], out, formats=formats or ()):
        if path.suffix in (".html", ".md"):
            console.print(str(path), soft_wrap=True, highlight=False)


@app.command("plan")
def plan_command(
    suite: SuiteName,
    profile: Profile = None,
    data: DataPath = None,
    workers: Workers = None,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell.")] = False,
) -> None:
    """Show what a suite would run, what is skipped and why, and what it costs."""
    from advseg_bench.data import count_images
    from advseg_bench.suite.cells import estimate, plan
    from advseg_bench.suite.suite import Suite
    from advseg_bench.suite.timing import expect

    loaded = Suite.load(suite, profile=profile, data=data)
    planned = plan(loaded)
    _print_grid(loaded, planned)
    if cells:
        for cell in planned:
            line = f"{cell.id}  {cell.label}" + (f"  SKIPPED: {cell.skip}" if cell.skip else "")
            console.print(line, markup=False, soft_wrap=True)
    for reason in sorted({cell.skip for cell in planned if cell.skip}):
        line = f"skipped: {reason} ({sum(cell.skip == reason for cell in planned)} cells)"
        console.print(line, markup=False, soft_wrap=True)
    images = count_images(loaded.data)
    _print_cost(planned, images)
    used = workers or default_workers(loaded)
    expected = expect(loaded, planned, images[:2], used) if images else None
    if expected:
        days = f" ({expected.minutes / 1440:.1f} days)" if expected.minutes > 1440 else ""
        console.print(
            f"Expected: {expected.minutes:.1f} min{days} with {used} workers ({expected.source}), untrained models."
        )
    else:
        why = "until the suite has run once on this machine"
        if not images:
            why = "since the data set is not loaded to count its images"
        elif estimate(planned) is None:
            why = "since a plug-in does not tell its cost"
        console.print(f"Expected minutes: unknown {why}.")


@app.command("list")
def list_command(
    what: Annotated[str, typer.Argument(help="attacks, models, losses, datasets or suites")],
    every: Annotated[bool, typer.Option("--all", help="Also what cannot run on segmenters, with the reason.")] = False,
) -> None:
    """List what is there by name, with the names of plug-ins."""
    from advseg_bench.cli.listing import list_lines

    for line in list_lines(what, every):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("crosscheck")
def crosscheck_command(
    attack: Annotated[str, typer.Argument(help="The reference: fgsm, bim, pgd or mifgsm.")],
    against: Annotated[str, typer.Option(help="Toolkits, or names of attacks; separated by commas.")],
    suite: Annotated[str, typer.Option(help="Whose models and images.")] = "quick",
    models: Annotated[str, typer.Option(help="Some of its models; by default all.")] = "",
    untrained: Annotated[str, typer.Option(help='Further networks, random weights, as "smp.Unet:vgg13".')] = "",
    tasks: Annotated[str, typer.Option(help="Kinds of task each network is put to.")] = ",".join(catalogue.ALL_KINDS),
    losses: Annotated[str, typer.Option(help="Attack losses.")] = "bce,ce,dice,focal,dice_focal",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    eps: Annotated[str, typer.Option(help="Radii in image units.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the reference and its equivalents.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images of a batch.")] = 4,
    out: Annotated[Path | None, typer.Option(help="Where to write; by default runs/crosscheck-ATTACK.")] = None,
) -> None:
    """Check implementations of an attack against the reference, down to the last bit, and say why they differ."""
    from advseg_bench.crosscheck import command
    from advseg_bench.suite.suite import Suite

    options = command.Options(
        reference=attack,
        against=split_names(against),
        suite=Suite.load(suite),
        models=split_names(models),
        untrained=split_names(untrained),
        kinds=split_names(tasks),
        losses=split_names(losses),
        norm=norm,
        eps=split_names(eps),
        steps=steps,
        images=images,
    )
    if not command.run(options, out or Path("runs") / f"crosscheck-{attack}", console):
        raise typer.Exit(1)


@app.command("throughput")
def throughput_command(
    suite: Annotated[str, typer.Option(help="Whose models and image size.")] = "quick",
    models: Annotated[str, typer.Option(help="Some of its models; by default all.")] = "",
    attack: Annotated[str, typer.Option(help="The reference: fgsm, bim, pgd or mifgsm.")] = "fgsm",
    steps: Annotated[int | None, typer.Option(min=1, help="Of the reference and its equivalents.")] = None,
    loss: Annotated[str, typer.Option(help="Attack loss.")] = "bce",
    against: Annotated[str, typer.Option(help="Toolkits, or names of attacks; separated by commas.")] = "",
    batch: Annotated[str, typer.Option(help="Images a call; several separated by commas.")] = "4",
    precision: Annotated[str, typer.Option(help="Of float32, bfloat16, float16.")] = "float32",
    prepare: Annotated[
        str, typer.Option(help='How the reference\'s model is prepared: "raw", "lean", "fold+lean", "auto" ...')
    ] = "raw,lean",
    size: Annotated[int | None, typer.Option(min=8, help="Pixels; by default the suite's.")] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Logit channels; by default 3, of a binary task 1.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed calls of each implementation.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, max=256, help="Of PyTorch; by default the suite's.")] = None,
    device: Annotated[str | None, typer.Option(help="By default the accelerator, if there is one.")] = None,
    largest_batch: Annotated[bool, typer.Option("--largest-batch", help="Find the largest batch that fits.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("runs/throughput"),
) -> None:
    """Time implementations of an attack side by side, as a share of the bare limit of the model."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its profiler warns of memory from before, as it always is
    from advseg_bench.suite.suite import Suite
    from advseg_bench.throughput import command

    options = command.Options(
        suite=Suite.load(suite),
        models=split_names(models),
        attack=attack,
        steps=steps,
        loss=loss,
        against=split_names(against),
        classes=classes,
        size=size,
        batches=split_names(batch),
        precisions=split_names(precision),
        prepare=split_names(prepare),
        device=device,
        rounds=rounds,
        threads=threads,
        largest=largest_batch,
    )
    command.run(options, out, console)


@app.command("check-attack")
def check_attack_command(
    name: Annotated[str, typer.Argument(help="In the catalogue, of a plug-in, or package.module:object.")],
    loss: Annotated[str | None, typer.Option(help="What it follows; by default bce, for multiclass ce.")] = None,
    settings: Annotated[list[str] | None, typer.Option(help="A constructor argument, as steps=10; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="Where to try it.")] = "cpu",
) -> None:
    """Hold an attack to the contract that every attack must keep, one line per rule; exit code 1 if it breaks one."""
    from advseg_bench.testing import command

    if not command.run(name, loss, settings or (), device, console):
        raise typer.Exit(1)


@app.command("make-data")
def make_data_command(
    path: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    cases: Annotated[int, typer.Option(min=1, help="Subjects.")] = 12,
    slices: Annotated[int, typer.Option(min=1, help="Slices of a scan.")] = 8,
    days: Annotated[int, typer.Option(min=1, help="Scans of a subject.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other anatomies.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write a small folder in the format of the UW-Madison GI Tract data, drawn by the phantom."""
    from advseg_bench.data.uw_madison.make import write_uw_madison

    write_uw_madison(path, cases=cases, slices=slices, days=days, seed=seed, workers=workers)
    line = f"{path}: {cases * days * slices} slices of {cases} cases."
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of suite files, for editors."""
    from advseg_bench.suite.suite import Suite

    print(json.dumps(Suite.model_json_schema(), indent=1))


def split_names(text: str) -> tuple[str, ...]:
    """Read a list separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def default_workers(suite: Suite) -> int:
    """Return how many workers of the suite's threads this machine's cores feed, at most one per model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores // suite.compute.threads, len(suite.models)))


def _print_grid(suite: Suite, cells: tuple[Cell, ...]) -> None:
    """The models, and one line per attack: its cells over all models."""
    from advseg_bench.suite.cells import is_of, show_radii

    profile = f" ({suite.profile})" if suite.profile else ""
    console.print(f"{suite.name}{profile}: {suite.title}", markup=False, highlight=False)
    if suite.note:
        console.print(f"note: {suite.note}", markup=False, highlight=False)
    console.print(f"data: {suite.data.name}, {suite.data.task}, {_show_size(suite)}", highlight=False)
    for model in suite.models:
        parts = (model.architecture, model.encoder or "", f"weights {model.weights}" if model.weights else "")
        console.print(f"model: {model.name} ({', '.join(p for p in parts if p)})", markup=False, highlight=False)
    names = ("attack", "losses", "eps", "settings", "draws", "cells", "skipped")
    table = Table(*(Column(name, overflow="fold") for name in names), box=None, pad_edge=False)
    for attack in suite.attacks:
        mine = [cell for cell in cells if is_of(cell, attack)]
        skipped = sum(cell.skip is not None for cell in mine)
        eps = f"{attack.norm} {show_radii(attack.eps)}"
        losses = " ".join(attack.losses) or "-"
        settings = {key: [value] for key, value in attack.settings.items()} | attack.vary
        settings |= {"max_forwards": [attack.max_forwards]} if attack.max_forwards else {}
        shown = "; ".join(f"{key}: {' '.join(map(str, values))}" for key, values in settings.items())
        numbers = (str(attack.draws), str(len(mine)), str(skipped))
        table.add_row(attack.name, losses, eps, shown, *numbers)
    console.print(table)


def _show_size(suite: Suite) -> str:
    """The edge of a slice, or the edges of a volume."""
    edges = suite.data.edges
    return f"{edges[-1]} px" if len(edges) == 2 else f"volumes of {' x '.join(map(str, edges))} px"


def _print_profile(spent: dict[str, float]) -> None:
    """Where the time of a run went, summed over this process and its workers."""
    from advseg_bench.instruments.profiling import IMPORTS, MODEL, WAITING, list_shares

    rows, around = list_shares(spent)
    columns = ("time went to", Column("s", justify="right"), Column("share", justify="right"))
    table = Table(*columns, box=None, pad_edge=False)
    for name, seconds, share in rows:
        table.add_row(name if name in MODEL else f"* {name}", f"{seconds:.2f}", f"{share:.1%}")
    console.print(table)
    console.print(
        f"Around the model (*): {around:.1%} of {sum(row[1] for row in rows):.1f} s, all processes together. Not "
        f"counted: {spent.get(IMPORTS, 0.0):.1f} s of imports, {spent.get(WAITING, 0.0):.1f} s waiting for workers."
    )


def _print_cost(cells: tuple[Cell, ...], images: tuple[int, int, str] | None) -> None:
    """Model evaluations as this harness shares them, and as a loop over the cells would need them."""
    from advseg_bench.suite.cells import estimate

    active = [cell for cell in cells if cell.skip is None]
    cost = estimate(cells)
    console.print(f"Cells: {len(active)} to run, {len(cells) - len(active)} skipped.")
    if images and images[2]:
        told = f"Images: {images[0]:,} for training, {images[1]:,} for test ({images[2]})."
        console.print(told, highlight=False, soft_wrap=True)
    if cost is None:
        console.print("Cost: unknown, since a plug-in does not tell its own.")
        return
    unit = f"for {images[1]} test images" if images else "per test image"
    n = images[1] if images else 1
    console.print(
        f"Cost {unit}: {n * cost.shared_forwards} forwards + {n * cost.shared_backwards} backwards "
        f"(cell by cell it would be {n * cost.separate_forwards} + {n * cost.separate_backwards})."
    )
