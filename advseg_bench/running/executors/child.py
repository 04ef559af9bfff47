"""One worker process as its parent sees it: a pipe for messages, its output, its end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import spawn
from typing import Any

from advseg_bench.running.executors.output import Budget, Output
from advseg_bench.running.executors.serving import LOST
from advseg_bench.running.outcomes import StartWorker

GRACE_S = 5.0
"""Seconds for a process to end after its pipe was closed."""
REPORT_S = 2.0
"""Seconds for a process to write where it is before it is killed."""

BOOT = (
    "import sys; from multiprocessing.connection import Connection; pipe = Connection(int(sys.argv[1])); "
    "sys.path[:] = pipe.recv(); from advseg_bench.running.executors.serving import serve; "
    "serve(pipe, int(sys.argv[2]))"
)
"""What a worker process runs. It does not import the caller's script, unless that is requested."""


class Child:
    """A worker process. It is the leader of a process group of its own, so that Ctrl-C does not reach it.

    Args:
        start_worker: Called in the process.
        budget: Output that may be shown.
        import_script: Whether the process imports the caller's script, whose objects then are in its `__main__`.
    """

    def __init__(self, start_worker: StartWorker, budget: Budget, import_script: bool) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        out, write_out = os.pipe()
        alive, self._life = os.pipe()  # the process ends when this end is closed, also by the death of this process
        command = [*spawn.get_command_line()[:-3], "-c", BOOT, str(theirs.fileno()), str(alive)]
        self.started = False
        self.code: int | None = None
        self.peak_bytes: int | None = None
        self.output = Output(out, budget)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_out,
                stderr=write_out,
                pass_fds=(theirs.fileno(), alive),
                process_group=0,
            )
        finally:
            theirs.close()
            for end in (write_out, alive):
                os.close(end)
        try:
            for message in (sys.path, _prepare(import_script), start_worker):
                with suppress(*LOST):  # its end is noticed later
                    self.pipe.send(message)
        except BaseException:
            self.end()
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Return whether the process has ended; its exit code and peak memory are known then."""
        if self._process.returncode is None:
            try:
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            except ChildProcessError:  # someone else has waited for it
                self._process.returncode = 0
                return True
            if pid == 0:
                return False
            self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
            self.peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return True

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process, at most some seconds; return whether it has ended."""
        until, pause = time.monotonic() + seconds, 0.001
        while not self.has_ended():
            if time.monotonic() > until:
                return False
            self.output.read()  # so that it is not blocked
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return True

    def kill(self) -> None:
        """Kill the process and those that it has started. Safe in a signal handler."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self, report: bool = False) -> None:
        """End the process, close the pipes and wait until it is gone.

        Args:
            report: Whether it first writes where it is.
        """
        if report and not self.has_ended():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGABRT)
            self.wait(REPORT_S)
        self.pipe.close()
        self.kill()
        self.wait(GRACE_S)
        self.output.read()

    def close(self) -> None:
        """Close what is left, once the process has ended or was asked to end."""
        self.pipe.close()
        if not self.wait(GRACE_S):
            self.kill()
            self._process.wait()
        self.kill()  # what it has left running
        self.output.read()
        self.output.close()
        with suppress(OSError):
            os.close(self._life)

    def name_end(self) -> str:
        """Return the signal or the exit code with which it ended."""
        if self.code is None:
            return "an unknown exit code"
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


def _prepare(import_script: bool) -> dict[str, Any]:
    """What `multiprocessing` gives to a new process: arguments, folders, and the script to import."""
    data: dict[str, Any] = spawn.get_preparation_data("advseg-bench worker")
    return {
        key: value
        for key, value in data.items()
        if key != "authkey" and (import_script or not key.startswith("init_main"))
    }
