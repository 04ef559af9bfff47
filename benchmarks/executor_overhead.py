"""Compare two workers on Ray with two worker processes on jobs of about a second, and the memory of the owner.

    python benchmarks/executor_overhead.py --steps 40 --pairs 1

Each run is a new process with trained models in the cache. Its time is that of the second half of the rows, when all
workers have started, so that the start of workers, libraries and Ray is excluded. The slope is that of the owner's
resident memory over written rows, from the first one; in a short run it is mostly that of modules and buffers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import advseg_bench as ab
from advseg_bench.running.benchmark import Event
from advseg_bench.running.executors.options import LocalOptions, RayOptions

EXECUTORS = {"processes": LocalOptions(2), "ray": RayOptions(workers=2)}
SHARD = 2


def make_suite(steps: int) -> ab.Suite:
    """Two small networks under PGD, in jobs of two images."""
    net = {"architecture": "monai.UNet", "settings": {"channels": [16, 32, 64], "strides": [2, 2]}}
    return ab.Suite.model_validate(
        {
            "name": "overhead",
            "data": {"name": "mni152", "size": 96},
            "models": [{"name": f"net{i}", **net} for i in range(2)],
            "training": {"epochs": 1, "floor": 0},
            "compute": {"batch": SHARD},
            "attacks": [{"name": "pgd", "losses": ["dice"], "eps": ["4/255"], "settings": {"steps": steps}}],
        }
    )


def measure(name: str, steps: int, out: Path) -> dict[str, float]:
    """Run the suite once, in this process as the owner."""
    page = os.sysconf("SC_PAGE_SIZE")
    events: list[tuple[str, float, int, int]] = []

    def note(event: Event) -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
        events.append((event.stage, time.perf_counter(), event.done, resident))

    began = time.perf_counter()
    ab.run(make_suite(steps), out, shard=SHARD, progress=note, executor=EXECUTORS[name])
    ready = next(moment for stage, moment, *_ in events if stage == "ready")
    rows = [event for event in events if event[0] == "attack" and event[1] >= ready]
    slope = statistics.linear_regression([row[2] for row in rows], [row[3] for row in rows]).slope
    steady = [row for row in rows if row[2] >= rows[-1][2] / 2]
    jobs, work = len({row[2] for row in steady}) - 1, steady[-1][1] - steady[0][1]
    return {"start": steady[0][1] - began, "work": work, "jobs": jobs, "slope": slope, "resident": rows[-1][3]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the overhead of workers on Ray.")
    parser.add_argument("--steps", type=int, default=40, help="steps of PGD; choose them so that a job takes a second")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--one", choices=EXECUTORS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.one:
            print(json.dumps(measure(given.one, given.steps, Path(folder) / "run")))
            return
        os.environ.setdefault("ADVSEG_BENCH_CACHE", folder)
        command = [sys.executable, __file__, "--steps", str(given.steps), "--one"]
        subprocess.run(
            [sys.executable, __file__, "--steps", "1", "--one", "processes"], check=True, capture_output=True
        )
        ratios = []
        for pair in range(given.pairs):
            found = {}
            for name in sorted(EXECUTORS, reverse=bool(pair % 2)):
                done = subprocess.run([*command, name], check=True, capture_output=True, text=True)
                each = found[name] = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{name:>9}: start {each['start']:5.1f} s, then {each['jobs']:.0f} jobs in {each['work']:6.2f} s "
                    f"({2 * each['work'] / each['jobs']:.2f} s each); owner {each['resident'] / 1e6:.0f} MB, "
                    f"{each['slope'] / 1e3:+.2f} kB per row",
                    flush=True,
                )
            ratios.append(found["ray"]["work"] / found["processes"]["work"])
        print(f"ray / processes: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
