"""Run a suite and kill it repeatedly; `test_run` starts it as a separate process.

It imports the libraries once and forks a child for every attempt. It must not compute anything itself, since the
threads of the parent, such as the pool of polars, do not exist in a forked child.

Usage: kill_often.py SUITE OUT KILLS; prints the progress of the run after each kill as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import monai.networks.nets  # noqa: F401  the children need it

import advseg_bench as ab
from advseg_bench.models import training
from advseg_bench.running import benchmark, worker  # noqa: F401  so that the children need not import them


def start(suite: Path, out: Path) -> int:
    """Fork a child that runs the suite and exits; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ab.run(ab.Suite.load(suite), out, shard=1)
            code = 0
        finally:
            os._exit(code)
    return child


def count(out: Path) -> tuple[int, int]:
    """Return the number of trained models and of written parts."""
    return len(list(out.glob("models/*.json"))), len(list(out.glob("parts/*.parquet")))


def main(suite: Path, out: Path, kills: int) -> None:
    """Kill a run at random moments; an undisturbed run first measures the duration of the start and of the work."""
    training.SAVE_EVERY_S, training.SAVE_SHARE = 0.0, 1e9
    moments, states = random.Random(0), []
    whole, began = start(suite, out.with_name("timed")), time.monotonic()
    while not (out.with_name("timed") / "run.json").exists():
        time.sleep(0.01)
    to_start = time.monotonic() - began
    assert os.waitpid(whole, 0)[1] == 0, "expected the undisturbed run to succeed"
    to_work = time.monotonic() - began - to_start
    os.environ["ADVSEG_BENCH_CACHE"] += "-2"
    share = 0.12  # largest share of the work between two kills; it grows while there is no progress
    while len(states) < kills:
        share = min(1.15 * share, 0.35) if states[-2:-1] == states[-1:] else 0.12
        child = start(suite, out)
        time.sleep(to_start + moments.uniform(-0.05, share) * to_work)
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if status == 0:  # the run is complete
            break
        assert status == signal.SIGKILL, "expected the resumed run to be killed or to succeed"
        states.append(count(out))
    print(json.dumps(states))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
