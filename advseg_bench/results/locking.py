"""A run directory is written by one process at a time, which holds its lease; see the module `cache.lease`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from advseg_bench.cache import guard_writes, make_folder, remove_empty, write_bytes
from advseg_bench.cache.lease import LEASE, Lease, hold
from advseg_bench.errors import RecordError, expected
from advseg_bench.results.descriptions import read_description
from advseg_bench.results.object_lease import report_wait
from advseg_bench.results.remote import FOLDERS, MARK, find_mirror

WRITTEN_LATER = ("report", "report/tables", "report/figures")
"""Other folders in which a process that was killed may leave an unfinished file."""

EARLIER_MARK = ".lock"
"""The same in folders of older versions, which kept it as their lock."""


@contextmanager
def own(out: Path, what: str = "run") -> Iterator[None]:
    """Hold the lease of a run directory; if the process dies, another one can take it over.

    Before each file that is written with `cache.write_bytes`, the lease is checked. A directory that mirrors object
    storage is first made equal to it, and each file is uploaded when it is written. A new directory that holds no run
    in the end, since the run was refused, is removed.

    Args:
        out: The run directory; created if it does not exist.
        what: What this process does, for others that want to.

    Raises:
        HeldError: If another process holds the lease, or has taken it over.
        RecordError: If the directory cannot be created, or contains other files.
    """
    with ExitStack() as stack:
        if (mirror := find_mirror(out)) is not None:
            stack.enter_context(mirror.own(what))
        _check_free(out)
        new = not out.exists()
        make_folder(out)
        notice = partial(report_wait, out)
        lease = stack.enter_context(hold(out / LEASE, what=what, wait=False, until_sure=True, on_wait=notice))
        try:
            with guard_writes(out, lease.check, mirror.push if mirror else _do_nothing):
                _prepare(out, lease)
                yield
                if mirror is not None:
                    _finish(out, new=False)
                    mirror.push()
        finally:
            if lease.is_held():
                _finish(out, new)


def _do_nothing() -> None:
    """Leave a file where it was written."""


def _prepare(out: Path, lease: Lease) -> None:
    """Mark the folder, create its folders, and remove what processes that were killed have left."""
    lease.sweep_claims()
    if not (out / "run.json").exists():
        write_bytes(out / MARK, b"")
    for folder in FOLDERS:
        make_folder(out / folder)
    for folder in ("", *FOLDERS, *WRITTEN_LATER):
        for leftover in (out / folder).glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


def _finish(out: Path, new: bool) -> None:
    """Remove the mark of a folder that holds a run, or a new folder that holds nothing."""
    if (out / "run.json").exists():
        (out / MARK).unlink(missing_ok=True)
    elif new:
        remove_empty(out, spare=(out / MARK, out / LEASE))


def _check_free(out: Path) -> None:
    """Reject a path that is not a folder, or a folder with other files."""
    try:
        if out.exists() and not out.is_dir():
            raise RecordError(expected(out, "a folder for the run", "a file", "Choose another --out."))
        names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    except OSError as error:
        raise RecordError(f"{out}: cannot be used: {error.strerror}. Choose another --out.") from None
    if "run.json" in names:
        read_description(out)
    elif not names & {MARK, EARLIER_MARK} and any(not name.startswith(LEASE) for name in names):
        raise RecordError(
            f"{out}: the folder is not empty and holds no run. Nothing was changed; choose another --out."
        )
