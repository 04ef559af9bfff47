"""SHA-256 digests beside cached files, which detect a flipped bit or a missing end at every use.

A single file can be *sealed*: its digest follows its content. Files that belong together have a list of digests in the
format of `sha256sum`, so that `sha256sum --check` reads it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

from advseg_bench.cache.files import content_hash, write_bytes

SUMS = "SHA256SUMS"
"""Name of a list of digests."""

_BYTES = hashlib.sha256().digest_size


def seal(data: bytes) -> bytes:
    """Return data followed by their digest."""
    return data + hashlib.sha256(data).digest()


def unseal(sealed: bytes) -> bytes | None:
    """Return the data of `seal`; None if they do not match their digest."""
    data, digest = sealed[:-_BYTES], sealed[-_BYTES:]
    return data if hashlib.sha256(data).digest() == digest else None


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(value: object) -> str:
    """Return the SHA-256 of a value that is stored as JSON together with this digest."""
    return content_hash(value, length=64)


def list_files(folder: Path) -> list[str]:
    """Return the files in a folder and its subfolders, relative to it; hidden ones do not count."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in found)


def write_sums(sums: Path, folder: Path, names: Sequence[str]) -> None:
    """Write the digests of some files.

    Args:
        sums: The list to write.
        folder: The folder that the names are relative to.
        names: The files.

    Raises:
        RecordError: If the list cannot be written.
    """
    lines = [f"{hash_file(folder / name)}  {name}\n" for name in names]
    write_bytes(sums, "".join(lines).encode())


def find_change(sums: Path, folder: Path, names: Collection[str]) -> str | None:
    """Compare files with their digests.

    Args:
        sums: The list of digests.
        folder: The folder that the names are relative to.
        names: The files that there must be.

    Returns:
        What is wrong, such as "model.json does not match its digest"; None if nothing is.

    Raises:
        OSError: If the list or a file cannot be read.
    """
    try:
        lines = [line.split("  ", 1) for line in sums.read_bytes().decode().splitlines()]
        known = {name: digest for digest, name in lines}
    except ValueError:
        return f"{sums.name} is damaged"
    for name in sorted({*names, *known}):
        if name not in known:
            return f"{name} has no digest"
        if name not in names or not (folder / name).is_file():
            return f"{name} is missing"
        if hash_file(folder / name) != known[name]:
            return f"{name} does not match its digest"
    return None
