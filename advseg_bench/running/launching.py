"""Runs the parts of a suite as processes of one machine, such as one for each GPU. Does not import torch.

The processes are commands `advseg-bench run --part`, each in a session of its own, so that Ctrl-C reaches them once,
through this process.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from advseg_bench.errors import RecordError, SpecError, WorkerError, expected
from advseg_bench.results.bucket import find_url
from advseg_bench.results.mergeable import open_source

PROGRESS = "ADVSEG_BENCH_PROGRESS"
"""Environment variable; with the value "all", a run that prints to no terminal prints every step of progress."""

GRACE = 60.0
"""Seconds after Ctrl-C until processes that have not ended are killed."""

Show = Callable[[int, str], None]
"""(place of the process, line that it printed)."""


@dataclass(slots=True)
class Child:
    """A process that computes a part.

    Attributes:
        place: Its place in the list.
        name: What it is called, such as "GPU 0".
        command: Its command line.
        environ: Its environment variables beside those of this process.
        process: The process, once it has started.
        lines: Its last lines of output.
        deaths: How often it died.
        code: Its exit code, once it has ended for good.
    """

    place: int
    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    process: subprocess.Popen[str] | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=3))
    deaths: int = 0
    code: int | None = None


def check_gpus(names: Sequence[str]) -> None:
    """Check that the GPUs exist; names that are no numbers, such as those of MIG devices, are not checked.

    Raises:
        SpecError: If there are none, or this machine has no such GPU.
    """
    if not names:
        raise SpecError("--gpus: expected GPUs such as 0,1,2,3, got none. Give at least one, or --processes N.")
    numbers = [int(name) for name in names if name.isdecimal()]
    if wrong := [name for name in names if not name.isdecimal() and not name.startswith(("GPU-", "MIG-"))]:
        remedy = "Give numbers, or names of `nvidia-smi -L` that start with GPU- or MIG-."
        raise SpecError(expected("--gpus", "the number of a GPU", wrong[0], remedy))
    if not numbers:
        return
    count = _count_gpus()
    if count == 0:
        raise SpecError(
            f"--gpus: expected a machine with GPU {numbers[0]}, got one without a GPU that PyTorch can use. "
            "Use --processes N for the CPU."
        )
    if (most := max(numbers)) >= count:
        remedy = "See `nvidia-smi -L`."
        raise SpecError(expected("--gpus", f"GPUs from 0 to {count - 1} of this machine", most, remedy))


def _count_gpus() -> int:
    """The number of GPUs of this machine, hidden ones included."""
    import torch

    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        return torch.cuda.device_count()
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden


def check_out(out: Path, n: int) -> None:
    """Raise `RecordError` if the parts could not be merged into a directory in the end."""
    if out.exists() and not out.is_dir():
        raise RecordError(f"{out}: expected a folder for the run, got a file. Choose another --out.")
    if not find_url(out) and (out / "run.json").exists() and (held := open_source(out).of) != n:
        raise RecordError(f"{out}: holds a run of {held} parts, got {n} to compute. Choose another --out.")


def launch(children: Sequence[Child], show: Show) -> None:
    """Run processes until all have ended; one that dies is started again once.

    Args:
        children: The processes, not started.
        show: Called for each line that one prints, and when one has died.

    Raises:
        WorkerError: If a process died twice, or was refused; the others have ended by then.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; all processes have ended.
    """
    said: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    with _signals_passed_on(children) as stopping:
        try:
            for child in children:
                _start(child, said)
            while any(child.code is None for child in children):
                with suppress(queue.Empty):
                    show(*said.get(timeout=0.2))
                for child in children:
                    _look_after(child, said, show, stopping)
            while not said.empty():
                show(*said.get())
        except BaseException:
            _kill(children)
            raise
    bad = [child for child in children if child.code not in (0, 1)]
    if bad:
        others = f" {len(bad) - 1} more ended so." if len(bad) > 1 else ""
        last = bad[0].lines[-1] if bad[0].lines else "no output"
        raise WorkerError(
            f"{bad[0].name}: {_show_end(bad[0])}: {last.removeprefix('advseg-bench: ')}{others} "
            "Finished rows are kept. Run the same command again to resume."
        )


def _start(child: Child, said: queue.SimpleQueue[tuple[int, str]]) -> None:
    """Start a process, and a thread that reads its output."""
    child.process = subprocess.Popen(
        child.command,
        env={**os.environ, **child.environ, PROGRESS: "all"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )

    def read(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.strip():
                    child.lines.append(line.strip())
                    said.put((child.place, line.strip()))

    threading.Thread(target=read, args=(child.process,), daemon=True).start()


def _look_after(child: Child, said: queue.SimpleQueue[tuple[int, str]], show: Show, stopping: threading.Event) -> None:
    """Note that a process has ended, or start it again if it died for the first time."""
    if child.code is not None or child.process is None or (code := child.process.poll()) is None:
        return
    died = code not in (0, 1, 2, 130)
    child.deaths += died
    if died and child.deaths == 1 and not stopping.is_set():
        show(child.place, f"died ({_name_code(code)}); started again")
        _start(child, said)
    else:
        child.code = code


def _show_end(child: Child) -> str:
    """How a process ended, in words."""
    return f"died twice ({_name_code(child.code or 0)})" if child.deaths > 1 else f"ended with exit code {child.code}"


def _name_code(code: int) -> str:
    """Name the signal of a negative exit code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


@contextmanager
def _signals_passed_on(children: Sequence[Child]) -> Iterator[threading.Event]:
    """Pass Ctrl-C and SIGTERM on as Ctrl-C, and raise `KeyboardInterrupt` when all processes have ended.

    A second signal kills them, as does the end of `GRACE`.
    """
    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            _kill(children)
            return
        stopping.set()
        for child in children:
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGINT)
        late = threading.Timer(GRACE, _kill, (children,))
        late.daemon = True
        late.start()

    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stopping.is_set():
            raise KeyboardInterrupt from None


def _kill(children: Sequence[Child]) -> None:
    """Kill processes that have not ended, with their workers."""
    for child in children:
        if child.process is not None and child.process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while child.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)


def describe_part_command(suite: str, options: Sequence[str], number: int, of: int, folder: Path) -> list[str]:
    """Return the command line that computes a part with this Python."""
    start = [sys.executable, "-m", "advseg_bench", "run", suite]
    return [*start, "--part", f"{number}/{of}", "--out", str(folder), *options]
