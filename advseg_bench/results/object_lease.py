"""A lease as an object: one process at a time writes a run on object storage.

The rules are those of `cache.lease`. Of several processes that create the object, exactly one succeeds if the storage
can create objects exclusively, which is tried each time. Otherwise each process writes a random token, waits `SETTLE_S`
seconds, and goes on only if it reads its own token back: two processes may then both go on if a request takes longer
than that. The one whose token was replaced ends at its next `check`, which precedes every upload.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict

from advseg_bench.cache.holder import Holder, describe_self
from advseg_bench.cache.lease import GONE_S, LEASE
from advseg_bench.cache.notices import report
from advseg_bench.errors import HeldError, RecordError
from advseg_bench.results.bucket import Bucket

BEAT_S = 15.0
"""Seconds between two renewals, each of which is a request."""

WATCH_S = 5.0
"""Seconds between two readings of the lease of another machine, which is refused to others once it is renewed."""

SETTLE_S = 3.0
"""Seconds until a token is read back, where objects cannot be created exclusively."""


class ObjectLease:
    """A lease that this process holds; made by `hold_object`.

    Args:
        bucket: The storage.
        holder: This process.
    """

    def __init__(self, bucket: Bucket, holder: Holder) -> None:
        self._bucket, self._holder = bucket, holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="object lease", daemon=True)
        self._thread.start()

    def is_held(self) -> bool:
        """Return whether this process still holds it."""
        found = _read(self._bucket, LEASE)
        return found is not None and found.token == self._holder.token

    def check(self) -> None:
        """Make sure that no other process has taken over.

        Raises:
            HeldError: If one has, or the object was deleted.
            RecordError: If the storage does not answer.
        """
        if not self.is_held():
            raise HeldError(
                f"{self._bucket.url}: another process took over, since this one did not respond for {GONE_S:g} s or "
                f"the object {LEASE} was deleted. Run the same command again."
            )

    def release(self) -> None:
        """Give the lease back; a forked child, which does not hold it, does nothing."""
        if os.getpid() != self._holder.pid:
            return
        self._stop.set()
        self._thread.join()
        with suppress(RecordError):  # a lease that cannot be removed ends with this process
            if self.is_held():
                self._bucket.remove(LEASE)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(RecordError):  # such as a network that is down for a moment
                if self.is_held():
                    self._bucket.write(LEASE, _encode(self._holder), tries=1)


@contextmanager
def hold_object(bucket: Bucket, what: str = "") -> Iterator[ObjectLease]:
    """Hold the lease of the objects below a URL.

    Args:
        bucket: The storage.
        what: What this process does, for others that want to.

    Yields:
        The lease.

    Raises:
        HeldError: If another process holds it: one that exists on this machine, or that renews it on another one.
        RecordError: If the storage cannot be reached or written.
    """
    holder = describe_self(what)
    first = None
    while (other := _seize(bucket, LEASE, holder)) is not None:
        changed = _changed(bucket)
        if other.is_alive() or changed is None or first not in (None, changed):
            raise HeldError(f"{bucket.url}: in use by {other}. Wait until it has ended.")
        if first is None:
            report_wait(bucket.url, other)
        first = changed
        time.sleep(WATCH_S)
    lease = ObjectLease(bucket, holder)
    try:
        yield lease
    finally:
        lease.release()


def report_wait(place: object, other: Holder) -> None:
    """Report that a holder on another machine may be gone, and is waited for."""
    report(f"{place}: in use by {other}, which may have died. Waiting for a sign of life, at most {GONE_S:g} s.")


def _changed(bucket: Bucket) -> float | None:
    """When the lease was renewed; None if the storage has no such time, 0 if there is no lease now."""
    try:
        return bucket.changed(LEASE)
    except FileNotFoundError:
        return 0.0


def _seize(bucket: Bucket, name: str, me: Holder) -> Holder | None:
    """Create a lease, or replace that of a holder that is gone; return its holder if that is another one."""
    other = _create(bucket, name, me)
    if other is None:
        return None
    if not _is_gone(bucket, name, other):
        return other
    claim = f"{LEASE}.{other.token}.claim"
    if _seize(bucket, claim, me) is not None:
        return other
    try:
        # Only the process with the claim replaces this lease, and it may have been replaced before the claim.
        found = _read(bucket, name)
        if found is None or found.token != other.token:
            return found or other
        bucket.write(name, _encode(me))
        return None
    finally:
        bucket.remove(claim)


def _create(bucket: Bucket, name: str, me: Holder) -> Holder | None:
    """Create a lease; return its holder if there is one."""
    found = _read(bucket, name)
    if found is not None:
        return found
    bucket.create(name, _encode(me))
    if (found := _read(bucket, name)) is not None and found.token != me.token:
        return found
    if bucket.create(name, _encode(me)):  # the storage replaces objects
        time.sleep(SETTLE_S)
    found = _read(bucket, name)
    return None if found is not None and found.token == me.token else found or _UNKNOWN


_UNKNOWN = Holder("", "", 0, "", 0.0, "", "0")


def _is_gone(bucket: Bucket, name: str, holder: Holder) -> bool:
    """Whether a holder is gone: by its process on this machine, else by the age of its lease."""
    alive = holder.is_alive()
    return not alive if alive is not None else _age(bucket, name) > GONE_S


def _age(bucket: Bucket, name: str) -> float:
    """Seconds since a lease was renewed, by the clock of the storage; 0 if it has none."""
    now = f"{LEASE}.{secrets.token_hex(8)}.tmp"
    try:
        bucket.write(now, b"")
        times = bucket.changed(now), bucket.changed(name)
    except FileNotFoundError:
        return 0.0
    finally:
        bucket.remove(now)
    return 0.0 if times[0] is None or times[1] is None else times[0] - times[1]


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _read(bucket: Bucket, name: str) -> Holder | None:
    """Read a lease; None if there is none."""
    try:
        data = bucket.read(name)
    except FileNotFoundError:
        return None
    try:
        holder = Holder(**json.loads(data))
        if isinstance(holder.pid, int) and isinstance(holder.since, float) and str(holder.token).isalnum():
            return holder
    except (ValueError, TypeError):
        pass
    return _UNKNOWN
