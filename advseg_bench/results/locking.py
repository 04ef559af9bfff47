"""A run directory is written by one process at a time, which holds its lock."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advseg_bench.cache import make_folder, remove_empty
from advseg_bench.errors import RecordError, expected
from advseg_bench.results.descriptions import read_description

FOLDERS = ("models", "parts", "panels")
"""Folders of every run."""

WRITTEN_LATER = ("report", "report/tables", "report/figures")
"""Other folders in which a process that was killed may leave an unfinished file."""


@contextmanager
def own(out: Path) -> Iterator[None]:
    """Lock a run directory for this process; the lock is released when the process ends, for whatever reason.

    A new directory that holds no run in the end, since the run was refused, is removed.

    Raises:
        RecordError: If the directory cannot be created, contains other files, or is locked by another run.
    """
    _check_free(out)
    new = not out.exists()
    make_folder(out)
    path = out / ".lock"
    try:
        lock = path.open("a")
    except OSError as error:
        raise RecordError(f"{out}: cannot be written: {error.strerror}. Choose another --out.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{out}: another run is writing here. Wait for it or choose another --out.") from None
        for folder in FOLDERS:
            make_folder(out / folder)
        for folder in ("", *FOLDERS, *WRITTEN_LATER):
            for leftover in (out / folder).glob(".*.tmp"):
                leftover.unlink()
        try:
            yield
        finally:
            if new and not (out / "run.json").exists():
                remove_empty(out, spare=path)


def _check_free(out: Path) -> None:
    """Reject a path that is not a folder, or a folder with other files."""
    try:
        if out.exists() and not out.is_dir():
            raise RecordError(expected(out, "a folder for the run", "a file", "Choose another --out."))
        empty = not out.is_dir() or not any(out.iterdir())
        described = (out / "run.json").exists()
        held = (out / ".lock").exists()
    except OSError as error:
        raise RecordError(f"{out}: cannot be used: {error.strerror}. Choose another --out.") from None
    if described:
        read_description(out)
    elif not empty and not held:
        raise RecordError(
            f"{out}: the folder is not empty and holds no run. Nothing was changed; choose another --out."
        )
