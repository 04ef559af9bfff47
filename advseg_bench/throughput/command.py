"""The command `throughput`: from options to a plan, rows and files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from advseg_bench.cache import make_folder
from advseg_bench.errors import SpecError, expected, unknown
from advseg_bench.instruments import meter
from advseg_bench.instruments.allocator import keep_freed_memory
from advseg_bench.registry import catalogue, environment
from advseg_bench.registry.equivalents import find_equivalents
from advseg_bench.registry.preparation import read_steps
from advseg_bench.suite.suite import Suite
from advseg_bench.throughput.contenders import AUTO, PRECISIONS, Work
from advseg_bench.throughput.grid import Plan, Row, measure_grid
from advseg_bench.throughput.largest import Trial, find_largest
from advseg_bench.throughput.report import print_throughput, write_throughput
from advseg_bench.types import Task

REFERENCES = ("fgsm", "bim", "pgd", "mifgsm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command, see `advseg-bench throughput --help`."""

    suite: Suite
    models: tuple[str, ...]
    attack: str
    steps: int | None
    loss: str
    against: tuple[str, ...]
    classes: int | None
    size: int | None
    batches: tuple[str, ...]
    precisions: tuple[str, ...]
    prepare: tuple[str, ...]
    device: str | None
    rounds: int
    threads: int | None
    largest: bool


def run(options: Options, out: Path, console: Console) -> None:
    """Measure, print and write. Raises: UserError."""
    plan, missing = make_plan(options)
    keep_freed_memory()
    torch.set_num_threads(options.threads or options.suite.compute.threads)
    make_folder(out)
    for toolkit in missing:
        console.print(f"{toolkit}: skipped, since it has no {options.attack}", markup=False)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("models")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        rows = measure_grid(plan, show)
        show("peak of this machine", 0, 1)
        _add_shares(rows, plan)
        if options.largest:
            _add_largest(rows, plan, show)
    print_throughput(rows, console)
    for path in write_throughput(rows, _describe(options, plan), out):
        console.print(str(path), soft_wrap=True, highlight=False)


def make_plan(options: Options) -> tuple[Plan, list[str]]:
    """Return the plan, and the toolkits without this attack. Raises: SpecError."""
    suite = options.suite
    _check("attack", options.attack, REFERENCES)
    _check("loss", options.loss, catalogue.LOSSES)
    for name in options.precisions:
        _check("precision", name, PRECISIONS)
    known = {spec.name: spec for spec in suite.models}
    for name in options.models:
        _check("model", name, known)
    if options.attack == "fgsm" and options.steps:
        raise SpecError("throughput: expected no --steps for fgsm, which has one step. Remove --steps.")
    settings: dict[str, Any] = {"steps": options.steps} if options.steps else {}
    if options.attack == "pgd":
        settings["random_start"] = False  # otherwise toolkits would get one image at a time, to seed each image
    others, missing = find_equivalents(options.against, options.attack, "linf", settings)
    batches = [int(text) for text in options.batches if text.isdecimal() and int(text) > 0]
    if len(batches) != len(options.batches):
        raise SpecError(expected("throughput: batches", "whole numbers above 0", ",".join(options.batches)))
    for what, values in (("batch", options.batches), ("precision", options.precisions), ("prepare", options.prepare)):
        if not values or len(set(values)) < len(values):
            raise SpecError(expected(f"throughput: {what}", "at least one, each once", ",".join(values)))
    if options.size and not isinstance(suite.data.size, int):
        raise SpecError("throughput: expected no --size for a suite of volumes, got one edge. Remove --size.")
    if options.classes and suite.data.task == "binary":
        raise SpecError("throughput: expected no --classes for a binary task, which has one class. Remove --classes.")
    try:
        device = torch.device(options.device) if options.device else meter.default_device()
    except RuntimeError:
        raise SpecError(expected("throughput: device", "a device such as cpu or cuda:0", options.device)) from None
    for text in options.prepare:
        if text != AUTO and "cuda_graph" in read_steps(text) and device.type != "cuda":
            raise SpecError(expected("throughput: prepare", "a CUDA device for cuda_graph", str(device)))
    environment.describe_device(str(device))
    plan = Plan(
        work=Work(reference=options.attack, settings=settings, others=others, loss=options.loss),
        models=tuple(known[name] for name in options.models or known),
        channels=suite.data.channels,
        size=options.size or suite.data.size,
        task=Task(suite.data.task, tuple(f"class {i}" for i in range(_count_classes(options)))),
        batches=tuple(batches),
        precisions=options.precisions,
        preparations=options.prepare,
        device=device,
        rounds=options.rounds,
    )
    return plan, missing


def _count_classes(options: Options) -> int:
    return 1 if options.suite.data.task == "binary" else options.classes or 3


def _check(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise SpecError(unknown("throughput", what, value, known))


def _add_shares(rows: list[Row], plan: Plan) -> None:
    """Add operations per second, counting a gradient as two forwards, and their share of the matrix product peak."""
    peaks = {name: meter.matrix_peak(plan.device, PRECISIONS[name]) for name in ("float32", *plan.precisions)}
    for row in rows:
        if row["error"] is None:
            row["flops_per_s"] = 2 * row["flops"] * row["backwards"] * row["images_per_s"]
            row["peak_share"] = row["flops_per_s"] / max(peaks["float32"], peaks[row["precision"]])


def _add_largest(rows: list[Row], plan: Plan, show: Any) -> None:
    """Add the largest batch of the reference for each model, precision and preparation."""
    specs = {spec.name: spec for spec in plan.models}
    found: dict[tuple[str, str, str], int] = {}
    mine = [row for row in rows if row["implementation"] == plan.work.reference]
    for i, row in enumerate(mine):
        key = (row["model"], row["precision"], row["preparation"])
        show(f"largest batch of {row['model']}", i, len(mine))
        if key not in found:
            trial = Trial(
                work=replace(plan.work, others={}),
                model=specs[row["model"]],
                channels=plan.channels,
                size=plan.size if isinstance(plan.size, int) else tuple(plan.size),
                task=plan.task,
                preparation=AUTO if row["preparation"].startswith(AUTO) else row["preparation"],
                precision=row["precision"],
                device=str(plan.device),
                threads=torch.get_num_threads(),
            )
            found[key] = find_largest(trial)
        row["largest_batch"] = found[key]


def _describe(options: Options, plan: Plan) -> dict[str, Any]:
    """The machine and the options on which the figures depend."""
    machine = environment.describe_libraries() | environment.describe_machine()
    machine |= {"device": environment.describe_device(str(plan.device)), "threads": str(torch.get_num_threads())}
    machine |= environment.describe_packages(sorted({name.partition(".")[0] for name in plan.work.others}))
    asked: dict[str, Any] = {
        "suite": options.suite.name,
        "size": plan.size,
        "channels": plan.channels,
        "task": plan.task.kind,
    }
    asked |= {"classes": len(plan.task.classes), "rounds": plan.rounds, "attack": plan.work.reference}
    asked |= {"settings": dict(plan.work.settings), "loss": plan.work.loss, "weights": "random"}
    return {"schema": 1, "environment": machine, "asked": asked}
