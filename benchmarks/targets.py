"""Measure the performance targets of this project and print them as a table.

    OMP_NUM_THREADS=2 python benchmarks/targets.py [--size 224] [--rounds 12] [--only counts sweep ...]

Deterministic quantities are compared exactly. Times are ratios between implementations that alternate in the same
loop, with a paired 95 % interval; a target is missed only if the whole interval lies below it. The exit code is 1 if
any target is missed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import big_run
import outside_model
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from works import RESNET18, make_scene, sweep_works

from advseg_bench.batches import move_batch
from advseg_bench.instruments import meter
from advseg_bench.instruments.allocator import keep_freed_memory
from advseg_bench.instruments.counter import Counter
from advseg_bench.models.prepare import prepare
from advseg_bench.registry import environment
from advseg_bench.registry.equivalents import find_equivalents
from advseg_bench.suite.suite import Suite
from advseg_bench.throughput.contenders import RAW, Work, list_contenders

LOSSES = ("bce", "dice_focal")
EPS = tuple(grey / 255 for grey in (1, 2, 3, 4, 6, 8, 12, 16))
PREPARED = "lean"
"""Default preparation of models in a run."""

FASTEST = "fold+lean+channels_last"
"""Fastest preparation whose gradients are equal up to rounding."""

PGD20: dict[str, Any] = {"steps": 20, "random_start": False}
REPORTED = "reported"
"""The target of a line without a target."""

COLD = (("--help",), ("plan", "quick"), ("list", "attacks"))


@dataclass(frozen=True, slots=True)
class Line:
    """One target with its measurement.

    Attributes:
        what: Measured quantity.
        target: Target value.
        found: Measured value.
        met: Whether the target is met; None if the interval is inconclusive.
    """

    what: str
    target: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Asked:
    """Conditions of the measurement.

    Attributes:
        size: Edge length of the images in pixels.
        batch: Images per call.
        rounds: Rounds of every comparison.
        device: Device of models and images.
    """

    size: int
    batch: int
    rounds: int
    device: str


def count_passes(asked: Asked) -> Iterator[Line]:
    """Count forwards and backwards per image of FGSM, PGD-20 and a sweep; a run attacks a copy and scores the model."""
    model, data, images = make_scene(RESNET18, 64, asked.batch, asked.device)
    n, results = len(images), len(LOSSES) * len(EPS)
    batch = move_batch(data.batch(list(images)), asked.device)
    attacked = prepare(model, batch.x, [PREPARED])
    wanted: dict[str, tuple[Callable[[], object], int, int]] = {}
    for name, settings, passes in (("FGSM", {}, 1), ("PGD-20", PGD20, 20)):
        work = Work(reference=name.partition("-")[0].lower(), settings=settings)
        wanted[name] = (list_contenders(work, attacked, batch, ["raw"], "float32")[1].call, passes, passes)
    sweep = sweep_works(model, data, images, LOSSES, EPS, asked.device, attacked)["ours"]
    wanted["a sweep, 2 losses x 8 eps, with scoring"] = (sweep, 1 + results, len(LOSSES))
    for name, (call, forwards, backwards) in wanted.items():
        with Counter(attacked).count(n) as attacks, Counter(model).count(n) as scores:
            call()
        found = [(attacks.all_forwards + scores.all_forwards) / n, (attacks.all_backwards + scores.all_backwards) / n]
        text = f"{found[0]:g} F + {found[1]:g} B"
        yield Line(f"passes of {name}", f"{forwards} F + {backwards} B", text, found == [forwards, backwards])


def measure_memory(asked: Asked) -> Iterator[Line]:
    """Measure peak live bytes of one FGSM, ours / torchattacks, with the same profiler; some have no target."""
    promised = {"unet-resnext101": 0.30, "unet-resnet18": 0.55}
    work = Work(reference="fgsm", others={"torchattacks.FGSM": {}})
    for spec in (RESNET18, *Suite.load("wang2024").models):
        model, data, images = make_scene(spec, asked.size, asked.batch, asked.device)
        batch = move_batch(data.batch(list(images)), asked.device)
        _, *both = list_contenders(work, model, batch, [PREPARED], "float32")
        ours, theirs = (_peak(contender.call, asked.device) for contender in both)
        text, most = f"{ours / 1e6:.0f} / {theirs / 1e6:.0f} MB = {ours / theirs:.2f}", promised.get(spec.name)
        target = REPORTED if most is None else f"<= {most:g}"
        met = most is None or ours / theirs <= most
        yield Line(f"peak bytes of FGSM on {spec.name}: ours / torchattacks", target, text, met)


def time_outside(asked: Asked) -> Iterator[Line]:
    """Measure the share of an attack's time outside the model, with the harness's copies, guard and check."""
    for share in outside_model.measure(size=asked.size, repeats=3):
        text = f"{share.perturb:.2%} (attack alone: {share.call:.2%})"
        attack = {"fgsm": "FGSM", "pgd": "PGD-20"}[share.attack]
        yield Line(f"time outside {share.model} in {attack}", "<= 2 %", text, share.perturb <= 0.02)


def time_records(asked: Asked) -> Iterator[Line]:
    """Measure the tables and the report of a run of a million rows, each in a separate process."""
    with TemporaryDirectory() as folder:
        run = big_run.write_big_run(Path(folder) / "run")
        readings = {"tables": (3, big_run.read_tables(run)), "page": (15, big_run.read_page(run, run / "report"))}
    for what, (most, reading) in readings.items():
        text = f"{reading.seconds:.1f} s, {reading.peak_bytes / 1e9:.2f} GB"
        met = reading.seconds < most and reading.peak_bytes < 1e9
        yield Line(f"{reading.rows:,} rows into {what}", f"< {most} s, < 1 GB", text, met)


def time_cold_starts(asked: Asked) -> Iterator[Line]:
    """Measure five new processes per command; none may import torch."""
    for arguments in COLD:
        command = [sys.executable, "-X", "importtime", "-m", "advseg_bench", *arguments]
        imports = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        seconds = statistics.median(_run_seconds([*command[:1], *command[3:]]) for _ in range(5))
        loads = any(line.rpartition("|")[2].strip() == "torch" for line in imports.splitlines())
        found = f"{seconds:.2f} s" + (", imports torch" if loads else "")
        yield Line(f"cold start of {' '.join(arguments)}", "< 0.5 s, without torch", found, seconds < 0.5 and not loads)


def time_fgsm(asked: Asked) -> Iterator[Line]:
    """Compare FGSM with the bare limit on each model of wang2024; the unprepared model has no target."""
    for spec in Suite.load("wang2024").models:
        model, data, images = make_scene(spec, asked.size, asked.batch, asked.device)
        batch = move_batch(data.batch(list(images)), asked.device)
        contenders = list_contenders(Work(reference="fgsm"), model, batch, [PREPARED, RAW], "float32")
        works = dict(zip(("limit", "ours", "raw"), (contender.call for contender in contenders), strict=True))
        samples = meter.measure(works, device=asked.device, rounds=asked.rounds)
        yield _judge(f"FGSM on {spec.name}: ours / bare limit", 0.98, meter.ratio(samples["limit"], samples["ours"]))
        raw = _judge(f"the same without preparation, {spec.name}", 0, meter.ratio(samples["limit"], samples["raw"]))
        yield replace(raw, target=REPORTED)


def time_sweep(asked: Asked) -> Iterator[Line]:
    """Compare a sweep with a loop over each toolkit, and with the limit of its number of passes."""
    model, data, images = make_scene(RESNET18, asked.size, asked.batch, asked.device)
    works = sweep_works(model, data, images, LOSSES, EPS, asked.device)
    del works["foolbox"]
    samples = meter.measure(works, device=asked.device, rounds=asked.rounds)
    for other, target in (("torchattacks", 2.3), ("art", 2.3), ("limit", 0.95)):
        yield _judge(f"sweep: ours / {other}", target, meter.ratio(samples[other], samples["ours"]))


def time_pgd(asked: Asked) -> Iterator[Line]:
    """Compare PGD-20 with that of the toolkits; the fastest preparation has no target, since its rounding differs."""
    others, _ = find_equivalents(("torchattacks", "art"), "pgd", "linf", PGD20)
    work = Work(reference="pgd", settings=PGD20, others=others)
    model, data, images = make_scene(RESNET18, asked.size, asked.batch, asked.device)
    batch = move_batch(data.batch(list(images)), asked.device)
    _, ours, fastest, *toolkits = list_contenders(work, model, batch, [PREPARED, FASTEST], "float32")
    works = {"ours": ours.call, "fastest": fastest.call, **{c.implementation: c.call for c in toolkits}}
    samples = meter.measure(works, device=asked.device, rounds=asked.rounds)
    for name in others:
        yield _judge(f"PGD-20: ours / {name}", 1.0, meter.ratio(samples[name], samples["ours"]))
        prepared = _judge(f"the same prepared by {FASTEST}", 0, meter.ratio(samples[name], samples["fastest"]))
        yield replace(prepared, target=REPORTED)


def _judge(what: str, target: float, measured: tuple[float, float, float]) -> Line:
    ratio, low, high = measured
    text = f"{ratio:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(high) else f"{ratio:.3f} [too few rounds]"
    return Line(what, f"{target:g}", text, True if low >= target else False if high < target else None)


def _peak(call: Callable[[], object], device: str) -> int:
    call()
    return meter.peak_bytes(call, device) or 0


def _run_seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


CHECKS: dict[str, Callable[[Asked], Iterator[Line]]] = {
    "counts": count_passes,
    "memory": measure_memory,
    "outside": time_outside,
    "records": time_records,
    "cold": time_cold_starts,
    "fgsm": time_fgsm,
    "sweep": time_sweep,
    "pgd": time_pgd,
}


def main() -> None:
    """Measure and print the targets; exit with 1 if any is missed."""
    parser = argparse.ArgumentParser(description="Measure the performance targets of the project.")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    given = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    asked = Asked(given.size, given.batch, given.rounds, given.device or str(meter.default_device()))
    console = Console(width=120)
    machine = f"{environment.describe_device(asked.device)}, {torch.get_num_threads()} threads"
    console.print(f"{machine}; {asked.batch} images at {asked.size} px, {asked.rounds} rounds", highlight=False)
    lines = []
    for name in given.only:
        for line in CHECKS[name](asked):
            lines.append(line)
            console.print(f"  {line.what}: {line.found}", highlight=False, markup=False)
    table = Table("what", "target", "measured", "", box=None, pad_edge=False)
    for line in lines:
        verdict = {True: "met", False: "MISSED", None: "undecided"}[line.met]
        table.add_row(line.what, line.target, escape(line.found), "" if line.target == REPORTED else verdict)
    console.print(table, highlight=False)
    sys.exit(any(line.met is False for line in lines))


if __name__ == "__main__":
    main()
