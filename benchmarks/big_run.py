"""Write the folder of a run of a million rows with synthetic counts by the writer of real runs, and read it.

    python benchmarks/big_run.py FOLDER [--images 500]

It has ten models; FGSM with six losses and two choices of labels, BIM and three noise baselines at ten budgets; 500
images of 25 subjects, in parts of eight images as in a real run; and the panels of the best and worst case of each
model. No model is run.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advseg_bench.cache import write_bytes, write_json
from advseg_bench.results import records
from advseg_bench.results.run import Run
from advseg_bench.results.selection import find_extremes
from advseg_bench.suite.cells import Cell, plan
from advseg_bench.suite.suite import Suite

MODELS, SUBJECTS, SHARD, SIDE = 10, 25, 8, 224
CLASSES = ("stomach", "large bowel", "small bowel")
EPS = [f"{grey}/255" for grey in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)]
LOSSES = ["bce", "dice_focal", "dice", "focal", "tversky", "margin"]
FGSM = {"name": "fgsm", "losses": LOSSES, "eps": EPS, "vary": {"label": ["true", "predicted"]}}
BIM = {"name": "bim", "losses": ["bce"], "eps": EPS}
NOISE = {"name": "uniform_noise", "eps": EPS}
SHUFFLED = {"name": "shuffled_sign", "losses": ["bce"], "eps": EPS}
RANDOM = {"name": "random_sign", "eps": EPS, "draws": 5}
ATTACKS = [FGSM, BIM, NOISE, SHUFFLED, RANDOM]


def make_suite() -> Suite:
    """Return the suite of the run."""
    models = [{"name": f"unet-{i}", "architecture": "smp.Unet", "encoder": "resnet18"} for i in range(MODELS)]
    data = {"name": "uw_madison", "path": "data", "task": "multilabel", "size": SIDE}
    return Suite.model_validate(
        {"name": "big", "title": "Made-up numbers", "data": data, "models": models, "attacks": ATTACKS}
    )


def write_big_run(out: Path, images: int = 500) -> Path:
    """Write the folder of the run and return it; it takes 40 MB for 500 images."""
    suite = make_suite()
    cells = plan(suite)
    names = [f"s{i % SUBJECTS:02d}-z{i // SUBJECTS:03d}" for i in range(images)]
    with records.own(out):
        records.describe(out, _describe(suite, cells, names))
        for place, model in enumerate(suite.models):
            known = {"name": model.name, "architecture": model.architecture, "encoder": model.encoder}
            trained = {"parameters": 10**6 * (place + 1), "validation_dice": 0.85, "train_seconds": 60.0}
            write_json(out / "models" / f"{model.name}.json", known | trained | {"weights_sha256": "0"})
            mine = [cell for cell in cells if cell.model == model.name and cell.skip is None]
            for start in range(0, images, SHARD):
                records.write_part(out, list(_make_rows(mine, place, names, start)))
        write_json(out / "failures.json", [])
        _write_panels(out)
    return out


def _describe(suite: Suite, cells: Sequence[Cell], names: Sequence[str]) -> dict[str, Any]:
    """Return the content of `run.json`."""
    splits = {"train": 1000, "validation": 100, "test": len(names)}
    data = {"name": "uw_madison", "note": "Made-up numbers.", "fingerprint": "0", "kind": "multilabel"}
    return {
        "schema": records.RUN_SCHEMA,
        "suite": suite.as_json(),
        "data": data | {"classes": list(CLASSES), "splits": splits, "subjects": {"test": SUBJECTS}},
        "binding": {},
        "environment": {},
        "images": list(names),
        "cells": [cell.as_record() for cell in cells],
    }


def _make_rows(cells: Sequence[Cell], place: int, names: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one unit: some images under all cells of a model, cell by cell, as a worker returns them."""
    images = range(start, min(start + SHARD, len(names)))
    size = np.array([2400, 1900, 900])
    for nth, cell in enumerate(cells):
        generator = np.random.default_rng((place, start, nth))
        weak = cell.arm.attack in ("random_sign", "uniform_noise", "shuffled_sign")
        fall = (0.02 if weak else 0.3 + 0.02 * (nth % 20)) * (cell.eps * 16) ** 0.5
        fall = 0.0 if cell.arm.attack == "none" else fall
        dice = 0.88 - fall + 0.03 * np.sin(np.arange(images.start, images.stop) % SUBJECTS)[:, None]
        dice = (dice + generator.normal(0, 0.02, (len(images), len(size)))).clip(0.01, 0.99)
        wrong = np.rint(size * (1 - dice)).astype(int)
        record = cell.as_record()
        fixed = {name: record[name] for name in ("model", "attack", "loss", "settings", "norm", "eps", "draw")}
        passes = {"fgsm": 1.0, "bim": 10.0}.get(cell.arm.attack, 0.0)
        for i, found, miss in zip(images, (size - wrong).tolist(), wrong.tolist(), strict=True):
            counts = {"tp": found, "fp": miss, "fn": miss, "valid_pixels": SIDE**2, "wrong_pixels": sum(miss)}
            norms = {"linf": cell.eps, "l2": cell.eps * SIDE, "unmoved": 0.1, "forwards": passes, "backwards": passes}
            subject = names[i].split("-")[0]
            case = {"image": names[i], "subject": subject, "block": f"{subject}-b{i // SUBJECTS % 4}"}
            rest = {"flipped_pixels": int(fall * 1000), "flags": []}
            yield {"cell": cell.id, "dataset": "uw_madison"} | fixed | case | counts | norms | rest


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
from advseg_bench.report import write_report
from advseg_bench.results.run import Run

wall, cpu = time.perf_counter(), time.process_time()
run = Run(sys.argv[1])
if len(sys.argv) > 2:
    write_report(run, Path(sys.argv[2]))
else:
    for score in ("dice", "diff", "drop"):
        run.table(score, by=("model", "attack", "loss", "settings", "norm", "eps"))
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
if sys.platform == "linux":  # where getrusage may return the peak of the parent process
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([len(run.rows), wall, cpu, peak]))
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
    return _read(run)


def read_page(run: Path, report: Path) -> Reading:
    """Open a run and write its report: pages, figures and tables."""
    return _read(run, report)


def _read(*paths: Path) -> Reading:
    """Run `READ` in a new process."""
    done = subprocess.run([sys.executable, "-c", READ, *map(str, paths)], capture_output=True, text=True, check=True)
    return Reading(*json.loads(done.stdout))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the folder of a synthetic run and read it.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=500)
    given = parser.parse_args()
    folder = write_big_run(given.out, given.images)
    for what, reading in (("tables", read_tables(folder)), ("page", read_page(folder, folder / "report"))):
        print(
            f"{reading.rows:,} rows, {what}: {reading.seconds:.1f} s ({reading.cpu_seconds:.1f} s of CPU), "
            f"peak {reading.peak_bytes / 1e6:.0f} MB"
        )
