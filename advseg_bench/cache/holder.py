"""Who holds a lease: a process of some machine, and whether it still exists."""

from __future__ import annotations

import os
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease.

    Attributes:
        host: Name of the machine.
        machine: Differs between machines, between starts of a machine, and between containers.
        pid: Process id.
        started: When the process started, as the system counts it; "" if that is unknown.
        since: When it took the lease, in seconds since 1970.
        what: What it does.
        token: Random name of this lease.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: float
    what: str
    token: str

    def __str__(self) -> str:
        if not self.pid:
            return "an unknown process"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (since {since})"

    def is_alive(self) -> bool | None:
        """Return whether its process exists; None if this machine cannot know."""
        if self.machine != _machine() or not self.pid:
            return None
        started = _start_of(self.pid)
        if started is None:
            return False
        return started == self.started if started and self.started else None


def describe_self(what: str) -> Holder:
    """Return a new holder for this process."""
    pid = os.getpid()
    return Holder(socket.gethostname(), _machine(), pid, _start_of(pid) or "", time.time(), what, secrets.token_hex(8))


@lru_cache(maxsize=1)
def _machine() -> str:
    """A name that two processes share if, and only if, they see the same process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _start_of(pid: int) -> str | None:
    """When a process of this machine started; "" if that is unknown, None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it belongs to another user
    return ""
