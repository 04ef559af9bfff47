"""Write the folder of a run with synthetic counts, and read it: tables, report, claims. No model is run.

    python benchmarks/big_run.py FOLDER [--rows 1e6 1e7 1e8] [--images-per-part 500]

Each line is measured in a process of its own, with its wall time and its peak resident memory. All runs have parts as a
finished run has them; 1e6 rows are ten models, 100 cells each and 1,000 images of 200 subjects; 1e7 rows have 10,000
images, and 1e8 rows have 100 models.

`write_big_run`, which `targets.py` and `test_records.py` use, writes a run of a million rows by the writer of real
runs: ten models under 201 cells, 500 images of 25 subjects in parts of eight images.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from advseg_bench.cache import write_bytes, write_json
from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.results.selection import find_extremes
from advseg_bench.suite.cells import Cell, plan
from advseg_bench.suite.suite import Suite

SIDE = 224
CLASSES = ("stomach", "large bowel", "small bowel")
NOISE = ("random_sign", "uniform_noise", "shuffled_sign")
LOSSES = ["bce", "dice_focal", "dice", "focal", "tversky", "margin"]


def list_attacks(greys: Sequence[int], draws: int, **of_fgsm: Any) -> list[dict[str, Any]]:
    """Return FGSM under six losses, BIM and three noise baselines, at some multiples of 1/255."""
    eps = [f"{grey}/255" for grey in greys]
    fgsm = {"name": "fgsm", "losses": LOSSES, "eps": eps, **of_fgsm}
    bim = {"name": "bim", "losses": ["bce"], "eps": eps}
    noise = {"name": "uniform_noise", "eps": eps}
    shuffled = {"name": "shuffled_sign", "losses": ["bce"], "eps": eps}
    return [fgsm, bim, noise, shuffled, {"name": "random_sign", "eps": eps, "draws": draws}]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a run.

    Attributes:
        models: Number of models.
        images: Number of images.
        subjects: Number of subjects.
        attacks: The attacks of the suite.
        shard: Number of images in a part, all under all cells of one model.
        panels: Whether there are panels.
    """

    models: int
    images: int
    subjects: int
    attacks: Sequence[dict[str, Any]]
    shard: int
    panels: bool = False


def shape_of(rows: int) -> Shape:
    """Return the shape of a run with 100 cells per model: up to 10,000 images of 200 subjects, then more models."""
    images = min(rows // 1000, 10_000)
    attacks = list_attacks((1, 2, 3, 4, 5, 6, 8, 12, 16), draws=2)
    return Shape(rows // (100 * images), images, 200, attacks, shard=500)


def write_big_run(out: Path, images: int = 500) -> Path:
    """Write the folder of a run as its workers return it and return it; it takes 40 MB for 500 images."""
    attacks = list_attacks((1, 2, 3, 4, 5, 6, 8, 10, 12, 16), draws=5, vary={"label": ["true", "predicted"]})
    return write_run(out, Shape(10, images, 25, attacks, shard=8, panels=True))


def write_run(out: Path, shape: Shape) -> Path:
    """Write the folder of a run and return it."""
    suite = _make_suite(shape)
    cells = plan(suite)
    names = [f"s{i % shape.subjects:03d}-z{i // shape.subjects:03d}" for i in range(shape.images)]
    with records.own(out):
        records.describe(out, _describe(suite, cells, names, shape))
        for place, model in enumerate(suite.models):
            known = {"name": model.name, "architecture": model.architecture, "encoder": model.encoder}
            trained = {"parameters": 10**6 * (place + 1), "validation_dice": 0.85, "train_seconds": 60.0}
            write_json(out / "models" / f"{model.name}.json", known | trained | {"weights_sha256": "0"})
            mine = [cell for cell in cells if cell.model == model.name and cell.skip is None]
            for start in range(0, shape.images, shape.shard):
                rows = _make_rows(mine, place, names, start, shape)
                records.write_part(out, rows)
        write_json(out / "failures.json", [])
        if shape.panels:
            _write_panels(out)
    return out


def _make_suite(shape: Shape) -> Suite:
    """Return the suite of the run."""
    models = [{"name": f"unet-{i}", "architecture": "smp.Unet", "encoder": "resnet18"} for i in range(shape.models)]
    data = {"name": "uw_madison", "path": "data", "task": "multilabel", "size": SIDE}
    return Suite.model_validate(
        {"name": "big", "title": "Made-up numbers", "data": data, "models": models, "attacks": shape.attacks}
    )


def _describe(suite: Suite, cells: Sequence[Cell], names: Sequence[str], shape: Shape) -> dict[str, Any]:
    """Return the content of `run.json`."""
    splits = {"train": 1000, "validation": 100, "test": len(names)}
    data = {"name": "uw_madison", "note": "Made-up numbers.", "fingerprint": "0", "kind": "multilabel"}
    return {
        "schema": records.RUN_SCHEMA,
        "suite": suite.as_json(),
        "data": data | {"classes": list(CLASSES), "splits": splits, "subjects": {"test": shape.subjects}},
        "binding": {},
        "environment": {},
        "images": list(names),
        "cells": [cell.as_record() for cell in cells],
    }


def _make_rows(cells: Sequence[Cell], place: int, names: Sequence[str], start: int, shape: Shape) -> pl.DataFrame:
    """Return the rows of one unit: some images under all cells of a model, cell by cell, as a worker returns them."""
    images = np.arange(start, min(start + shape.shard, len(names)))
    generator, n, size = np.random.default_rng((place, start)), len(images), np.array([2400, 1900, 900])
    eps = np.array([cell.eps for cell in cells])
    harm = [0.02 if cell.arm.attack in NOISE else 0.3 + 0.02 * (nth % 20) for nth, cell in enumerate(cells)]
    fall = np.where([cell.arm.attack == "none" for cell in cells], 0.0, np.array(harm) * (eps * 16) ** 0.5)
    dice = 0.88 - fall[:, None, None] + 0.03 * np.sin(images % shape.subjects)[None, :, None]
    dice = (dice + generator.normal(0, 0.02, (len(cells), n, len(size)))).clip(0.01, 0.99)
    wrong = np.rint(size * (1 - dice)).astype(np.int64).reshape(-1, len(size))
    equal = generator.random(len(wrong)) < np.repeat(np.where(fall > 0, 0.001, 0.0), n)
    passes = np.array([{"fgsm": 1.0, "bim": 10.0}.get(cell.arm.attack, 0.0) for cell in cells])
    listed = [cell.as_record() for cell in cells]
    fixed = {name: [r[name] for r in listed] for name in ("model", "attack", "loss", "settings", "norm", "eps", "draw")}
    of_cells = pl.DataFrame(
        {"cell": [cell.id for cell in cells], "dataset": ["uw_madison"] * len(cells)}
        | fixed
        | {"linf": eps, "l2": eps * SIDE, "forwards": passes, "backwards": passes, "changed": (fall * 1000).astype(int)}
    )
    subjects = [names[i].split("-")[0] for i in images]
    blocks = [f"{subject}-b{i // shape.subjects % 4}" for i, subject in zip(images, subjects, strict=True)]
    of_images = pl.DataFrame({"image": [names[i] for i in images], "subject": subjects, "block": blocks})
    whole = of_cells.join(of_images, how="cross").with_columns(
        tp=size - wrong, fp=wrong, fn=wrong, wrong_pixels=wrong.sum(1), unchanged=equal
    )
    lists = [pl.col(name).arr.to_list() for name in ("tp", "fp", "fn")]
    flag = pl.when("unchanged").then(pl.lit(["unchanged"])).otherwise(pl.lit([], dtype=pl.List(pl.String)))
    more = {"valid_pixels": pl.lit(SIDE**2), "flipped_pixels": pl.col("changed"), "unmoved": pl.lit(0.1), "flags": flag}
    return whole.with_columns(*lists, **more).select(pl.col(name).cast(t) for name, t in records.ROW_SCHEMA.items())


def _write_panels(out: Path) -> None:
    """Write the panels of each model's best and worst case: discs on an intensity ramp."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    masks = np.stack([np.hypot(x - shift, y) < 0.3 for shift in (-0.4, 0.0, 0.4)])
    image = (x[None] / 2 + 0.5).astype(np.float32)
    for case in find_extremes(Run(out)):
        steps = [step.eps for step in case.sweep]
        attacked = np.stack([image + eps * np.sign(np.sin(40 * y)) for eps in steps]).clip(0, 1).astype(np.float32)
        arrays = {"x": image, "x_adv": attacked, "truth": masks, "clean": masks}
        buffer = io.BytesIO()
        found = np.stack([np.roll(masks, 8, axis=1)] * len(steps))
        np.savez_compressed(buffer, **arrays, attacked=found, meta=np.array(json.dumps(case.as_record())))
        write_bytes(out / "panels" / f"{case.model}-{case.kind}.npz", buffer.getvalue())


READ = """
import json, resource, sys, time
from pathlib import Path
import scipy.stats  # imported here, since the first interval would import it
from advseg_bench.report import write_claims, write_report
from advseg_bench.results.run import Run

wall, cpu = time.perf_counter(), time.process_time()
what, run = sys.argv[1], Run(sys.argv[2])
if what == "tables":
    run.tables(("dice", "diff", "drop"), by=("model", "attack", "loss", "settings", "norm", "eps"))
elif what == "claims":
    write_claims([run], Path(sys.argv[3]))
else:
    write_report(run, Path(sys.argv[3]))
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
if sys.platform == "linux":  # where getrusage may return the peak of the parent process
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([run.planned - run.missing, wall, cpu, peak]))
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """Cost of reading a run in a separate process, without imports.

    Attributes:
        rows: Number of rows.
        seconds: Wall time.
        cpu_seconds: CPU time of all threads.
        peak_bytes: Peak resident memory, including that of imports.
    """

    rows: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def read_tables(run: Path) -> Reading:
    """Open a run and compute three tables of all rows, with a line per model, attack and eps."""
    return _read("tables", run)


def read_page(run: Path, report: Path) -> Reading:
    """Open a run and write its report: pages, figures and tables."""
    return _read("report", run, report)


def _read(what: str, *paths: Path) -> Reading:
    """Run `READ` in a new process."""
    command = [sys.executable, "-c", READ, what, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Reading(*json.loads(done.stdout))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the folders of synthetic runs and read them.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--images-per-part", type=int, default=500)
    given = parser.parse_args()
    for rows in map(int, given.rows):
        folder = given.out / f"{rows}-{given.images_per_part}"
        if not (folder / "run.json").exists():
            write_run(folder, replace(shape_of(rows), shard=given.images_per_part))
        for what in ("tables", "claims", "report"):
            reading = _read(what, folder, folder / what)
            print(
                f"{reading.rows:,} rows, {what}: {reading.seconds:.1f} s ({reading.cpu_seconds:.1f} s of CPU), "
                f"peak {reading.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )
