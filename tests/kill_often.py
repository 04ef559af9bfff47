"""Run a suite and kill it again and again, and count what was lost; `test_run` starts it as a separate process.

It imports the libraries once and forks a child for every attempt. It must not compute anything itself, since the
threads of the parent, such as the pool of polars, do not exist in a forked child. Worker processes are forked, too,
as imports would take most of their time.

Each round starts a new run with one or two workers and a cold or a warm cache, kills it until it is finished, and
compares its rows with those of the undisturbed run.

Usage: kill_often.py SUITE FOLDER KILLS [SECONDS]; prints a JSON object with the counts.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import monai.networks.nets  # noqa: F401  the children need it

import advseg_bench as ab
from advseg_bench.models import training
from advseg_bench.running import benchmark, worker  # noqa: F401  so that the children need not import them
from advseg_bench.running.executors import child, serving

ROUNDS = [(workers, cache) for cache in ("cold", "warm") for workers in (1, 2)]
"""(workers, state of the cache) of the rounds, in turn."""
WAYS = ("SIGKILL", "SIGTERM", "SIGINT twice", "worker")
"""How a run is ended: a signal to its parent process, or SIGKILL to one of its workers."""
CACHE = "ADVSEG_BENCH_CACHE"


class Forked:
    """A worker process in the place of one that `subprocess.Popen` starts, forked from the process of the run."""

    def __init__(self, command: list[str], *, stdout: int, pass_fds: tuple[int, int], **others: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                for number in (1, 2):
                    os.dup2(stdout, number)
                sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
                for number in range(3, 256):
                    if number not in pass_fds:
                        close(number)
                serve(*map(int, command[-2:]))
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)

    def wait(self) -> int:
        """Wait for the end."""
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def close(number: int) -> None:
    """Close a descriptor, open or not."""
    try:
        os.close(number)
    except OSError:
        return


def serve(pipe: int, alive: int) -> None:
    """What a worker process does."""
    from multiprocessing.connection import Connection

    connection = Connection(pipe)
    connection.recv()  # sys.path
    serving.serve(connection, alive)


def fork(action: Callable[[], bool]) -> int:
    """Fork a child that exits with 0 if the action returns true; return its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = 0 if action() else 3
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def join(pid: int) -> int:
    """Wait for the end of a child; return its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_ended(pid: int) -> bool:
    """Return whether a child has ended; it can still be joined."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def find_workers(pid: int) -> list[int]:
    """Process ids of the workers of a run."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@dataclass
class Killer:
    """Kills runs of one suite, and keeps count.

    Args:
        suite: Path of the suite.
        folder: Where everything is written.
        most: Number of kills.
        until: Time at which to stop.
    """

    suite: Path
    folder: Path
    most: int
    until: float
    moments: random.Random = field(default_factory=lambda: random.Random(0))
    kills: Counter[str] = field(default_factory=Counter)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def compute(self, out: Path, workers: int) -> bool:
        """Run the suite in this process; return whether nothing is missing."""
        return ab.run(ab.Suite.load(self.suite), out, shard=1, workers=workers, retry_failed=True).missing == 0

    def compare(self, out: Path) -> bool:
        """Return whether a run has the rows and weights of the undisturbed one; prints the difference."""
        found, good = ab.Run(out), ab.Run(self.folder / "undisturbed")
        ours, theirs = (run.rows.sort("cell", "image") for run in (found, good))
        keys = ours.select("cell", "image")
        weights = [{name: each["weights_sha256"] for name, each in run.models.items()} for run in (found, good)]
        difference = {
            "lost": len(theirs) - len(keys.unique()),
            "duplicate": len(keys) - len(keys.unique()),
            "equal": ours.equals(theirs) and weights[0] == weights[1],
        }
        (out.parent / f"{out.name}.json").write_text(json.dumps(difference))
        return True

    def count(self, out: Path) -> tuple[int, int]:
        """Return the number of trained models and of rows on disk."""
        file = self.folder / "count"
        file.write_text("0")
        if (out / "run.json").exists():
            assert join(fork(lambda: file.write_text(str(len(ab.Run(out).rows))) > 0)) == 0, "expected a readable run"
        return len(list(out.glob("models/*.json"))), int(file.read_text())

    def time_whole(self, out: Path, workers: int) -> tuple[float, float]:
        """Run undisturbed; return the seconds until the run has a description, and those after that."""
        began = time.monotonic()
        pid = fork(lambda: self.compute(out, workers))
        while not (out / "run.json").exists():
            assert not has_ended(pid), "expected the undisturbed run to start"
            time.sleep(0.01)
        to_start = time.monotonic() - began
        assert join(pid) == 0, "expected the undisturbed run to succeed"
        return to_start, time.monotonic() - began - to_start

    def run(self) -> dict[str, Any]:
        """Kill until there are enough kills, and report."""
        cold, warm = self.folder / "cache", self.folder / "warm"
        os.environ[CACHE] = str(warm)
        times = {("cold", 1): self.time_whole(self.folder / "undisturbed", 1)}
        times["cold", 2] = times["cold", 1]
        for workers in (1, 2):
            times["warm", workers] = self.time_whole(self.folder / f"warm{workers}", workers)
        nth = 0
        while sum(self.kills.values()) < self.most and time.time() < self.until:
            workers, state = ROUNDS[nth % len(ROUNDS)]
            os.environ[CACHE] = str(cold)
            shutil.rmtree(cold, ignore_errors=True)
            if state == "warm":
                shutil.copytree(warm, cold)
            self.kill_one(self.folder / f"run{nth}", cold, workers, state, times[state, workers])
            nth += 1
        return {"kills": dict(self.kills), "rounds": self.rounds}

    def kill_one(self, out: Path, cache: Path, workers: int, state: str, times: tuple[float, float]) -> None:
        """Kill one run until it is finished; add what is left of it to the rounds."""
        to_start, to_work = times
        states: list[tuple[int, int]] = []
        share = 0.12  # largest share of the work between two kills; it grows while there is no progress
        while True:
            share = min(1.15 * share, 0.6) if states[-2:-1] == states[-1:] else 0.12
            pid = fork(lambda: self.compute(out, workers))
            enough = sum(self.kills.values()) >= self.most or time.time() > self.until
            if not enough:
                time.sleep(max(0.0, to_start + self.moments.uniform(-0.05, share) * to_work))
                self.end(pid, workers, share * to_work)
            code = join(pid)
            if code == 0:  # the run is complete
                break
            assert code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 1, 3), code
            states.append(self.count(out))
        assert join(fork(lambda: self.compare(out))) == 0, "expected the finished run to be readable"
        left = [str(path) for folder in (out, cache) for path in folder.rglob("*") if path.name.endswith(".tmp")]
        found = json.loads((out.parent / f"{out.name}.json").read_text())
        grown = all(a <= b for before, after in pairwise(states) for a, b in zip(before, after, strict=True))
        self.rounds.append({"workers": workers, "cache": state, "states": states, "left": left, "grown": grown} | found)
        print(json.dumps(self.rounds[-1]), dict(self.kills), file=sys.stderr, flush=True)
        shutil.rmtree(out)

    def end(self, pid: int, workers: int, longest: float) -> None:
        """End a run in one of the ways; after the death of a worker it goes on, and is ended in another way."""
        way = self.moments.choice(WAYS if workers > 1 else WAYS[:-1])
        if way == "worker":
            if found := find_workers(pid):
                self.send(self.moments.choice(found), signal.SIGKILL, way)
            time.sleep(self.moments.uniform(0, longest))
            way = self.moments.choice(WAYS[:-1])
        if way == "SIGINT twice":
            self.send(pid, signal.SIGINT, way)
            time.sleep(self.moments.uniform(0, 0.1))
            self.send(pid, signal.SIGINT, "")
        else:
            self.send(pid, signal.Signals[way], way)

    def send(self, pid: int, number: signal.Signals, way: str) -> None:
        """Send a signal to a process that has not ended, and count it."""
        if way != "worker" and has_ended(pid):
            return
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if way:
            self.kills[way] += 1


def main(suite: Path, folder: Path, kills: int, seconds: float = 1e6) -> None:
    """Kill, and print the counts."""
    training.SAVE_EVERY_S, training.SAVE_SHARE = 0.0, 1e9
    child.subprocess = type("subprocess", (), {"Popen": Forked, "DEVNULL": -3})  # type: ignore[assignment]
    print(json.dumps(Killer(suite, folder, kills, time.time() + seconds).run()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:]))
