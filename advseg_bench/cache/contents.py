"""What the cache holds: entries with size, age, purpose and holder, and how they are verified and removed.

Only files and folders that this package names are entries. Nothing else in the cache folder is read or removed.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from advseg_bench.cache.digests import SUMS, find_change, hash_json, list_files, unseal
from advseg_bench.cache.files import cache_root, is_writable, sweep
from advseg_bench.cache.holder import Holder
from advseg_bench.cache.lease import LEASE, find_holder, hold
from advseg_bench.errors import HeldError, RecordError

WEIGHTS, SIDECAR, ABOUT, CHECKPOINT = "model.safetensors", "model.json", "about.json", "resume.pt"
"""Files in the folder of a trained model; `models.trained_cache` writes them."""
VERIFIED = (WEIGHTS, SIDECAR)
"""Those with digests."""

_KEY = re.compile(r"[0-9a-f]{16}")

EntryType = Literal["model", "scan", "data", "timing"]
State = Literal["whole", "unfinished", "without digest", "damaged"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One result in the cache.

    Attributes:
        type: A trained model, a scan of the phantom, phantom data in the format of a data set, or a model's timing.
        key: Its key, 16 hexadecimal digits.
        path: Its file or folder.
        lease: The lease that its writer holds.
        size: Size in bytes.
        changed: When it was last written, in seconds since 1970.
        about: What it is for.
    """

    type: EntryType
    key: str
    path: Path
    lease: Path
    size: int
    changed: float
    about: str

    @property
    def holder(self) -> Holder | None:
        """The process that writes it now."""
        return find_holder(self.lease)

    @property
    def unfinished(self) -> bool:
        """Whether its making is not complete."""
        if self.type == "data":
            return self.path.suffix != ""
        return self.type == "model" and not all((self.path / name).exists() for name in VERIFIED)


def list_entries(root: Path | None = None) -> list[Entry]:
    """Return everything in the cache, by type, newest first."""
    root = cache_root() if root is None else root
    found = [*_models(root / "models"), *_data(root / "drawn"), *_scans(root / "phantom"), *_timings(root / "timings")]
    order = ("model", "data", "scan", "timing")
    return sorted(found, key=lambda entry: (order.index(entry.type), -entry.changed))


def verify(entry: Entry) -> tuple[State, str]:
    """Compare an entry with its digests.

    Args:
        entry: The entry.

    Returns:
        Its state, and what is wrong with it or "".
    """
    try:
        return _VERIFY[entry.type](entry)
    except OSError as error:
        return "damaged", f"{error.filename}: {error.strerror}"


def remove(entry: Entry) -> str | None:
    """Remove an entry, unless a living process writes it.

    Args:
        entry: The entry.

    Returns:
        None if it was removed, else why it was kept.

    Raises:
        RecordError: If it cannot be removed.
    """
    if (reason := is_writable(entry.lease.parent)) is not None:
        raise RecordError(f"{entry.path}: cannot be removed: {reason}. Change the permissions of the cache.")
    try:
        with hold(entry.lease, what="removing", wait=False) as lease:
            sweep(entry.lease.parent)
            lease.sweep_claims()
            if entry.type == "model":
                for path in entry.path.iterdir():
                    if path != entry.lease:
                        _delete(path)
            else:
                _delete(entry.path)
                entry.path.with_name(f"{entry.path.name}.sha256").unlink(missing_ok=True)
    except HeldError:
        return f"in use by {find_holder(entry.lease) or 'another process'}"
    except OSError as error:
        raise RecordError(f"{error.filename}: cannot be removed: {error.strerror}.") from None
    if entry.type == "model":
        with suppress(OSError):  # a process that has begun to train it keeps the folder
            entry.path.rmdir()
    return None


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _measure(paths: list[Path]) -> tuple[int, float]:
    """Size of some files, and when the last of them was written; a file that vanishes meanwhile does not count."""
    size, changed = 0, 0.0
    for path in paths:
        with suppress(OSError):
            found = path.stat()
            size, changed = size + found.st_size, max(changed, found.st_mtime)
    return size, changed or time.time()


def _find(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """Files or folders named by a key and an ending."""
    try:
        paths = sorted(folder.iterdir())
    except OSError:
        return
    for path in paths:
        key = path.name.removesuffix(ending)
        if path.name == key + ending and _KEY.fullmatch(key):
            yield key, path


def _models(folder: Path) -> Iterator[Entry]:
    for key, path in _find(folder, ""):
        if path.is_dir():
            files = [file for file in path.iterdir() if file.name != LEASE]
            yield Entry("model", key, path, path / LEASE, *_measure(files), _describe_model(path))


def _describe_model(folder: Path) -> str:
    try:
        about = json.loads((folder / ABOUT).read_text())
        network = about["architecture"] + (f" with {about['encoder']}" if about["encoder"] else "")
        suite = f" of suite {about['suite']}" if about["suite"] else ""
        text = f"{about['model']}{suite}: {network} on {about['data']}, {about['epochs']} epochs"
    except (OSError, ValueError, TypeError, KeyError):
        return "a model trained by an older version"
    return "".join(char if char.isprintable() else " " for char in text)[:300]


def _data(folder: Path) -> Iterator[Entry]:
    for ending in ("", ".unfinished", ".damaged"):
        for key, path in _find(folder, ending):
            if path.is_dir():
                files = [file for file in path.rglob("*") if file.is_file()]
                yield Entry("data", key, path, folder / LEASE, *_measure(files), "phantom data for uw_madison")


def _scans(folder: Path) -> Iterator[Entry]:
    for key, path in _find(folder, ".npz"):
        yield Entry("scan", key, path, folder / LEASE, *_measure([path]), "a scan of the phantom")


def _timings(folder: Path) -> Iterator[Entry]:
    for key, path in _find(folder, ".json"):
        yield Entry("timing", key, path, folder / LEASE, *_measure([path]), "the run time of a model")


def _verify_model(entry: Entry) -> tuple[State, str]:
    sums, checkpoint = entry.path / SUMS, entry.path / CHECKPOINT
    if not sums.exists():
        if not entry.unfinished:
            return "without digest", ""
        if checkpoint.exists() and unseal(checkpoint.read_bytes()) is None:
            return "damaged", f"{CHECKPOINT} does not match its digest"
        return "unfinished", ""
    fault = find_change(sums, entry.path, VERIFIED)
    return ("damaged", fault) if fault else ("whole", "")


def _verify_data(entry: Entry) -> tuple[State, str]:
    sums = entry.path.with_name(f"{entry.path.name}.sha256")
    if entry.unfinished:
        return "unfinished", ""
    if not sums.exists():
        return "without digest", ""
    fault = find_change(sums, entry.path, list_files(entry.path))
    return ("damaged", fault) if fault else ("whole", "")


def _verify_scan(entry: Entry) -> tuple[State, str]:
    fault = f"{entry.path.name} does not match its digest"
    return ("damaged", fault) if unseal(entry.path.read_bytes()) is None else ("whole", "")


def _verify_timing(entry: Entry) -> tuple[State, str]:
    try:
        values = json.loads(entry.path.read_bytes())
        digest = values.pop("sha256", None)
    except (ValueError, AttributeError, TypeError):
        return "damaged", f"{entry.path.name} is not readable"
    if digest is None:
        return "without digest", ""
    return ("whole", "") if digest == hash_json(values) else ("damaged", f"{entry.path.name} does not match its digest")


_VERIFY: dict[EntryType, Callable[[Entry], tuple[State, str]]] = {
    "model": _verify_model,
    "data": _verify_data,
    "scan": _verify_scan,
    "timing": _verify_timing,
}
