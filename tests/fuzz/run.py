"""Feeds many damaged inputs to the package: `python tests/fuzz/run.py suites --count 20000 --seed 7`.

An input must be read, or refused by one line of at most 500 characters: no other exception, within the seconds and the
megabytes that the fuzzer names. A finding prints the number of its case; `--first N --count 1` runs it again.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random
from types import FrameType

from advseg_bench.errors import LONGEST_MESSAGE, UserError

sys.path.append(str(Path(__file__).parents[1]))
KINDS = ("suites", "data", "checkpoints", "runs")
HANG = 20
"""Seconds of processor time after which a case counts as hanging; five times as long on the clock."""


class HangError(BaseException):
    """A case took longer than `HANG` seconds."""


def check(kind: str, count: int, seed: int, first: int = 0) -> list[str]:
    """Run cases of one kind, and return what was found, one text each.

    Args:
        kind: One of `KINDS`.
        count: Number of cases.
        seed: Of all cases.
        first: Number of the first case.
    """
    fuzzer = importlib.import_module(f"fuzz_{kind}")
    found = []
    accepted = 0
    before = {number: signal.signal(number, _raise) for number in (signal.SIGALRM, signal.SIGPROF)}
    try:
        for number in range(first, first + count):
            error, seconds, peak = _run_one(fuzzer.run, Random(f"{kind} {seed} {number}"))
            accepted += error == ""
            if error is not None and error:
                found.append(f"{kind} {number}: {error}")
            if seconds > fuzzer.SECONDS:
                found.append(f"{kind} {number}: took {seconds:.1f} s of processor time")
            if peak > fuzzer.MEGABYTES:
                found.append(f"{kind} {number}: took {peak:.0f} MB")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(f"{kind}: {count} cases, {accepted} accepted, {len(found)} findings")
    return found


def _run_one(run, rng: Random) -> tuple[str | None, float, float]:
    """Run a case; return a finding, "" if it was accepted, None if it was refused; its seconds and its peak memory."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    error: str | None = ""
    before = _read_memory("VmRSS")
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        signal.setitimer(signal.ITIMER_PROF, HANG)
        signal.alarm(5 * HANG)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(rng, Path(folder))
        except UserError as refused:
            message = str(refused)
            error = None if len(message) <= LONGEST_MESSAGE and message.isprintable() else f"message {message!r}"
        except HangError:
            error = f"hangs for {HANG} s: {traceback.format_exc(limit=-4)}"
        except BaseException as unexpected:
            if isinstance(unexpected, KeyboardInterrupt):
                raise
            error = traceback.format_exc(limit=-6)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
        seconds = time.process_time() - start
        peak = _read_memory("VmHWM") - before
    gc.collect()
    return error, seconds, peak


def _read_memory(key: str) -> float:
    """The memory of the process in megabytes: "VmRSS" now, "VmHWM" at its peak; 0 where no such file exists."""
    with suppress(OSError, TypeError):
        return int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
    return 0.0


def _raise(number: int, frame: FrameType | None) -> None:
    raise HangError


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ADVSEG_BENCH_CACHE"] = cache
        found = check(options.kind, options.count, options.seed, options.first)
    print("\n".join(found[:20]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
