"""Where derived files are kept, and the one way a file is written: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from advseg_bench.errors import RecordError


def cache_root() -> Path:
    """Return where the cache is: `$ADVSEG_BENCH_CACHE`, else `advseg-bench` in the platform's cache folder."""
    root = os.environ.get("ADVSEG_BENCH_CACHE")
    if root is not None:
        return Path(root)
    base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return Path(os.environ.get("XDG_CACHE_HOME", base)) / "advseg-bench"


def cache_dir(*parts: str) -> Path:
    """Return a folder of the cache, made if need be.

    Everything in the cache can be made again, so it may be deleted at any time.

    Raises:
        RecordError: If the folder cannot be made.
    """
    folder = cache_root().joinpath(*parts)
    make_folder(folder)
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises: RecordError: if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordError(f"{folder}: cannot be made a folder: {error.strerror}. Choose another place.") from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader, even after a power cut, sees all of it or the old one.

    Raises:
        RecordError: On a full disk or an unwritable place; what was there before is untouched.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RecordError(
            f"{path}: could not be written: {error.strerror}. "
            "What was finished before is kept; make room or access there and run the same command again."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON; errors as `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def content_hash(value: Any, length: int = 16) -> str:
    """Return the first hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
