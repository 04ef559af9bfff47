"""The cache folder, and atomic writing: a file is written completely or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from advseg_bench.errors import RecordError

CACHE_REMEDY = "Set the environment variable ADVSEG_BENCH_CACHE to a folder that can be written."


def cache_root() -> Path:
    """Return the cache folder: `$ADVSEG_BENCH_CACHE`, else `advseg-bench` in the platform's cache folder."""
    root = os.environ.get("ADVSEG_BENCH_CACHE")
    if root is not None:
        return Path(root).absolute()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "advseg-bench"
    try:
        home = Path.home()
    except RuntimeError:  # a user of a container without an entry in /etc/passwd
        home = Path("/")
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "advseg-bench"


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache; create it if it does not exist.

    Everything in the cache can be computed again, so it may be deleted at any time.

    Raises:
        RecordError: The folder cannot be created.
    """
    folder = cache_root().joinpath(*parts)
    make_folder(folder, CACHE_REMEDY)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RecordError(f"{folder}: expected a folder that can be written, got one that cannot. {CACHE_REMEDY}")
    return folder


def is_writable(folder: Path) -> str | None:
    """Return why a folder, or the nearest one above it that exists, cannot be written; None if it can.

    This writes nothing, and root cannot write to a file system that is mounted read-only either.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    return os.strerror(errno.EROFS if read_only else errno.EACCES)


def make_folder(folder: Path, remedy: str = "Choose another path.") -> None:
    """Create a folder and its parents.

    Raises:
        RecordError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder}: cannot create this folder: {error.strerror}. {remedy}") from None


def remove_empty(folder: Path, spare: Collection[Path]) -> None:
    """Remove a folder with its empty subfolders, unless there is any file but some; what cannot be removed stays.

    Args:
        folder: The folder.
        spare: The files inside it that are removed with it, such as a lease.
    """
    inside = list(folder.rglob("*"))
    if any(path not in spare and not path.is_dir() for path in inside):
        return
    with suppress(OSError):
        for path in sorted((path for path in inside if path not in spare), reverse=True):
            path.rmdir()
        for path in spare:
            path.unlink(missing_ok=True)
        folder.rmdir()


_guards: dict[Path, tuple[Callable[[], None], Callable[[], None]]] = {}


@contextmanager
def guard_writes(folder: Path, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Call functions before and after each `write_bytes` of this process in a folder or below it.

    Args:
        folder: The folder; it has no other guard.
        before: May raise an error, so that the file is not written.
        after: Called when the file is there; its errors reach the caller of `write_bytes`.
    """
    key = folder.absolute()
    _guards[key] = before, after
    try:
        yield
    finally:
        del _guards[key]


def _find_guards(path: Path) -> list[tuple[Callable[[], None], Callable[[], None]]]:
    if not _guards:
        return []
    return [_guards[folder] for folder in path.absolute().parents if folder in _guards]


def sweep(folder: Path) -> None:
    """Remove what interrupted calls of `write_bytes` left in a folder; the caller is the only one that writes there."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file atomically: a reader sees the complete new file or the old one, even after a power cut.

    Args:
        path: The file.
        data: Its content.
        mode: Its permissions, from which the umask of the process takes some.

    Raises:
        RecordError: The disk is full or the path is not writable; the old file is unchanged. Also the errors of
            `guard_writes`.
    """
    guards = _find_guards(path)
    for before, _ in guards:
        before()
    temporary = None
    try:
        name = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        temporary = name
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RecordError(
            f"{path}: could not be written: {error.strerror}. "
            "Finished results are kept. Free disk space or fix the permissions, then run the same command again."
        ) from None
    for _, after in guards:
        after()


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON; raises the errors of `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def content_hash(value: Any, length: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
