"""A lease: one process at a time works in a folder, also on file systems of several machines that have no `flock`.

A lease is a file that names its holder: machine, process and its start. The holder renews the file's time of change
every `BEAT_S` seconds. A holder is gone if it ran on this machine and its process does not exist any more, or if its
lease was not renewed for `GONE_S` seconds. A holder of this machine whose process exists is never gone, even if it is
stopped. Then another process takes its place: the one that creates a second file, named after the lease of the one
that is gone, so that of several waiting processes exactly one does.

No rule without a server of its own can exclude that a process of another machine stops for longer than `GONE_S`,
loses its lease, and goes on. `Lease.check` detects this before something is written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from advseg_bench.cache.files import make_folder
from advseg_bench.cache.holder import Holder, describe_self
from advseg_bench.errors import HeldError, RecordError

LEASE = ".lease"
"""Usual name of the file in the folder that is held."""
BEAT_S = 5.0
"""Seconds between two renewals."""
GONE_S = 60.0
"""Seconds without renewal after which a holder on another machine is gone."""
POLL_S = 0.2
"""Seconds between two attempts of a waiting process."""

_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EOPNOTSUPP)
"""Errors of file systems without hard links."""


class Lease:
    """A lease that this process holds; made by `hold`.

    Attributes:
        path: Its file.
        previous: The holder that is gone and whose place was taken; None if the lease was free.
    """

    def __init__(self, path: Path, holder: Holder, previous: Holder | None) -> None:
        self.path, self.previous = path, previous
        self._holder = holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Return whether this process still holds it."""
        found = _read(self.path)
        return found is not None and found[0].token == self._holder.token

    def check(self) -> None:
        """Make sure that no other process has taken over.

        Raises:
            HeldError: If one has, or the file was deleted.
        """
        if not self.is_held():
            raise HeldError(
                f"{self.path}: another process took over, since this one did not respond for {GONE_S:g} s or the file "
                "was deleted. Run the same command again."
            )

    def release(self) -> None:
        """Give the lease back; a forked child, which does not hold it, does nothing."""
        if os.getpid() != self._holder.pid:
            return
        self._stop.set()
        self._thread.join()
        claim = _claim_of(self.path, self._holder)
        with suppress(OSError):  # a lease that cannot be removed ends with this process
            try:
                if not _seize(claim, self._holder, {})[0]:
                    return  # another process takes over right now
            except OSError:
                pass  # such as a full disk, on which files can only be removed
            if self.is_held():
                self.path.unlink()
            claim.unlink(missing_ok=True)

    def sweep_claims(self) -> None:
        """Remove what interrupted takeovers of earlier leases left."""
        for claim in self.path.parent.glob(f"{self.path.name}.*.claim"):
            if claim != _claim_of(self.path, self._holder):
                claim.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(OSError):  # such as a server that is not reachable for a moment
                if self.is_held():
                    os.utime(self.path)


@contextmanager
def hold(
    path: Path,
    *,
    what: str = "",
    wait: bool = True,
    until_sure: bool = False,
    on_wait: Callable[[Holder], None] | None = None,
) -> Iterator[Lease]:
    """Hold a lease.

    Args:
        path: File of the lease; its folder is created. It is removed at the end.
        what: What this process does, for others that wait.
        wait: Whether to wait until the lease is free or its holder is gone.
        until_sure: Without `wait`, whether to wait until a holder on another machine renews its lease or is gone.
        on_wait: Called once for each holder that this process waits for.

    Yields:
        The lease.

    Raises:
        HeldError: If another process holds it and `wait` is false.
        RecordError: If the folder cannot be written.
    """
    holder = describe_self(what)
    seen: dict[tuple[Path, str], _Seen] = {}
    waited_for = set()
    while True:
        make_folder(path.parent)
        try:
            mine, other = _seize(path, holder, seen)
        except FileNotFoundError:  # the folder was removed at this moment
            time.sleep(POLL_S / 10)
            continue
        except OSError as error:
            remedy = "Free disk space, fix the permissions, or choose another folder."
            raise RecordError(f"{path}: cannot be written: {error.strerror}. {remedy}") from None
        if mine:
            break
        if other is not None and not wait and (not until_sure or _is_sure(path, other, seen)):
            raise HeldError(f"{path.parent}: in use by {other}. Wait until it has ended.")
        if other is not None and other.token not in waited_for:
            waited_for.add(other.token)
            if on_wait is not None:
                on_wait(other)
        time.sleep(POLL_S)
    lease = Lease(path, holder, other)
    try:
        yield lease
    finally:
        lease.release()


def find_holder(path: Path) -> Holder | None:
    """Return who holds a lease; None if nobody does or the holder is gone."""
    found = _read(path)
    if found is None:
        return None
    holder, changed = found
    return None if _is_gone(holder, time.time() - changed) else holder


@dataclass(slots=True)
class _Seen:
    """A lease of another process as first seen with this time of change: its age then, and when that was."""

    changed: float
    age: float
    at: float
    renewed: bool


def _seize(path: Path, me: Holder, seen: dict[tuple[Path, str], _Seen]) -> tuple[bool, Holder | None]:
    """Create a lease, or replace that of a holder that is gone.

    Returns:
        Whether the lease is mine, and its other holder: of now if it is not mine, before if it is.
    """
    if not os.path.lexists(path) and _create(path, me):
        return True, None
    if (found := _read(path)) is None:
        return False, None
    other, changed = found
    if not _is_gone(other, _age(path, other, changed, seen)):
        return False, other
    claim = _claim_of(path, other)
    if not _seize(claim, me, seen)[0]:
        return False, other
    try:
        # Only the process with the claim replaces this lease, and it may have been replaced before the claim.
        if (found := _read(path)) is None or found[0].token != other.token:
            return False, None
        _write_temporary(path, me).replace(path)
        return True, other
    finally:
        claim.unlink(missing_ok=True)


def _claim_of(path: Path, holder: Holder) -> Path:
    return path.with_name(f"{path.name}.{holder.token}.claim")


def _age(path: Path, other: Holder, changed: float, seen: dict[tuple[Path, str], _Seen]) -> float:
    """Seconds since a renewal, by the clock of the file system at first and by that of this process later."""
    known = seen.get((path, other.token))
    if known is None or known.changed != changed:
        age = 0.0
        if known is None:
            temporary = _write_temporary(path, other)
            age = temporary.stat().st_mtime - changed
            temporary.unlink(missing_ok=True)
        known = seen[path, other.token] = _Seen(changed, age, time.monotonic(), known is not None)
    return known.age + time.monotonic() - known.at


def _is_sure(path: Path, other: Holder, seen: dict[tuple[Path, str], _Seen]) -> bool:
    """Whether a holder certainly exists: its process does, or it renewed its lease since it was seen first."""
    known = seen.get((path, other.token))
    return bool(other.is_alive()) or (known is not None and known.renewed)


def _is_gone(holder: Holder, age: float) -> bool:
    alive = holder.is_alive()
    return not alive if alive is not None else age > GONE_S


def _create(path: Path, me: Holder) -> bool:
    """Create a lease with its content at once; False if there is one."""
    temporary = _write_temporary(path, me)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return temporary.stat().st_nlink == 2  # an answer of NFS may be lost and the request repeated
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            with path.open("xb") as file:
                file.write(temporary.read_bytes())
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write_temporary(path: Path, holder: Holder) -> Path:
    temporary = path.with_name(f".{path.name.lstrip('.')}.{secrets.token_hex(8)}.tmp")
    with temporary.open("xb") as file:
        file.write(json.dumps(asdict(holder)).encode())
    return temporary


def _read(path: Path) -> tuple[Holder, float] | None:
    """Read a lease and its time of change; None if there is none. It is opened, so that NFS asks the server."""
    try:
        with path.open("rb") as file:
            changed, data = os.fstat(file.fileno()).st_mtime, file.read(100_000)
    except OSError:
        return None
    try:
        holder = Holder(**json.loads(data))
        if isinstance(holder.pid, int) and isinstance(holder.since, float) and str(holder.token).isalnum():
            return holder, changed
    except (ValueError, TypeError):
        pass
    token = hashlib.sha256(data + str(changed).encode()).hexdigest()[:16]
    return Holder("", "", 0, "", 0.0, "", token), changed
